"""Bring the films of a source to a folder on this machine, wherever they are.

A location is `sample`, a folder, a zip, `https://...` or `s3://bucket/prefix`. What is fetched is
kept below the downloads folder and not fetched again.
"""

from dataclasses import dataclass
from pathlib import Path

from cxr.errors import SourceError
from cxr.files import sha256_of, whole_folder


@dataclass(frozen=True)
class Sample:
    """Parameters of the synthetic sample."""

    patients_per_class: int
    seed: int


@dataclass(frozen=True)
class Fetched:
    """Where the films are; `is_archive`: the folder holds what one archive or prefix held, nothing else."""

    folder: Path
    is_archive: bool


def fetch(location: str, *, downloads: Path, sample: Sample, sha256: str | None = None) -> Fetched:
    """Return a folder with the films of `location`.

    Args:
        location: `sample`, a folder, a zip, an address.
        downloads: where copies are kept.
        sample: what the synthetic sample is made of.
        sha256: of a zip, where it is known; a file that differs is refused.

    Raises:
        SourceError: the location cannot be reached, is corrupt or is of no known kind.
    """
    if location == "sample":
        return Fetched(_sample(downloads, sample), is_archive=False)
    path = Path(location).expanduser()
    if path.is_dir():
        return Fetched(path, is_archive=False)
    raise SourceError(
        f"{location}: no such folder or file; expected `sample`, a folder, a zip, https://... or s3://bucket/prefix"
    )


def _sample(downloads: Path, sample: Sample) -> Path:
    from cxr import phantom  # only the sample needs the generator

    generator = sha256_of(Path(phantom.__file__))
    folder = downloads / f"sample-{sample.patients_per_class}-{sample.seed}-{generator[:16]}"
    if not folder.is_dir():
        with whole_folder(folder) as partial:
            phantom.write_sample(partial, patients_per_class=sample.patients_per_class, seed=sample.seed)
    return folder

"""Bring the images of a source to a folder on this machine, wherever they are.

A location is `sample`, a folder, a zip, `https://...` or `s3://bucket/prefix`. What is fetched is
kept below the downloads folder and not fetched again.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cxr.common.archives import DamagedArchiveError, unpack
from cxr.common.errors import SourceError
from cxr.common.files import atomic_folder, sha256_of


@dataclass(frozen=True)
class Sample:
    """Parameters of the synthetic sample."""

    patients_per_class: int
    seed: int


@dataclass(frozen=True)
class Fetched:
    """Where the images are; `is_archive`: the folder holds what one archive or prefix held, nothing else."""

    folder: Path
    is_archive: bool


def fetch(location: str, *, downloads: Path, sample: Sample, sha256: str | None = None) -> Fetched:
    """Return a folder with the images of `location`.

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
    if location.startswith(("https://", "http://")):
        return Fetched(_http(location, downloads, sha256), is_archive=True)
    if location.startswith("s3://"):
        return Fetched(_s3(location, downloads, sha256), is_archive=True)
    path = Path(location).expanduser()
    if path.is_dir():
        return Fetched(path, is_archive=False)
    if path.is_file():
        return Fetched(unpack(path, downloads, sha256=sha256), is_archive=True)
    raise SourceError(
        f"{location}: no such folder or file; expected `sample`, a folder, a zip, https://... or s3://bucket/prefix"
    )


def _sample(downloads: Path, sample: Sample) -> Path:
    import cxr.dataset.synthetic  # only the sample needs the generator

    written_by = Path(cxr.dataset.synthetic.__file__)
    digests = [sha256_of(path) for path in sorted(written_by.parent.glob("synthetic*.py"))]
    generator = hashlib.sha256("".join(digests).encode()).hexdigest()
    folder = downloads / f"sample-{sample.patients_per_class}-{sample.seed}-{generator[:16]}"
    if not folder.is_dir():
        with atomic_folder(folder) as partial:
            cxr.dataset.synthetic.write_sample(partial, patients_per_class=sample.patients_per_class, seed=sample.seed)
    return folder


def _http(url: str, downloads: Path, sha256: str | None) -> Path:
    from cxr.common.download import download

    name = Path(urlsplit(url).path).name or "download"
    archive = downloads / f"http-{hashlib.sha256(url.encode()).hexdigest()[:16]}" / name
    download(url, archive, sha256=sha256)
    try:
        return unpack(archive, downloads)
    except DamagedArchiveError:
        archive.unlink()  # or every later run would stumble over it
        raise


def _s3(address: str, downloads: Path, sha256: str | None) -> Path:
    from cxr.common.s3 import mirror

    folder = mirror(address, downloads)
    archive = folder / Path(address).name
    return unpack(archive, downloads, sha256=sha256) if archive.is_file() else folder

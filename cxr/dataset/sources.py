"""Fetch the images of a source to a folder on this machine.

A location is `sample`, a folder, a zip, `https://...` or `s3://bucket/prefix`. Downloads are kept below the downloads
folder and not repeated.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cxr.common.archives import DamagedArchiveError, unpack
from cxr.common.download import download
from cxr.common.errors import SourceError
from cxr.common.files import atomic_folder, expanded, sha256_of
from cxr.common.locks import downloads_lock
from cxr.dataset import synthetic, synthetic_image


@dataclass(frozen=True)
class Sample:
    """Parameters of the synthetic sample."""

    patients_per_class: int
    seed: int


@dataclass(frozen=True)
class Fetched:
    """A folder of images; `is_archive`: it holds the contents of one archive or S3 prefix, and nothing else."""

    folder: Path
    is_archive: bool


def fetch(location: str, *, downloads: Path, sample: Sample, sha256: str | None = None) -> Fetched:
    """Return a folder with the images of `location`.

    Args:
        location: `sample`, a folder, a zip, or an http(s) or s3 address.
        downloads: folder for downloads and unpacked zips.
        sample: parameters of the synthetic sample.
        sha256: expected digest of a zip, if known.

    Raises:
        SourceError: the location does not exist or cannot be reached, or the zip is damaged or has another digest.
    """
    path = expanded(location)
    if location != "sample" and path.is_dir():
        return Fetched(path, is_archive=False)
    with downloads_lock(downloads):
        if location == "sample":
            return Fetched(_sample(downloads, sample), is_archive=False)
        if location.startswith(("https://", "http://")):
            return Fetched(_http(location, downloads, sha256), is_archive=True)
        if location.startswith("s3://"):
            return Fetched(_s3(location, downloads, sha256), is_archive=True)
        if path.is_file():
            return Fetched(unpack(path, downloads, sha256=sha256), is_archive=True)
    raise SourceError(
        f"{location}: no such folder or file; expected `sample`, a folder, a zip, https://... or s3://bucket/prefix"
    )


def _sample(downloads: Path, sample: Sample) -> Path:
    digests = [sha256_of(Path(str(module.__file__))) for module in (synthetic, synthetic_image)]
    generator = hashlib.sha256("".join(digests).encode()).hexdigest()
    folder = downloads / f"sample-{sample.patients_per_class}-{sample.seed}-{generator[:16]}"
    if not folder.is_dir():
        with atomic_folder(folder) as partial:
            synthetic.write_sample(partial, patients_per_class=sample.patients_per_class, seed=sample.seed)
    return folder


def _http(url: str, downloads: Path, sha256: str | None) -> Path:
    name = Path(urlsplit(url).path).name or "download"
    archive = downloads / f"http-{hashlib.sha256(url.encode()).hexdigest()[:16]}" / name
    download(url, archive, sha256=sha256)
    try:
        return unpack(archive, downloads)
    except DamagedArchiveError:
        archive.unlink()  # the next run downloads it again
        raise


def _s3(address: str, downloads: Path, sha256: str | None) -> Path:
    from cxr.common.s3 import mirror  # boto3 takes about a second to import, and only S3 needs it

    folder = mirror(address, downloads)
    archive = folder / Path(address).name
    return unpack(archive, downloads, sha256=sha256) if archive.is_file() else folder

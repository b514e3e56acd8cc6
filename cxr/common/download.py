"""Download a large file over HTTP: resumes after an interruption and checks the digest.

During the download, `.<name>.part` holds the bytes received so far and `.<name>.part.json` the version they belong to.
Beside the finished file, `<name>.sha256` records its digest in the format of `sha256sum -c`.
"""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from cxr.common.errors import SourceError
from cxr.common.files import atomic_file, sha256_of

ATTEMPTS = 5
_TIMEOUT_S = (10, 60)  # to connect, between two reads
_CHUNK_BYTES = 1 << 18
_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}

log = logging.getLogger("cxr.common.download")


def download(
    url: str, target: Path, *, sha256: str | None = None, headers: Mapping[str, str] | None = None, backoff_s: float = 1
) -> str:
    """Download `url` to `target` and return its SHA-256.

    An existing file with the right digest is not downloaded again.

    Args:
        url: http:// or https://; redirects from https to http are not followed.
        target: the file to write.
        sha256: the expected digest; None: the digest recorded by an earlier run, if any.
        headers: extra headers, such as credentials; requests drops Authorization on redirects to another host.
        backoff_s: pause after the first failure; doubles with each failure. Five failures in a row without progress
            end the download; the next run resumes it.

    Raises:
        SourceError: the server does not answer or rejects the request; or the digest differs, and the file is removed.
    """
    sha256 = sha256 and sha256.lower()
    record = target.with_name(f"{target.name}.sha256")
    if target.is_file():
        expected = sha256 or (record.read_text(encoding="utf-8").split()[0] if record.is_file() else None)
        digest = sha256_of(target)
        if expected in (None, digest):
            _record(record, target, digest)
            return digest
        log.warning("%s has changed since its download; downloading it again", target)
        target.unlink()
    partial = target.with_name(f".{target.name}.part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    _fetch(url, partial, dict(headers or {}), backoff_s)
    digest = sha256_of(partial)
    _version_file(partial).unlink(missing_ok=True)
    if sha256 is not None and digest != sha256:
        partial.unlink()
        raise SourceError(
            f"{url}: the file has the sha256 {digest}, expected {sha256}, and was removed; "
            "run the same command again, or correct the digest if a new version was published"
        )
    partial.replace(target)
    _record(record, target, digest)
    return digest


def _record(record: Path, target: Path, digest: str) -> None:
    with atomic_file(record) as partial:
        partial.write_text(f"{digest}  {target.name}\n", encoding="utf-8")


def _version_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _fetch(url: str, partial: Path, headers: dict[str, str], backoff_s: float) -> None:
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            with requests.Session() as session:
                if _fetch_once(session, url, partial, headers):
                    return
            problem = "the connection was interrupted"
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            problem = _problem(error)
        after = partial.stat().st_size if partial.exists() else 0
        failures = 1 if after > before else failures + 1
        if failures >= ATTEMPTS:
            raise SourceError(
                f"{url}: {problem}, {ATTEMPTS} times in a row; {after:,} bytes are kept: "
                "run the same command again to resume"
            )
        pause = backoff_s * 2 ** (failures - 1)
        log.warning("%s: %s after %s bytes; retrying in %g s", url, problem, f"{after:,}", pause)
        time.sleep(pause)


def _fetch_once(session: requests.Session, url: str, partial: Path, headers: dict[str, str]) -> bool:
    """Append to `partial` until the end or an interruption; return whether it is complete."""
    version, have = _version(partial, url)
    sent = {**headers, "Accept-Encoding": "identity"}
    if have:
        sent |= {"Range": f"bytes={have}-", "If-Range": version}
    with session.get(url, headers=sent, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return True
            partial.unlink()
            return False
        _check(url, response)
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-") and have > 0
        if not resumed:
            have = 0
            _remember_version(partial, url, response)
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        _append(response, partial, have, total)
    return total is None or partial.stat().st_size == total


def _append(response: requests.Response, partial: Path, have: int, total: int | None) -> None:
    bar = tqdm(total=total, initial=have, desc=partial.name[1:-5], unit="B", unit_scale=True, disable=None)
    with bar, partial.open("ab" if have else "wb") as file:
        # read1 returns the bytes received; iter_content would drop up to a chunk when the connection is interrupted.
        while chunk := response.raw.read1(_CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))


def _check(url: str, response: requests.Response) -> None:
    if url.startswith("https://") and not response.url.startswith("https://"):
        raise SourceError(f"{url}: redirects to {response.url}, which is not encrypted; nothing was downloaded")
    if response.status_code in _RETRY_STATUS:
        response.raise_for_status()
    if response.status_code in {401, 403}:
        raise SourceError(
            f"{url}: access denied ({response.status_code} {response.reason}); check the credentials and terms"
        )
    if not response.ok:
        raise SourceError(f"{url}: not found ({response.status_code} {response.reason}); check the address")


def _version(partial: Path, url: str) -> tuple[str, int]:
    """Return the version and size of `partial`; size 0 if the download cannot be resumed."""
    try:
        known = json.loads(_version_file(partial).read_text(encoding="utf-8"))
        if known["url"] == url and known["version"]:
            return str(known["version"]), partial.stat().st_size
    except (OSError, ValueError, KeyError):
        pass  # no partial file, or no record of its version: start again
    return "", 0


def _remember_version(partial: Path, url: str, response: requests.Response) -> None:
    etag = response.headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag  # If-Range requires a strong one
    version = strong or response.headers.get("Last-Modified", "")
    partial.unlink(missing_ok=True)
    with atomic_file(_version_file(partial)) as written:
        written.write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")


def _problem(error: requests.RequestException | urllib3.exceptions.HTTPError) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "the server does not answer in time"
    if isinstance(error, urllib3.exceptions.HTTPError):
        return "the connection was interrupted"
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached"
    return str(error)

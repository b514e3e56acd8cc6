"""Download a large file over HTTP: goes on after a cut, whole or not at all, digest checked.

While it runs, `.<name>.part` holds what has come and `.<name>.part.json` says of which version.
Beside the finished file, `<name>.sha256` records its digest, as `sha256sum -c` reads it.
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
_LATER = {408, 425, 429, 500, 502, 503, 504}

log = logging.getLogger("cxr.common.download")


def download(
    url: str, target: Path, *, sha256: str | None = None, headers: Mapping[str, str] | None = None, backoff_s: float = 1
) -> str:
    """Download `url` to `target` and return its SHA-256.

    A file that is there already with the right digest is not fetched again.

    Args:
        url: http:// or https://; redirects are followed, but never from https to http.
        target: the file to write.
        sha256: the digest it must have; where None, the one recorded by an earlier run, if any.
        headers: to send along, such as credentials; requests drops Authorization on the way to another host.
        backoff_s: the first pause after a failure; doubles with each. Five failures in a row that brought nothing
            end the attempt; what came is kept for the next run.

    Raises:
        SourceError: the address does not answer or refuses, or the digest is another one; the file is then removed.
    """
    record = target.with_name(f"{target.name}.sha256")
    if target.is_file():
        expected = sha256 or (record.read_text(encoding="utf-8").split()[0] if record.is_file() else None)
        digest = sha256_of(target)
        if expected in (None, digest):
            _record(record, target, digest)
            return digest
        log.warning("%s has changed since it was fetched; fetching it again", target)
        target.unlink()
    partial = target.with_name(f".{target.name}.part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    _fetch(url, partial, dict(headers or {}), backoff_s)
    digest = sha256_of(partial)
    _version_file(partial).unlink(missing_ok=True)
    if sha256 is not None and digest != sha256.lower():
        partial.unlink()
        raise SourceError(
            f"{url}: what came has the sha256 {digest}, expected {sha256.lower()}; it was removed: "
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
            problem = "the connection was cut"
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            problem = _why(error)
        after = partial.stat().st_size if partial.exists() else 0
        failures = 1 if after > before else failures + 1
        if failures >= ATTEMPTS:
            raise SourceError(
                f"{url}: {problem}, {ATTEMPTS} times in a row; {after:,} bytes are kept: "
                "run the same command again to go on from there"
            )
        pause = backoff_s * 2 ** (failures - 1)
        log.warning("%s: %s after %s bytes; trying again in %g s", url, problem, f"{after:,}", pause)
        time.sleep(pause)


def _fetch_once(session: requests.Session, url: str, partial: Path, headers: dict[str, str]) -> bool:
    """Append to `partial` until the end or a cut; return whether it is whole."""
    version, have = _version(partial, url)
    asked = {**headers, "Accept-Encoding": "identity"}
    if have:
        asked |= {"Range": f"bytes={have}-", "If-Range": version}
    with session.get(url, headers=asked, stream=True, timeout=_TIMEOUT_S) as response:
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
        # read1 hands on what has come; iter_content would drop up to a chunk of it when the connection is cut.
        while chunk := response.raw.read1(_CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))


def _check(url: str, response: requests.Response) -> None:
    if url.startswith("https://") and not response.url.startswith("https://"):
        raise SourceError(f"{url}: leads to {response.url}, which is not encrypted; nothing was fetched")
    if response.status_code in _LATER:
        response.raise_for_status()
    if response.status_code in {401, 403}:
        raise SourceError(f"{url}: refused ({response.status_code} {response.reason}); check the credentials and terms")
    if not response.ok:
        raise SourceError(f"{url}: not found ({response.status_code} {response.reason}); check the address")


def _version(partial: Path, url: str) -> tuple[str, int]:
    """Return the version of what `partial` holds and its size; size 0 where it cannot be gone on with."""
    try:
        known = json.loads(_version_file(partial).read_text(encoding="utf-8"))
        if known["url"] == url and known["version"]:
            return str(known["version"]), partial.stat().st_size
    except (OSError, ValueError, KeyError):
        pass  # no part, or a kill before its version was written whole: start anew
    return "", 0


def _remember_version(partial: Path, url: str, response: requests.Response) -> None:
    etag = response.headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag  # If-Range takes no weak ones
    version = strong or response.headers.get("Last-Modified", "")
    partial.unlink(missing_ok=True)
    with atomic_file(_version_file(partial)) as written:
        written.write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")


def _why(error: requests.RequestException | urllib3.exceptions.HTTPError) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "the server does not answer in time"
    if isinstance(error, urllib3.exceptions.HTTPError):
        return "the connection was cut"
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached"
    return str(error)

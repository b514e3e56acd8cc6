"""Images in an S3 bucket: a prefix mirrored to a folder, fetching only what is missing or changed, or read as it is.

The endpoint and the keys come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
whatever else boto3 reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tqdm import tqdm

from cxr.common.errors import SourceError
from cxr.common.files import atomic_file, read_json, write_json

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_CONNECTIONS = 8


@dataclass(frozen=True)
class RemoteObject:
    """An object of a bucket; `etag` changes when its bytes do."""

    key: str
    etag: str
    size_bytes: int


class Prefix:
    """The objects under `s3://bucket/prefix`, read into memory one at a time; several threads may read.

    Raises, in every method:
        SourceError: the bucket cannot be reached or refuses.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._bucket, self._prefix = _parts(address)
        with _bucket_errors(address):
            self._client = _connect()

    def objects(self) -> dict[str, RemoteObject]:
        """Return path below the prefix -> object; none where there is nothing under it."""
        with _bucket_errors(self._address):
            return _list(self._client, self._bucket, self._prefix)

    def read(self, key: str) -> bytes:
        """Return an object's bytes. Raises FileNotFoundError where it went since it was listed."""
        from botocore.exceptions import ClientError

        with _bucket_errors(self._address):
            try:
                return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in {"NoSuchKey", "404"}:
                    raise FileNotFoundError(f"s3://{self._bucket}/{key}") from error
                raise


def mirror(address: str, downloads: Path) -> Path:
    """Bring `s3://bucket/prefix` to a folder below `downloads` and return it.

    A prefix that is itself one object comes as the file `<folder>/<name of the object>`. Objects
    that went from the bucket go from the folder.

    Raises:
        SourceError: the bucket cannot be reached or refuses, or there is nothing under the prefix.
    """
    bucket, prefix = _parts(address)
    folder = downloads / f"s3-{hashlib.sha256(address.rstrip('/').encode()).hexdigest()[:16]}"
    with _bucket_errors(address):
        client = _connect()
        objects = _list(client, bucket, prefix)
        if not objects:
            raise SourceError(f"{address}: there is nothing under this prefix; check bucket and prefix")
        _update(client, bucket, objects, folder)
    return folder


def _parts(address: str) -> tuple[str, str]:
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    if not bucket:
        raise SourceError(f"{address} names no bucket; expected s3://bucket/prefix")
    return bucket, prefix


def _connect() -> S3Client:
    import boto3
    from botocore.config import Config

    return boto3.Session().client("s3", config=Config(max_pool_connections=_CONNECTIONS, retries={"mode": "standard"}))


@contextmanager
def _bucket_errors(address: str) -> Iterator[None]:
    """Turn what boto3 raises into one line that names the address and no key."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise SourceError(
            f"{address}: {error}; check bucket, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error


def _list(client: S3Client, bucket: str, prefix: str) -> dict[str, RemoteObject]:
    """Return path below the prefix -> object."""
    below = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    found: dict[str, RemoteObject] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix.rstrip("/")):
        for item in page.get("Contents", []):
            key = item["Key"]
            if key.endswith("/") or not (key == prefix or key.startswith(below)):
                continue  # a folder's marker, or a neighbour such as `images-old/` beside `images`
            path = PurePosixPath(key).name if key == prefix else key.removeprefix(below)
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise SourceError(f"s3://{bucket}/{key} would leave the folder; nothing was fetched")
            found[path] = RemoteObject(key, item["ETag"], item["Size"])
    return found


def _update(client: S3Client, bucket: str, objects: dict[str, RemoteObject], folder: Path) -> None:
    from boto3.s3.transfer import TransferConfig

    # The record lies beside the folder: inside it would count as one of the images.
    record = folder.with_name(f"{folder.name}.json")
    held: dict[str, str] = read_json(record) if record.is_file() else {}
    for path in [path for path in held if path not in objects]:
        (folder / path).unlink(missing_ok=True)
        del held[path]
    wanted = [path for path in objects if held.get(path) != objects[path].etag or not (folder / path).is_file()]

    def bring(path: str) -> str:
        with atomic_file(folder / path) as partial:
            client.download_file(bucket, objects[path].key, str(partial), Config=TransferConfig(use_threads=False))
        return path

    try:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for path in tqdm(pool.map(bring, wanted), total=len(wanted), desc=bucket, unit="file", disable=None):
                held[path] = objects[path].etag
    finally:
        write_json(record, held)  # after a cut, too: the next run goes on from here

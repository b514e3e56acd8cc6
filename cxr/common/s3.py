"""Images in an S3 bucket: read objects of a prefix, or mirror a prefix to a folder.

Endpoint and keys come from the environment variables and files that boto3 reads, such as AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from tqdm import tqdm

from cxr.common.errors import SourceError
from cxr.common.files import atomic_file, read_json, write_json

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_CONNECTIONS = 8
_MOST_CHARACTERS = 300
_TIMEOUTS_S = (10, 60)  # to connect, between two reads
_DENIED = {
    "403",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}


@dataclass(frozen=True)
class RemoteObject:
    """An object of a bucket; `etag` changes when its bytes change."""

    key: str
    etag: str
    size_bytes: int


class Prefix:
    """The objects under `s3://bucket/prefix`. Safe to read from several threads.

    Raises, in every method:
        SourceError: the bucket cannot be reached or denies access.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._bucket, self._prefix = _parts(address)
        with _bucket_errors(address):
            self._client = _connect()

    def objects(self) -> dict[str, RemoteObject]:
        """Return path below the prefix -> object; empty if there are none."""
        with _bucket_errors(self._address):
            return _list(self._client, self._bucket, self._prefix)

    def read(self, key: str) -> bytes:
        """Return an object's bytes. Raises FileNotFoundError if it was deleted since it was listed."""
        with _bucket_errors(self._address):
            try:
                return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in {"NoSuchKey", "404"}:
                    raise FileNotFoundError(f"s3://{self._bucket}/{key}") from error
                raise

    def download(self, key: str, target: Path) -> None:
        """Write an object to a file. Raises FileNotFoundError if it was deleted since it was listed."""
        with _bucket_errors(self._address):
            try:
                self._client.download_file(self._bucket, key, str(target), Config=TransferConfig(use_threads=False))
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in {"NoSuchKey", "404"}:
                    raise FileNotFoundError(f"s3://{self._bucket}/{key}") from error
                raise

    def upload(self, source: Path, path: str) -> None:
        """Write a file to `path` below the prefix, over what is there."""
        key = f"{self._prefix.rstrip('/')}/{path}".lstrip("/")
        with _bucket_errors(self._address):
            self._client.upload_file(str(source), self._bucket, key, Config=TransferConfig(use_threads=False))


def mirror(address: str, downloads: Path) -> Path:
    """Mirror `s3://bucket/prefix` to a folder below `downloads` and return the folder.

    Only missing and changed objects are downloaded; files whose objects were deleted are removed. A prefix that is the
    name of one object becomes the file `<folder>/<name of the object>`.

    Raises:
        SourceError: the bucket cannot be reached or denies access, or there are no objects under the prefix.
    """
    bucket, prefix = _parts(address)
    folder = downloads / f"s3-{hashlib.sha256(address.rstrip('/').encode()).hexdigest()[:16]}"
    with _bucket_errors(address):
        client = _connect()
        objects = _list(client, bucket, prefix)
        if not objects:
            raise SourceError(f"{address}: no objects under this prefix; check bucket and prefix")
        _update(client, bucket, objects, folder)
    return folder


def _parts(address: str) -> tuple[str, str]:
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket:
        raise SourceError(f"{address} names no bucket; expected s3://bucket/prefix")
    return bucket, prefix


def _connect() -> S3Client:
    connect_s, read_s = _TIMEOUTS_S
    return boto3.Session().client(
        "s3",
        config=Config(
            max_pool_connections=_CONNECTIONS,
            retries={"mode": "standard"},
            connect_timeout=connect_s,
            read_timeout=read_s,
        ),
    )


@contextmanager
def _bucket_errors(address: str) -> Iterator[None]:
    """Turn boto3's errors into one line with the address and without keys."""
    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, ResponseParserError) as error:
        raise SourceError(f"{address}: {_reason(address, error)}") from error


def _reason(address: str, error: Exception) -> str:
    """Return what is wrong and what to do. An upload's error holds that of its request as its context."""
    cause = error if isinstance(error, ClientError) else error.__context__
    code = cause.response.get("Error", {}).get("Code", "") if isinstance(cause, ClientError) else ""
    if code == "NoSuchBucket":
        return f"there is no bucket {_parts(address)[0]} ({code}); check its name and AWS_ENDPOINT_URL"
    if code in _DENIED:
        return (
            f"access denied ({code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that this account may "
            "list, read and write there"
        )
    problem = " ".join(str(error).split())[:_MOST_CHARACTERS]  # a parser quotes what it was sent
    return f"{problem}; check bucket, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def _list(client: S3Client, bucket: str, prefix: str) -> dict[str, RemoteObject]:
    """Return path below the prefix -> object."""
    below = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    found: dict[str, RemoteObject] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix.rstrip("/")):
        if "Name" not in page:
            raise SourceError(
                f"s3://{bucket}/{prefix}: AWS_ENDPOINT_URL is not S3: it returns no list of objects; correct it"
            )
        for item in page.get("Contents", []):
            key = item["Key"]
            if key.endswith("/") or not (key == prefix or key.startswith(below)):
                continue  # a folder's placeholder, or a neighbour such as `images-old/` of `images`
            path = PurePosixPath(key).name if key == prefix else key.removeprefix(below)
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise SourceError(f"s3://{bucket}/{key} is outside the folder; nothing was downloaded")
            found[path] = RemoteObject(key, item["ETag"], item["Size"])
    return found


def _update(client: S3Client, bucket: str, objects: dict[str, RemoteObject], folder: Path) -> None:
    # The record is beside the folder, because a file inside would count as an image.
    record = folder.with_name(f"{folder.name}.json")
    held: dict[str, str] = read_json(record) if record.is_file() else {}
    for path in [path for path in held if path not in objects]:
        (folder / path).unlink(missing_ok=True)
        del held[path]
    wanted = [path for path in objects if held.get(path) != objects[path].etag or not (folder / path).is_file()]

    def download(path: str) -> str:
        with atomic_file(folder / path) as partial:
            client.download_file(bucket, objects[path].key, str(partial), Config=TransferConfig(use_threads=False))
        return path

    try:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for path in tqdm(pool.map(download, wanted), total=len(wanted), desc=bucket, unit="file", disable=None):
                held[path] = objects[path].etag
    finally:
        write_json(record, held)  # after an interruption, too: the next run resumes here

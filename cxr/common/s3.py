"""Images in an S3 bucket: read objects of a prefix, or mirror a prefix to a folder.

Endpoint and keys come from the environment variables and files that boto3 reads, such as AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from socket import socket
from typing import TYPE_CHECKING
from weakref import WeakSet

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from tqdm import tqdm

from cxr.common.deadline import LateError, cut_after, noting_pool
from cxr.common.errors import SourceError
from cxr.common.files import atomic_file, read_json, write_json

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

_CONNECTIONS = 8
_MOST_CHARACTERS = 300
_IN_THIS_THREAD = TransferConfig(use_threads=False)
_TIMEOUTS_S = (10, 60)  # to connect, between two reads
_ANSWER_S = 900.0
"""Of a request with its whole answer, and its repetitions; a file gets more by its size."""
_SLOWEST_BYTES_S = 50_000
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
    """An object of a bucket; `etag` changes when its bytes change, `written_s` is the time by the bucket's clock."""

    key: str
    etag: str
    size_bytes: int
    written_s: float


class Prefix:
    """The objects under `s3://bucket/prefix`. Safe to read from several threads.

    Raises, in every method:
        SourceError: the bucket cannot be reached or denies access.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._bucket, self._prefix = _parts(address)
        with _bucket_errors(address):
            self._connection = _connect()

    def objects(self) -> dict[str, RemoteObject]:
        """Return path below the prefix -> object; empty if there are none."""
        with _bucket_errors(self._address):
            return _list(self._connection, self._bucket, self._prefix)

    def read(self, key: str) -> bytes:
        """Return an object's bytes. Raises FileNotFoundError if it was deleted since it was listed."""
        with self._errors(key), self._connection.limited() as client:
            return client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def download(self, item: RemoteObject, target: Path) -> None:
        """Write an object to a file. Raises FileNotFoundError if it was deleted since it was listed."""
        with self._errors(item.key):
            self._connection.download(self._bucket, item, target)

    def upload(self, source: Path, path: str) -> None:
        """Write a file to `path` below the prefix, over what is there."""
        key = f"{self._prefix.rstrip('/')}/{path}".lstrip("/")
        with self._errors(key), self._connection.limited(source.stat().st_size) as client:
            client.upload_file(str(source), self._bucket, key, Config=_IN_THIS_THREAD)

    def remove(self, item: RemoteObject) -> None:
        """Remove an object. It is no error that there is none."""
        with self._errors(item.key), self._connection.limited() as client:
            client.delete_object(Bucket=self._bucket, Key=item.key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        with _bucket_errors(self._address):
            try:
                yield
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in {"NoSuchKey", "404"}:
                    raise FileNotFoundError(f"s3://{self._bucket}/{key}") from error
                raise


def mirror(address: str, downloads: Path) -> Path:
    """Mirror `s3://bucket/prefix` to a folder below `downloads` and return the folder.

    Only missing and changed objects are downloaded; files that are no objects (any more), and what a killed run left
    half written, are removed. A prefix that is the name of one object becomes the file `<folder>/<name of the object>`.

    Raises:
        SourceError: the bucket cannot be reached or denies access, there are no objects under the prefix, or two would
            be one file.
    """
    bucket, prefix = _parts(address)
    folder = downloads / f"s3-{hashlib.sha256(address.rstrip('/').encode()).hexdigest()[:16]}"
    with _bucket_errors(address):
        connection = _connect()
        objects = _list(connection, bucket, prefix)
        if not objects:
            raise SourceError(f"{address}: no objects under this prefix; check bucket and prefix")
        _require_files(bucket, objects)
        _update(connection, bucket, objects, folder)
    return folder


def _parts(address: str) -> tuple[str, str]:
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket:
        raise SourceError(f"{address} names no bucket; expected s3://bucket/prefix")
    return bucket, prefix


@dataclass(frozen=True)
class _Connection:
    """A client and the sockets that it opens."""

    client: S3Client
    sockets: WeakSet[socket]

    @contextmanager
    def limited(self, size_bytes: int = 0) -> Iterator[S3Client]:
        """Yield the client for one request, or for a file of that size.

        Raises:
            LateError: it took too long. Requests of other threads end with it.
        """
        with cut_after(_ANSWER_S + size_bytes / _SLOWEST_BYTES_S, self.sockets):
            yield self.client

    def download(self, bucket: str, item: RemoteObject, target: Path) -> None:
        """Write an object to a file."""
        with self.limited(item.size_bytes) as client:
            client.download_file(bucket, item.key, str(target), Config=_IN_THIS_THREAD)


def _connect() -> _Connection:
    connect_s, read_s = _TIMEOUTS_S
    client = boto3.Session().client(
        "s3",
        config=Config(
            max_pool_connections=_CONNECTIONS,
            retries={"mode": "standard"},
            connect_timeout=connect_s,
            read_timeout=read_s,
        ),
    )
    sockets: WeakSet[socket] = WeakSet()
    # No setting of boto3 limits the time of a whole answer, and none leads to the classes of its connections.
    pools = client._endpoint.http_session._pool_classes_by_scheme  # type: ignore[attr-defined]
    pools.update({scheme: noting_pool(pool, sockets) for scheme, pool in pools.items()})
    return _Connection(client, sockets)


@contextmanager
def _bucket_errors(address: str) -> Iterator[None]:
    """Turn boto3's errors into one line with the address and without keys."""
    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, LateError, ResponseParserError) as error:
        raise SourceError(f"{address}: {_reason(address, error)}") from error
    except KeyError as error:
        raise SourceError(f"{address}: AWS_ENDPOINT_URL is not S3: an answer lacks {error}; correct it") from error


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


def _pages(connection: _Connection, bucket: str, prefix: str) -> Iterator[ListObjectsV2OutputTypeDef]:
    pages = iter(connection.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix))
    while True:
        with connection.limited():
            page = next(pages, None)
        if page is None:
            return
        yield page


def _list(connection: _Connection, bucket: str, prefix: str) -> dict[str, RemoteObject]:
    """Return path below the prefix -> object."""
    below = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    found: dict[str, RemoteObject] = {}
    for page in _pages(connection, bucket, prefix.rstrip("/")):
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
            found[path] = RemoteObject(key, item["ETag"], item["Size"], item["LastModified"].timestamp())
    return found


def _require_files(bucket: str, objects: dict[str, RemoteObject]) -> None:
    """Check that each object can be a file of its own; keys may hold `//`, or be both a name and a folder's name.

    Raises:
        SourceError: two of them cannot.
    """
    files: dict[PurePosixPath, str] = {}
    for path, item in objects.items():
        if (other := files.setdefault(PurePosixPath(path), item.key)) != item.key:
            raise _one_file(bucket, other, item.key)
    for file, key in files.items():
        if folder := next((folder for folder in file.parents if folder in files), None):
            raise _one_file(bucket, files[folder], key)


def _one_file(bucket: str, one: str, other: str) -> SourceError:
    return SourceError(
        f"s3://{bucket}/{one} and s3://{bucket}/{other} cannot both be files of one folder; nothing was downloaded: "
        "rename or remove one of them"
    )


def _remove_others(folder: Path, objects: dict[str, RemoteObject]) -> None:
    """Remove every file that is no object, such as the partial ones of a killed run, and the folders left empty."""
    kept = {folder / path for path in objects}
    for parent, folders, files in os.walk(folder, topdown=False):
        for path in (Path(parent) / name for name in files):
            if path not in kept:
                path.unlink()
        for name in folders:
            with suppress(OSError):  # not empty, or a link
                (Path(parent) / name).rmdir()


def _update(connection: _Connection, bucket: str, objects: dict[str, RemoteObject], folder: Path) -> None:
    # The record is beside the folder, because a file inside would count as an image.
    record = folder.with_name(f"{folder.name}.json")
    held: dict[str, str] = read_json(record) if record.is_file() else {}
    held = {path: etag for path, etag in held.items() if path in objects}
    _remove_others(folder, objects)
    wanted = [path for path in objects if held.get(path) != objects[path].etag or not (folder / path).is_file()]

    def download(path: str) -> str:
        with atomic_file(folder / path) as partial:
            connection.download(bucket, objects[path], partial)
        return path

    try:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for path in tqdm(pool.map(download, wanted), total=len(wanted), desc=bucket, unit="file", disable=None):
                held[path] = objects[path].etag
    finally:
        write_json(record, held)  # after an interruption, too: the next run resumes here

"""Films in an S3 bucket: a prefix mirrored to a folder, fetching only what is missing or changed.

The endpoint and the keys come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
whatever else boto3 reads.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tqdm import tqdm

from cxr.errors import SourceError
from cxr.files import read_json, whole_file, write_json

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_CONNECTIONS = 8


@dataclass(frozen=True)
class RemoteObject:
    """An object of a bucket; `etag` changes when its bytes do."""

    key: str
    etag: str


def mirror(address: str, downloads: Path) -> Path:
    """Bring `s3://bucket/prefix` to a folder below `downloads` and return it.

    A prefix that is itself one object comes as the file `<folder>/<name of the object>`. Objects
    that went from the bucket go from the folder.

    Raises:
        SourceError: the bucket cannot be reached or refuses, or there is nothing under the prefix.
    """
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    folder = downloads / f"s3-{hashlib.sha256(address.rstrip('/').encode()).hexdigest()[:16]}"
    try:
        client = boto3.Session().client(
            "s3", config=Config(max_pool_connections=_CONNECTIONS, retries={"mode": "standard"})
        )
        objects = _list(client, bucket, prefix)
        if not objects:
            raise SourceError(f"{address}: there is nothing under this prefix; check bucket and prefix")
        _update(client, bucket, objects, folder)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise SourceError(
            f"{address}: {error}; check bucket, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    return folder


def _list(client: S3Client, bucket: str, prefix: str) -> dict[str, RemoteObject]:
    """Return path below the prefix -> object."""
    below = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    found: dict[str, RemoteObject] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix.rstrip("/")):
        for item in page.get("Contents", []):
            key = item["Key"]
            if key.endswith("/") or not (key == prefix or key.startswith(below)):
                continue  # a folder's marker, or a neighbour such as `films-old/` beside `films`
            path = PurePosixPath(key).name if key == prefix else key.removeprefix(below)
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise SourceError(f"s3://{bucket}/{key} would leave the folder; nothing was fetched")
            found[path] = RemoteObject(key, item["ETag"])
    return found


def _update(client: S3Client, bucket: str, objects: dict[str, RemoteObject], folder: Path) -> None:
    from boto3.s3.transfer import TransferConfig

    # The record lies beside the folder: inside it would count as one of the films.
    record = folder.with_name(f"{folder.name}.json")
    held: dict[str, str] = read_json(record) if record.is_file() else {}
    for path in [path for path in held if path not in objects]:
        (folder / path).unlink(missing_ok=True)
        del held[path]
    wanted = [path for path in objects if held.get(path) != objects[path].etag or not (folder / path).is_file()]

    def bring(path: str) -> str:
        with whole_file(folder / path) as partial:
            client.download_file(bucket, objects[path].key, str(partial), Config=TransferConfig(use_threads=False))
        return path

    try:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for path in tqdm(pool.map(bring, wanted), total=len(wanted), desc=bucket, unit="file", disable=None):
                held[path] = objects[path].etag
    finally:
        write_json(record, held)  # after a cut, too: the next run goes on from here

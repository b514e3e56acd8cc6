"""Parts shared through a real S3 server: both sides hold the same, whole, and nothing else travels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from cxr.common.errors import SourceError
from cxr.common.s3 import Prefix, RemoteObject
from cxr.inference.score_exchange import Exchange
from tests.support.services.servers import s3_settings, serve_s3

BUCKET, ADDRESS = "team", "s3://team/scores/"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "s3").mkdir()
    with serve_s3(tmp_path / "s3", BUCKET) as endpoint:
        for name, value in s3_settings(endpoint).items():
            monkeypatch.setenv(name, value)
        yield boto3.client("s3", endpoint_url=endpoint)


def put(client: Any, name: str, body: bytes) -> None:
    client.put_object(Bucket=BUCKET, Key=f"scores/{name}", Body=body)


def test_both_sides_hold_all_parts_of_the_version_and_nothing_else_travels(client: Any, tmp_path: Path) -> None:
    here = tmp_path / "scores" / "version-2"
    here.mkdir(parents=True)
    for name in ("mine.parquet", "both.parquet", ".cut-off.parquet.partial", "notes.txt"):
        (here / name).write_bytes(b"here")
    for name in ("other.parquet", "both.parquet", "notes.json", "deeper/other.parquet"):
        put(client, f"version-2/{name}", b"there")
    put(client, "version-1/of-another-version.parquet", b"there")
    Exchange(here, ADDRESS).synchronize()
    parts = {path.name: path.read_bytes() for path in here.glob("[!.]*.parquet")}
    assert parts == {"mine.parquet": b"here", "both.parquet": b"here", "other.parquet": b"there"}
    found = client.list_objects_v2(Bucket=BUCKET, Prefix="scores/")["Contents"]
    assert sorted(item["Key"].removeprefix("scores/") for item in found) == [
        "version-1/of-another-version.parquet",
        "version-2/both.parquet",
        "version-2/deeper/other.parquet",
        "version-2/mine.parquet",
        "version-2/notes.json",
        "version-2/other.parquet",
    ]


def test_a_part_that_is_gone_when_it_is_fetched_is_one_line_and_no_file(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, "version-2/part.parquet", b"there")
    listed = Prefix.objects

    def then_gone(prefix: Prefix) -> dict[str, RemoteObject]:
        found = listed(prefix)
        client.delete_object(Bucket=BUCKET, Key="scores/version-2/part.parquet")
        return found

    monkeypatch.setattr(Prefix, "objects", then_gone)
    with pytest.raises(SourceError, match=r"^s3://team/scores/version-2: part\.parquet was removed while") as caught:
        Exchange(tmp_path / "version-2", ADDRESS).synchronize()
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "version-2").rglob("*") if path.is_file()]

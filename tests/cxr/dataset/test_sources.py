"""Sources: folders, zips, downloads and S3."""

import hashlib
import io
import shutil
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest

from cxr.common.archives import unpack
from cxr.common.download import download
from cxr.common.errors import SourceError
from cxr.dataset.sources import Sample, fetch
from tests.support.faults import fault
from tests.support.services.servers import Web, s3_settings, serve_s3, serve_web

SAMPLE = Sample(patients_per_class=5, seed=1)
BUCKET = "images"
BODY = bytes(range(256)) * 400


@pytest.fixture
def web() -> Iterator[Web]:
    with serve_web() as web:
        yield web


@pytest.fixture(scope="module")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_s3(tmp_path_factory.mktemp("weed"), BUCKET) as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3_settings(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    return s3_endpoint


def zip_of(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def message_of(location: str, downloads: Path, digest: str | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        fetch(location, downloads=downloads, sample=SAMPLE, sha256=digest)
    return str(caught.value)


def test_a_folder_is_used_in_place(tmp_path: Path) -> None:
    fetched = fetch(str(tmp_path), downloads=tmp_path / "downloads", sample=SAMPLE)
    assert (fetched.folder, fetched.is_archive) == (tmp_path, False)


def test_an_unknown_location_is_named(tmp_path: Path) -> None:
    for location in (f"{tmp_path}/none", "~no-such-user/images"):
        assert message_of(location, tmp_path).startswith(f"{location}: ")


def test_the_sample_is_written_once_for_its_parameters(tmp_path: Path) -> None:
    first = fetch("sample", downloads=tmp_path, sample=SAMPLE).folder
    written = (first / "chest_xray").stat().st_mtime_ns
    again = fetch("sample", downloads=tmp_path, sample=SAMPLE).folder
    other = fetch("sample", downloads=tmp_path, sample=Sample(patients_per_class=5, seed=2)).folder
    assert again == first != other
    assert (first / "chest_xray").stat().st_mtime_ns == written


# --- zips ---


def test_a_zip_is_unpacked_once_without_temporary_files(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(zip_of({"chest_xray/train/a b.jpeg": b"image", "empty/": b""}))
    downloads = tmp_path / "downloads"
    folder = fetch(str(archive), downloads=downloads, sample=SAMPLE).folder
    assert (folder / "chest_xray/train/a b.jpeg").read_bytes() == b"image"
    (folder / "kept").touch()
    assert fetch(str(archive), downloads=downloads, sample=SAMPLE).folder == folder
    assert (folder / "kept").exists()
    assert [path.name for path in downloads.iterdir()] == [f"unpacked-{sha256(archive.read_bytes())[:16]}"]


@pytest.mark.parametrize("name", ["../out.jpeg", "a/../../out.jpeg", "/out.jpeg", "C:/out.jpeg", "..\\out.jpeg"])
@fault("ingest", "a zip has an entry outside its folder", "nothing is unpacked", "exit code 3 and the entry")
def test_a_zip_with_an_entry_outside_its_folder_is_rejected(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(zip_of({"train/good.jpeg": b"image", name: b"bad"}))
    assert f"the entry {name!r}" in message_of(str(archive), tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize("name", ["", "."])
@fault("ingest", "a zip has an entry without a name", "nothing is unpacked", "exit code 3, download it again")
def test_a_zip_with_an_entry_without_a_name_is_rejected(tmp_path: Path, name: str) -> None:
    archive, entry = tmp_path / "set.zip", zipfile.ZipInfo("named")
    entry.filename = name
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("good.jpeg", b"image")
        opened.writestr(entry, b"bad")
    assert "has an entry without a name" in message_of(str(archive), tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


@fault("ingest", "a zip holds a link", "nothing is unpacked", "exit code 3 and the entry")
def test_a_zip_with_a_link_is_rejected(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    link = zipfile.ZipInfo("train/link.jpeg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(link, "/etc/hostname")
    assert "'train/link.jpeg' is a link" in message_of(str(archive), tmp_path)


@fault("ingest", "a zip is encrypted", "nothing is unpacked", "exit code 3, give the unpacked folder")
def test_an_encrypted_zip_is_rejected(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    content = bytearray(zip_of({"a.jpeg": b"image"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the entry's flag in the directory
    archive.write_bytes(content)
    assert "'a.jpeg' is encrypted" in message_of(str(archive), tmp_path)


@fault("ingest", "a zip is damaged", "nothing is unpacked", "exit code 3, download it again")
def test_of_a_damaged_zip_nothing_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("good.jpeg", b"image")
        opened.writestr("bad.jpeg", b"changed below")
    archive.write_bytes(buffer.getvalue().replace(b"changed below", b"CHANGED below"))
    assert "'bad.jpeg'" in message_of(str(archive), tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_recognised_whatever_the_compression(tmp_path: Path, method: int) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w", method) as opened:
        opened.writestr("a.jpeg", bytes(range(256)) * 4)
    content = bytearray(archive.read_bytes())
    content[60:80] = bytes(20)
    archive.write_bytes(content)
    assert f"{archive} is" in message_of(str(archive), tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_file_that_is_not_a_zip_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "set.rar"
    archive.write_bytes(b"Rar!")
    assert f"{archive} is not a zip" in message_of(str(archive), tmp_path)


def test_a_zip_with_another_digest_is_rejected(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(zip_of({"a.jpeg": b"image"}))
    assert f"expected {'0' * 64}" in message_of(str(archive), tmp_path, "0" * 64)


@fault(
    "ingest",
    "a zip unpacks to more than the disk has",
    "nothing is unpacked",
    "the bytes it needs and those that are free",
)
def test_a_zip_larger_than_the_disk_is_rejected_before_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(zip_of({"a.jpeg": b"x" * 5000}))
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)  # a full disk cannot be had here
    with pytest.raises(SourceError) as caught:
        unpack(archive, tmp_path)
    assert "5,000 bytes" in str(caught.value)


# --- http ---


def test_an_interrupted_download_resumes(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = BODY
    web.cut_after = [30_000, 20_000]
    digest = download(f"{web.address}/set.zip", tmp_path / "set.zip", sha256=sha256(BODY), backoff_s=0)
    assert (tmp_path / "set.zip").read_bytes() == BODY
    assert digest == sha256(BODY)
    assert web.asked == [("/set.zip", None), ("/set.zip", "bytes=30000-"), ("/set.zip", "bytes=50000-")]
    assert (tmp_path / "set.zip.sha256").read_text() == f"{digest}  set.zip\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip", "set.zip.sha256"]


def test_a_later_run_resumes_the_download(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = BODY
    web.cut_after = [30_000, 0, 0, 0, 0, 0]
    with pytest.raises(SourceError) as caught:
        download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    assert "5 times in a row; 30,000 bytes are kept" in str(caught.value)
    web.cut_after.clear()
    download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    assert web.asked[-1] == ("/set.zip", "bytes=30000-")
    assert (tmp_path / "set.zip").read_bytes() == BODY


def test_a_file_that_changed_on_the_server_is_downloaded_from_the_start(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = BODY
    web.cut_after = [30_000, 0, 0, 0, 0, 0]
    with pytest.raises(SourceError):
        download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    web.cut_after.clear()
    web.files["/set.zip"], web.etag = BODY[::-1], '"two"'
    download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    assert (tmp_path / "set.zip").read_bytes() == BODY[::-1]


@pytest.mark.parametrize(("etag", "ranges"), [(None, True), ('W/"weak"', True), ('"one"', False)])
def test_without_support_for_ranges_the_download_starts_again(
    web: Web, tmp_path: Path, etag: str | None, ranges: bool
) -> None:
    web.files["/set.zip"], web.etag, web.ranges = BODY, etag, ranges
    web.cut_after = [30_000]
    download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    assert (tmp_path / "set.zip").read_bytes() == BODY


def test_a_kill_after_the_last_byte_needs_no_second_download(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = BODY
    web.cut_after = [30_000, 0, 0, 0, 0, 0]
    with pytest.raises(SourceError):
        download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    web.cut_after.clear()
    (tmp_path / ".set.zip.part").write_bytes(BODY)
    download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    assert (tmp_path / "set.zip").read_bytes() == BODY
    assert web.asked[-1] == ("/set.zip", f"bytes={len(BODY)}-")


def test_a_partial_file_longer_than_the_file_is_discarded(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = BODY
    web.cut_after = [30_000, 0, 0, 0, 0, 0]
    with pytest.raises(SourceError):
        download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    web.cut_after.clear()
    (tmp_path / ".set.zip.part").write_bytes(BODY + b"more")
    download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    assert (tmp_path / "set.zip").read_bytes() == BODY


def test_a_damaged_download_is_removed_and_reported(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = BODY[:-1] + b"?"
    with pytest.raises(SourceError) as caught:
        download(f"{web.address}/set.zip", tmp_path / "set.zip", sha256=sha256(BODY), backoff_s=0)
    assert sha256(web.files["/set.zip"]) in str(caught.value)
    assert sha256(BODY) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_downloaded_again_only_if_it_changed(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = BODY
    target = tmp_path / "set.zip"
    download(f"{web.address}/set.zip", target)
    download(f"{web.address}/set.zip", target)
    assert len(web.asked) == 1
    target.write_bytes(b"something else")
    download(f"{web.address}/set.zip", target)
    assert len(web.asked) == 2
    assert target.read_bytes() == BODY


def test_a_digest_in_capital_letters_is_the_same_digest(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = BODY
    for _ in range(2):
        download(f"{web.address}/set.zip", tmp_path / "set.zip", sha256=sha256(BODY).upper())
    assert len(web.asked) == 1


def test_an_overloaded_server_is_retried_and_a_missing_file_is_not(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = BODY
    web.statuses = [503, 429]
    download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    assert len(web.asked) == 3
    with pytest.raises(SourceError) as caught:
        download(f"{web.address}/none.zip", tmp_path / "none.zip", backoff_s=0)
    assert "404" in str(caught.value)
    assert len(web.asked) == 4


@fault("ingest", "the server of a set is overloaded or gone", "retried, then an error", "exit code 3 and the address")
def test_a_server_that_stays_overloaded_or_unreachable_is_an_error(web: Web, tmp_path: Path) -> None:
    web.statuses = [503] * 5
    with pytest.raises(SourceError, match=r"503 .*5 times in a row; 0 bytes"):
        download(f"{web.address}/set.zip", tmp_path / "set.zip", backoff_s=0)
    with pytest.raises(SourceError, match="cannot be reached, 5 times in a row"):
        download("http://127.0.0.1:9/set.zip", tmp_path / "set.zip", backoff_s=0)


def test_credentials_are_not_sent_to_another_host(web: Web, tmp_path: Path) -> None:
    with serve_web() as other:
        web.redirects["/set.zip"] = f"{other.address}/store"
        other.files["/store"] = BODY
        other.authorization = "Bearer token"
        with pytest.raises(SourceError, match="401"):
            download(f"{web.address}/set.zip", tmp_path / "a", headers={"Authorization": "Bearer token"}, backoff_s=0)


def test_an_address_is_downloaded_and_unpacked_once(web: Web, tmp_path: Path) -> None:
    web.files["/images/set.zip"] = zip_of({"train/a.jpeg": b"image"})
    address = f"{web.address}/images/set.zip?version=2"
    web.files["/images/set.zip?version=2"] = web.files["/images/set.zip"]
    first = fetch(address, downloads=tmp_path, sample=SAMPLE, sha256=sha256(web.files["/images/set.zip"]))
    assert (first.folder / "train/a.jpeg").read_bytes() == b"image"
    assert first.is_archive
    assert fetch(address, downloads=tmp_path, sample=SAMPLE) == first
    assert len(web.asked) == 1


def test_a_download_that_is_not_a_zip_is_removed_and_downloaded_again(web: Web, tmp_path: Path) -> None:
    web.files["/set.zip"] = b"<html>please log in</html>"
    message = message_of(f"{web.address}/set.zip", tmp_path)
    assert "set.zip is not a zip" in message
    web.files["/set.zip"] = zip_of({"train/a.jpeg": b"image"})
    assert (fetch(f"{web.address}/set.zip", downloads=tmp_path, sample=SAMPLE).folder / "train/a.jpeg").is_file()


# --- s3 ---


def put(endpoint: str, objects: dict[str, bytes], *, delete: tuple[str, ...] = ()) -> None:
    client = boto3.client("s3", endpoint_url=endpoint)
    for key, content in objects.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=content)
    for key in delete:
        client.delete_object(Bucket=BUCKET, Key=key)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_prefix_is_mirrored_and_later_only_changes(s3: str, tmp_path: Path) -> None:
    put(s3, {"set/train/a.jpeg": b"a", "set/train/b.jpeg": b"b", "set/c.jpeg": b"c", "set-old/d.jpeg": b"d"})
    folder = fetch(f"s3://{BUCKET}/set", downloads=tmp_path, sample=SAMPLE).folder
    assert contents(folder) == {"train/a.jpeg": b"a", "train/b.jpeg": b"b", "c.jpeg": b"c"}
    untouched = (folder / "train/a.jpeg").stat().st_mtime_ns
    put(s3, {"set/train/b.jpeg": b"changed", "set/new.jpeg": b"new"}, delete=("set/c.jpeg",))
    assert fetch(f"s3://{BUCKET}/set/", downloads=tmp_path, sample=SAMPLE).folder == folder
    assert contents(folder) == {"train/a.jpeg": b"a", "train/b.jpeg": b"changed", "new.jpeg": b"new"}
    assert (folder / "train/a.jpeg").stat().st_mtime_ns == untouched


@fault(
    "ingest",
    "it is killed while it mirrors an S3 prefix, and objects are deleted before it runs again",
    "what it left is removed, whole or half",
    "every file is an image of the bucket",
)
def test_a_mirror_holds_nothing_but_the_objects_after_a_kill(s3: str, tmp_path: Path) -> None:
    put(s3, {"killed/a.jpeg": b"a"})
    folder = fetch(f"s3://{BUCKET}/killed", downloads=tmp_path, sample=SAMPLE).folder
    # Whole, but not recorded yet; boto3's own partial file; and folders where objects have names now.
    for name in ("gone.jpeg", ".b.jpeg.partial.C0ffee12", "old.jpeg/c.jpeg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"left behind")
    put(s3, {"killed/old.jpeg": b"new"})
    fetch(f"s3://{BUCKET}/killed", downloads=tmp_path, sample=SAMPLE)
    assert contents(folder) == {"a.jpeg": b"a", "old.jpeg": b"new"}


@pytest.mark.parametrize("keys", [("x/a.jpeg", "x//a.jpeg"), ("x/a", "x/a/b.jpeg")])
def test_objects_that_cannot_both_be_files_are_named(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, str]
) -> None:
    assert s3
    # SeaweedFS itself keeps objects as files of folders, so it has no such keys.
    listed = [{"Key": key, "ETag": "1", "Size": 1, "LastModified": datetime(2026, 1, 1, tzinfo=UTC)} for key in keys]
    monkeypatch.setattr("cxr.common.s3._pages", lambda *_: iter([{"Name": BUCKET, "Contents": listed}]))
    message = message_of(f"s3://{BUCKET}/", tmp_path)
    assert all(f"s3://{BUCKET}/{key} " in message for key in keys)
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_that_is_one_zip_is_unpacked(s3: str, tmp_path: Path) -> None:
    put(s3, {"zips/set.zip": zip_of({"train/a.jpeg": b"image"})})
    folder = fetch(f"s3://{BUCKET}/zips/set.zip", downloads=tmp_path, sample=SAMPLE).folder
    assert contents(folder) == {"train/a.jpeg": b"image"}


def test_after_an_unreachable_endpoint_only_missing_objects_are_downloaded(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, {"cut/a.jpeg": b"a", "cut/b.jpeg": b"b"})
    folder = fetch(f"s3://{BUCKET}/cut", downloads=tmp_path, sample=SAMPLE).folder
    first = (folder / "a.jpeg").stat().st_mtime_ns
    (folder / "b.jpeg").unlink()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    message = message_of(f"s3://{BUCKET}/cut", tmp_path)
    assert message.startswith(f"s3://{BUCKET}/cut: ")
    assert "AWS_ENDPOINT_URL" in message
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    fetch(f"s3://{BUCKET}/cut", downloads=tmp_path, sample=SAMPLE)
    assert contents(folder) == {"a.jpeg": b"a", "b.jpeg": b"b"}
    assert (folder / "a.jpeg").stat().st_mtime_ns == first


def test_an_empty_prefix_is_named(s3: str, tmp_path: Path) -> None:
    assert s3
    assert f"s3://{BUCKET}/none" in message_of(f"s3://{BUCKET}/none", tmp_path)


def test_wrong_keys_are_reported_without_the_keys(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    message = message_of(f"s3://{BUCKET}/set", tmp_path)
    assert message.startswith(f"s3://{BUCKET}/set: ")
    assert "AWS_SECRET_ACCESS_KEY" in message
    assert "wrong" not in message

"""Parts of scored images: which images count as scored, and reading all parts as one table."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cxr.common.errors import DataError
from cxr.inference.image_source import ImageFile
from cxr.inference.score_index import index_scores
from cxr.inference.score_store import PartWriter, Scored, read_scores, schema
from tests.support.faults import fault
from tests.support.projects import release_040

START = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = "a" * 64


def row(path: str, **changed: Any) -> dict[str, Any]:
    plain = {"location": "images", "path": path, "sha256": f"sha of {path}", "size_bytes": 7, "changed": "monday"}
    return plain | {"scored_at": START, "model_version": "1"} | changed


def write(folder: Path, *rows: dict[str, Any], classes: tuple[str, ...] = ("normal",), spec: str = SPEC) -> None:
    writer = PartWriter(folder, schema(classes, (), {"spec_sha256": spec}), images_per_part=2, shard="1of1")
    writer.add(rows)
    writer.close()


def remembered(folder: Path, *, spec: str = SPEC, location: str = "images", listed: str = "ab") -> Scored:
    images = [ImageFile(path, 7, "monday") for path in listed]
    return Scored(folder, spec_sha256=spec, location=location, images=images)


def test_parts_are_written_as_they_fill_and_the_rest_at_the_end(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path, schema(("normal",), (), {}), images_per_part=2, shard="1of1")
    assert writer.add([row("a")]) is None
    assert writer.add([row("b"), row("c")]) is not None
    assert writer.add([row("d")]) is None
    assert writer.close() is not None
    assert writer.close() is None
    assert len(list(tmp_path.iterdir())) == 2
    assert read_scores(tmp_path)["path"].tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("image", "unchanged"),
    [
        (ImageFile("a", 7, "monday"), True),
        (ImageFile("b", 7, "monday"), False),
        (ImageFile("a", 8, "monday"), False),
        (ImageFile("a", 7, "tuesday"), False),
    ],
)
def test_an_image_is_unchanged_when_path_size_and_time_are(tmp_path: Path, image: ImageFile, unchanged: bool) -> None:
    write(tmp_path, row("a"))
    assert remembered(tmp_path).is_unchanged(image) is unchanged
    assert not remembered(tmp_path, spec="b" * 64).is_unchanged(image)
    assert not remembered(tmp_path, location="others").is_unchanged(image)


@fault(
    "score, monitor", "the clock was a year ahead for one night, or is an hour behind",
    "rows keep the order in which they were scored; drift is looked for in the newest", "nothing",
)  # fmt: skip
def test_rows_keep_their_order_whatever_the_clock_says(tmp_path: Path) -> None:
    def bad(path: str, time: datetime) -> dict[str, Any]:
        return row(path, scored_at=time, error="it counts, as one that was measured does")

    ahead = datetime.now(UTC) + timedelta(days=366)
    write(tmp_path, bad("a", ahead), bad("b", ahead - timedelta(days=1)))
    known = remembered(tmp_path, listed="cd")
    first, second = known.next_time(), known.next_time()
    assert ahead < first < second < ahead + timedelta(seconds=1)
    write(tmp_path, bad("c", first), bad("d", second))
    assert index_scores(tmp_path, "1").read(0, 4)["path"].tolist() == ["b", "a", "c", "d"]


def test_without_later_rows_the_time_is_that_of_the_clock(tmp_path: Path) -> None:
    write(tmp_path, row("a"))
    before = datetime.now(UTC)
    assert before <= remembered(tmp_path).next_time() <= datetime.now(UTC)


def test_bytes_count_under_their_own_path_alone(tmp_path: Path) -> None:
    write(tmp_path, row("a"))
    known = remembered(tmp_path)
    assert known.has_bytes("a", "sha of a")
    assert not known.has_bytes("b", "sha of a")
    assert not remembered(tmp_path, listed="b").has_bytes("a", "sha of a"), "only what is listed takes memory"


def test_an_image_that_could_not_be_opened_is_not_scored(tmp_path: Path) -> None:
    write(tmp_path, row("a", sha256=None, changed=None, error="a cannot be opened"))
    assert not remembered(tmp_path).is_unchanged(ImageFile("a", 7, "monday"))


def test_versions_of_other_classes_are_one_table_the_oldest_first(tmp_path: Path) -> None:
    later = row("b", scored_at=START + timedelta(days=1), p_normal=0.5)
    write(tmp_path / "version-1", later)
    write(tmp_path / "version-2", row("a", p_covid=0.25, model_version="2"), classes=("covid",), spec="b" * 64)
    table = read_scores(tmp_path)
    assert table["path"].tolist() == ["a", "b"]
    assert table["p_covid"].tolist()[0] == 0.25
    assert table["p_normal"].isna().tolist() == [True, False]


@fault(
    "score",
    "a part of the scores is damaged or was cut off",
    "a partial one is not read",
    "the damaged file's name",
)
def test_a_damaged_part_is_named_and_a_part_that_was_cut_off_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, row("a"))
    (tmp_path / ".x.parquet.partial").write_bytes(b"PAR1")
    assert len(read_scores(tmp_path)) == 1
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"x\.parquet is not a part of scored images"):
        read_scores(tmp_path)
    with pytest.raises(DataError, match=r"x\.parquet is not a part of scored images"):
        remembered(tmp_path)


def test_no_parts_are_an_empty_table_with_the_columns_of_every_part(tmp_path: Path) -> None:
    assert read_scores(tmp_path / "none").empty
    assert {"path", "scored_at", "model_version", "error"} <= set(read_scores(tmp_path).columns)


def test_a_part_of_release_0_4_0_counts(tmp_path: Path) -> None:
    old = row("a", predicted_class="viral", p_viral=1.0, confidence=1.0), row("b", error="not an image")
    release_040.write_score_part(tmp_path / "old.parquet", spec_sha256=SPEC, rows=[*old])
    write(tmp_path, row("c", scored_at=START + timedelta(days=1)))
    assert remembered(tmp_path).is_unchanged(ImageFile("a", 7, "monday"))
    assert read_scores(tmp_path)["predicted_class"].isna().tolist() == [False, True, True]
    found = index_scores(tmp_path, "1")
    assert (found.read(0, 1)["path"].tolist(), found.unmeasured) == (["b"], 2), "without measures, as then"


def test_a_part_of_a_later_format_is_rejected_in_one_line(tmp_path: Path) -> None:
    columns = schema(("normal",), (), {"spec_sha256": SPEC}).with_metadata({"schema_version": "2"})
    pq.write_table(columns.empty_table(), tmp_path / "later.parquet")
    for read in (read_scores, remembered, lambda folder: index_scores(folder, "1")):
        with pytest.raises(DataError, match=r"later\.parquet has format 2, written by a later release"):
            read(tmp_path)

"""Batch scoring: bounded memory, and answers that do not depend on the other images of a batch."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cxr.common.errors import SourceError
from cxr.inference.batch import Row, score_images
from cxr.inference.classifier import Classifier
from cxr.inference.image_source import ImageFile, Location
from cxr.inference.score_store import Scored
from cxr.models.factory import build
from cxr.models.forward import BATCH_SIZE
from cxr.models.reference import MEASURES, Reference, image_measures, make_reference
from tests.support.projects.registry_project import CLASSES, spec

SPEC = replace(spec(image_size_px=32, backbone="small_cnn"), refer_below=0.4)


def image(number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    return bytes(cv2.imencode(".png", cv2.resize(coarse, (40, 40)))[1])


def location(images: dict[str, bytes | Exception]) -> tuple[Location, list[str]]:
    """Return images in memory, and a list of the paths that were read."""
    read: list[str] = []

    def read_image(path: str) -> bytes:
        read.append(path)
        found = images[path]
        if isinstance(found, Exception):
            raise found
        return found

    listed = tuple(ImageFile(path, 100, "monday") for path in images)
    return Location("memory", listed, read_image), read


def a_classifier(*, members: int = 1, reference: Reference | None = None) -> Classifier:
    torch.manual_seed(0)
    network = build("small_cnn", 3, members=members).eval()
    return Classifier(SPEC, "1", reference, lambda: network)


def scored(images: dict[str, bytes | Exception], by: Classifier, known: Scored) -> dict[str, Row]:
    where, _ = location(images)
    batches = score_images(by, where, where.images, scored=known, workers=2)
    return {row["path"]: row for batch in batches for row in batch.rows}


@pytest.fixture
def nothing_known(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return Scored(tmp_path_factory.mktemp("none"), spec_sha256="", location="memory", images=())


def test_images_are_read_a_few_batches_ahead_and_no_further(nothing_known: Scored) -> None:
    images: dict[str, bytes | Exception] = {f"{number:03}": image(number % 7) for number in range(10 * BATCH_SIZE)}
    where, read = location(images)
    batches = score_images(a_classifier(), where, where.images, scored=nothing_known, workers=2)
    for done in range(1, 4):
        assert len(next(batches).rows) == BATCH_SIZE
        assert len(read) <= (done + 2) * BATCH_SIZE
    batches.close()
    assert len(read) < len(images)


@pytest.mark.parametrize("members", [1, 2])
def test_an_answer_does_not_depend_on_the_other_images_of_its_batch(nothing_known: Scored, members: int) -> None:
    rng = np.random.default_rng(0)
    pixels: NDArray[np.uint8] = rng.integers(0, 255, (20, 32, 32), np.uint8)
    reference = make_reference(
        classes=CLASSES,
        images=np.column_stack(list(image_measures(pixels).values())),
        features=rng.normal(size=(20, 256)).astype(np.float32),
        probabilities=rng.dirichlet((1, 1, 1), 20),
        patients=np.arange(20).astype(object),
    )
    by = a_classifier(members=members, reference=reference)
    images: dict[str, bytes | Exception] = {f"{number:02}": image(number) for number in range(BATCH_SIZE + 3)}
    together = scored(images, by, nothing_known)
    for path in ("00", f"{BATCH_SIZE + 1}"):
        alone = scored({path: images[path]}, by, nothing_known)[path]
        answer = [*(f"p_{name}" for name in CLASSES), "confidence", "refer", "predicted_class"]
        assert [alone[name] for name in answer] == [together[path][name] for name in answer]  # to the last bit
        measured = [f"m_{name}" for name in MEASURES]
        assert [alone[name] for name in measured] == pytest.approx([together[path][name] for name in measured])


def test_an_image_that_cannot_be_opened_or_is_too_large_is_a_row_and_the_others_are_scored(
    nothing_known: Scored,
) -> None:
    where, read = location({"a": image(1), "gone": FileNotFoundError(), "locked": PermissionError(13, "denied")})
    huge = ImageFile("huge", 10**12, "monday")
    images = [*where.images, huge]
    rows = [
        row
        for batch in score_images(a_classifier(), where, images, scored=nothing_known, workers=2)
        for row in batch.rows
    ]
    found = {row["path"]: (row["error"], row["changed"]) for row in rows}
    assert found["a"] == (None, "monday")
    for path in ("gone", "locked"):
        assert path in str(found[path][0])
        assert found[path][1] is None  # not opened: the next run tries again
    assert "huge has more than" in str(found["huge"][0])
    assert found["huge"][1] == "monday"
    assert "huge" not in read


def test_a_location_that_no_longer_answers_ends_the_run(nothing_known: Scored) -> None:
    with pytest.raises(SourceError, match="down"):
        scored({"a": image(1), "b": SourceError("down")}, a_classifier(), nothing_known)

"""All DICOM objects of one answer, the report last: an image that has one is processed (cxr/pacs/worker.py)."""

from collections.abc import Iterator
from datetime import datetime

from cxr.inference.answer import Answer
from cxr.inference.dicom_objects.heat_map import parametric_map
from cxr.inference.dicom_objects.overlay import secondary_capture
from cxr.inference.dicom_objects.report import Explains, structured_report
from cxr.inference.dicom_objects.shared import Author, Kind
from cxr.inference.explanation import Explanation


def answer_objects(
    source: bytes,
    answer: Answer,
    explanation: Explanation | None,
    *,
    explained_by: tuple[Explains, ...],
    author: Author,
    name: str,
    made_at: datetime,
) -> Iterator[tuple[Kind, bytes]]:
    """Yield kind and bytes of each object.

    Args:
        source: bytes of the DICOM image.
        answer: of the model.
        explanation: where the model looked; None: the report alone.
        explained_by: the objects to make of the explanation.
        author: the model.
        name: of the image in errors.
        made_at: date and time of the objects, in local time.

    Raises:
        ImageError: the header cannot be read, or lacks the UIDs that link an object to the image.
    """
    kinds = () if explanation is None else explained_by
    if explanation is not None and "overlay" in kinds:
        picture = explanation.picture
        yield "overlay", secondary_capture(source, picture, answer, author=author, name=name, made_at=made_at)
    if explanation is not None and "heat" in kinds:
        levels = explanation.levels
        yield "heat", parametric_map(source, levels, answer, author=author, name=name, made_at=made_at)
    yield "report", structured_report(source, answer, author=author, name=name, made_at=made_at, explained_by=kinds)

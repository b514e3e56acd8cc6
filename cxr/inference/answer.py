"""The answer to one image, and the one table of its fields that every output is built from.

`predict` (JSON and table), batch scoring (Parquet), the REST service and its CSV, MLflow's table and signature and the
DICOM report name, type and describe an answer by `FIELDS`. A new field is a row of `FIELDS` and an attribute of
`Answer`, which cxr/inference/classifier.py fills in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FieldType = Literal["string", "boolean", "double", "float"]

NO_ANSWER = "no answer"
"""The verdict on an image with a warning: its probabilities may mean nothing."""


@dataclass(frozen=True)
class AnswerField:
    """A field of `Answer`.

    name          the attribute, the key in JSON and the column of a table
    type          of its values
    description   one sentence
    nullable      an answer may have no value
    prefix        of a field that maps names to values: its columns are the prefix and a name
    stored_only   batch scoring stores it; no other output shows it
    """

    name: str
    type: FieldType
    description: str
    nullable: bool = False
    prefix: str = ""
    stored_only: bool = False


FIELDS = (
    AnswerField("predicted_class", "string", "The most probable class."),
    AnswerField("probabilities", "double", "By class, each 0 to 1, calibrated.", prefix="p_"),
    AnswerField("confidence", "double", "The largest probability.", stored_only=True),
    AnswerField(
        "refer",
        "boolean",
        "A reader should see the image; null: the model has no threshold for that.",
        nullable=True,
    ),
    AnswerField(
        "warning",
        "string",
        "Why the answer may mean nothing: the image is out of distribution; null: no warning.",
        nullable=True,
    ),
    AnswerField(
        "measures",
        "float",
        "What drift is measured by (cxr.models.reference.MEASURES); empty: no reference statistics.",
        prefix="m_",
        stored_only=True,
    ),
)

SHOWN_FIELDS = tuple(one for one in FIELDS if not one.stored_only)
"""The fields that an answer shows to people and programs."""


@dataclass(frozen=True)
class Column:
    """One column of a table of answers; see `AnswerField`."""

    name: str
    type: FieldType
    nullable: bool


@dataclass(frozen=True)
class Answer:
    """A model's answer to one image; `FIELDS` describes the attributes and properties."""

    probabilities: Mapping[str, float]
    refer: bool | None
    warning: str | None = None
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def predicted_class(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def verdict(self) -> str:
        """What people read first: the predicted class, or NO_ANSWER under a warning."""
        return NO_ANSWER if self.warning else self.predicted_class

    @property
    def asserted(self) -> bool:
        """Whether the predicted class stands as a finding: there is no warning, and no reader needs to look first."""
        return not self.warning and not self.refer

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return max(self.probabilities.values())

    def to_json(self) -> dict[str, Any]:
        """Return the shown fields by name, mappings as mappings."""
        values = {one.name: getattr(self, one.name) for one in SHOWN_FIELDS}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    def to_row(self, fields: Iterable[AnswerField] = FIELDS) -> dict[str, str | float | bool | None]:
        """Return the values of `fields` by column, one column for each name of a mapping; see `columns`."""
        row: dict[str, str | float | bool | None] = {}
        for one in fields:
            value = getattr(self, one.name)
            row |= {f"{one.prefix}{name}": each for name, each in value.items()} if one.prefix else {one.name: value}
        return row


def columns(
    classes: Sequence[str], measures: Sequence[str] = (), *, fields: Iterable[AnswerField] = FIELDS
) -> list[Column]:
    """Return the columns of `Answer.to_row`, in order.

    Args:
        classes: in the model's order.
        measures: names without prefix, as in `Answer.measures`.
        fields: of the answers.
    """
    names = {"probabilities": classes, "measures": measures}
    return [
        Column(f"{one.prefix}{name}", one.type, one.nullable)
        for one in fields
        for name in (names[one.name] if one.prefix else (one.name,))
    ]

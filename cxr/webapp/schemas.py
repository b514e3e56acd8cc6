"""The responses of the service, as in its OpenAPI description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, create_model

from cxr.inference.answer import SHOWN_FIELDS, FieldType
from cxr.webapp.model_info import EngineName, ModelCard

_TYPES: dict[FieldType, type] = {"string": str, "boolean": bool, "double": float, "float": float}


class Error(BaseModel):
    """Why a request was rejected: `reason` for programs, `message` for people."""

    reason: str
    message: str


class ErrorResponse(BaseModel):
    """The form of every error."""

    error: Error


class HeatMapPicture(BaseModel):
    """The heat map of a class (Grad-CAM): the regions that the model used, not where a disease is."""

    of_class: str
    image: str = Field(description="Data URL of a PNG to lay over the image; transparent where there is no heat")


def _answer_fields() -> dict[str, Any]:
    """Return the fields of an answer as pydantic wants them: type and description."""
    fields: dict[str, Any] = {}
    for one in SHOWN_FIELDS:
        value = _TYPES[one.type]
        kind = dict[str, value] if one.prefix else value  # type: ignore[valid-type]
        fields[one.name] = (kind | None if one.nullable else kind, Field(description=one.description))
    return fields


if TYPE_CHECKING:
    AnswerFields = BaseModel  # mypy cannot see a class that is made at run time
else:
    AnswerFields = create_model("AnswerFields", **_answer_fields())


class Prediction(AnswerFields):
    """The model's answer for one image: the fields of `cxr.inference.answer`, and the model behind them."""

    model: str
    model_version: str
    engine: EngineName
    synthetic: bool = Field(description="Trained on synthetic images: the answer says nothing about patients")
    disclaimer: str
    sha256: str = Field(description="SHA-256 of the image file")
    is_dicom: bool = Field(description="It is a DICOM image, so that it can have a report")
    image: str | None = Field(default=None, description="With image=true: data URL of a JPEG, 720 px at most")
    heat: HeatMapPicture | None = Field(default=None, description="With heat=true")


class ClientLimits(BaseModel):
    """Limits that a client should know."""

    upload_bytes: int
    media_types: list[str]


class ModelResponse(ModelCard):
    """The model card of the version in use, and the limits of the service."""

    limits: ClientLimits
    contradiction: str = Field(description='How the alias champion contradicts the audit log; "" where it does not')
    sign_in: bool = Field(description="The service asks for its token")


class Status(BaseModel):
    """The state of the service, in one word."""

    status: str


REASONS = {
    400: "The upload was cut off",
    401: "Without the token, where the service has one",
    403: "Sent by a page of another site",
    408: "The image arrived too slowly",
    413: "Too many bytes or pixels",
    415: "The body is not declared as an image",
    421: "Called by an unknown host name",
    422: "Not a readable image, or an invalid parameter or field",
    429: "The service is full, or this client sends too much; send it again after `Retry-After` seconds",
    501: "A heat map was asked for, and the service has no torch",
    503: "The model is being loaded, or did not answer in time; or feedback cannot be stored",
}

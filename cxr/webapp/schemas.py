"""What the service answers, as its OpenAPI description has it."""

from __future__ import annotations

from pydantic import BaseModel, Field

from cxr.webapp.model_info import Card


class Error(BaseModel):
    """Why a request was not answered: `reason` for programs, `message` for people."""

    reason: str
    message: str


class ErrorAnswer(BaseModel):
    """How every error looks."""

    error: Error


class HeatPicture(BaseModel):
    """Where the model looked for a class (Grad-CAM): what it used, not where a disease is."""

    of_class: str
    image: str = Field(description="Data URL of a PNG to lay over the image; clear where there is no heat")


class Prediction(BaseModel):
    """What the model says of one image."""

    predicted_class: str = Field(description="The most probable class")
    probabilities: dict[str, float] = Field(description="By class, each 0 to 1, calibrated")
    refer: bool | None = Field(description="A reader should see the image; null: the model has no threshold for that")
    warning: str | None = Field(
        description="Why the answer may mean nothing: the image is unlike those it was judged on"
    )
    model: str
    model_version: str
    engine: str = Field(description='What computed: "torch", to the bit as evaluated, or "openvino" and its precision')
    synthetic: bool = Field(description="Trained on synthetic images: the answer says nothing about patients")
    disclaimer: str
    image: str | None = Field(default=None, description="With image=true: data URL of a JPEG, 720 px at most")
    heat: HeatPicture | None = Field(default=None, description="With heat=true")


class Bounds(BaseModel):
    """Limits that a client should know."""

    upload_bytes: int
    media_types: list[str]


class ModelAnswer(Card):
    """The version that answers, its card, and the limits of the service."""

    limits: Bounds


class Status(BaseModel):
    """One word."""

    status: str


REASONS = {
    400: "The upload broke off",
    403: "Sent by a page of another site",
    408: "The image arrived too slowly",
    413: "Too many bytes or pixels",
    415: "The body says that it is no image",
    421: "Called by a name that is not the service's",
    422: "No image that can be read, or a parameter that does not fit",
    429: "As many images as the service can hold; send it again after `Retry-After` seconds",
    503: "The model is being loaded, or did not answer in time",
}

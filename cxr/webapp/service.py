"""The routes: a REST API with an OpenAPI description at /openapi.json, and the page that uses it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from cxr.common.engines import NO_TORCH, has_torch
from cxr.common.notices import NOT_CLINICAL, SYNTHETIC, notice
from cxr.inference.classifier import Classifier
from cxr.registry.versions import MODEL
from cxr.webapp.batcher import Batcher, Result
from cxr.webapp.champion_watch import ChampionWatch
from cxr.webapp.decode_pool import DecodedImage, DecodePool
from cxr.webapp.fair_turns import client_of
from cxr.webapp.feedback import FEEDBACK_BODY, FEEDBACK_PATH, FeedbackRoute
from cxr.webapp.guard import error_response
from cxr.webapp.limits import MEDIA_TYPES, Admission, Limits, RejectedError, check_media_type, not_ready, read_body
from cxr.webapp.rate_limit import RateLimit
from cxr.webapp.renditions import (
    EXAMPLES,
    example_png,
    overlay_png,
    render_heat,
    render_image,
    report_of,
    viewer_pixels,
)
from cxr.webapp.schemas import REASONS, ClientLimits, ErrorResponse, HeatMapPicture, ModelResponse, Prediction, Status
from cxr.webapp.sign_in import SIGN_IN_PATH, SignInRoute, Token

_STATIC = Path(__file__).parent / "static"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE_FILES = {f"/{path.name}": path for path in sorted(_STATIC.iterdir()) if path.suffix in _MEDIA_TYPES}
PAGE_FILES["/"] = PAGE_FILES.pop("/index.html")
PAGE_FILES[SIGN_IN_PATH] = PAGE_FILES.pop("/sign-in.html")
PATHS = frozenset(
    {
        *PAGE_FILES,
        "/predict",
        "/example",
        "/pixels",
        "/overlay",
        "/report",
        FEEDBACK_PATH,
        "/health",
        "/ready",
        "/metrics",
        "/model",
        "/openapi.json",
    }
)
_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of the image file: JPEG, PNG, BMP, TIFF or DICOM",
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES},
    }
}

_TOKEN = "Only where the service has a token. /health and /ready need none."

log = logging.getLogger("cxr.webapp")


class Service:
    """The routes and what they share."""

    def __init__(
        self,
        batcher: Batcher,
        decode_pool: DecodePool,
        watch: ChampionWatch,
        limits: Limits,
        feedback: Path,
        *,
        token: Token | None,
    ) -> None:
        self.feedback, self.sign_in = FeedbackRoute(feedback, limits), SignInRoute(token, limits)
        self.batcher, self.decode_pool, self.watch, self.limits = batcher, decode_pool, watch, limits
        self.admission = Admission(limits)
        self.rate = RateLimit(limits.max_images_per_minute, "images")

    def app(self) -> FastAPI:
        """Return the ASGI application; it starts and stops no threads."""
        app = FastAPI(
            title="Chest X-ray pneumonia classifier",
            version="1",
            description=f"{NOT_CLINICAL} One image in, a calibrated probability of each class out.",
            docs_url=None,  # FastAPI's own pages load scripts from another host
            redoc_url=None,
            dependencies=[Security(HTTPBearer(auto_error=False, description=_TOKEN))],  # describes; TokenGate decides
        )
        app.add_exception_handler(RejectedError, self._rejected)
        app.add_exception_handler(HTTPException, _http_error)
        app.add_exception_handler(RequestValidationError, _invalid)
        app.add_exception_handler(Exception, _failed)
        app.post("/predict", responses=_errors(*REASONS), openapi_extra=_IMAGE_BODY, summary="Classify one image")(
            self.predict
        )
        for path, endpoint, media_type, summary in (
            ("/pixels", self.pixels, "application/octet-stream", "Decode one image at full size and depth"),
            ("/overlay", self.overlay, "image/png", "Draw where the model looked"),
            ("/report", self.report, "application/dicom", "Make the Structured Report of one DICOM image"),
        ):
            content: dict[int | str, dict[str, Any]] = {200: {"content": {media_type: {}}}}
            app.post(path, responses=content | _errors(*REASONS), response_class=Response,
                     openapi_extra=_IMAGE_BODY, summary=summary)(endpoint)  # fmt: skip
        app.post(
            FEEDBACK_PATH, responses=_errors(400, 401, 403, 408, 413, 421, 422, 429, 503), openapi_extra=FEEDBACK_BODY,
            summary="Store what a reader says about an answer",
        )(self.feedback.add)  # fmt: skip
        app.post(SIGN_IN_PATH, include_in_schema=False)(self.sign_in.start)
        app.delete(SIGN_IN_PATH, include_in_schema=False)(self.sign_in.end)
        app.get("/health", responses=_errors(403, 421), summary="Liveness: the process runs")(self.health)
        app.get("/ready", responses=_errors(403, 421, 503), summary="Readiness: a model is loaded")(self.ready)
        app.get(
            "/example", responses=_errors(401, 403, 421, 422, 429) | {200: {"content": {"image/png": {}}}},
            response_class=Response, summary="A synthetic image to try the service with",
        )(self.example)  # fmt: skip
        app.get(
            "/model", responses=_errors(401, 403, 421, 503), summary="The version in use, and its model card"
        )(self.model)  # fmt: skip
        app.get(
            "/metrics", responses=_errors(401, 403, 421), response_class=Response, summary="Metrics for Prometheus"
        )(self.metrics)  # fmt: skip
        for path, file in PAGE_FILES.items():
            app.add_api_route(path, _file(file), include_in_schema=False)
        return app

    async def predict(
        self,
        request: Request,
        image: Annotated[bool, Query(description="Also return a picture of the image")] = False,
        heat: Annotated[bool, Query(description="Also return a heat map of where the model looked")] = False,
        of_class: Annotated[
            str | None, Query(alias="class", description="Class of the heat map; default: the predicted class")
        ] = None,
    ) -> Prediction:
        """Classify one image, which is the body of the request.

        Nothing of it is stored, and its file name is not needed.
        """
        async with self._image(request) as (data, classifier):
            _check_class(of_class, classifier)
            _check_heat(heat)
            decoded, result = await self._classify(data, classifier, heat_of=(of_class or "") if heat else None)
            picture = await self.decode_pool.run(render_image, data, classifier) if image else None
            layer = await self._heat_layer(decoded, result) if result.heat else None
        metrics = self.batcher.metrics
        metrics.images_classified.labels(result.answer.predicted_class, str(result.answer.refer).lower()).inc()
        return _prediction(result, decoded, picture.content.decode() if picture else None, layer)

    async def pixels(self, request: Request) -> Response:
        """Decode one image, which is the body of the request, without classifying it.

        The response holds rows of 8-bit or 16-bit little-endian grey levels; the header `X-Image` describes them as
        JSON: width, height, bits, the window to start with (lowest and highest level), what a level stands for
        (`zero + step * level`, in `unit`), the windows that the file offers (name, centre, width), DICOM view and
        laterality.
        """
        async with self._image(request) as (data, classifier):
            pixels = await self.decode_pool.run(viewer_pixels, data, classifier)
        described = {"x-image": json.dumps(pixels.described)}
        return Response(pixels.content, media_type="application/octet-stream", headers=described)

    async def overlay(
        self,
        request: Request,
        of_class: Annotated[str | None, Query(alias="class", description="Default: the predicted class")] = None,
    ) -> Response:
        """Classify one image, and return it as a PNG with the heat of a class and what it shows burned in."""
        async with self._image(request) as (data, classifier):
            _check_class(of_class, classifier)
            _check_heat(True)
            _, result = await self._classify(data, classifier, heat_of=of_class or "")
            if result.heat is None:
                raise RejectedError(500, "internal", "the heat map is missing; see the service's log")
            picture = await self.decode_pool.run(
                overlay_png, data, classifier, result.answer, result.heat.levels, result.heat.of_class
            )
        return Response(picture.content, media_type="image/png")

    async def report(self, request: Request) -> Response:
        """Classify one DICOM image, and return the Structured Report for its study."""
        async with self._image(request) as (data, classifier):
            decoded, result = await self._classify(data, classifier, heat_of=None)
            if decoded.format != "DICOM":
                raise RejectedError(422, "not DICOM", "a report belongs to a DICOM study; this image has none")
            now = datetime.now().astimezone()
            report = await self.decode_pool.run(report_of, data, classifier, result.answer, now)
        return Response(report.content, media_type="application/dicom")

    @asynccontextmanager
    async def _image(self, request: Request) -> AsyncIterator[tuple[bytes, Classifier]]:
        """Accept a request until the block ends; yield the image in its body, and the classifier for it."""
        self.rate.take(client_of(request))
        classifier = self.batcher.classifier()
        check_media_type(request)
        with self.admission.admit(request), self.batcher.metrics.images_in_progress.track_inprogress():
            yield await read_body(request, self.limits), classifier

    async def _classify(
        self, data: bytes, classifier: Classifier, *, heat_of: str | None
    ) -> tuple[DecodedImage, Result]:
        decoded = await self.decode_pool.decode(data, classifier)
        return decoded, await self.batcher.answer(decoded, heat_of=heat_of)

    async def _heat_layer(self, decoded: DecodedImage, result: Result) -> HeatMapPicture | None:
        if result.heat is None:
            return None
        name = result.heat.of_class
        picture = await self.decode_pool.run(
            render_heat, decoded.data, decoded.classifier, result.heat.levels, result.answer.probabilities[name]
        )
        return HeatMapPicture(of_class=name, image=picture.content.decode())

    async def health(self) -> Status:
        """Report that the process runs."""
        return Status(status="alive")

    async def ready(self) -> Status:
        """Report that images can be classified; 503 until a model is loaded."""
        self.batcher.classifier()
        return Status(status="ready")

    async def example(self, request: Request, number: Annotated[int, Query(ge=0, lt=EXAMPLES)] = 0) -> Response:
        """Return a synthetic image as PNG; the number decides what it shows."""
        self.rate.take(client_of(request))
        return Response(await asyncio.to_thread(example_png, number), media_type="image/png")

    async def model(self) -> ModelResponse:
        """Return the model card of the version in use, and the limits of the service."""
        self.batcher.classifier()
        card = self.watch.card
        if card is None:
            raise not_ready()
        limits = ClientLimits(upload_bytes=self.limits.max_upload_bytes, media_types=list(MEDIA_TYPES))
        contradiction, asks = self.watch.contradiction, self.sign_in.token is not None
        return ModelResponse(**card.model_dump(), limits=limits, contradiction=contradiction, sign_in=asks)

    async def metrics(self) -> Response:
        """Return counters and latencies in Prometheus's text format."""
        return Response(self.batcher.metrics.exposition(), media_type="text/plain; version=0.0.4")

    async def _rejected(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, RejectedError):
            raise error
        if request.method == "POST" and request.url.path not in {FEEDBACK_PATH, SIGN_IN_PATH}:
            self.batcher.metrics.images_rejected.labels(error.reason).inc()
        return error_response(error)


def _prediction(result: Result, decoded: DecodedImage, picture: str | None, heat: HeatMapPicture | None) -> Prediction:
    classifier = decoded.classifier
    return Prediction(
        **result.answer.to_json(),
        model=MODEL,
        model_version=classifier.number,
        engine=classifier.engine,
        synthetic=classifier.spec.synthetic,
        disclaimer=notice(synthetic=classifier.spec.synthetic),
        sha256=decoded.sha256,
        is_dicom=decoded.format == "DICOM",
        image=picture,
        heat=heat,
    )


def _check_heat(asked_for: bool) -> None:
    if asked_for and not has_torch():
        raise RejectedError(501, "no heat maps", NO_TORCH)


def _check_class(of_class: str | None, classifier: Classifier) -> None:
    if of_class is not None and of_class not in classifier.spec.classes:
        raise RejectedError(422, "unknown class", f"the model's classes are {', '.join(classifier.spec.classes)}")


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse, "description": REASONS[status]} for status in statuses}


def _file(path: Path) -> Any:
    text, media_type = path.read_text(encoding="utf-8"), _MEDIA_TYPES[path.suffix]  # read once: requests open no file
    content = text.replace("{{ not_clinical }}", NOT_CLINICAL).replace("{{ synthetic }}", SYNTHETIC).encode()

    async def answer() -> Response:
        return Response(content, media_type=media_type)

    return answer


async def _http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = str(error.detail)
    content = {"error": {"reason": message.lower(), "message": f"{message}; /openapi.json describes the service"}}
    return JSONResponse(content, error.status_code, error.headers)


async def _invalid(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    wrong = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
    return error_response(RejectedError(422, "invalid parameter", wrong))


async def _failed(_request: Request, error: Exception) -> Response:
    # Starlette raises it again for the server's log; this is the response to the client.
    return error_response(
        RejectedError(500, "internal", f"the service failed with {type(error).__name__}; see its log")
    )

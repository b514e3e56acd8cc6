"""The routes of the service, as REST with an OpenAPI description at /openapi.json, and the page that uses them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC, notice
from cxr.inference.classifier import Classifier
from cxr.registry.versions import MODEL
from cxr.webapp.champion_watch import ChampionWatch
from cxr.webapp.decode_pool import DecodePool
from cxr.webapp.engine import Engine, Told
from cxr.webapp.guard import refusal_response
from cxr.webapp.limits import MEDIA_TYPES, Admission, Limits, RefusedError, check_media_type, read_body
from cxr.webapp.schemas import REASONS, Bounds, ErrorAnswer, HeatPicture, ModelAnswer, Prediction, Status

_STATIC = Path(__file__).parent / "static"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE_FILES = {f"/{path.name}": path for path in sorted(_STATIC.iterdir()) if path.suffix in _MEDIA_TYPES}
PAGE_FILES["/"] = PAGE_FILES.pop("/index.html")
PATHS = frozenset({*PAGE_FILES, "/predict", "/health", "/ready", "/metrics", "/model", "/openapi.json"})
_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The image itself, byte for byte: JPEG, PNG, BMP, TIFF or DICOM",
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES},
    }
}

log = logging.getLogger("cxr.webapp")


class Service:
    """What the routes share."""

    def __init__(self, engine: Engine, reader: DecodePool, watch: ChampionWatch, limits: Limits) -> None:
        self.engine, self.reader, self.watch, self.limits = engine, reader, watch, limits
        self.admission = Admission(limits)

    def app(self) -> FastAPI:
        """Return the application; it starts and stops nothing."""
        app = FastAPI(
            title="Chest X-ray reader",
            version="1",
            description=f"{NOT_CLINICAL} One image in, a calibrated probability for each class out.",
            docs_url=None,  # FastAPI's own pages load scripts from another host
            redoc_url=None,
        )
        app.add_exception_handler(RefusedError, self._refused)
        app.add_exception_handler(HTTPException, _http_error)
        app.add_exception_handler(RequestValidationError, _invalid)
        app.add_exception_handler(Exception, _failed)
        app.post("/predict", responses=_errors(*REASONS), openapi_extra=_IMAGE_BODY, summary="Classify one image")(
            self.predict
        )
        app.get("/health", responses=_errors(421), summary="The process lives")(self.health)
        app.get("/ready", responses=_errors(421, 503), summary="The model is loaded")(self.ready)
        app.get("/model", responses=_errors(421, 503), summary="The version that answers, and its card")(self.model)
        app.get("/metrics", responses=_errors(421), response_class=Response, summary="For Prometheus")(self.metrics)
        for path, file in PAGE_FILES.items():
            app.add_api_route(path, _file(file), include_in_schema=False)
        return app

    async def predict(
        self,
        request: Request,
        image: Annotated[bool, Query(description="Answer with a picture of the image, too")] = False,
        heat: Annotated[bool, Query(description="Answer with where the model looked, too")] = False,
        of_class: Annotated[
            str | None, Query(alias="class", description="Class of the heat; the predicted one where none is given")
        ] = None,
    ) -> Prediction:
        """Classify one image, which is the body of the request.

        Nothing of it is kept, and its name need not be told.
        """
        classifier = self.engine.classifier()
        _check_class(of_class, classifier)
        check_media_type(request)
        with self.admission.enter(request), self.engine.metrics.in_work.track_inprogress():
            data = await read_body(request, self.limits)
            prepared = await self.reader.read(data, classifier, with_layer=image or heat)
            del data  # the image waits for the model without its file
            told = await self.engine.answer(prepared, heat_of=(of_class or "") if heat else None)
        prediction = _prediction(told, prepared.classifier, prepared.layer if image else None)
        self.engine.metrics.images.labels(prediction.predicted_class, str(prediction.refer).lower()).inc()
        return prediction

    async def health(self) -> Status:
        """Say that the process lives."""
        return Status(status="alive")

    async def ready(self) -> Status:
        """Say that images are answered; 503 until the model is loaded."""
        self.engine.classifier()
        return Status(status="ready")

    async def model(self) -> ModelAnswer:
        """Return the version that answers, with its card and the limits of the service."""
        self.engine.classifier()
        card = self.watch.card
        if card is None:
            raise RefusedError(
                503, "not ready", "the model is being loaded; try again in a few seconds", retry_seconds=2
            )
        limits = Bounds(upload_bytes=self.limits.upload_bytes, media_types=list(MEDIA_TYPES))
        return ModelAnswer(**card.model_dump(), limits=limits)

    async def metrics(self) -> Response:
        """Return counters and latencies in Prometheus's text format."""
        return Response(self.engine.metrics.exposition(), media_type="text/plain; version=0.0.4")

    async def _refused(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, RefusedError):
            raise error
        if request.url.path == "/predict":
            self.engine.metrics.refused.labels(error.reason).inc()
        return refusal_response(error)


def _prediction(told: Told, classifier: Classifier, layer: str | None) -> Prediction:
    answer = told.answer
    return Prediction(
        predicted_class=answer.predicted_class,
        probabilities=dict(answer.probabilities),
        refer=answer.refer,
        warning=answer.warning,
        model=MODEL,
        model_version=classifier.number,
        engine=classifier.engine,
        synthetic=classifier.spec.synthetic,
        disclaimer=notice(synthetic=classifier.spec.synthetic),
        image=layer,
        heat=HeatPicture(of_class=told.heat.of_class, image=told.heat.image) if told.heat else None,
    )


def _check_class(of_class: str | None, classifier: Classifier) -> None:
    if of_class is not None and of_class not in classifier.spec.classes:
        raise RefusedError(422, "unknown class", f"the model's classes are {', '.join(classifier.spec.classes)}")


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": REASONS[status]} for status in statuses}


def _file(path: Path) -> Any:
    text, media_type = path.read_text(encoding="utf-8"), _MEDIA_TYPES[path.suffix]  # once: no request names a file
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
    return refusal_response(RefusedError(422, "invalid parameter", wrong))


async def _failed(_request: Request, error: Exception) -> Response:
    # Starlette raises it again for the server's log; this is what the client is told.
    return refusal_response(
        RefusedError(500, "internal", f"the service failed with {type(error).__name__}; see its log")
    )

"""Counters for Prometheus. No label comes from an image, a file name or an unknown path."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels = ("method", "path", "status")
        self.requests = Counter("cxr_requests", "HTTP requests", labels, registry=registry)
        self.request_seconds = Histogram(
            "cxr_request_seconds", "Latency of HTTP requests", ("path",), buckets=_SECONDS, registry=registry
        )
        self.images_classified = Counter(
            "cxr_images_classified", "Images classified", ("predicted_class", "refer"), registry=registry
        )
        self.images_rejected = Counter("cxr_images_rejected", "Images rejected", ("reason",), registry=registry)
        self.images_in_progress = Gauge(
            "cxr_images_in_progress", "Images accepted and not yet classified", registry=registry
        )
        self.images_queued = Gauge("cxr_images_queued", "Images waiting for the model", registry=registry)
        self.batch_images = Histogram("cxr_batch_images", "Images in a batch", buckets=_IMAGES, registry=registry)
        self.model = Gauge("cxr_model", "Model version in use", ("version", "engine"), registry=registry)
        self.model_reloads = Counter(
            "cxr_model_reloads", "New versions loaded or rejected", ("result",), registry=registry
        )

    def set_model(self, *, version: str, engine: str) -> None:
        """Record the version in use from now on."""
        self.model.clear()
        self.model.labels(version, engine).set(1)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

"""What the service counts, for Prometheus. No label comes from an image, from its name or from an address asked for."""

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
        self.requests = Counter("cxr_page_requests", "Requests that were answered", labels, registry=registry)
        self.seconds = Histogram(
            "cxr_page_request_seconds", "From request to answer", ("path",), buckets=_SECONDS, registry=registry
        )
        self.images = Counter("cxr_page_images", "Images answered", ("predicted_class", "refer"), registry=registry)
        self.refused = Counter("cxr_page_refused", "Images not answered", ("reason",), registry=registry)
        self.in_work = Gauge("cxr_page_requests_in_work", "Images let in and not answered yet", registry=registry)
        self.waiting = Gauge("cxr_page_images_waiting", "Images that wait for the model", registry=registry)
        self.batch_images = Histogram(
            "cxr_page_batch_images", "Images that the model took together", buckets=_IMAGES, registry=registry
        )
        self.model = Gauge("cxr_page_model", "The version that answers", ("version", "engine"), registry=registry)
        self.reloads = Counter(
            "cxr_page_reloads", "Looks for a new champion that found one", ("result",), registry=registry
        )

    def model_is(self, *, version: str, engine: str) -> None:
        """Name the version that answers from now on."""
        self.model.clear()
        self.model.labels(version, engine).set(1)

    def exposition(self) -> bytes:
        """Return all of it in Prometheus's text format."""
        return generate_latest(self.registry)

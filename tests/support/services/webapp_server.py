"""Serves the web app on a real socket: in this process with a small model, or as a process with a registry."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import torch
import uvicorn

from cxr.dataset.synthetic_image import KERMANY_LOOK, draw_anatomy, draw_finding, draw_image
from cxr.inference.classifier import Classifier
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.registry import runs, versions
from cxr.registry.champion import aliases
from cxr.registry.registration import register_version
from cxr.webapp.limits import MEGABYTE, Limits
from cxr.webapp.model_info import measured_of, read_card
from cxr.webapp.server import WebApp
from cxr.webapp.sign_in import Token
from tests.support.project import PROJECT
from tests.support.projects.registry_project import CLASSES, artifacts, spec
from tests.support.services.servers import free_ports
from tests.support.waiting import wait_for

LIMITS = Limits(
    max_upload_bytes=8 * MEGABYTE,
    max_queued_images=16,
    max_queued_bytes=64 * MEGABYTE,
    max_batch_images=4,
    max_images_per_minute=100_000,
    max_feedback_per_minute=100_000,
    decode_workers=2,
    upload_timeout_s=60.0,
    queue_timeout_s=60.0,
    decode_timeout_s=60.0,
    inference_timeout_s=60.0,
)
BYTES = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Served:
    """The service in this process."""

    address: str
    port: int
    webapp: WebApp

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a counter or gauge; 0 if nothing was counted."""
        return self.webapp.batcher.metrics.registry.get_sample_value(name, labels) or 0.0


def send(served: Served, data: bytes, **params: str) -> httpx.Response:
    """Send an image to /predict."""
    return httpx.post(f"{served.address}/predict", params=params, content=data, headers=BYTES, timeout=60)


def send_from(address: str, served: Served) -> httpx.Response:
    """Send an image from another address of this machine, as another client would."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=60) as client:
        return client.post(f"{served.address}/predict", content=IMAGE, headers=BYTES)


def reason(response: httpx.Response) -> str:
    """Return the reason of an error response, after checking its form."""
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["reason", "message"]
    return str(body["error"]["reason"])


def tiny_classifier(number: str = "1", *, seed: int = 1, synthetic: bool = True, **changed: Any) -> Classifier:
    """Return a small network with random weights as a version of the registry."""
    torch.manual_seed(seed)
    described = replace(spec(image_size_px=32, backbone="small_cnn", synthetic=synthetic), **changed)
    network = build("small_cnn", len(described.classes)).eval()
    return Classifier(described, number, None, lambda: network)


@contextlib.contextmanager
def serve_here(
    classifier: Classifier | None,
    *,
    limits: Limits = LIMITS,
    port: int | None = None,
    token: str = "",
    names: Sequence[str] = (),
    proxies: Sequence[str] = (),
) -> Iterator[Served]:
    """Serve in this process on loopback, on a free port unless it is given; no classifier: no model is loaded yet."""
    port, kept = port or free_ports(1)[0], tempfile.TemporaryDirectory()
    feedback = Path(kept.name) / "feedback.csv"
    webapp = WebApp(
        limits,
        names=names,
        token=Token(token) if token else None,
        proxies=proxies,
        model="champion",
        engine="torch",
        champion_poll_s=3600.0,
        feedback=feedback,
    )
    server = uvicorn.Server(webapp.config("127.0.0.1", port))
    if classifier:
        use(webapp, classifier)
    webapp.batcher.start()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Served(f"http://127.0.0.1:{port}", port, webapp)
    finally:
        server.should_exit = True
        thread.join()
        webapp.close()
        kept.cleanup()


METRICS: dict[str, Any] = {
    "n_test": 100,
    "n_patients": 80,
    "classes": list(CLASSES),
    "confusion_matrix": [[28, 1, 1], [4, 16, 10], [0, 3, 37]],
    "per_class": {
        "normal": {"support": 30, "recall": 28 / 30, "precision": 28 / 32},
        "viral": {"support": 30, "recall": 16 / 30, "precision": 16 / 20},
        "bacterial": {"support": 40, "recall": 37 / 40, "precision": 37 / 48},
    },
    "ci95": {"per_class": {"viral": {"recall": [0.36, 0.7], "precision": [0.6, 0.93]}}},
}
"""The metrics of a version, as `metrics.json` holds them."""


def use(webapp: WebApp, classifier: Classifier, *, metrics: dict[str, Any] | None = None) -> None:
    """Answer with `classifier`, as if the champion had moved to it; `metrics` are those of its version."""
    unmeasured = versions.Version(classifier.number, "", "", {"protocol": "patient"})
    card = read_card(unmeasured, classifier)
    webapp.watch.use(classifier, card.model_copy(update={"measured": measured_of(metrics) if metrics else None}))


def synthetic(label: Any = "viral", seed: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a synthetic image."""
    rng = np.random.default_rng(seed)
    return draw_image(draw_anatomy(rng), draw_finding(label, rng), KERMANY_LOOK, rng)


IMAGE: bytes = cv2.imencode(".png", synthetic())[1].tobytes()
"""A synthetic chest X-ray as PNG."""


def register_champion(seed: int, *, instead_of: str = "", damaged: bool = False) -> versions.Version:
    """Register a small network with random weights in the store of this project and make it champion.

    With `damaged` the stored weights are changed before the version becomes champion.
    """
    known = set(artifacts())
    torch.manual_seed(seed)
    described = spec(image_size_px=32, backbone="small_cnn")
    made = Path(f"made-{seed}")
    written = write_bundle(made, build("small_cnn", 3).state_dict(), described)
    run_id = runs.start_run(run_id=None, name="n", tags={})
    version, _ = register_version(made, written, run_id=run_id, lineage={}, evaluation={})
    for path in set(artifacts()) - known if damaged else ():
        if path.name == "model.safetensors":
            path.write_bytes(path.read_bytes()[:-4] + b"evil")
    aliases.move_champion(version.number, instead_of=instead_of, kind="promote", approved_by="ann", reason="test")
    shutil.rmtree(made)
    return version


@dataclass(frozen=True)
class Process:
    """A running `./run app` and its log."""

    address: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def end(self) -> int:
        """Send SIGTERM, as docker and systemd do; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)


@contextlib.contextmanager
def serve_process(*options: str) -> Iterator[Process]:
    """Run the command in the current project until the block ends; wait until it is ready."""
    port = free_ports(1)[0]
    log = Path("app.log").absolute()
    command = [sys.executable, "-m", "tasks.app", "--port", str(port), *options]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with log.open("wb") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: httpx.get(f"{address}/ready").status_code == 200, log=log)
            yield Process(address, log, process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

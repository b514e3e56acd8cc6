"""A PACS worker with a small random network; as a program, one that kills itself at a given moment.

    python -m tests.support.services.pacs_worker MOMENT TIMES STATE_FILE ARGUMENT...

MOMENT is the call of `Pacs.store` at which it dies: "before 1", "after 1", ...; overlay, heat map and report of an
image are three calls. It is started TIMES times by forking,
which saves the imports. The ARGUMENTs are those of `./run pacs`; the account is in the environment.
"""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tasks.pacs
from cxr.common.cli import configure_process
from cxr.common.errors import ImageError
from cxr.dataset.synthetic import KERMANY_LOOK
from cxr.dataset.synthetic_image import draw_anatomy, draw_finding, draw_image
from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier, load_classifier
from cxr.inference.decoding.decoders import Decoders
from cxr.inference.decoding.worker import Made
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.pacs.feed import Pacs
from cxr.pacs.orthanc import Orthanc
from cxr.pacs.worker import PacsWorker
from tests.support.images.dicom_answers import KINDS
from tests.support.images.dicom_images import COMPLETE, dicom_image
from tests.support.projects.registry_project import spec

UID_ROOT = "1.2.826.0.1.3680043.8.498.7770"
DECODERS = Decoders(1, seconds=60)  # started by the first image
atexit.register(DECODERS.close)
CT = {"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}


class ImpatientOnce(Decoders):
    """Decoders that give an image a minute once one took too long: what follows it is not to depend on the machine."""

    def call(self, *given: Any, **named: Any) -> Made:
        try:
            return super().call(*given, **named)
        except ImageError:
            self._seconds = 60.0
            raise


def image(number: int, *, study: int | None = None, **tags: str) -> bytes:
    """Return a chest X-ray with its own instance, series and study UID; or in the study `study`."""
    rng = np.random.default_rng(number)
    look = replace(KERMANY_LOOK, sides_px=(160, 200))
    picture = draw_image(draw_anatomy(rng), draw_finding("viral", rng), look, rng)
    uids = {
        "StudyInstanceUID": f"{UID_ROOT}.{study or number}",
        "SeriesInstanceUID": f"{UID_ROOT}.{number}.1",
        "SOPInstanceUID": f"{UID_ROOT}.{number}.1.1",
    }
    return dicom_image(picture, **(COMPLETE | uids | tags))


def answers_to(*numbers: int) -> dict[tuple[str, str], int]:
    """Return what `dicom_answers.sound_answers` does where each of these images was answered once."""
    return {(kind, f"{UID_ROOT}.{number}.1.1"): 1 for kind in KINDS for number in numbers}


def classifier(folder: Path, *, number: str = "1", seed: int = 0) -> Classifier:
    """Return a small network with random weights as version `number`."""
    torch.manual_seed(seed)
    described = spec(image_size_px=32, backbone="small_cnn")
    write_bundle(folder / f"bundle-{seed}", build("small_cnn", 3).state_dict(), described)
    return load_classifier(folder / f"bundle-{seed}", number=number)


def worker(
    url: str, state_file: Path, *, champion: Classifier | None = None, explains: bool = False, reprocess: bool = False
) -> PacsWorker:
    """Return a worker with a champion; with `explains` it stores overlays and heat maps, too."""
    loaded = champion or classifier(state_file.parent)
    return PacsWorker(
        Orthanc(url), lambda: loaded, DECODERS, state_file, overlay=explains, heat_map=explains, reprocess=reprocess
    )


@contextmanager
def connected(state_file: Path, *arguments: str, champion: Classifier | None = None) -> Iterator[PacsWorker]:
    """Yield a worker for the PACS that arguments of `./run pacs` name."""
    given = tasks.pacs.command_line().parse_args([*arguments, "--state-file", str(state_file)])
    with tasks.pacs.connect(given, DECODERS) as pacs:
        loaded = champion or classifier(state_file.parent)
        yield PacsWorker(pacs, lambda: loaded, DECODERS, state_file)


def follow(started: PacsWorker) -> PacsWorker:
    """Follow the feed to its end, the worker's own reports included; return the worker."""
    while not started.process_next():
        pass
    return started


@dataclass(frozen=True)
class FailingClassifier(Classifier):
    """A classifier that fails on a batch with the image `bad` in it."""

    bad: bytes = b""

    def answer(self, images: NDArray[np.uint8]) -> list[Answer]:
        """Answer images, or fail."""
        if any(np.array_equal(one, self.read(self.bad, name="")) for one in images):
            raise RuntimeError("Sorrowful^Jane made it fall over")
        return super().answer(images)


class KillingPacs:
    """A PACS whose client kills its process at a `moment`, before or after it stores an object."""

    def __init__(self, pacs: Pacs, moment: str) -> None:
        self.pacs, self.moment, self.calls = pacs, moment, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pacs, name)

    def store(self, dicom: bytes) -> bool:
        """Store an object, and kill the process when its time has come."""
        self.calls += 1
        self._kill("before")
        stored = self.pacs.store(dicom)
        self._kill("after")
        return stored

    def _kill(self, when: str) -> None:
        if self.moment == f"{when} {self.calls}":
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Follow the feed with overlays and heat maps until the moment comes; return how many processes were killed."""
    moment, times, state_file, *arguments = sys.argv[1:]
    configure_process()
    killed = 0
    for _ in range(int(times)):
        child = os.fork()
        if child == 0:
            with connected(Path(state_file), *arguments) as started:
                follow(replace(started, pacs=KillingPacs(started.pacs, moment), overlay=True, heat_map=True))
            os._exit(0)
        killed += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    return killed


if __name__ == "__main__":
    sys.exit(main())

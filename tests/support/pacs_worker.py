"""The link to a PACS with a small network of random weights; as a program, one that kills itself at a chosen moment.

    python -m tests.support.pacs_worker URL PLACE MOMENT TIMES

MOMENT is the call of `Orthanc.store` at which it dies: "before 1", "after 1", ... It is started anew TIMES in all, by
forking, which spares the imports. The account is in the environment.
"""

import os
import signal
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cxr.common.cli import configure_process
from cxr.dataset.synthetic import KERMANY_LOOK
from cxr.dataset.synthetic_image import draw_anatomy, draw_finding, draw_image
from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier, load_classifier
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.pacs.orthanc import Orthanc
from cxr.pacs.worker import Link
from tests.support.dicom_images import dicom_image
from tests.support.registry_project import spec

UID_ROOT = "1.2.826.0.1.3680043.8.498.7770"
CT = {"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}


def image(number: int, *, study: int | None = None, **tags: str) -> bytes:
    """Return a chest X-ray of an instance, series and study of their own, or of the study `study`."""
    rng = np.random.default_rng(number)
    look = replace(KERMANY_LOOK, sides_px=(160, 200))
    picture = draw_image(draw_anatomy(rng), draw_finding("viral", rng), look, rng)
    uids = {
        "StudyInstanceUID": f"{UID_ROOT}.{study or number}",
        "SeriesInstanceUID": f"{UID_ROOT}.{number}.1",
        "SOPInstanceUID": f"{UID_ROOT}.{number}.1.1",
    }
    return dicom_image(picture, **(uids | tags))


def classifier(folder: Path, *, number: str = "1", seed: int = 0) -> Classifier:
    """Return a small network of random weights as the version `number`; each seed is another one."""
    torch.manual_seed(seed)
    described = spec(image_size_px=32, backbone="small_cnn")
    write_bundle(folder / f"bundle-{seed}", build("small_cnn", 3).state_dict(), described)
    return load_classifier(folder / f"bundle-{seed}", number=number)


def link(url: str, place: Path, *, by: Classifier | None = None, overlay: bool = False, again: bool = False) -> Link:
    """Return a link whose champion is `by`."""
    champion = by or classifier(place.parent)
    return Link(Orthanc(url), lambda: champion, place, overlay=overlay, again=again)


def follow(followed: Link) -> Link:
    """Follow the feed to its end, our own answers in it included; return the link."""
    while not followed.round():
        pass
    return followed


@dataclass(frozen=True)
class Spoilt(Classifier):
    """A classifier that cannot take a batch with the image `spoiling` in it."""

    spoiling: bytes = b""

    def answer(self, images: NDArray[np.uint8]) -> list[Answer]:
        """Answer images, or raise."""
        if any(np.array_equal(one, self.read(self.spoiling, name="")) for one in images):
            raise RuntimeError("Sorrowful^Jane made it fall over")
        return super().answer(images)


class StoppedOrthanc(Orthanc):
    """A client whose process dies at the `count`th object that it stores, `when` that is "before" or "after"."""

    when, count, calls = "", 0, 0

    def store(self, dicom: bytes) -> bool:
        """Store, and die."""
        self.calls += 1
        self._die("before")
        stored = super().store(dicom)
        self._die("after")
        return stored

    def _die(self, when: str) -> None:
        if (self.when, self.count) == (when, self.calls):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Follow the feed with overlays until the moment comes; return how many processes were killed."""
    url, place, moment, times = sys.argv[1:]
    configure_process()
    for slow in ("highdicom.sc", "highdicom.sr"):
        import_module(slow)  # once, not in each child
    killed = 0
    for _ in range(int(times)):
        child = os.fork()
        if child == 0:
            stopping = StoppedOrthanc(url)
            stopping.when, _, count = moment.partition(" ")
            stopping.count = int(count)
            follow(replace(link(url, Path(place), overlay=True), orthanc=stopping))
            os._exit(0)
        killed += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    return killed


if __name__ == "__main__":
    sys.exit(main())

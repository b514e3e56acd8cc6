"""A loaded version of the registry: the one path from an image to an answer.

`predict`, `score`, the web app, the PACS worker and MLflow's server all answer through `Classifier`, so that the same
image gets the same answer everywhere. Preprocessing, class order and calibration are those saved with the weights; no
parameter of this checkout changes them. The engine `torch` answers bit for bit as the evaluation did. The engine
`openvino` runs the exported network (cxr/inference/openvino/runtime.py) and imports no torch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cxr.common.engines import Engine, require_torch
from cxr.imaging.decode import EncodedImage, open_image
from cxr.inference.answer import Answer
from cxr.inference.input_checks import prepare_chest_xray
from cxr.inference.ood import OodDetector, ood_detector
from cxr.inference.openvino.runtime import Runtime, load_runtime
from cxr.inference.orientation import orientation_check
from cxr.models.bundle import ModelSpec, read_bundle, read_spec
from cxr.models.forward import BATCH_SIZE, calibrated, choose_device, predict_with_features, referred
from cxr.models.reference import MEASURES, REFERENCE_FILE, Reference, measure, read_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

log = logging.getLogger("cxr.inference.classifier")


@dataclass(frozen=True)
class Classifier:
    """A registered model, the version `number`.

    `reference` is None where the version was registered without one: its images are not measured.
    `load_network` returns the network in evaluation mode on its device; it is called once, on first use.
    `runtime` computes the answers instead of the network, where it is given.
    """

    spec: ModelSpec
    number: str
    reference: Reference | None
    load_network: Callable[[], nn.Module]
    runtime: Runtime | None = None

    @property
    def engine(self) -> str:
        """The engine in use: "torch", or "openvino" and its precision."""
        return self.runtime.name if self.runtime else "torch"

    @cached_property
    def network(self) -> nn.Module:
        """The network in torch."""
        return self.load_network()

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures of each image."""
        return MEASURES if self.reference else ()

    def without_network(self) -> Classifier:
        """Return one that opens and prepares images and answers none; unlike this one it can be pickled."""
        return Classifier(self.spec, self.number, None, _no_network)

    def open(self, data: bytes, *, name: str) -> EncodedImage:
        """Read the header of a file's bytes; raises ImageError as cxr.imaging.decode.open_image does."""
        return open_image(data, name=name, max_pixels=self.spec.preprocessing.max_pixels)

    def prepare(self, image: EncodedImage) -> NDArray[np.uint8]:
        """Return an image (H, W) as the model takes it; raises ImageError where it shows no chest X-ray."""
        return prepare_chest_xray(image, self.spec.preprocessing)

    def read(self, data: bytes, *, name: str) -> NDArray[np.uint8]:
        """Return an image (H, W) as the model takes it, from a file's bytes.

        Raises:
            ImageError: the file cannot be read, or is no chest X-ray (cxr/inference/input_checks.py); names it `name`.
        """
        return self.prepare(self.open(data, name=name))

    def answer(self, images: NDArray[np.uint8]) -> list[Answer]:
        """Return the answers to images (N, H, W) from `read`, in their order; N may be 0.

        An answer does not depend on the other images of its batch.
        """
        batches = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
        return [answer for batch in batches for answer in self._answer_batch(batch)]

    def heat(self, images: NDArray[np.uint8], classes: Sequence[str]) -> NDArray[np.float32]:
        """Return the Grad-CAM of images (N, H, W) for `classes`, one class an image: (N, H, W), 0 to 1.

        Raises:
            ParamsError: torch is not installed.
        """
        require_torch()
        from cxr.models.grad_cam import grad_cam_of_images  # imports torch, which OpenVINO's answers do without

        wanted = np.array([self.spec.classes.index(name) for name in classes], np.int64)
        return grad_cam_of_images(self.network, images, wanted, mean=self.spec.mean, std=self.spec.std)

    def _answer_batch(self, images: NDArray[np.uint8]) -> list[Answer]:
        logits, features = self._logits_and_features(images)
        probabilities = calibrated(logits, self.spec)
        measured = measure(images, features, self.reference) if self.reference else {}
        warnings = self._warnings(images, features)
        return [
            Answer(
                dict(zip(self.spec.classes, shares, strict=True)),
                True if warning else refer,
                warning,
                measures={name: float(values[number]) for name, values in measured.items()},
            )
            for number, (shares, refer, warning) in enumerate(
                zip(probabilities.tolist(), referred(probabilities, self.spec), warnings, strict=True)
            )
        ]

    def _warnings(self, images: NDArray[np.uint8], features: NDArray[np.float32]) -> list[str | None]:
        """Return the warning for each image: which way up it is, if not upright, since a person can mend that."""
        turned = orientation_check().warnings(images)
        strange = self._ood_detector.warnings(images, features) if self._ood_detector else [None] * len(images)
        return [one or other for one, other in zip(turned, strange, strict=True)]

    @cached_property
    def _ood_detector(self) -> OodDetector | None:
        return ood_detector(self.reference) if self.reference else None

    def _logits_and_features(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self.runtime:
            return self.runtime.logits_and_features(images)
        return predict_with_features(self.network, images, mean=self.spec.mean, std=self.spec.std)


def _no_network() -> nn.Module:
    raise RuntimeError("this classifier only prepares images")


def load_classifier(bundle: Path, *, number: str, engine: Engine = "torch") -> Classifier:
    """Load the version `number` from its bundle, a folder that `cxr.registry.versions.fetch_bundle` returned.

    Args:
        bundle: the folder.
        number: of the version.
        engine: what computes the answers. Where "openvino" is asked for and the version has no exported network that
            was accepted for this processor, torch computes them and the log says so.

    Raises:
        WeightsError: a file is missing, changed or damaged.
        ParamsError: torch is not installed, and the answers need it.
    """
    spec = read_spec(bundle)
    reference = read_reference(bundle / REFERENCE_FILE) if (bundle / REFERENCE_FILE).is_file() else None
    runtime = load_runtime(bundle) if engine == "openvino" else None
    if runtime:
        return Classifier(spec, number, reference, partial(_load_network, bundle), runtime)
    if engine == "openvino":
        log.warning("version %s has no exported network that was accepted for this processor: torch answers", number)
    network = _load_network(bundle)
    return Classifier(spec, number, reference, lambda: network)


def _load_network(bundle: Path) -> nn.Module:
    require_torch()
    network, _ = read_bundle(bundle)
    return network.to(choose_device("auto"))

"""A version of the registry, ready to be asked: the one way from a film to an answer.

`predict`, `score`, the reader's page, the link to a PACS and MLflow's server all answer through `Classifier`, so that
the same film gets the same answer everywhere. Preprocessing, class order and calibration are those saved with the
weights; no parameter of this checkout has a say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cxr.bundle import ModelSpec, read_bundle
from cxr.drift import MEASURES, REFERENCE_FILE, Reference, measure, read_reference
from cxr.explain import grad_cam_of_films
from cxr.images import film_from_bytes
from cxr.inference import BATCH_SIZE, calibrated, choose_device, predict_with_features, referred

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Answer:
    """What a model says of one film.

    probabilities  by class, each 0 to 1, calibrated
    refer          a reader should see the film, for the model is not sure enough of it; None: no threshold for that
    warning        why the answer may mean nothing: the film is unlike those that the model was judged on
    measures       what the film measures, by the names of `cxr.drift.MEASURES`; empty without reference statistics
    """

    probabilities: Mapping[str, float]
    refer: bool | None
    warning: str | None = None
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def predicted_class(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return max(self.probabilities.values())


@dataclass(frozen=True)
class Classifier:
    """A registered model: `network` in evaluation mode on its device, `number` of its version.

    `reference` is None where the version was registered without one: its films are not measured.
    `engine` computes the answers: "torch", to the bit as the evaluation did, or "openvino" and its precision.
    """

    network: nn.Module
    spec: ModelSpec
    number: str
    reference: Reference | None
    engine: str = "torch"

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what each film is measured by."""
        return MEASURES if self.reference else ()

    def read(self, data: bytes, *, name: str) -> NDArray[np.uint8]:
        """Return a film (H, W) as the model takes it, from a file's bytes. Raises ImageError, naming it `name`."""
        return film_from_bytes(data, self.spec.preprocessing, name=name)

    def answer(self, films: NDArray[np.uint8]) -> list[Answer]:
        """Return what the model says of films (N, H, W) that `read` made, in their order; N may be 0.

        An answer does not depend on the films beside it.
        """
        batches = [films[start : start + BATCH_SIZE] for start in range(0, len(films), BATCH_SIZE)]
        return [answer for batch in batches for answer in self._answer_batch(batch)]

    def heat(self, films: NDArray[np.uint8], classes: Sequence[str]) -> NDArray[np.float32]:
        """Return where films (N, H, W) speak for `classes`, one named for each film: Grad-CAM, (N, H, W), 0 to 1."""
        wanted = np.array([self.spec.classes.index(name) for name in classes], np.int64)
        return grad_cam_of_films(self.network, films, wanted, mean=self.spec.mean, std=self.spec.std)

    def _answer_batch(self, films: NDArray[np.uint8]) -> list[Answer]:
        logits, features = predict_with_features(self.network, films, mean=self.spec.mean, std=self.spec.std)
        probabilities = calibrated(logits, self.spec)
        measured = measure(films, features, self.reference) if self.reference else {}
        return [
            Answer(
                dict(zip(self.spec.classes, shares, strict=True)),
                refer,
                measures={name: float(values[number]) for name, values in measured.items()},
            )
            for number, (shares, refer) in enumerate(
                zip(probabilities.tolist(), referred(probabilities, self.spec), strict=True)
            )
        ]


def load_classifier(bundle: Path, *, number: str, fast: bool = False) -> Classifier:
    """Load the version `number` from its bundle, a folder that `cxr.registry.fetch_bundle` gave.

    Args:
        bundle: the folder.
        number: of the version.
        fast: answer through the exported network where the version has one, else through torch.

    Raises:
        WeightsError: a file is missing, changed or damaged.
    """
    network, spec = read_bundle(bundle)
    reference = read_reference(bundle / REFERENCE_FILE) if (bundle / REFERENCE_FILE).is_file() else None
    return Classifier(network.to(choose_device("auto")), spec, number, reference)

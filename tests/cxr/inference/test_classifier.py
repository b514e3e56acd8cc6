"""The classifier: warnings and referral on top of a network's scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cxr.inference.classifier import Classifier
from cxr.models.factory import build
from cxr.models.forward import predict_with_features
from cxr.models.reference import image_measures, make_reference
from tests.support.projects.registry_project import CLASSES, spec

SIDE_PX = 32
IMAGES = 80


def images() -> NDArray[np.uint8]:
    """A bright middle on a dark ground, of varying brightness."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1 : 1 : SIDE_PX * 1j, -1 : 1 : SIDE_PX * 1j]
    middle = 120 * np.exp(-(rows**2 + columns**2) * 3) * rng.uniform(0.8, 1.2, (IMAGES, 1, 1))
    return np.asarray((40 + middle + rng.normal(0, 12, middle.shape)).clip(0, 255), np.uint8)


@pytest.mark.parametrize("refer_below", [None, 0.0])
def test_an_image_with_a_warning_is_referred_even_when_the_model_is_sure(refer_below: float | None) -> None:
    torch.manual_seed(0)
    network, ordinary = build("small_cnn", 3).eval(), images()
    described = replace(spec(image_size_px=SIDE_PX, backbone="small_cnn"), refer_below=refer_below)
    seen = [
        predict_with_features(network, ordinary[start : start + 16], mean=described.mean, std=described.std)[1]
        for start in range(0, IMAGES, 16)
    ]
    reference = make_reference(
        classes=CLASSES,
        images=np.column_stack(list(image_measures(ordinary).values())),
        features=np.concatenate(seen),
        probabilities=np.full((IMAGES, 3), 1 / 3),
        patients=np.arange(IMAGES).astype(object),
    )
    classifier = Classifier(described, "1", reference, lambda: network)
    odd = np.asarray(np.where(ordinary[0] > 100, 250, 240), np.uint8)
    usual, strange = classifier.answer(np.stack([ordinary[1], odd]))
    assert (usual.warning, usual.refer) == (None, None if refer_below is None else False)
    assert strange.warning is not None
    assert strange.refer is True

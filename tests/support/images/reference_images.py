"""Synthetic images with features and probabilities, and the reference of a model that was tested on them."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.common.classes import Label
from cxr.dataset.synthetic_image import KERMANY_LOOK, Look, draw_anatomy, draw_finding, draw_image
from cxr.imaging.preprocess import Preprocessing, prepare
from cxr.models.reference import Reference, image_measures, make_reference, measure

Images = NDArray[np.uint8]
CLASSES: tuple[Label, ...] = ("normal", "viral", "bacterial")
IMAGES_PER_PATIENT = 2
_PREPROCESSING = Preprocessing(48, "stretch", "none", 2.0, 8, 10**7)


def synthetic_images(look: Look, patients: int, *, seed: int) -> Images:
    """Return prepared images (N, 48, 48), two per patient, the classes in turn."""
    generator, look = np.random.default_rng(seed), replace(look, sides_px=(72, 96))
    drawn = []
    for number in range(patients):
        anatomy, finding = draw_anatomy(generator), draw_finding(CLASSES[number % 3], generator)
        for _ in range(IMAGES_PER_PATIENT):
            drawn.append(prepare(draw_image(anatomy, finding, look, generator), _PREPROCESSING))
    return np.stack(drawn)


@cache
def reference_images() -> Images:
    """Return 240 images of the hospital that the reference is made from."""
    return synthetic_images(KERMANY_LOOK, 120, seed=1)


@cache
def later_images() -> Images:
    """Return 200 images of other patients of the same hospital."""
    return synthetic_images(KERMANY_LOOK, 100, seed=2)


@cache
def model_reference() -> Reference:
    """Return the reference that is made from `reference_images`."""
    images = reference_images()
    return make_reference(
        classes=CLASSES,
        images=np.column_stack(list(image_measures(images).values())),
        features=features(images),
        probabilities=probabilities(len(images)),
        patients=np.array([f"patient-{i // IMAGES_PER_PATIENT}" for i in range(len(images))], object),
    )


def features(images: Images) -> NDArray[np.float32]:
    """Return 6 x 6 mean grey levels (N, 36) in place of a network's features."""
    return np.asarray(images.reshape(len(images), 6, 8, 6, 8).mean(axis=(2, 4)).reshape(len(images), 36), np.float32)


def probabilities(count: int, *, seed: int = 5) -> NDArray[np.float64]:
    """Return random probabilities (count, 3)."""
    return np.random.default_rng(seed).dirichlet(np.ones(3) / 2, count)


def scored_images(images: Images, reference: Reference, given: NDArray[np.float64] | None = None) -> pd.DataFrame:
    """Return the columns that scoring writes, one image per minute; random probabilities unless `given`."""
    given = probabilities(len(images), seed=6) if given is None else given
    table = pd.DataFrame(
        {f"m_{name}": values for name, values in measure(images, features(images), reference).items()}
    ).assign(**{f"p_{name}": given[:, c] for c, name in enumerate(CLASSES)})
    return table.assign(
        predicted_class=np.array(CLASSES)[given.argmax(axis=1)],
        error=None,
        path=[f"image-{i}.png" for i in range(len(images))],
        scored_at=pd.date_range("2026-01-01", periods=len(images), freq="min", tz="UTC"),
    )

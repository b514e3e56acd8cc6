"""A registered model that can really answer, small and untrained, for tests of the commands that run it."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.models.reference import REFERENCE_FILE, image_measures, make_reference, write_reference
from cxr.registry import versions
from cxr.registry.champion import aliases
from tests.support.projects.registry_project import CLASSES, enter_project, register, spec, write_model

SIZE_PX = 32
FEATURES = 256
"""Of `small_cnn` before its last layer."""


def enter_tiny_project(
    folder: Path,
    patch: pytest.MonkeyPatch,
    factory: pytest.TempPathFactory,
    *,
    champion: bool,
    store: Mapping[str, str] | None = None,
) -> None:
    """Make `folder` the current directory, with a store whose version 1 is challenger, and champion where asked.

    The store is the folder's own, or the one that the variables of `store` lead to.
    """
    enter_project(folder, patch, factory)
    for name, value in (store or {}).items():
        patch.setenv(name, value)
    write_model()
    write_network(seed=2)
    version = register()
    if champion:
        aliases.move_champion(version.number, instead_of="", kind="promote", approved_by="ann", reason="test")


def write_network(*, seed: int) -> None:
    """Put random weights whose answers differ from image to image into models/trained, with their reference."""
    torch.manual_seed(seed)
    state = build("small_cnn", len(CLASSES)).state_dict()
    state["fc.weight"] = state["fc.weight"] * 100
    write_bundle(Path("models/trained"), state, spec(image_size_px=SIZE_PX, backbone="small_cnn"))
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (20, SIZE_PX, SIZE_PX), np.uint8)
    reference = make_reference(
        classes=CLASSES,
        images=np.column_stack(list(image_measures(pixels).values())),
        features=generator.normal(size=(20, FEATURES)).astype(np.float32),
        probabilities=generator.dirichlet((1, 1, 1), 20),
        patients=np.arange(20).astype(object),
    )
    write_reference(Path("reports/evaluation") / REFERENCE_FILE, reference)


def write_image(path: Path, *, seed: int) -> None:
    """Write a grey PNG that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(coarse, (48, 40), interpolation=cv2.INTER_CUBIC))


def champion_number() -> str:
    """Return the number of the champion's version."""
    return versions.get_version(versions.CHAMPION).number

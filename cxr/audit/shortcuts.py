"""Shortcut audit: does the model use the lungs, or features that merely correlate with a diagnosis?

Two questions. Do the model's features reveal the source of an image (cxr.audit.source_probe)? What does the model still
predict without the thorax, from the border alone, from the thorax alone (cxr.audit.occlusion)? Rules choose the verdict
from the numbers; each rule is stated beside its sentence. After Maguolo and Nanni (2021), whose models separated
COVID-19 sets with the lungs blacked out, and DeGrave et al. (2021).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from cxr.audit.occlusion import BORDER, VIEWS, border_mask
from cxr.audit.source_probe import image_statistics, probe, probe_set
from cxr.audit.thorax_mask import Outlines, outline
from cxr.audit.verdict import verdict
from cxr.dataset.image_array import ImageArray
from cxr.evaluation.bootstrap import headline_scores
from cxr.evaluation.rates import Floats
from cxr.imaging.encode import jpeg_data_url
from cxr.models.bundle import ModelSpec
from cxr.models.factory import features
from cxr.models.forward import BATCH_SIZE, classify, images_to_input

N_EXAMPLES = 4
TITLES = {
    "whole": "whole image",
    "thorax_blanked": "thorax blanked (grey)",
    "thorax_black": "thorax blanked (black)",
    "border_only": "border only",
    "thorax_only": "thorax only",
}


@dataclass(frozen=True)
class AuditSettings:
    """The largest number of test images and of probe images; resamples of patients; the seed of all draws."""

    max_images: int
    resamples: int
    seed: int


def audit(
    model: nn.Module,
    spec: ModelSpec,
    packed: ImageArray,
    images: pd.DataFrame,
    settings: AuditSettings,
) -> dict[str, Any]:
    """Return audit.json; five passes over at most `max_images` test images, one over those of the probe.

    Args:
        model: in evaluation mode, on any device.
        spec: its description, with the calibration.
        packed: the prepared images.
        images: columns image_id, split ("validation" or "test"), source, patient_id, label; other splits are left out.
        settings: beyond `max_images`, images are drawn at random.
    """
    generator = np.random.default_rng(settings.seed)
    test = _drawn(images[images["split"] == "test"], settings.max_images, generator)
    pixels = packed.images[packed.rows(test["image_id"].tolist())]
    labels = np.array([spec.classes.index(label) for label in test["label"]], np.int64)
    outlines = outline(pixels)
    patients = test["patient_id"].tolist()

    def scored(view: str) -> dict[str, Any]:
        answer = _in_batches(model, spec, pixels, outlines.thorax, view=view)
        return headline_scores(labels, answer, patients, spec.classes, resamples=settings.resamples, seed=settings.seed)

    counts = np.bincount(labels, minlength=len(spec.classes))
    content: dict[str, Any] = {
        "images": len(test),
        "test_images": int((images["split"] == "test").sum()),
        "patients": int(test["patient_id"].nunique()),
        "border": BORDER,
        "largest_class": spec.classes[int(counts.argmax())],
        "largest_class_share": float(counts.max() / counts.sum()),
        "outline": _outline_summary(outlines),
        "views": {name: {"title": TITLES[name], **scored(name)} for name in VIEWS},
        "probe": _probed(model, spec, packed, images, settings),
        "sources": _classes_by_source(images),
    }
    return {
        **content,
        "verdict": verdict(content),
        "examples": _examples(pixels, outlines, test, spec.classes, generator),
    }


def _drawn(images: pd.DataFrame, at_most: int, generator: np.random.Generator) -> pd.DataFrame:
    """Return at most `at_most` images, in their order."""
    if len(images) <= at_most:
        return images
    return images.iloc[np.sort(generator.choice(len(images), at_most, replace=False))]


def _both_sides(
    images: pd.DataFrame, positive: NDArray[np.bool_], at_most: int, generator: np.random.Generator
) -> pd.DataFrame:
    """Return at most `at_most` images, up to half from the smaller side, which determines the width of the interval."""
    smaller = _drawn(images[~positive], at_most // 2, generator)
    larger = _drawn(images[positive], at_most - len(smaller), generator)
    return images[images["image_id"].isin([*smaller["image_id"], *larger["image_id"]])]


def _in_batches(
    model: nn.Module, spec: ModelSpec, images: NDArray[np.uint8], thorax: NDArray[np.bool_], *, view: str
) -> Floats:
    """Return probabilities (N, C) of the images in a view; one batch of changed images is in memory."""
    parts = [slice(start, start + BATCH_SIZE) for start in range(0, len(images), BATCH_SIZE)]
    return np.concatenate([classify(model, spec, VIEWS[view](images[part], thorax[part])) for part in parts])


def _outline_summary(outlines: Outlines) -> dict[str, float | int]:
    border = border_mask(*outlines.thorax.shape[1:])
    return {
        "from_template": int(outlines.from_template.sum()),
        "thorax_share": float(outlines.thorax.mean()),
        "lung_share_in_border": float(outlines.lungs[:, border].sum() / max(outlines.lungs.sum(), 1)),
    }


def _probed(
    model: nn.Module, spec: ModelSpec, packed: ImageArray, images: pd.DataFrame, settings: AuditSettings
) -> dict[str, Any]:
    """Return the result of the source probe on validation and test images, or why it is unavailable."""
    unseen = images[images["split"].isin(("validation", "test"))]
    chosen, reason = probe_set(*(unseen[name].to_numpy(str) for name in ("source", "label", "patient_id")))
    if chosen is None:
        return {"unavailable_because": reason}
    # Drawn before the pass over the network, then chosen again: a draw may leave too few images of a class.
    generator = np.random.default_rng(settings.seed)
    unseen = _both_sides(unseen.iloc[chosen.rows], chosen.positive, settings.max_images, generator)
    chosen, reason = probe_set(*(unseen[name].to_numpy(str) for name in ("source", "label", "patient_id")))
    if chosen is None:
        return {"unavailable_because": reason}
    used = unseen.iloc[chosen.rows]
    patients = used["patient_id"].to_numpy(str)
    pixels = packed.images[packed.rows(used["image_id"].tolist())]
    draws = {"seed": settings.seed, "resamples": settings.resamples}
    return {
        "unavailable_because": None,
        "images": len(used),
        "patients": int(used["patient_id"].nunique()),
        "classes": list(chosen.classes),
        "images_by_source": {str(name): int(n) for name, n in used["source"].value_counts().items()},
        "features": probe(_features(model, spec, pixels), chosen, patients, **draws),
        "image_statistics": probe(image_statistics(pixels), chosen, patients, **draws),
    }


def _features(model: nn.Module, spec: ModelSpec, images: NDArray[np.uint8]) -> Floats:
    """Return the model's features (N, D) of prepared images."""
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH_SIZE):
            inputs = images_to_input(images[start : start + BATCH_SIZE], device, mean=spec.mean, std=spec.std)
            parts.append(features(model, inputs).flatten(1).double().cpu().numpy())
    return np.concatenate(parts)


def _classes_by_source(images: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return the number of validation and test images of each class that occurs in a source."""
    unseen = images[images["split"].isin(("validation", "test"))]
    return {
        str(source): {str(label): int(n) for label, n in of_source["label"].value_counts().sort_index().items()}
        for source, of_source in unseen.groupby("source")
    }


def _examples(
    images: NDArray[np.uint8],
    outlines: Outlines,
    test: pd.DataFrame,
    classes: tuple[str, ...],
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return randomly drawn images in each view, one of each class first."""
    order = generator.permutation(len(test))
    labels = test["label"].to_numpy(str)
    firsts = [int(row) for name in classes for row in order[labels[order] == name][:1]]
    rows = (firsts + [int(row) for row in order if row not in firsts])[:N_EXAMPLES]
    return [
        {
            "label": str(labels[row]),
            "source": str(test["source"].iloc[row]),
            "pictures": {
                name: jpeg_data_url(view(images[row : row + 1], outlines.thorax[row : row + 1])[0])
                for name, view in VIEWS.items()
            },
        }
        for row in rows
    ]

"""A model on disk: weights, and beside them all that is needed to use them. Nothing in it is code.

`model.safetensors`  the tensors
`model.json`         the ModelSpec, with the SHA-256 of the tensors' file
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from cxr.common.errors import WeightsError
from cxr.common.files import read_json, sha256_of, write_json
from cxr.imaging.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_FILE = "model.safetensors"
SPEC_FILE = "model.json"


@dataclass(frozen=True)
class ModelSpec:
    """What serves is what trained: the network, the image's way, the class order, the calibration.

    backbone, head, members, views   see `cxr.models.factory.build`
    mean, std     of the three channels, on the scale 0 to 1
    temperature   raw scores are divided by it before the softmax; 1.0 until calibrated
    bias          one a class, added after that; zeros until calibrated
    synthetic     trained on synthetic images: its answers say nothing about patients
    refer_below   an image whose largest calibrated probability is below goes to a reader; None: the validation images
                  gave no such threshold, or the model was saved before there was one
    """

    backbone: str
    head: str
    members: int
    views: tuple[float, ...]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    temperature: float
    bias: tuple[float, ...]
    synthetic: bool
    refer_below: float | None = None
    weights_sha256: str = ""


def write_bundle(folder: Path, state: dict[str, Tensor], spec: ModelSpec) -> ModelSpec:
    """Write weights and spec into `folder`; return the spec with the digest of the weights."""
    from safetensors.torch import save_file  # imports torch, for which those who read a spec alone must not wait

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / WEIGHTS_FILE)
    return write_spec(folder, spec)


def write_spec(folder: Path, spec: ModelSpec) -> ModelSpec:
    """Write `spec` beside the weights in `folder`; return it with their digest."""
    complete = replace(spec, weights_sha256=sha256_of(folder / WEIGHTS_FILE))
    write_json(folder / SPEC_FILE, asdict(complete))
    return complete


def read_spec(folder: Path) -> ModelSpec:
    """Read the spec in `folder`. Raises WeightsError when it is missing or not one."""
    path = folder / SPEC_FILE
    try:
        raw = read_json(path)
        raw["preprocessing"] = Preprocessing(**raw["preprocessing"])
        raw.update({name: tuple(raw[name]) for name in ("classes", "views", "mean", "std", "bias")})
        return ModelSpec(**raw)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; a model is the pair {WEIGHTS_FILE} and {SPEC_FILE}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is not a model's description ({error}); export the model again") from error


def read_bundle(folder: Path) -> tuple[nn.Module, ModelSpec]:
    """Load the model in `folder`, in evaluation mode on the CPU.

    Raises:
        WeightsError: a file is missing, the weights' hash is not the recorded one, or they do not fit.
    """
    from safetensors.torch import load_file

    from cxr.models.factory import build

    spec = read_spec(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise WeightsError(f"{path} is missing; a model is the pair {WEIGHTS_FILE} and {SPEC_FILE}")
    found = sha256_of(path)
    if found != spec.weights_sha256:
        raise WeightsError(
            f"{path} has been changed: its SHA-256 is {found[:12]}, recorded is {spec.weights_sha256[:12]}; "
            "it was not loaded. Fetch the model again"
        )
    model = build(spec.backbone, len(spec.classes), head=spec.head, members=spec.members, views=spec.views)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{path} does not fit {spec.backbone} with {len(spec.classes)} classes") from error
    return model.eval(), spec

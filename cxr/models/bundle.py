"""A model on disk: its weights and everything that is needed to use them. A bundle holds no code.

`model.safetensors`  the tensors
`model.json`         the ModelSpec, with the SHA-256 of the tensors' file

Importing this module does not import torch: reading a spec, and answering through OpenVINO, must not wait for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from cxr.common.errors import WeightsError, other_format
from cxr.common.files import read_json, sha256_of, write_json
from cxr.imaging.preprocess import Preprocessing
from cxr.models.populations import Population

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_FILE = "model.safetensors"
SPEC_FILE = "model.json"

_ADVICE = "fetch the model again, or run `./run dvc repro -f -s train` where this project trained it"

_FORMAT = 1
"""Of model.json; a file without the field `format` has this one. Whoever changes what a field means writes a higher."""

_RETIRED = {"views": [1.0]}
"""Fields of specs written up to 0.4.0, with the only value that changes nothing: the image at magnification 1."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything but the weights: network, preprocessing, class order and calibration.

    backbone, head, members   see `cxr.models.factory.build`
    mean, std     of the three channels, on the scale 0 to 1
    temperature   logits are divided by it before the softmax; 1.0 until calibrated
    bias          one value per class, added to the scaled logits; zeros until calibrated
    synthetic     whether it was trained on synthetic images; then its answers say nothing about patients
    refer_below   an image whose largest calibrated probability is lower is referred to a reader; None if the validation
                  images gave no threshold, or the model is older than this field
    populations   outputs beside those of the classes (cxr.models.populations)
    """

    backbone: str
    head: str
    members: int
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    temperature: float
    bias: tuple[float, ...]
    synthetic: bool
    refer_below: float | None = None
    populations: tuple[Population, ...] = ()
    weights_sha256: str = ""


def write_bundle(folder: Path, state: dict[str, Tensor], spec: ModelSpec) -> ModelSpec:
    """Write weights and spec into `folder`; return the spec with the digest of the weights."""
    from safetensors.torch import save  # imports torch, see above

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    (folder / WEIGHTS_FILE).write_bytes(save(tensors))  # whose own file writing hides that a disk is full
    return write_spec(folder, spec)


def write_spec(folder: Path, spec: ModelSpec) -> ModelSpec:
    """Write `spec` next to the weights in `folder`; return it with their digest."""
    complete = replace(spec, weights_sha256=sha256_of(folder / WEIGHTS_FILE))
    write_json(folder / SPEC_FILE, asdict(complete))
    return complete


def read_spec(folder: Path) -> ModelSpec:
    """Read the spec in `folder`.

    Raises:
        WeightsError: the file is missing, is not a spec, or describes a model that this version cannot build.
    """
    path = folder / SPEC_FILE
    try:
        raw = read_json(path)
        if (found := raw.pop("format", _FORMAT)) != _FORMAT:
            raise WeightsError(other_format(str(path), found, _FORMAT))
        _drop_retired(raw, path)
        raw["preprocessing"] = Preprocessing(**raw["preprocessing"])
        raw.update({name: tuple(raw[name]) for name in ("classes", "mean", "std", "bias")})
        raw["populations"] = tuple(Population(**population) for population in raw.get("populations", ()))
        return ModelSpec(**raw)
    except FileNotFoundError:
        raise WeightsError(
            f"{path} is missing; a model consists of {WEIGHTS_FILE} and {SPEC_FILE}; {_ADVICE}"
        ) from None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is not a model spec ({error}); {_ADVICE}") from error


def _drop_retired(raw: dict[str, Any], path: Path) -> None:
    for name, neutral in _RETIRED.items():
        if (value := raw.pop(name, neutral)) != neutral:
            raise WeightsError(
                f"{path} has {name} {value}, which only release 0.4.0 and older support; expected {neutral} or none. "
                "Use that release, or train the model again"
            )


def read_bundle(folder: Path) -> tuple[nn.Module, ModelSpec]:
    """Load the model in `folder`, in evaluation mode on the CPU.

    Raises:
        WeightsError: a file is missing, the digest of the weights differs from the recorded one, or they do not fit.
    """
    from safetensors.torch import load_file  # these import torch, see above

    from cxr.models.factory import build, merge_populations

    spec = read_spec(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise WeightsError(f"{path} is missing; a model consists of {WEIGHTS_FILE} and {SPEC_FILE}; {_ADVICE}")
    found = sha256_of(path)
    if found != spec.weights_sha256:
        raise WeightsError(
            f"{path} was changed and is not loaded: its SHA-256 is {found[:12]}, the recorded one "
            f"{spec.weights_sha256[:12]}; {_ADVICE}"
        )
    outputs = len(spec.classes) + len(spec.populations)
    model = build(spec.backbone, outputs, head=spec.head, members=spec.members)
    if spec.populations:
        merge_populations(model, spec.classes, spec.populations)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{path} does not fit {spec.backbone} with {len(spec.classes)} classes") from error
    return model.eval(), spec

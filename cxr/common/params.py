"""The parameters of every step, checked strictly: an unknown key or a wrong type raises an error that names it.

A section of params.yaml, the stage of dvc.yaml, the module in `tasks` and the class here share one name.
Default values are in params.yaml only.
"""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML

from cxr.common.classes import CLASSES, Label, Task
from cxr.common.command_params import (
    AppParams,
    CleanParams,
    ForensicsParams,
    MonitorParams,
    PromoteParams,
    ScoreParams,
)
from cxr.common.errors import ParamsError
from cxr.common.files import atomic_file
from cxr.common.param_types import (
    Backbone,
    Count,
    CountRange,
    Grey,
    GreyRange,
    NotNegative,
    Positive,
    ProjectPath,
    Range,
    Resamples,
    Section,
    Seed,
    Share,
    Text,
    Whole,
    Workers,
)
from cxr.common.params_file import load_yaml, readable, set_value

_IF_MISSING = "if it is new in this release, copy it from the repository's params.yaml"
Part = Literal["head", "layer4", "layer3", "layer2", "layer1", "stem"]


class Paths(Section):
    """Where steps read and write, relative to the project root."""

    downloads: ProjectPath
    corrections: ProjectPath
    raw: ProjectPath
    validation: ProjectPath
    data_docs: ProjectPath
    split: ProjectPath
    images: ProjectPath
    model: ProjectPath
    checkpoints: ProjectPath
    metrics: ProjectPath
    report: ProjectPath
    evaluation: ProjectPath
    registration: ProjectPath
    scores: ProjectPath
    monitor: ProjectPath
    forensics: ProjectPath
    feedback: ProjectPath

    @model_validator(mode="after")
    def _none_holds_another(self) -> "Paths":
        places: dict[str, Path] = dict(self)
        for (outer, folder), (inner, path) in permutations(places.items(), 2):
            if (Path.cwd() / path).is_relative_to(Path.cwd() / folder):
                raise ValueError(f"{outer} ({folder}) holds {inner} ({path}), which a step would remove with it")
        return self


class Source(Section):
    """One set of raw images. `layout` is a name in `cxr.dataset.layouts.table.LAYOUTS`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    layout: Text
    location: Text
    sha256: str | None


class IngestParams(Section):
    """Which sources are merged, and which images count as duplicates."""

    watch: Text
    sources: Annotated[list[Source], Field(min_length=1)]
    sample_patients_per_class: Annotated[int, Field(ge=1, le=100_000)]
    sample_seed: Seed
    max_pixels: Count
    duplicate_correlation: Share
    near_duplicate_correlation: Share
    workers: Workers


class ValidateParams(Section):
    """Thresholds of the data-quality gate after ingest."""

    min_images_per_class: dict[Label, Whole]
    side_px: CountRange
    aspect_ratio: Range
    max_quarantined_share: Share
    grey_mean: GreyRange
    min_grey_std: Grey
    max_source_grey_mean_gap: Grey
    warn_only: list[str]


class SplitParams(Section):
    """How images are assigned to training, validation and test."""

    protocol: Literal["paper", "patient", "official", "cv", "block"]
    task: Task
    subsample: Literal["none", "paper_quotas"]
    train_share: Annotated[float, Field(gt=0, le=1)]
    train_sources: list[str]
    seed: Seed
    validation_share: Share
    test_share: Share
    share_tolerance: Share
    folds: Annotated[int, Field(ge=2, le=1000)]
    fold: Whole
    blocks: Annotated[int, Field(ge=2, le=1000)]
    block: Whole
    paper_train: dict[Label, Whole]
    paper_test: dict[Label, Whole]
    paper_validation: dict[Label, Whole]
    official_source: Text

    @model_validator(mode="after")
    def _fold_and_block_exist(self) -> "SplitParams":
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist; folds are 0 to {self.folds - 1}")
        if self.block >= self.blocks:
            raise ValueError(f"block {self.block} does not exist; blocks are 0 to {self.blocks - 1}")
        return self

    @model_validator(mode="after")
    def _every_split_gets_images(self) -> "SplitParams":
        test_share = 1 / self.folds if self.protocol == "cv" else self.test_share
        if not (self.validation_share > 0 and test_share > 0 and self.validation_share + test_share < 1):
            raise ValueError(
                f"the shares of validation ({self.validation_share:g}) and test ({test_share:g}) must be above 0 and "
                "leave images for training"
            )
        return self

    @model_validator(mode="after")
    def _official_test_set_is_complete(self) -> "SplitParams":
        if self.protocol == "official" and self.subsample == "paper_quotas":
            raise ValueError(
                "subsample paper_quotas would leave out images of the official test set; set subsample to none, or "
                "protocol to patient, cv or paper"
            )
        return self

    @model_validator(mode="after")
    def _every_class_has_a_quota(self) -> "SplitParams":
        needed = self.protocol == "paper" or self.subsample == "paper_quotas"
        for name in ("paper_train", "paper_test", "paper_validation"):
            absent = [label for label in CLASSES[self.task] if getattr(self, name).get(label, 0) < 1]
            if needed and absent:
                raise ValueError(f"{name} needs a quota of at least 1 for {', '.join(absent)}")
        return self


class PreprocessParams(Section):
    """How an image is prepared for the model."""

    image_size_px: Annotated[int, Field(ge=32, le=1024)]
    border_crop: Annotated[float, Field(ge=0, le=0.25)]
    fit: Literal["stretch", "letterbox"]
    contrast: Literal["clahe", "equalize", "none"]
    clahe_clip_limit: Positive
    clahe_tiles: Annotated[int, Field(ge=1, le=256)]
    max_pixels: Count
    workers: Workers


class SvmParams(Section):
    """The support vector machines fitted on a network's features; the best on the validation set is kept."""

    kernels: Annotated[list[Literal["linear", "rbf"]], Field(min_length=1)]
    c: Annotated[list[Positive], Field(min_length=1)]


class PopulationParams(Section):
    """Images of one class with an output of their own: a range of the order of acquisition in one series of a source.

    `weight`, 0 to 1, is the part of that output in the probability of the class.
    """

    name: str
    label: Label
    source: str
    series: str
    first: Whole
    last: Whole | None
    weight: Share


class TrainParams(Section):
    """The training config: network, starting weights, optimisation and augmentation."""

    backbone: Backbone
    head: Literal["linear", "svm"]
    svm: SvmParams
    members: Annotated[int, Field(ge=1, le=100)]
    weights: Text
    seed: Seed
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=1, le=100_000)]
    frozen: list[Literal["stem", "layer1", "layer2", "layer3", "layer4"]]
    freeze_batchnorm_statistics: bool
    head_only_epochs: Whole
    learning_rates: dict[Part, Annotated[float, Field(gt=0, le=100)]]
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    populations: list[PopulationParams]
    class_balance: Literal["none", "weights", "sampling", "sampling_by_source"]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    early_stopping_patience: Whole
    rotation_deg: Annotated[float, Field(ge=0, le=180)]
    zoom: Range
    shift: Share
    contrast_jitter: Share
    brightness_jitter: Share
    mirror: Share
    gamma_jitter: Annotated[float, Field(ge=0, le=2)]
    sharpness_jitter: Share
    shading: Share
    noise: Share
    border_wipe: Annotated[float, Field(ge=0, le=0.25)]
    mixup: Annotated[float, Field(ge=0, le=100)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool

    def with_populations_of(self, classes: Sequence[str]) -> "TrainParams":
        """Return these parameters without the populations of classes that a task leaves out."""
        return self.model_copy(update={"populations": [each for each in self.populations if each.label in classes]})

    @model_validator(mode="after")
    def _every_part_has_a_learning_rate(self) -> "TrainParams":
        if missing := [part for part in get_args(Part) if part not in self.learning_rates]:
            raise ValueError(f"learning_rates needs a rate for every part; {', '.join(missing)} is missing")
        return self

    @model_validator(mode="after")
    def _svm_is_a_single_network(self) -> "TrainParams":
        if self.head == "svm" and self.members != 1:
            raise ValueError(
                "head svm requires members 1: its scores are not probabilities to average, and the fit is the same "
                f"for every seed; got members {self.members}"
            )
        if self.head == "svm" and self.populations:
            raise ValueError("head svm knows classes only; set populations to []")
        return self


class EvaluateParams(Section):
    """How the test set is evaluated."""

    bootstrap_resamples: Resamples
    seed: Seed
    calibration_bins: Annotated[int, Field(ge=2, le=1000)]
    fit_bias: bool
    gradcam_per_class: Count
    most_confident_errors: Count
    specificities: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    refer_accuracy: Annotated[float, Field(gt=0, le=1)]
    attention_images: Count
    sanity_images: Count
    audit_images: Count


class RuntimeBounds(Section):
    """How far the export may differ from torch; see cxr.inference.openvino.agreement.Agreement."""

    probability: Share
    changed_share: Share
    accuracy: Share
    macro_f1: Share


class RegisterParams(Section):
    """Tags of every registered version, and the tolerance of its export."""

    tags: dict[str, str]
    runtime_bounds: RuntimeBounds


class Params(Section):
    """All of params.yaml."""

    paths: Paths
    ingest: IngestParams
    validate_: Annotated[ValidateParams, Field(alias="validate")]  # BaseModel has a `validate` of its own
    split: SplitParams
    preprocess: PreprocessParams
    train: TrainParams
    evaluate: EvaluateParams
    register_: Annotated[RegisterParams, Field(alias="register")]  # and a `register`
    promote: PromoteParams
    score: ScoreParams
    monitor: MonitorParams
    forensics: ForensicsParams
    app: AppParams
    clean: CleanParams

    def section(self, name: str) -> Section:
        """Return the section `name` of params.yaml."""
        fields = {field.alias or key: key for key, field in type(self).model_fields.items()}
        section: Section = getattr(self, fields[name])
        return section


def read_params(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        ParamsError: the file is missing, not YAML, or a key is unknown, missing or wrong; names each such key.
    """
    try:
        return Params.model_validate(load_yaml(path))
    except ValidationError as error:
        raise ParamsError(f"{path}: {readable(error, if_missing=_IF_MISSING)}") from error


def override(path: Path, values: dict[str, Any]) -> None:
    """Set dotted names to new values in a parameter file; comments and order are kept.

    The file is written only when the result is valid.

    Raises:
        ParamsError: a name is unknown or a value does not fit.
    """
    tree, _ = _overridden(path, values)
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        YAML().dump(tree, file)


def with_overrides(path: Path, values: dict[str, Any]) -> Params:
    """Return the parameters that `override` would write, without writing them. Raises ParamsError."""
    return _overridden(path, values)[1]


def _overridden(path: Path, values: dict[str, Any]) -> tuple[Any, Params]:
    tree = load_yaml(path)
    for name, value in values.items():
        set_value(tree, name, value)
    try:
        return tree, Params.model_validate(tree)
    except ValidationError as error:
        raise ParamsError(readable(error, if_missing=_IF_MISSING)) from error

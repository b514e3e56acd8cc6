"""The model registry: versions of one model, found by number or by the aliases `challenger` and `champion`.

A version is a bundle (weights, spec) with what it comes from as tags; the same weights with the same calibration
are one version, however often they are registered. How the alias `champion` moves is in cxr.registry.aliases.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

import cxr
from cxr.common.errors import RegistryError, WeightsError
from cxr.common.files import atomic_folder, sha256_of
from cxr.common.locks import file_lock
from cxr.registry import tracking_store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from cxr.models.bundle import ModelSpec

MODEL = "chest-xray-pneumonia"
CHALLENGER = "challenger"
CHAMPION = "champion"
DRIFT_TAG = "drift_rebuild_until"
"""On a version: a rebuild was started for its scored images up to this time."""
_BUNDLE_PATH = "artifacts/bundle"
_BUNDLE_FILES = {"weights_sha256": "model.safetensors", "spec_sha256": "model.json"}
_REFERENCE = {"reference_sha256": "reference.safetensors"}
_RUNTIME = {
    "runtime_graph_sha256": "runtime.xml",
    "runtime_weights_sha256": "runtime.weights",
    "runtime_sha256": "runtime.json",
}
_OPTIONAL = (_REFERENCE, _RUNTIME)
"""Groups of files that not every version has; a group counts when its last tag is set, and comes whole."""
_SERVING_PACKAGES = (
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pydicom",
    "python-gdcm",
    "safetensors",
    "scikit-learn",
    "timm",
    "torch",
    "torchvision",
)


@dataclass(frozen=True)
class Version:
    """A registered version; `number` counts from "1", `tags` hold its lineage and verdict."""

    number: str
    run_id: str
    model_id: str
    tags: Mapping[str, str]


def register_version(
    bundle: Path, spec: ModelSpec, *, run_id: str, lineage: Mapping[str, str], evidence: Mapping[str, str]
) -> tuple[Version, bool]:
    """Register the bundle and give it the alias `challenger`; the same weights never make a second version.

    Args:
        bundle: folder with model.safetensors and model.json, the temperature and the bias in it, and where there are
            some, the reference statistics (cxr.models.reference) and the exported network (cxr.inference.openvino).
        spec: what model.json says.
        run_id: the run of the training.
        lineage: tags of a new version; a version that is there already keeps its own.
        evidence: tags about its measurement, written in both cases.

    Returns:
        The version, and whether it is new.

    Raises:
        RegistryError: the store does not answer.
    """
    identity = {
        "weights_sha256": spec.weights_sha256,
        "temperature": repr(spec.temperature),
        "bias": repr(spec.bias),
        "refer_below": repr(spec.refer_below),
        "spec_sha256": sha256_of(bundle / _BUNDLE_FILES["spec_sha256"]),
    }
    found = find_version(spec)
    if found:
        number = found.number
        for group in _OPTIONAL:
            if not _has(found, group) and _lies_in(bundle, group):
                _add_files(found, bundle, group)
        tag_version(number, evidence)
    else:
        added = {
            tag: sha256_of(bundle / name)
            for group in _OPTIONAL
            if _lies_in(bundle, group)
            for tag, name in group.items()
        }
        number = _create_version(bundle, spec, run_id=run_id, tags={**lineage, **evidence, **identity, **added})
    client = tracking_store.client()
    with tracking_store.store_errors(f"naming version {number} {CHALLENGER}"):
        client.set_registered_model_alias(MODEL, CHALLENGER, number)
    return get_version(number), found is None


def find_version(spec: ModelSpec) -> Version | None:
    """Return the version with the spec's weights, temperature, bias and referral, None where there is none."""
    client = tracking_store.client()
    with tracking_store.store_errors("looking for a version with the same weights"):
        found = client.search_model_versions(f"name = '{MODEL}' and tags.weights_sha256 = '{spec.weights_sha256}'")
    wanted = {name: repr(getattr(spec, name)) for name in ("temperature", "bias", "refer_below")}
    before_referral = {"refer_below": repr(None)}  # what a version without the tag means
    same = [version for version in found if wanted.items() <= {**before_referral, **version.tags}.items()]
    return _version(min(same, key=lambda version: int(version.version))) if same else None


def get_version(which: str) -> Version:
    """Return a version by number ("3") or alias ("champion").

    Raises:
        RegistryError: there is none; says how to get one.
    """
    found = _look_up(which)
    if found is None:
        raise RegistryError(_missing(which))
    return found


def champion() -> Version | None:
    """Return the champion, None where there is none yet."""
    return _look_up(CHAMPION)


def _look_up(which: str) -> Version | None:
    client = tracking_store.client()
    from mlflow.exceptions import MlflowException

    with tracking_store.store_errors(f"looking for the version {which}"):
        try:
            if which.isdecimal():
                return _version(client.get_model_version(MODEL, which))
            return _version(client.get_model_version_by_alias(MODEL, which))
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise


def _missing(which: str) -> str:
    where = f"{MODEL} in {tracking_store.public_uri()}"
    if which == CHAMPION:
        return (
            f"there is no champion of {where} yet; run `make run` for the whole loop, "
            "or `python -m tasks.promote` when a challenger is registered"
        )
    if which == CHALLENGER:
        return f"there is no challenger of {where} yet; run `python -m tasks.register` after training and evaluation"
    return f"there is no version or alias {which!r} of {where}; `python -m tasks.history` lists what was champion"


def tag_version(number: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    client = tracking_store.client()
    with tracking_store.store_errors(f"tagging version {number}"):
        for key, value in tags.items():
            client.set_model_version_tag(MODEL, number, key, value)


def _version(found: ModelVersion) -> Version:
    model_id = found.model_id or (found.source or "").removeprefix("models:/")
    return Version(number=str(found.version), run_id=found.run_id or "", model_id=model_id, tags=dict(found.tags))


def _create_version(bundle: Path, spec: ModelSpec, *, run_id: str, tags: Mapping[str, str]) -> str:
    client = tracking_store.client()
    from mlflow.exceptions import MlflowException

    model_id = _log_model(bundle, spec, run_id=run_id)
    with tracking_store.store_errors("registering a version"):
        try:
            client.create_registered_model(
                MODEL, description="Normal, viral and bacterial pneumonia on chest X-rays. Research software."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with tracking_store.named_to_mlflow():
            made = client.create_model_version(
                MODEL, f"models:/{model_id}", run_id=run_id, tags=dict(tags), model_id=model_id
            )
    return str(made.version)


def has_runtime(version: Version) -> bool:
    """Say whether an exported network was accepted for the version (cxr.inference.openvino)."""
    return _has(version, _RUNTIME)


def _has(version: Version, group: Mapping[str, str]) -> bool:
    return list(group)[-1] in version.tags


def _lies_in(bundle: Path, group: Mapping[str, str]) -> bool:
    return all((bundle / name).is_file() for name in group.values())


def _add_files(version: Version, bundle: Path, group: Mapping[str, str]) -> None:
    """Put files beside a version that was registered without them; the tag that is set last vouches for them.

    A version that has them keeps its own: what was scored since was measured, or computed, by them.
    """
    client = tracking_store.client()
    with tracking_store.store_errors(f"adding {', '.join(group.values())} to version {version.number}"):
        for name in group.values():
            client.log_model_artifact(version.model_id, str(bundle / name), _BUNDLE_PATH)
    tag_version(version.number, {tag: sha256_of(bundle / name) for tag, name in group.items()})


def _log_model(bundle: Path, spec: ModelSpec, *, run_id: str) -> str:
    """Put the bundle into the store as a model that MLflow can load and serve; return its id."""
    client = tracking_store.client()
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    with tracking_store.store_errors("storing the model"), tempfile.TemporaryDirectory() as scratch:
        experiment = client.get_run(run_id).info.experiment_id
        logged = client.create_logged_model(experiment, name="classifier", source_run_id=run_id)
        folder, source = Path(scratch) / "model", Path(scratch) / Path(_BUNDLE_PATH).name
        shutil.copytree(bundle, source)  # MLflow keeps the folder's name
        described = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
        _save_model(folder, source, spec, described)
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return str(logged.model_id)


def _save_model(folder: Path, bundle: Path, spec: ModelSpec, described: object) -> None:
    from cxr.registry import pyfunc  # it imports torch and the whole of MLflow

    # No pip in the environment that uv makes: MLflow warns that it cannot pin pip itself.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    import mlflow.pyfunc

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Operation with range is deprecated")  # MLflow 3.17 on pandas 3.1
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=described,
            python_model=pyfunc.__file__,
            code_paths=[str(Path(cxr.__file__).parent)],
            artifacts={pyfunc.BUNDLE_ARTIFACT: str(bundle)},
            signature=pyfunc.signature(spec.classes),
            input_example=pyfunc.input_example(),
            pip_requirements=[f"{name}=={installed_version(name).partition('+')[0]}" for name in _SERVING_PACKAGES],
        )


def log_test_metrics(version: Version, metrics: Mapping[str, float], *, test_set_sha256: str) -> None:
    """Tie test metrics to the version's model and to the test set, where MLflow's pages compare models."""
    client = tracking_store.client()
    with tracking_store.store_errors(f"recording metrics of version {version.number}"):
        for name, value in metrics.items():
            client.log_metric(
                version.run_id,
                name,
                value,
                model_id=version.model_id,
                dataset_name="test",
                dataset_digest=test_set_sha256[:36],
            )


def fetch_bundle(version: Version, cache: Path | None = None) -> Path:
    """Return a local folder with the version's bundle, checked against the digests in the registry.

    Args:
        version: which.
        cache: where copies are kept between calls; `mlruns/cache` by default.

    Raises:
        WeightsError: what the store holds is not what was registered; nothing of it is kept.
        RegistryError: the store does not answer or has lost the files.
    """
    folder = (cache or tracking_store.mlruns_folder() / "cache") / f"version-{version.number}-{version.run_id[:8]}"
    with file_lock(folder.with_name(f".{folder.name}.lock")):  # shards of a scoring ask for a new champion at once
        if folder.is_dir() and not _wrong_files(folder, version):
            return folder
        with atomic_folder(folder) as partial, tempfile.TemporaryDirectory() as scratch:
            fetched = _download_bundle(version, Path(scratch))
            _check_fetched(fetched, version)
            for name in _files_of(version).values():  # and no other: nobody vouches for what a killed command left
                shutil.copy2(fetched / name, partial / name)
    return folder


def _check_fetched(folder: Path, version: Version) -> None:
    advice = "restore the store from its backup, or go back with `python -m tasks.rollback`"
    if lost := [name for name in _files_of(version).values() if not (folder / name).is_file()]:
        raise RegistryError(
            f"the tracking store {tracking_store.public_uri()} has lost {', '.join(lost)} "
            f"of version {version.number}; {advice}"
        )
    if wrong := _wrong_files(folder, version):
        raise WeightsError(
            f"version {version.number} of {MODEL} has been changed since it was registered: {', '.join(wrong)}; "
            f"it was not loaded; {advice}"
        )


def bundle_fault(version: Version) -> str:
    """Fetch the version's bundle anew and say what is wrong with it; "" where it is as registered."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            fetch_bundle(version, Path(scratch))
        except (RegistryError, WeightsError) as error:
            return str(error)
    return ""


def _download_bundle(version: Version, target: Path) -> Path:
    client, store = tracking_store.client(), tracking_store.tracking_uri()
    from mlflow.artifacts import download_artifacts

    with tracking_store.store_errors(f"fetching version {version.number}"):
        files = f"{client.get_logged_model(version.model_id).artifact_location}/{_BUNDLE_PATH}"
        return Path(download_artifacts(artifact_uri=files, dst_path=str(target), tracking_uri=store))


def _files_of(version: Version) -> dict[str, str]:
    """Return the files that make up the version's bundle by the tag with their digest."""
    files = dict(_BUNDLE_FILES)
    for group in _OPTIONAL:
        files |= group if _has(version, group) else {}
    return files


def _wrong_files(folder: Path, version: Version) -> list[str]:
    return [
        name
        for tag, name in _files_of(version).items()
        if not (folder / name).is_file() or sha256_of(folder / name) != version.tags.get(tag)
    ]

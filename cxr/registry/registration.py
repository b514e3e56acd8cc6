"""Registering: a bundle becomes a version of the model, with its files, lineage and evaluation, and the challenger.

MLflow's parts are imported where they are used, after `tracking_store.client()`: see there.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path

import cxr
from cxr.common.files import sha256_of
from cxr.models.bundle import ModelSpec
from cxr.registry import tracking_store
from cxr.registry.run_metadata import MAX_DIGEST_CHARACTERS, dataset_name
from cxr.registry.stored_names import CHALLENGER, MODEL, MOST_CHARACTERS, SIZE_TAG
from cxr.registry.versions import (
    BUNDLE_FILES,
    BUNDLE_PATH,
    OPTIONAL_FILES,
    Version,
    find_version,
    get_version,
    has_files,
    identity_tags,
    tag_version,
)

_DESCRIPTION = "Normal, viral and bacterial pneumonia on chest X-rays. Research software."
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


def register_version(
    bundle: Path,
    spec: ModelSpec,
    *,
    run_id: str,
    lineage: Mapping[str, str],
    evaluation: Mapping[str, str],
    description: str = "",
) -> tuple[Version, bool]:
    """Register the bundle and give it the alias `challenger`; the same weights never make a second version.

    Args:
        bundle: folder with model.safetensors and model.json, the temperature and the bias in it, and where there are
            some, the reference statistics (cxr.models.reference) and the exported network (cxr.inference.openvino).
        spec: what model.json says.
        run_id: the run of the training.
        lineage: tags of a new version; a version that is there already keeps its own.
        evaluation: tags about its evaluation, written in both cases.
        description: Markdown for the page of a new version.

    Returns:
        The version, and whether it is new.

    Raises:
        RegistryError: the store does not answer.
    """
    found = find_version(spec)
    if found:
        number = found.number
        for group in OPTIONAL_FILES:
            if not has_files(found, group) and _lies_in(bundle, group):
                _add_files(found, bundle, group)
        tag_version(number, evaluation)
    else:
        tags = {**lineage, **evaluation, **_identity(bundle, spec)}
        number = _create_version(bundle, spec, run_id=run_id, tags=tags, description=description)
    return _name_challenger(number), found is None


def _identity(bundle: Path, spec: ModelSpec) -> dict[str, str]:
    """Return the tags that tell one model from another, and the digests of its files."""
    optional = {tag: name for group in OPTIONAL_FILES if _lies_in(bundle, group) for tag, name in group.items()}
    return {
        **identity_tags(spec),
        "spec_sha256": sha256_of(bundle / BUNDLE_FILES["spec_sha256"]),
        **{tag: sha256_of(bundle / name) for tag, name in optional.items()},
    }


def _name_challenger(number: str) -> Version:
    client, version = tracking_store.client(), get_version(number)
    listed = json.dumps([{"name": MODEL, "version": number}])
    with tracking_store.store_errors(f"naming version {number} {CHALLENGER}"):
        # As `mlflow.register_model` does; without it the page of the logged model says "Not registered".
        client.set_logged_model_tags(version.model_id, {"mlflow.modelVersions": listed})
        client.set_registered_model_alias(MODEL, CHALLENGER, number)
    return version


def _create_version(bundle: Path, spec: ModelSpec, *, run_id: str, tags: Mapping[str, str], description: str) -> str:
    client = tracking_store.client()
    model_id, size_bytes = _log_model(bundle, spec, run_id=run_id)
    with tracking_store.store_errors("registering a version"):
        tracking_store.unless_present(lambda: client.create_registered_model(MODEL, description=_DESCRIPTION))
        with tracking_store.named_to_mlflow():
            made = client.create_model_version(
                MODEL,
                f"models:/{model_id}",
                run_id=run_id,
                tags={**tags, SIZE_TAG: str(size_bytes)},
                description=description[:MOST_CHARACTERS],
                model_id=model_id,
            )
    return str(made.version)


def _lies_in(bundle: Path, group: Mapping[str, str]) -> bool:
    return all((bundle / name).is_file() for name in group.values())


def _add_files(version: Version, bundle: Path, group: Mapping[str, str]) -> None:
    """Add files to a version that was registered without them; the tag that is set last makes them count.

    A version that has them keeps its own: what was scored since was measured, or computed, with them.
    """
    client = tracking_store.client()
    with tracking_store.store_errors(f"adding {', '.join(group.values())} to version {version.number}"):
        for name in group.values():
            client.log_model_artifact(version.model_id, str(bundle / name), BUNDLE_PATH)
    added = sum((bundle / name).stat().st_size for name in group.values())
    size = {SIZE_TAG: str(int(version.tags[SIZE_TAG]) + added)} if SIZE_TAG in version.tags else {}
    tag_version(version.number, size | {tag: sha256_of(bundle / name) for tag, name in group.items()})


def _log_model(bundle: Path, spec: ModelSpec, *, run_id: str) -> tuple[str, int]:
    """Put the bundle into the store as a model that MLflow can load and serve; return its id and bytes."""
    client = tracking_store.client()
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    with tracking_store.store_errors("storing the model"), tempfile.TemporaryDirectory() as scratch:
        experiment = client.get_run(run_id).info.experiment_id
        logged = client.create_logged_model(experiment, name="classifier", source_run_id=run_id)
        folder, source = Path(scratch) / "model", Path(scratch) / Path(BUNDLE_PATH).name
        shutil.copytree(bundle, source)  # MLflow keeps the folder's name
        described = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
        _save_model(folder, source, spec, described)
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return str(logged.model_id), size_bytes


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


def unrecorded(version: Version, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return those of some test metrics that the version's model lacks: all of a new one, the rest after a kill."""
    client = tracking_store.client()
    with tracking_store.store_errors(f"reading the metrics of version {version.number}"):
        known = {metric.key for metric in client.get_logged_model(version.model_id).metrics or []}
    return {name: value for name, value in metrics.items() if name not in known}


def log_test_metrics(version: Version, metrics: Mapping[str, float], *, test_set_sha256: str) -> None:
    """Record test metrics with the version's model and the test set, so that MLflow's pages compare models.

    See `unrecorded`: a metric that is recorded twice would have two points.

    Args:
        version: whose.
        metrics: by the names of `cxr.registry.runs.grouped`.
        test_set_sha256: of the images that `cxr.registry.run_metadata.log_images` has recorded.
    """
    client = tracking_store.client()
    with tracking_store.store_errors(f"recording metrics of version {version.number}"):
        for name, value in metrics.items():
            client.log_metric(
                version.run_id,
                name,
                value,
                model_id=version.model_id,
                dataset_name=dataset_name("test"),
                dataset_digest=test_set_sha256[:MAX_DIGEST_CHARACTERS],
            )

"""What a version left in a real store: its evaluation on each test set, and the images it was trained on."""

import shutil
from pathlib import Path

import pytest

from cxr.common.files import write_json
from cxr.registry import tracking_store, versions
from cxr.registry.evaluation_store import evaluation_of, store_evaluation, training_images
from tests.support.projects.registry_project import (
    artifacts,
    enter_project,
    metrics,
    register,
    write_model,
    write_predictions,
)


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    write_model()


def test_lost_evaluation_artifacts_are_missing() -> None:
    version = register()
    found = evaluation_of(version)
    assert (found.metric("accuracy"), found.changed) == (1.0, False)
    for stored in artifacts():
        stored.unlink()
    assert evaluation_of(version).metrics is None
    tracking_store.client().delete_run(version.run_id)
    assert evaluation_of(version).images is None


def test_a_later_evaluation_is_found_by_its_test_set_and_the_first_stays(tmp_path: Path) -> None:
    version = register()
    folder = tmp_path / "later"
    folder.mkdir()
    write_json(folder / "metrics.json", metrics(0.5, n_test=2))
    write_predictions(folder / "predictions.csv", [("new1", "viral", "viral"), ("new2", "normal", "viral")])
    tags = store_evaluation(version.run_id, sorted(folder.iterdir()), test_set_sha256="e" * 64)
    versions.tag_version(version.number, tags)
    version = versions.get_version(version.number)
    assert evaluation_of(version, "e" * 64).metric("accuracy") == 0.5
    assert evaluation_of(version).metric("accuracy") == 1.0
    assert evaluation_of(version, "f" * 64).metric("accuracy") == 1.0


def test_the_images_a_version_was_trained_and_tuned_on_are_known_unless_lost_or_changed() -> None:
    version = register()
    seen = training_images(version)
    assert seen is not None
    assert seen.to_dict("records") == [
        {"image_id": "other", "patient_id": "patient-other"},
        {"image_id": "trained", "patient_id": "patient-trained"},
    ]
    stored = next(path for path in artifacts() if path.name == "training_images.csv")
    stored.write_text(stored.read_text().replace("trained,", "harmless,"))
    assert training_images(version) is None
    shutil.rmtree(stored.parent)
    assert training_images(version) is None

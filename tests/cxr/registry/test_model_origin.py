"""The front page of a report knows version, role and the champion before it, and does without a store."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from cxr.common.errors import RegistryError
from cxr.common.files import read_json
from cxr.models.bundle import ModelSpec
from cxr.registry import runs, versions
from cxr.registry.champion import aliases
from cxr.registry.model_origin import Origin, against_champion, origin_of, origin_of_version
from tests.support.projects.registry_project import enter_project, register, spec, write_model


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


def fitted() -> ModelSpec:
    """The model of models/trained as it is registered."""
    weights = read_json(Path("models/trained/model.json"))["weights_sha256"]
    return replace(spec(), weights_sha256=weights, temperature=1.5, bias=(0.0, 0.25, -0.25), refer_below=0.625)


def measured_images() -> pd.DataFrame:
    table = pd.read_csv("reports/evaluation/predictions.csv")
    return table[table["split"] == "test"]


def make_champion(number: str, instead_of: str = "") -> None:
    aliases.move_champion(number, instead_of=instead_of, kind="promote", approved_by="ann", reason="test")


def test_a_model_is_a_candidate_then_a_challenger_then_champion_and_at_last_an_earlier_one() -> None:
    write_model(seed=1)
    run_id = runs.start_run(run_id=None, name="n", tags={"git_commit": "abcdef" * 7, "git_dirty": "true"})
    before = origin_of(run_id, fitted())
    assert (before.version, before.commit) == ("none yet", "abcdefabcdef with uncommitted changes")
    assert before.trained.endswith(" UTC")
    first = register()
    assert (origin_of(run_id, fitted()).version, origin_of(run_id, fitted()).role) == ("1", "challenger")
    make_champion("1")
    assert origin_of_version(first).role == "champion"
    write_model(seed=2)
    register()
    make_champion("2", instead_of="1")
    assert origin_of_version(first).role == "earlier champion"


def test_a_model_is_compared_with_the_champion_on_the_same_test_images_and_with_no_other() -> None:
    write_model(seed=1, wrong=6)
    register()
    assert against_champion(fitted(), measured_images(), resamples=50, seed=1) is None, "there is no champion"
    make_champion("1")
    assert against_champion(fitted(), measured_images(), resamples=50, seed=1) is None, "it is the champion"
    write_model(seed=2, wrong=3)
    found = against_champion(fitted(), measured_images(), resamples=50, seed=1)
    assert found is not None
    assert found.comparison is not None
    assert (found.champion, found.comparison.images) == ("1", 30)
    assert found.comparison.differences["accuracy"].value == pytest.approx(0.1)
    write_model(seed=3, images=24)
    other = against_champion(fitted(), measured_images(), resamples=50, seed=1)
    assert other is not None
    assert other.comparison is None
    assert "not of the same images" in other.because


def test_without_a_store_the_report_says_that_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()

    def away(*_: object) -> None:
        raise RegistryError("the store does not answer")

    monkeypatch.setattr(versions, "find_version", away)
    monkeypatch.setattr(versions, "champion", away)
    assert origin_of("none", fitted()) == Origin()
    assert against_champion(fitted(), measured_images(), resamples=50, seed=1) is None

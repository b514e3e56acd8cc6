"""study.yaml: its settings, and the messages for its mistakes."""

from pathlib import Path

import pytest

from cxr.common.errors import ParamsError
from cxr.study.spec import read_study
from tests.support.project import PROJECT
from tests.support.projects.study_runs import small_study


def test_study_of_this_project_is_valid_with_unique_tags() -> None:
    study = read_study(PROJECT / "study.yaml")
    tags = [group.tag(row, seed) for group in study.groups for row in group.rows for seed in group.seeds_of(row)]
    assert len(set(tags)) == len(tags)


def test_settings_of_a_row_override_those_of_its_group() -> None:
    (group,) = small_study(set={"train.epochs": 3, "train.mixup": 0.0}, seeded=["train.seed", "split.seed"]).groups
    assert group.settings(group.rows[1], 7) == {
        "train.epochs": 3,
        "train.mixup": 0.2,
        "train.seed": 7,
        "split.seed": 7,
    }
    assert group.tag(group.rows[1], 7) == "study.ablation.mixup.7"


def test_row_may_have_its_own_seeds() -> None:
    (group,) = small_study(rows=[{"name": "plain", "label": "x", "seeds": [5]}, {"name": "b", "label": "y"}]).groups
    assert [group.seeds_of(row) for row in group.rows] == [[5], [1, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groups: [", "is not valid YAML"),
        ("groups: [{name: a}]", r"groups\.0\.title is missing: add it"),
        ("quick: &quick {train.svm: *quick}\ngroups: []", r"refers to \*quick within itself"),
        ("groups: []", "groups: List should have at least 1 item"),
        (
            "groups: [{name: a, title: A, text: t, tested: true, seeds: [1], baseline: c, "
            "rows: [{name: b, label: l}]}]",
            r"groups\.0: .* no row c",
        ),
        (
            "groups: [{name: a, title: A, text: t, tested: true, seeds: [1], "
            "rows: [{name: b, label: l}, {name: b, label: m}]}]",
            r"groups\.0: .* b, b",
        ),
        (
            "groups: [{name: a, title: A, text: t, tested: true, seeds: [1], "
            "rows: [{name: b, label: l, seeds: [2, 2]}]}]",
            "group a has a seed twice among 2, 2",
        ),
        (
            "groups: [&a {name: a, title: A, text: t, tested: true, seeds: [1], rows: [{name: b, label: l}]}, *a]",
            "two groups have the same name among a, a",
        ),
        (
            "groups: [{name: a, title: A, text: t, tested: true, seeds: [1], together: [b], "
            "rows: [{name: b, label: l}]}]",
            "group a: together names b, which does not exist",
        ),
        (
            "groups: [{name: a, title: A, text: t, tested: true, seeds: [1], together: [a], "
            "rows: [{name: b, label: l}]}]",
            "group a: together names a group that is not tested or has no baseline",
        ),
    ],
)
def test_mistakes_are_reported_with_their_position(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=message):
        read_study(path)


def test_a_study_that_is_not_utf_8_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes("quick: {} # für später".encode("latin-1"))
    with pytest.raises(ParamsError, match=r"study\.yaml is not UTF-8 text .*; save it as UTF-8$"):
        read_study(path)


def test_missing_study_is_an_error() -> None:
    with pytest.raises(ParamsError, match=r"nowhere\.yaml is missing"):
        read_study(Path("nowhere.yaml"))

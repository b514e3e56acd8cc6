"""The table of headline metrics: what the shipped parameters may ask for, and how stored metrics are read."""

from typing import Any

import pytest
import yaml

from cxr.common.command_params import PromoteParams
from cxr.common.errors import DataError, ParamsError
from cxr.common.params import read_params, with_overrides
from cxr.evaluation.headline import BY_NAME, COMPARED, ERRORS, HEADLINES, SCORES, check_gate
from tests.support.project import PROJECT

PROMOTE = read_params(PROJECT / "params.yaml").promote


def test_the_shipped_parameters_and_profiles_name_metrics_that_there_are() -> None:
    check_gate(PROMOTE)
    for profile in (PROJECT / "profiles").glob("*.yaml"):
        changed = {k: v for k, v in yaml.safe_load(profile.read_text()).items() if k.startswith("promote.")}
        check_gate(with_overrides(PROJECT / "params.yaml", changed).promote)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("floors", "acuracy"),
        ("floors", "ece"),  # lower is better: a floor would ask for a worse model
        ("ceilings", "accuracy"),
        ("non_inferiority_margin", "brier"),  # no paired comparison measures it
    ],
)
def test_a_metric_that_the_gate_cannot_hold_is_named(key: str, name: str) -> None:
    params = PromoteParams(**(PROMOTE.model_dump() | {key: {name: 0.5}}))
    with pytest.raises(ParamsError, match=f"promote.{key}: .*{name}"):
        check_gate(params)


def test_each_metric_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(SCORES) + len(ERRORS)
    assert set(HEADLINES) | set(COMPARED) <= set(BY_NAME.values())
    assert all(metric.compute is not None for metric in SCORES)


@pytest.mark.parametrize(
    ("metrics", "value"),
    [
        ({"calibration": {"ece": 0.25}}, 0.25),
        ({"ece": 0.5}, 0.5),  # a flat mapping, as in promotion.json
        ({"calibration": {"ece": float("nan")}}, None),
        ({"ece": True}, None),
        ({"ece": "0.1"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_stored_metrics_are_read_as_far_as_they_are_numbers(
    metrics: dict[str, Any] | None, value: float | None
) -> None:
    assert BY_NAME["ece"].stored_in(metrics) == value


def test_a_new_metrics_file_must_hold_every_metric() -> None:
    assert BY_NAME["macro_auroc"].value_in({"macro_auroc": None}) is None
    with pytest.raises(DataError, match="macro_auroc"):
        BY_NAME["macro_auroc"].value_in({"accuracy": 1.0})

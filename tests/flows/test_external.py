"""The flow of a test on another set; tests/flows/test_ray.py compares its result with that of one process."""

import shutil
from pathlib import Path

import pytest

from flows.external import external
from tests.support.project import PROJECT

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_set_that_is_not_there_is_one_line_before_any_shard_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy2(PROJECT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    state = external(["--data", "nowhere"], shards=2, return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("nowhere: no such folder or file; expected ")
    assert "\n" not in str(state.message)

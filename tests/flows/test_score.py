"""The nightly flow: shards as tasks, one page of what came out, and what fails said in one line."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State

from flows.score import Scoring, score

pytestmark = pytest.mark.usefixtures("prefect_server")

STEP = """
import json, sys, pathlib
arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
location, shard = sys.argv[1], arguments["--shard"]
print(f"scoring {shard} of {location}")
attempt = pathlib.Path(f"attempt-{shard[0]}")
if location.endswith("down") and not attempt.exists():
    attempt.write_text("")
    sys.exit(f"error: {location}: Could not connect")
bad = 3 if location == "hopeless" else int(shard[0]) - 1
pathlib.Path(arguments["--summary"]).write_text(json.dumps({
    "location": location, "folder": arguments["--output"], "version": "7", "found": 3, "known": 0,
    "scored": 3 - bad, "bad": bad, "bad_images": {f"{shard[0]}-{n}.png": "is empty" for n in range(bad)},
    "referred": 1, "classes": {"normal": 3 - bad}, "seconds": 2.0,
}))
sys.exit(4 if bad == 3 else 0)
"""


@pytest.fixture
def project(tiny: Path) -> Path:
    (tiny / "tasks" / "score.py").write_text(STEP)
    return tiny


def _artifacts(state: State[Any]) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return {str(artifact.key): str(artifact.data) for artifact in found}


def test_shards_are_counted_together_and_shown_with_the_images_that_are_bad(project: Path) -> None:
    state = score("images", shards=2, return_state=True)
    done: Scoring = state.result()
    assert (done.found, done.scored, done.bad, done.referred, done.classes) == (6, 5, 1, 2, {"normal": 5})
    assert done.images_per_second == 3.0
    shown = _artifacts(state)
    assert "Version 7 on images" in shown["scores"]
    assert "| called normal | 5 |" in shown["scores"]
    assert "2-0.png" in shown["bad-images"]
    assert str(project / "data" / "scores") in shown["scores"]


def test_not_one_image_that_can_be_read_is_a_failure(project: Path) -> None:
    assert project.is_dir()
    state = score("hopeless", shards=1, return_state=True)
    assert state.is_failed()
    assert state.message == "not one of the 3 images in hopeless could be read"


def test_a_folder_that_fails_is_not_tried_again_and_a_bucket_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.score import score_shard

    state = score("down", shards=1, return_state=True)
    assert state.is_failed()
    assert "down: Could not connect" in str(state.message)
    (project / "attempt-1").unlink()
    monkeypatch.setattr(score_shard, "retry_delay_seconds", 0)
    assert score("s3://bucket/down", shards=1, return_state=True).is_completed()

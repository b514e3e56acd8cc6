"""Commands without a person beside them get over an image that its decoder does not: the others are answered."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from cxr.common.cli import run_command
from cxr.inference.score_store import read_scores
from tasks import external, predict, score
from tests.support.faults import fault
from tests.support.images.planted_decoder import CRASHES, CRASHES_WHEN_SHOWN, HANGS, planted_grey, planted_pixels
from tests.support.moments import in_child
from tests.support.projects.tiny_model import enter_tiny_project, write_image

GOOD = 3
Outcome = tuple[int, dict[str, str]]
"""How many images were answered, and the error of each other one."""

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def of_score(_: str) -> Outcome:
    rows = read_scores(Path("scores"))
    return int(rows["error"].isna().sum()), rows.dropna(subset="error").set_index("path")["error"].to_dict()


def of_predict(printed: str) -> Outcome:
    lines = [json.loads(line) for line in printed.splitlines()]
    errors = {Path(line["path"]).name: line["error"] for line in lines if "error" in line}
    return len(lines) - len(errors), errors


def of_external(_: str) -> Outcome:
    folder = Path("reports/external/images")
    errors = pd.read_csv(folder / "not_answered.csv").set_index("path")["error"].to_dict()
    return len(pd.read_csv(folder / "predictions.csv")), errors


@pytest.fixture(scope="module", autouse=True)
def _project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        enter_tiny_project(tmp_path_factory.mktemp("project"), patch, tmp_path_factory, champion=True)
        for number in range(GOOD):
            write_image(Path("images", f"{number}.png"), seed=number)
        good = Path("images/0.png").read_bytes()
        for name, ending in (("crash.png", CRASHES), ("hang.png", HANGS)):
            Path("images", name).write_bytes(good + ending)
        patch.setattr("cxr.inference.decoding.decoders.prepared_pixels", planted_pixels)
        for module in ("cxr.inference.batch", "tasks.predict"):
            patch.setattr(f"{module}.UNATTENDED_SECONDS", 3.0)
        yield


@pytest.mark.parametrize(
    ("main", "arguments", "outcome", "exit_code"),
    [
        (score.main, ["images", "--output", "scores"], of_score, 0),
        (predict.main, ["--json", "images"], of_predict, 4),
        (external.main, ["--data", "images"], of_external, 4),
    ],
)
@fault("score, predict, external", "an image crashes its decoder, another one never ends decoding",
       "their processes end; all other images are answered, and the next scoring does not read the two again",
       "the image with `crashes its decoder` or `took more than 30 s`; exit code of bad images")  # fmt: skip
def test_an_image_that_its_decoder_does_not_survive_is_bad_and_the_others_are_answered(
    main: Callable[[], None],
    arguments: list[str],
    outcome: Callable[[str], Outcome],
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", [main.__module__, *arguments])
    assert in_child(lambda: run_command(main), lambda: None, said=Path("said")) == exit_code, Path("said").read_text()
    printed = capfd.readouterr().out
    answered, errors = outcome(printed)
    assert answered == GOOD
    assert sorted(errors) == ["crash.png", "hang.png"]
    assert "crash.png crashes its decoder" in errors["crash.png"]
    assert "hang.png took more than 3 s to decode" in errors["hang.png"]
    if main is score.main:
        assert f"{GOOD} scored by version 1" in printed
        assert in_child(lambda: run_command(main), lambda: None, said=Path("said")) == 0
        assert f"0 bad, {GOOD + 2} scored before" in capfd.readouterr().out


@fault("external", "an image of its report's gallery crashes its decoder", "nothing is written; answers are kept",
       "exit code 15, the image with `crashes its decoder`")  # fmt: skip
def test_an_image_that_crashes_its_decoder_when_the_report_shows_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels = ["normal", "viral", "bacterial"]
    for number in range(6):
        write_image(tmp_path / f"{number}.png", seed=number)
        with (tmp_path / f"{number}.png").open("ab") as file:
            file.write(CRASHES_WHEN_SHOWN)
    rows = [f"{number}.png,{labels[number % 3]}" for number in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]), "utf-8")
    monkeypatch.setattr("cxr.inference.decoding.decoders.original_grey", planted_grey)
    monkeypatch.setattr("sys.argv", ["external", "--data", str(tmp_path), "--name", "shown"])
    assert in_child(lambda: run_command(external.main), lambda: None, said=Path("said")) == 15
    assert ".png crashes its decoder; export it again" in Path("said").read_text("utf-8")
    assert not Path("reports/external/shown").exists()

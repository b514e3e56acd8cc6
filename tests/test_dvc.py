"""DVC as people use it here: parameters set for one experiment, and plots without the internet."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from dvc_render.vega import VegaRenderer
from ruamel.yaml import YAML

from cxr.common.params import override
from tests.support.pages.browsers import launch_browser
from tests.support.project import PROJECT

PROFILES = sorted((PROJECT / "profiles").glob("*.yaml"))
TABLES = {
    "models/trained/curves.csv": "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy,"
    "validation_macro_f1\n1,0.9,0.6,0.8,0.6,0.5\n2,0.5,0.8,0.6,0.7,0.6\n",
    "reports/evaluation/confusion.csv": "actual,predicted\nnormal,normal\nviral,normal\n",
    "reports/evaluation/roc.csv": "class,fpr,tpr\nnormal,0,0\nnormal,1,1\n",
    "reports/evaluation/reliability.csv": "confidence,accuracy\n0.4,0.5\n0.8,0.7\n",
}


@pytest.mark.parametrize("profile", [None, *PROFILES], ids=lambda path: path.stem if path else "sample")
def test_a_parameter_set_by_dvc_changes_one_line(tmp_path: Path, profile: Path | None) -> None:
    """`dvc exp run -S` writes the whole file anew: layout and comments must be those that its writer keeps."""
    file = tmp_path / "params.yaml"
    shutil.copy(PROJECT / "params.yaml", file)
    if profile:
        override(file, dict(YAML(typ="safe").load(profile.read_text())))
    before = file.read_text().splitlines()
    apply_overrides(str(file), ["train.epochs=77"])
    after = file.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [new for _, new in changed] == ["  epochs: 77"]


def test_the_page_of_plots_holds_the_versions_that_dvc_loads_from_the_internet() -> None:
    held = re.findall(r"^  (vega[\w-]*@[\d.]+)$", (PROJECT / ".dvc" / "plots_page.html").read_text(), re.MULTILINE)
    assert held == re.findall(r"/npm/(vega[\w-]*@[\d.]+)", VegaRenderer.SCRIPTS)


def test_plots_are_drawn_without_the_internet(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    for name, rows in TABLES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(rows)
    declared: dict[str, Any] = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())
    with (tmp_path / "dvc.yaml").open("w") as file:
        YAML().dump({"plots": declared["plots"]}, file)
    config = tmp_path / ".dvc" / "config"
    config.write_text(config.read_text().replace("[core]", "[core]\n    no_scm = true"))
    subprocess.run([sys.executable, "-m", "dvc", "plots", "show"], cwd=tmp_path, check=True, capture_output=True)

    with launch_browser() as browser, browser.new_context(offline=True) as context:
        page = context.new_page()
        page.set_default_timeout(120_000)  # long, for a busy machine
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "dvc_plots" / "index.html").as_uri())
        page.wait_for_function("document.querySelectorAll('.vega-embed canvas').length === 5")
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []

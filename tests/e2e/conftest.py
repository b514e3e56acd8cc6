"""One small project in which every stage has run, for all tests that damage, kill or starve a stage."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxr.registry.champion import aliases
from tests.support.projects.sample_project import copy_project, enter, make_sample_project
from tests.support.projects.tiny_model import write_image


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every stage has run; neither the current directory nor the store of who asks for it."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    with pytest.MonkeyPatch.context() as patch:
        make_sample_project(folder, patch)
    return folder


@pytest.fixture
def sample(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it as the current directory."""
    folder = tmp_path / "project"
    copy_project(finished, folder)
    enter(folder, monkeypatch)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def incoming(sample: Path) -> Path:
    """Images that came in, and a champion to score them."""
    folder = sample / "data" / "incoming"
    for seed in range(3):
        write_image(folder / f"{seed}.png", seed=seed)
    aliases.move_champion("1", instead_of="", kind="promote", approved_by="ann", reason="test")
    return folder

"""No test reaches the stores of whoever runs it, which `./run pytest` has in its environment and Prefect finds in .env.

This runs before any test imports Prefect or MLflow, which read their settings then. What follows it keeps the whole
suite short: the longest files come first, and lines are counted only where that says something.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import coverage
import pytest

_STORES = ("MLFLOW_TRACKING_URI", "CXR_MLRUNS", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "CXR_NOTIFY_URL")

for name in _STORES:
    os.environ.pop(name, None)
_prefect_home = tempfile.TemporaryDirectory(prefix="prefect-")  # removed as the session ends
os.environ["PREFECT_HOME"] = _prefect_home.name
os.environ["PREFECT_PROFILES_PATH"] = f"{_prefect_home.name}/profiles.toml"

# Images of machines often set it. Then each of the many hundred Pythons of the tests compiles all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell's background job ignores interrupts, and so do all that it starts. Tests interrupt what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SETTINGS = ("AWS_", "CXR_", "DVC_", "MLFLOW_TRACKING_", "PREFECT_API_")
_TESTS = Path(__file__).parent
_OF_SEVERAL_PARTS = ("e2e", "flows")
_LONGEST_FIRST = (
    "integration/test_team_services.py",
    "flows/test_serve.py",
    "flows/test_ray.py",
    "e2e/test_sample_loop.py",
    "flows/test_rebuild.py",
    "cxr/training/test_distributed.py",
    "integration/test_pacs.py",
    "integration/test_backup.py",
    "flows/test_promote.py",
    "flows/test_study.py",
    "e2e/test_real_images.py",
    "e2e/test_killed_stages.py",
    "e2e/test_every_network.py",
    "e2e/test_damaged_inputs.py",
    "tasks/test_external.py",
    "tasks/test_train.py",
    "tasks/test_promote.py",
    "e2e/test_terminated.py",
)
"""Files of a minute and more, with `--no-loadscope-reorder`: one that comes last keeps one worker busy alone."""


@pytest.fixture(scope="module", autouse=True)
def _as_it_was() -> Iterator[None]:
    """Give the next file of a worker the folder, arguments and settings that this one found: commands change them.

    MLflow puts the code that is saved with a model on the path as it loads the model.
    """
    folder, arguments, path, settings = Path.cwd(), sys.argv, sys.path.copy(), _settings()
    yield
    os.chdir(folder)
    sys.argv, sys.path[:] = arguments, path
    for name in _settings().keys() - settings.keys():
        del os.environ[name]
    os.environ.update(settings)


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; all else stays in its order."""
    place = {_TESTS / file: number for number, file in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Count no lines in tests of several parts: most of what they run is in other processes, or in libraries.

    Before Python 3.12 counting makes all Python code three times as slow, that of libraries too.
    """
    counting = coverage.Coverage.current()
    if counting is None or item.path.relative_to(_TESTS).parts[0] not in _OF_SEVERAL_PARTS:
        return (yield)
    counting.stop()
    try:
        return (yield)
    finally:
        counting.start()

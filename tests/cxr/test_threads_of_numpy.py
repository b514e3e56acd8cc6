"""NumPy's idle threads leave the cores to the network."""

import os
import subprocess
import sys

import pytest

IMPORT = "import os, sys, cxr; print('numpy' in sys.modules, os.environ['OPENBLAS_THREAD_TIMEOUT'])"


@pytest.mark.parametrize(("set_by_user", "expected"), [({}, "4"), ({"OPENBLAS_THREAD_TIMEOUT": "20"}, "20")])
def test_how_long_they_wait_is_set_before_numpy_is_imported(set_by_user: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    command = [sys.executable, "-c", IMPORT]
    printed = subprocess.run(command, env=environment | set_by_user, check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["False", expected]

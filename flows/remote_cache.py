"""What runs share through DVC's remote where no checkout outlives a run, as in a pod of a cluster. No Prefect here.

With CXR_DVC_REMOTE set (infra/start.sh makes it DVC's remote) a run first fetches DVC's run cache, then takes the
outputs of every stage that ran before on the same inputs, and pushes those of each stage that did run. Another run, in
an empty folder, then runs nothing twice: not after a pod was killed either.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cxr.common.errors import CxrError
from flows.dvc.process import DVC

VARIABLE = "CXR_DVC_REMOTE"


class RemoteError(CxrError):
    """DVC's remote does not take or give what runs share."""


def is_shared() -> bool:
    """Say whether runs share their outputs through DVC's remote."""
    return bool(os.environ.get(VARIABLE))


def fetch(root: Path, *, on_line: Callable[[str], None], environment: Mapping[str, str]) -> None:
    """Fetch the record of what ran on which inputs; outputs follow, stage by stage. Raises RemoteError."""
    _dvc("fetch", "--run-cache", root=root, on_line=on_line, environment=environment)


def push(stage: str, root: Path, *, on_line: Callable[[str], None], environment: Mapping[str, str]) -> None:
    """Push the outputs of a stage, and that it ran. Raises RemoteError."""
    _dvc("push", "--run-cache", stage, root=root, on_line=on_line, environment=environment)


def _dvc(*arguments: str, root: Path, on_line: Callable[[str], None], environment: Mapping[str, str]) -> None:
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        on_line(line)

    if DVC.run("dvc", "--wait-for-lock", *arguments, folder=root, on_line=keep, environment=environment):
        said = next((line for line in reversed(lines) if line.startswith("ERROR: ")), "see the lines above")
        raise RemoteError(
            f"`dvc {' '.join(arguments)}` failed: {said.removeprefix('ERROR: ')}; check {VARIABLE}, AWS_ENDPOINT_URL, "
            "keys and network, then run the same command again"
        )

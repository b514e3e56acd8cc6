"""Ask DVC about dvc.yaml: the order of its stages, and which of them `dvc repro` would skip. No Prefect here.

`python -m flows.dvc.graph`, in the folder of dvc.yaml, prints the answer as one line of JSON. A flow asks through
flows.dvc.process, so that its own process need not import DVC.
"""

import json
import sys
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo


def order(repo: Repo) -> list[str]:
    """Return the names of the stages, each after those it reads from, else in file order."""
    graph = repo.index.graph  # edges go from a stage to those it reads from
    stages = _stages(repo)
    names: dict[str, None] = {}

    def add(stage: Any) -> None:
        for source in sorted(set(graph.successors(stage)) & set(stages), key=stages.index):
            add(source)
        names[stage.name] = None

    for stage in stages:
        add(stage)
    return list(names)


def unchanged(repo: Repo) -> list[str]:
    """Return the stages that `dvc repro` would skip; none while another DVC command is busy."""
    try:
        changed = repo.status()
    except DvcException:  # whatever is wrong, the stage's own command says it in its words
        return []
    return [stage.name for stage in _stages(repo) if stage.addressing not in changed]


def _stages(repo: Repo) -> list[Any]:
    return [stage for stage in repo.index.stages if Path(stage.path) == Path(repo.root_dir) / "dvc.yaml"]


def main() -> int:
    """Print order and unchanged stages of the project in the working directory."""
    try:
        with Repo() as repo:
            print(json.dumps({"order": order(repo), "unchanged": unchanged(repo)}))
    except DvcException as error:
        print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

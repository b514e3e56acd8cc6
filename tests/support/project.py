"""Where the project's own files are."""

import shutil
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]


@cache
def parameters() -> dict[str, object]:
    """Return params.yaml, the project's own."""
    found: dict[str, object] = YAML(typ="safe").load(PROJECT / "params.yaml")
    return found


def is_parameter(name: str) -> bool:
    """Return whether params.yaml has this dotted name, such as `train.epochs`."""
    node: object = parameters()
    for key in name.split("."):
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def copy_package(name: str, folder: Path) -> None:
    """Copy a package with its compiled code, so that children need not compile it; others may be storing some."""
    unfinished = shutil.ignore_patterns("*.pyc.*")
    shutil.copytree(PROJECT / name, folder / name, ignore=unfinished, dirs_exist_ok=True)

"""Where the project's own files are."""

import shutil
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def copy_package(name: str, folder: Path) -> None:
    """Copy a package with its compiled code, so that children need not compile it; others may be storing some."""
    unfinished = shutil.ignore_patterns("*.pyc.*")
    shutil.copytree(PROJECT / name, folder / name, ignore=unfinished, dirs_exist_ok=True)

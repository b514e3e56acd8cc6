"""Measure the model of another project folder."""

import os
from pathlib import Path

from cxr.registry.tracking_store import FOLDER_VARIABLE, STORE_VARIABLE


def enter_project(folder: Path) -> None:
    """Work in a project folder and with its local store; `./run` has named the store of its own project."""
    os.chdir(folder)
    for variable in (STORE_VARIABLE, FOLDER_VARIABLE):
        os.environ.pop(variable, None)

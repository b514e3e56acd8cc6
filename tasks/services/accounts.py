"""Give each service an MLflow account of its own, with the permission that it needs.

Reads   MLFLOW_WORKER_PASSWORD, MLFLOW_APP_PASSWORD and MLFLOW_PACS_PASSWORD from the environment
Writes  the accounts `worker` (EDIT), `app` and `pacs` (READ) on the MLflow server

MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are the server and its administrator. Run it
again to change a password: an account that is there already gets the present password and exactly its permission.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser

from cxr.common.cli import answer_help, command_parser, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    return command_parser(sys.modules[__name__])


if __name__ == "__main__":
    answer_help(command_line())

from cxr.common.errors import ParamsError
from cxr.registry.accounts import PERMISSIONS, set_account


def main() -> None:
    """Set up every account; none is touched where a password is missing."""
    command_line().parse_args()
    variables = {name: f"MLFLOW_{name.upper()}_PASSWORD" for name in PERMISSIONS}
    if missing := [variable for variable in variables.values() if not os.environ.get(variable)]:
        raise ParamsError(f"{', '.join(missing)}: set to the account's password; infra/secrets.sh draws them at random")
    for name, variable in variables.items():
        set_account(name, os.environ[variable])
        print(f"account {name}: {PERMISSIONS[name]}")


if __name__ == "__main__":
    run_command(main)

"""Secrets from files: in place of a variable NAME of `SECRETS`, NAME_FILE may name a file that holds its value.

    python -m cxr.common.secret_files COMMAND ...     # for programs that know nothing of such files

Every command of this project calls `read_secret_files` as it starts; infra/with-secret-files.sh does it for others.
What a file held is in the environment of this process and its children from then on, but not in that of the shell, the
container or the pod that started it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from cxr.common.errors import CxrError, ParamsError

SECRETS = (
    "CXR_APP_TOKEN",
    "CXR_NOTIFY_URL",
    "CXR_PACS_PASSWORD",
    "CXR_PACS_URL",
    "CXR_PATIENT_KEY",
    "CXR_WEBHOOK_SECRET",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "KAGGLE_API_TOKEN",
    "KAGGLE_KEY",
    "MLFLOW_APP_PASSWORD",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_AUTH_DATABASE_URI",
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_DB_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_PACS_PASSWORD",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
    "MLFLOW_WORKER_PASSWORD",
    "PGPASSWORD",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_DB_PASSWORD",
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
)
"""Every variable from which this project, or a library for it, reads a password, key, token or address with one."""

_MOST_BYTES = 64 * 1024


def read_secret_files() -> None:
    """Set each variable of `SECRETS` whose file is named to the content of that file, without the line end.

    Raises:
        ParamsError: the variable is set as well, or the file is missing, empty or holds more than one line.
    """
    for name in SECRETS:
        path = os.environ.get(f"{name}_FILE")
        if not path:
            continue
        if os.environ.get(name):
            raise ParamsError(f"both {name} and {name}_FILE are set; remove one of them, also from .env")
        os.environ[name] = _content(f"{name}_FILE", Path(path))
        del os.environ[f"{name}_FILE"]  # children find the value itself


def _content(variable: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        text = data.decode().strip("\r\n")
    except OSError as error:
        advice = "give this user the right to read it, or name another file"
        raise ParamsError(f"{variable}: {path}: {error.strerror}; {advice}") from None
    except UnicodeDecodeError:
        text = ""
    if not text or len(data) > _MOST_BYTES or not text.isprintable():
        raise ParamsError(f"{variable}: {path} must hold the secret alone, as one line of text")
    return text


def main() -> NoReturn:
    """Run the command of the command line with what the files hold."""
    try:
        read_secret_files()
    except CxrError as error:
        sys.exit(f"error: {error}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()

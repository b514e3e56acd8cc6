"""Where a model comes from: the commit, digests of the files that decide a run, Python and torch versions."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from cxr.common.files import sha256_of

NONE = "none"
"""Value of a tag with nothing to record, so that every version has the same tags."""

_DECIDING_FILES = {"dvc_lock_sha256": "dvc.lock", "params_sha256": "params.yaml", "uv_lock_sha256": "uv.lock"}
IMAGE_COMMIT_VARIABLE = "CXR_COMMIT"
"""The commit that a container image was built from, where infra/start.sh took the project out of the image."""

_CODE_FOLDERS = ("cxr", "flows", "tasks")
_CODE = (*_CODE_FOLDERS, "dvc.yaml", "pyproject.toml", "uv.lock")
_GIT_SECONDS = 30


def lineage(root: Path) -> dict[str, str]:
    """Describe the state of the project at `root` in tags; no names, addresses or secrets.

    Returns:
        git_commit        40 hexadecimal digits, "none" outside git
        git_dirty         "true" where tracked files of _CODE differ from the commit; "none" outside git. What users
                          edit besides, such as a profile or labels-corrected.csv, acts through params.yaml and
                          dvc.lock, which have digests of their own
        code_sha256       of every Python file of the project: identifies the code of a dirty tree too
        dvc_lock_sha256, params_sha256, uv_lock_sha256   of those files, "none" where missing
        python_version, torch_version
    """
    return {
        **_git_state(root),
        "code_sha256": _code_digest(root),
        **{tag: _digest(root / name) for tag, name in _DECIDING_FILES.items()},
        "python_version": platform.python_version(),
        "torch_version": version("torch"),
    }


def _git_state(root: Path) -> dict[str, str]:
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": NONE, "git_dirty": NONE}
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *_CODE)
    built_from = os.environ.get(IMAGE_COMMIT_VARIABLE)
    return {"git_commit": built_from or commit, "git_dirty": "true" if changes else "false"}


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git answers; None where there is no git or no repository."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _digest(path: Path) -> str:
    return sha256_of(path) if path.is_file() else NONE


def _code_digest(root: Path) -> str:
    files = sorted(path for folder in _CODE_FOLDERS for path in (root / folder).rglob("*.py"))
    if not files:
        return NONE
    listing = "\n".join(f"{path.relative_to(root).as_posix()} {sha256_of(path)}" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()

"""A fresh clone of the project as it stands, in a folder of its own, for tests of the whole."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.project import PROJECT

OURS = ("CXR_", "MLFLOW_", "PREFECT_", "DVC_", "GIT_", "COV_", "COVERAGE_")


@dataclass(frozen=True)
class Clone:
    """A clone and its way to run commands; each gets its own stores and nothing of this session's settings."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run `python -m ARGUMENTS` in the clone; return what it prints on both streams."""
        done = self._start([sys.executable, "-m", *arguments], stderr=subprocess.STDOUT)
        assert done.returncode == code, f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def ask(self, *arguments: str) -> str:
        """Run `python -m ARGUMENTS` in the clone; return its standard output alone."""
        done = self._start([sys.executable, "-m", *arguments], stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def follow(self, on_line: Callable[[str], None], *arguments: str) -> int:
        """Run `python -m ARGUMENTS`, hand over each line of both streams as it comes; return the exit code."""
        command = [sys.executable, "-u", "-m", *arguments]
        with subprocess.Popen(
            command, cwd=self.root, env=self._settings(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                on_line(line.rstrip("\n"))
        return process.returncode

    @contextmanager
    def start(self, *command: str) -> Iterator[None]:
        """Keep a command running in the clone during the block; end it afterwards, and kill what stays."""
        with subprocess.Popen(command, cwd=self.root, env=self._settings()) as process:
            try:
                yield
            finally:
                process.terminate()  # an interrupt is ignored by all that a shell's background job starts
                try:
                    process.wait(120)
                finally:
                    process.kill()

    def git(self, *arguments: str) -> str:
        """Run git in the clone."""
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        done = self._start(["git", *identity, *arguments], stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _start(self, command: list[str], *, stderr: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=self.root, env=self._settings(), stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
        )

    def _settings(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "PREFECT_HOME": str(self.root / ".prefect"),
            **self.environment,
        }


def make_clone(root: Path, *configure: str, environment: Mapping[str, str] | None = None) -> Clone:
    """Copy the tracked files as they stand to `root`, configure them, and commit all in a repository of its own."""
    made = Clone(root, environment or {})
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True)
    for file in filter(None, listed.stdout.split("\0")):
        if (PROJECT / file).is_file():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / file, root / file)
    with (root / ".gitignore").open("a") as ignored:
        ignored.write("/.prefect/\n")
    made.run("tasks.configure", *configure)
    made.git("init", "--quiet")
    made.git("add", "--all")
    made.git("commit", "--quiet", "--message", "as it stands")
    return made


def lend_environment(root: Path) -> None:
    """Give a copy of the project the present environment as its .venv, as if `make setup` had just built it."""
    present = Path(sys.prefix)
    (root / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (root / ".venv" / name).symlink_to(present / name)
    digest = hashlib.sha256((root / "uv.lock").read_bytes()).hexdigest()
    (root / ".venv" / ".built-from").write_text(f"{digest} develop cuda\n")


def in_plain_shell(root: Path, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in `root` with nothing set but PATH, where no Python of this project is, and HOME."""
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(root.parent), **environment}
    return subprocess.run(command, cwd=root, env=bare, capture_output=True, text=True, check=False)

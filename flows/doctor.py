"""Check everything this project needs to run, and advise on each problem.

    make doctor                       # or: ./run flows.doctor
    ./run flows.doctor --json         # for a program

Versions, tracking store, champion, DVC's remote, S3, disk, DVC's locks, GPU; and of Prefect: server, worker,
deployments, late and stuck runs, concurrency slots. The server is PREFECT_API_URL, else the one that `make serve`
started in this checkout; without one the checks of Prefect are left out with a warning. Nothing is changed.

Exit code 0: nothing failed. 1: something did.
"""

import json
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import CxrError
from cxr.common.findings import Finding, failed, ok, warning
from cxr.common.params import read_params
from cxr.registry import tracking_store, versions
from cxr.registry.champion import aliases
from flows.serve import STATE

_NEEDED_AT_LEAST = 1 << 30
_GIB = 1 << 30
_S3 = "s3://"


def examine(root: Path) -> list[Finding]:
    """Run every check; one that breaks down is a failure with its reason."""
    checks: dict[str, Callable[[Path], Iterator[Finding]]] = {
        "versions": check_versions,
        "tracking": check_tracking,
        "remote": check_remote,
        "S3": check_s3,
        "disk": check_disk,
        "DVC's locks": check_locks,
        "GPU": check_gpu,
        "Prefect": check_prefect,
    }
    found = []
    for name, check in checks.items():
        try:
            found += list(check(root))
        except CxrError as error:
            found.append(failed(name, str(error), "do what the message says, then `make doctor` again"))
        except Exception as error:  # a check must never hide the others
            message = f"the check itself broke: {type(error).__name__}: {_first_line(error)}"
            found.append(failed(name, message, "fix what the message names, then `make doctor` again"))
    return found


def check_versions(root: Path) -> Iterator[Finding]:
    """Compare Python with pyproject.toml, and the packages named there with uv.lock."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    here = platform.python_version()
    if Version(here) not in SpecifierSet(project["requires-python"]):
        message = f"{here}; required: {project['requires-python']}"
        yield failed("Python", message, "install such a Python, remove .venv, then `make setup`")
    else:
        yield ok("Python", here)
    wrong = [f"{name} {have or 'is missing'} instead of {want}" for name, want, have in _other_versions(root)]
    if wrong:
        # An environment that setup has noted as built for another purpose, or as whole, it does not build again.
        yield failed("packages", ", ".join(wrong), "remove .venv, then `make setup`")
    else:
        yield ok("packages", "as uv.lock says")


def check_tracking(_root: Path) -> Iterator[Finding]:
    """Check the tracking store, the champion's files, and that the alias agrees with the audit log."""
    where = tracking_store.public_uri()
    local = tracking_store.tracking_uri().removeprefix("sqlite:///")
    if tracking_store.tracking_uri().startswith("sqlite:///") and not Path(local).is_file():
        yield warning("tracking store", f"{where} is not there yet", "make run")
        return
    try:
        alias = aliases.standing().alias
    except CxrError as error:
        advice = f"start that server, or unset {tracking_store.STORE_VARIABLE} for the store of this folder"
        yield failed("tracking store", str(error), advice)
        return
    yield ok("tracking store", f"{where} answers")
    yield _champions_files(alias)
    yield _audit_log()


def _champions_files(number: str) -> Finding:
    if not number:
        advice = "`make run`, or `./run promote` where a challenger is registered"
        return warning("champion", "there is none yet", advice)
    if fault := versions.bundle_fault(versions.get_version(number)):
        return failed("champion", fault, "./run rollback, or restore the store from its backup")
    return ok("champion", f"version {number}; its files are as registered")


def _audit_log() -> Finding:
    if move := aliases.unfinished():
        message = f"version {move.after} was to become champion, and the command was killed in the middle"
        return warning("audit log", message, "the next promotion or rollback finishes it; ./run history")
    if problems := aliases.problems():
        advice = "./run promote or ./run rollback; ./run history shows all moves"
        return failed("audit log", "; ".join(problems), advice)
    return ok("audit log", "complete, and the alias champion agrees with it")


def check_remote(root: Path) -> Iterator[Finding]:
    """Look at DVC's default remote."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        if not name:
            yield ok("DVC's remote", "none set: data stay on this machine")
            return
        remote = repo.cloud.get_remote()
        try:
            remote.fs.ls(remote.fs.parent(remote.path) if remote.fs.protocol == "local" else remote.path)
        except FileNotFoundError:
            reached = remote.fs.protocol != "local" and remote.fs.exists(remote.fs.parent(remote.path))
            if not reached:
                yield failed("DVC's remote", f"{name}: {remote.path} is not there", "make it, or `dvc remote modify`")
                return
        except Exception as error:  # each kind of remote has errors of its own
            message = f"{name}: {remote.path} cannot be reached: {_first_line(error)}"
            yield failed("DVC's remote", message, "check AWS_ENDPOINT_URL, keys and network; `dvc remote list`")
            return
    yield ok("DVC's remote", f"{name} can be reached")


def check_s3(root: Path) -> Iterator[Finding]:
    """List the first image of every source that lies in a bucket."""
    sources = read_params(root / "params.yaml").ingest.sources
    for location in (source.location for source in sources if source.location.startswith(_S3)):
        import boto3
        from boto3.exceptions import Boto3Error
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, prefix = location.removeprefix(_S3).partition("/")
        try:
            quick = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
            answer = boto3.Session().client("s3", config=quick).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except (Boto3Error, BotoCoreError, ClientError) as error:
            advice = "check bucket, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            yield failed("S3", f"{location}: {_first_line(error)}", advice)
            continue
        if answer["KeyCount"]:
            yield ok("S3", f"{location} can be read")
        else:
            yield failed("S3", f"{location}: there is nothing under this prefix", "check bucket and prefix")


def check_disk(root: Path) -> Iterator[Finding]:
    """Compare free disk with what a rebuild of the last one's size writes: into the folder and into DVC's cache."""
    free = shutil.disk_usage(root).free
    needed = _NEEDED_AT_LEAST + 2 * _outputs_bytes(root)
    message = f"{free / _GIB:.1f} GiB free, a rebuild needs about {needed / _GIB:.1f}"
    advice = "`./run clean` removes what no champion needs, `make clean` what can be built again"
    if free < needed:
        yield failed("disk", message, advice)
    elif free < 2 * needed:
        yield warning("disk", message, advice)
    else:
        yield ok("disk", message)


def check_locks(root: Path) -> Iterator[Finding]:
    """Look for records of busy paths that no DVC command holds; those of dead processes DVC drops by itself."""
    record = root / ".dvc" / "tmp" / "rwlock"
    advice = f"when no DVC command runs here: rm {record.relative_to(root)}"
    try:
        lock = json.loads(record.read_bytes()) if record.exists() else {}
    except ValueError:
        yield failed("DVC's locks", f"{record.relative_to(root)} was left unreadable by a killed command", advice)
        return
    writers, readers = lock.get("write", {}), lock.get("read", {})
    holders = [*writers.values(), *(reader for several in readers.values() for reader in several)]
    strangers = sorted({int(holder["pid"]) for holder in holders if _is_stranger(int(holder["pid"]))})
    if strangers:
        message = f"paths are held for process {strangers[0]}, which is no DVC command (a number that was used again)"
        yield failed("DVC's locks", message, advice)
        return
    busy = sorted(
        {f"process {holder['pid']}: {holder['cmd']}" for holder in holders if psutil.pid_exists(int(holder["pid"]))}
    )
    yield ok("DVC's locks", f"in use by {', '.join(busy)}" if busy else "none held")


def check_gpu(_root: Path) -> Iterator[Finding]:
    """Ask PyTorch for a GPU, and say so where the machine has one that PyTorch cannot use."""
    import torch

    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        yield ok("GPU", f"{seen.name}, {seen.total_memory / _GIB:.0f} GiB")
    elif Path("/dev/nvidia0").exists():
        message = "this machine has one, and PyTorch cannot use it"
        yield failed(
            "GPU", message, f"update NVIDIA's driver to one for CUDA {torch.version.cuda}; `nvidia-smi` must work"
        )
    else:
        yield ok("GPU", "none: trainings run on the CPU")


def check_prefect(root: Path) -> Iterator[Finding]:
    """Look at Prefect's server and what hangs on it; see flows.doctor_prefect."""
    api = os.environ.get("PREFECT_API_URL") or _served_here(root)
    if not api:
        yield warning("Prefect", "no server: PREFECT_API_URL is not set and nothing is served here", "make serve")
        return
    os.environ["PREFECT_API_URL"] = api  # before Prefect is imported: it reads its settings then
    from flows.doctor_prefect import check_server

    yield from check_server(root, api)


def _other_versions(root: Path) -> Iterator[tuple[str, str, str | None]]:
    lock = tomllib.loads((root / "uv.lock").read_text())["package"]
    project = next(package for package in lock if package.get("source") == {"virtual": "."})
    locked: dict[str, list[dict[str, Any]]] = {}
    for package in lock:
        locked.setdefault(package["name"], []).append(package)
    for wanted in project["dependencies"]:
        if "marker" in wanted and not Marker(wanted["marker"]).evaluate():
            continue
        want = wanted.get("version") or locked[wanted["name"]][0]["version"]
        try:
            have = version(wanted["name"])
        except PackageNotFoundError:
            have = None
        if have is None or Version(have).public != Version(want).public:
            yield wanted["name"], want, have


def _outputs_bytes(root: Path) -> int:
    from ruamel.yaml import YAML

    lock = root / "dvc.lock"
    stages = YAML(typ="safe").load(lock)["stages"].values() if lock.is_file() else []
    return sum(out.get("size", 0) for stage in stages for out in stage.get("outs", []))


def _served_here(root: Path) -> str | None:
    state = root / STATE / "serve.json"
    if not state.is_file():
        return None
    addresses = json.loads(state.read_text())
    return str(addresses["prefect"]) if psutil.pid_exists(addresses["pid"]) else None


def _is_stranger(pid: int) -> bool:
    try:
        return not any("dvc" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _first_line(error: Exception) -> str:
    return tracking_store.without_credentials((str(error).strip() or type(error).__name__).splitlines()[0][:300])


def as_text(found: list[Finding]) -> str:
    """Return the findings as lines: level, check, what was found, and below what is to be done."""
    width = max(len(finding.check) for finding in found)
    lines = []
    for finding in found:
        lines.append(f"{finding.level:<8} {finding.check:<{width}}  {finding.message}")
        if finding.advice:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.advice}")
    failures = sum(finding.level == "FAILED" for finding in found)
    warnings = sum(finding.level == "warning" for finding in found)
    return "\n".join([*lines, "", f"{failures} failed, {warnings} to know of, {len(found)} checked"])


def main() -> int:
    """Examine the checkout that is the working directory and print what was found."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--json", action="store_true", help="a JSON list instead of lines")
    arguments = parser.parse_args()
    found = examine(Path.cwd())
    print(json.dumps([asdict(finding) for finding in found], indent=2) if arguments.json else as_text(found))
    return 1 if any(finding.level == "FAILED" for finding in found) else 0


if __name__ == "__main__":
    run_command(main)

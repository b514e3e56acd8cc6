"""Where a flow's tasks run: in threads of this process, or on a Ray cluster when `CXR_RAY_ADDRESS` names one.

Threads share this process; on a cluster every task runs in a process of its own, on any of the machines:

- the arguments of a task must pickle; locks and queues of `threading` and `queue` do not. The locks of
  `cxr.common.locks` are files, which hold across processes and machines;
- its working directory is not the project's root, so paths are absolute;
- the project's folder must lie under the same path on every machine, on a file system they share. Scoring with an
  exchange (flows/score.py) needs no such folder: each machine has a copy of the project of its own, wherever.

CXR_RAY_ADDRESS   host:port of the cluster's head, with a Ray node on this machine; or ray://host:port
CXR_RAY_CPUS      cores that a task asks for (1)
CXR_RAY_GPUS      GPUs that a task asks for (0); a task that asks for none sees none
"""

import importlib
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from prefect.exceptions import TerminationSignal
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from cxr.common.errors import CxrError, ParamsError
from cxr.registry.tracking_store import FOLDER_VARIABLE, STORE_VARIABLE, mlruns_folder, public_uri, tracking_uri
from flows.upkeep import RUN_VARIABLE

ADDRESS_VARIABLE = "CXR_RAY_ADDRESS"
CPUS_VARIABLE = "CXR_RAY_CPUS"
GPUS_VARIABLE = "CXR_RAY_GPUS"
_CONNECT_SECONDS = 10


class ClusterError(CxrError):
    """The cluster that was asked for cannot be used."""


def runner(workers: int) -> TaskRunner[Any]:
    """Return what runs a flow's tasks: `workers` threads, or the Ray cluster that the environment names.

    A cluster runs as many tasks at once as its cores and GPUs allow; `workers` says nothing there.

    Raises:
        ClusterError: the package prefect-ray is missing, or nothing answers at the address.
        ParamsError: a variable of the environment cannot be read.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    if not address:
        return ThreadPoolTaskRunner(max_workers=workers)
    _check_answers(address)
    try:
        ray_runner = importlib.import_module("flows.ray_runner")
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"{ADDRESS_VARIABLE} is set, and the package {error.name} is not installed; `uv sync --group cluster` "
            f"on every machine of the cluster, or unset {ADDRESS_VARIABLE} to run in threads"
        ) from error
    made: TaskRunner[Any] = ray_runner.ClusterRunner(
        address=address,
        init_kwargs={"runtime_env": {"env_vars": _carried()}},
        resources={"num_cpus": _amount(CPUS_VARIABLE, "1"), "num_gpus": _amount(GPUS_VARIABLE, "0")},
    )
    return made


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """End this process at once where Ctrl-C or SIGTERM ends the block, in which a flow waits for its tasks.

    Prefect would wait for the threads first, for hours, since nothing can interrupt them. Their commands end with this
    process (flows.supervised); its other children, such as a server that Prefect started for this run, are told to.
    A run that a worker started goes Prefect's way: the worker notes how it ended, and kills what does not end.
    """
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal) as stopped:
        if os.environ.get(RUN_VARIABLE):
            raise
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        os.write(2, b"stopped; run the same command again to continue\n")
        os._exit(128 + (signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM))


def check_store_of_a_cluster() -> None:
    """Check that machines without a common folder can reach the tracking store.

    Raises:
        ClusterError: there is a cluster, and the store is a file of this machine.
    """
    if os.environ.get(ADDRESS_VARIABLE) and tracking_uri().startswith("sqlite:"):
        raise ClusterError(
            f"the tracking store {public_uri()} is a file of this machine, and the machines of the cluster share no "
            f"folder; set {STORE_VARIABLE} to the address of an MLflow server"
        )


def _check_answers(address: str) -> None:
    """Try the head's port: Ray itself waits for minutes and then prints a page."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if parts.scheme not in {"", "ray"} or not parts.hostname or not parts.port:
            raise ValueError
    except ValueError as error:
        raise ParamsError(f"{ADDRESS_VARIABLE} is host:port or ray://host:port, got {address!r}") from error
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); start it with `ray start --head`, "
            f"or unset {ADDRESS_VARIABLE} to run in threads"
        ) from error


def _carried() -> dict[str, str]:
    """Return what tasks need of this environment. No secret: Ray shows it on its pages and writes it to its logs.

    Secrets (a store's password, bucket keys) stand in the environment of the Ray nodes themselves.
    """
    store = os.environ.get(STORE_VARIABLE, "")
    if store and "@" not in store:
        return {STORE_VARIABLE: store}
    return {} if store else {FOLDER_VARIABLE: str(Path(mlruns_folder()).resolve())}


def _amount(variable: str, default: str) -> float:
    given = os.environ.get(variable, default)
    try:
        amount = float(given)
        if not 0 <= amount < float("inf"):
            raise ValueError
    except ValueError as error:
        raise ParamsError(f"{variable} is a number of cores or GPUs, got {given!r}") from error
    return amount

"""Threads or a cluster: which it is, and the error line of each thing that can be wrong with a cluster."""

import socket
import sys

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from cxr.common.errors import ParamsError
from cxr.registry.tracking_store import STORE_VARIABLE
from flows.runners import ADDRESS_VARIABLE, CPUS_VARIABLE, ClusterError, check_store_of_a_cluster, runner
from tests.support.faults import fault
from tests.support.services.servers import free_ports


def test_threads_run_the_tasks_unless_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    made = runner(3)
    assert isinstance(made, ThreadPoolTaskRunner)
    assert made._max_workers == 3


@fault("Ray", "the cluster does not answer", "the flow ends", "one line with the address")
def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv(ADDRESS_VARIABLE, address)
    with pytest.raises(ClusterError) as caught:
        runner(1)
    assert str(caught.value) == (
        f"no Ray cluster answers at {address} (Connection refused); start it with `ray start --head`, "
        "or unset CXR_RAY_ADDRESS to run in threads"
    )


@pytest.mark.parametrize("address", ["auto", "head", "http://head:6379", "head:port"])
def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, address)
    with pytest.raises(ParamsError, match=f"host:port or ray://host:port, got '{address}'"):
        runner(1)


def test_a_missing_package_and_a_wrong_number_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv(ADDRESS_VARIABLE, f"127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv(CPUS_VARIABLE, "many")
        with pytest.raises(ParamsError, match="CXR_RAY_CPUS is a number of cores or GPUs, got 'many'"):
            runner(1)
        monkeypatch.setitem(sys.modules, "prefect_ray", None)
        monkeypatch.delitem(sys.modules, "prefect_ray.task_runners", raising=False)
        monkeypatch.delitem(sys.modules, "prefect_ray.context", raising=False)
        monkeypatch.delitem(sys.modules, "flows.ray_runner", raising=False)
        with pytest.raises(ClusterError, match=r"prefect_ray.* is not installed; `uv sync --group cluster`"):
            runner(1)


def test_machines_without_a_common_folder_need_a_store_that_all_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    check_store_of_a_cluster()
    monkeypatch.setenv(ADDRESS_VARIABLE, "head:6379")
    with pytest.raises(ClusterError, match="set MLFLOW_TRACKING_URI to the address of an MLflow server"):
        check_store_of_a_cluster()
    monkeypatch.setenv(STORE_VARIABLE, "http://mlflow:5000")
    check_store_of_a_cluster()

"""A real Ray cluster of two nodes of one core each, the second of which can be killed."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.runners import ADDRESS_VARIABLE
from tests.support.project import PROJECT

# Ray listens on the machine's own address, whatever it is told: only who holds the token is let in.
_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
second = cluster.add_node(**node)
cluster.wait_for_nodes(timeout=200)
print(cluster.address, flush=True)
print(cluster.head_node.get_logs_dir_path(), flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(second, allow_graceful=False)
        second = None
    elif second is None:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes(timeout=200)
    print("done", flush=True)
cluster.shutdown()
"""


@dataclass(frozen=True)
class TwoNodes:
    """A running cluster.

    settings  the environment that leads a flow to it
    logs      the folder of its logs
    """

    process: "subprocess.Popen[str]"
    settings: dict[str, str]
    logs: Path

    def kill_second(self) -> None:
        """Kill the second node, and wait until it is gone."""
        self._ask_for("kill")

    def complete(self) -> None:
        """Start a second node again where it was killed."""
        self._ask_for("complete")

    def _ask_for(self, word: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert any(line.strip() == "done" for line in self.process.stdout)


@contextmanager
def start_two_nodes(environment: Mapping[str, str] | None = None) -> Iterator[TwoNodes]:
    """Start a head and a second node, with more variables in their environment; end both with the block."""
    guarded = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", _CLUSTER],
        env={**os.environ, **guarded, "PYTHONPATH": str(PROJECT), **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as cluster:
        assert cluster.stdout is not None
        address = next((line.strip() for line in cluster.stdout if line[:1].isdigit()), "")
        assert address, "the cluster did not come up"
        logs = Path(cluster.stdout.readline().strip())
        yield TwoNodes(cluster, {**guarded, ADDRESS_VARIABLE: address}, logs)
        cluster.communicate(timeout=120)

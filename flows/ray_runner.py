"""Prefect's Ray runner with what every task asks of the cluster. Imported where a cluster is configured, only there."""

from typing import Any

from prefect_ray.context import remote_options
from prefect_ray.task_runners import RayTaskRunner


class ClusterRunner(RayTaskRunner[Any]):
    """A RayTaskRunner whose tasks all ask for the same resources, such as {"num_cpus": 4.0, "num_gpus": 1.0}."""

    def __init__(self, address: str, init_kwargs: dict[str, Any], resources: dict[str, float]) -> None:
        super().__init__(address=address, init_kwargs=init_kwargs)
        self.resources = resources

    def duplicate(self) -> "ClusterRunner":
        """Return a runner with the same settings; Prefect starts a copy for every flow run."""
        return ClusterRunner(str(self.address), self.init_kwargs, self.resources)

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, ClusterRunner) and self.resources == other.resources

    def __hash__(self) -> int:
        return hash((self.address, tuple(sorted(self.resources.items()))))

    def submit(self, *arguments: Any, **named: Any) -> Any:
        """Hand a task to the cluster."""
        with remote_options(**self.resources):
            return super().submit(*arguments, **named)

"""Seconds of the Prefect flow beside those of its stages: where nothing changed, and on a rebuild of the sample.

Run   ./run benchmarks.flow_overhead [--rebuilds 3] [--no-ops 5] [--only NAME] [--folder /tmp]

Works in a fresh clone of the checkout, with a small network and one epoch, so that what is measured is the overhead.
Contestants take turns. Before each rebuild the sample gets a seed that no run had, so that every stage really runs and
DVC's cache holds none of it. `steps` calls the steps of tasks without DVC or Prefect; `one by one` is `dvc repro -s`
for each stage, which is what the flow's tasks do. The promotion gate is left out everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.stages import plan
from tests.support.projects.clones import make_clone
from tests.support.services.prefect_servers import clean_environment, serve_prefect

SMALL = {
    "preprocess.image_size_px": 32,
    "train.backbone": "small_cnn",
    "train.epochs": 1,
    "evaluate.bootstrap_resamples": 100,
    "evaluate.gradcam_per_class": 1,
    "evaluate.attention_images": 6,
    "evaluate.sanity_images": 2,
    "evaluate.audit_images": 12,
}
FIRST_SEED = 1


@dataclass(frozen=True)
class Project:
    """The clone, its stages in order, and the environment that leads to the served Prefect."""

    root: Path
    stages: list[str]
    served: dict[str, str]

    def run(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        """Run `python -m ARGUMENTS` in the clone."""
        command = [sys.executable, "-m", *arguments]
        given = environment or self.alone()
        done = subprocess.run(command, cwd=self.root, env=given, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)} failed: {(done.stdout + done.stderr)[-2000:]}")

    def alone(self) -> dict[str, str]:
        """Return the environment without a Prefect server: a flow starts its own."""
        return clean_environment(PREFECT_HOME=str(self.root / ".prefect"), PATH=self.served["PATH"])


def steps(project: Project) -> None:
    """Call each step, without DVC or Prefect."""
    for name in project.stages:
        project.run(f"tasks.{name}")


def one_by_one(project: Project) -> None:
    """Let DVC bring each stage up to date, a command a stage."""
    for name in project.stages:
        project.run("dvc", "repro", "-s", name)


def whole(project: Project) -> None:
    """Let DVC bring all stages up to date in one command."""
    project.run("dvc", "repro")


def flow_alone(project: Project) -> None:
    """Run the flow with the server that it starts for itself."""
    project.run("flows.rebuild", "--no-promote")


def flow_served(project: Project) -> None:
    """Run the flow with a server that stands."""
    project.run("flows.rebuild", "--no-promote", environment=project.served)


Contestants = dict[str, Callable[[Project], None]]
NO_OPS: Contestants = {
    "dvc repro -s, one by one": one_by_one,
    "dvc repro": whole,
    "flow, served Prefect": flow_served,
    "flow, its own server": flow_alone,
}
REBUILDS: Contestants = {"steps": steps, **NO_OPS}


def measure(
    contestants: Contestants, project: Project, *, rounds: int, before: Callable[[], object]
) -> dict[str, list[float]]:
    """Return the seconds of each contestant, round by round; `before` is called before each and not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _, (name, contestant) in itertools.product(range(rounds), contestants.items()):
        before()
        started = time.perf_counter()
        contestant(project)
        seconds[name].append(time.perf_counter() - started)
        print(f"  {name}: {seconds[name][-1]:.1f} s", flush=True)
    return seconds


def main() -> None:
    """Measure runs in which nothing changed, then rebuilds; print medians, differences and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rebuilds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--no-ops", type=int, default=5, help="rounds (%(default)s)")
    parser.add_argument(
        "--only", action="append", choices=REBUILDS, help="a contestant; may be repeated (default: all)"
    )
    parser.add_argument("--folder", type=Path, help="where the clone lies (the system's temporary folder)")
    arguments = parser.parse_args()
    seeds = itertools.count(FIRST_SEED)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch, serve_prefect(Path(scratch)) as environment:
        root = Path(scratch) / "clone"
        make_clone(root, *(f"--set={name}={value}" for name, value in SMALL.items()))
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        project = Project(root, list(plan(root).order), {**environment, "PATH": path})

        def new_images() -> None:
            project.run("tasks.configure", f"--set=ingest.sample_seed={next(seeds)}")

        if arguments.no_ops:
            whole(project)
            no_ops = measure(_chosen(NO_OPS, arguments.only), project, rounds=arguments.no_ops, before=lambda: None)
            _print("nothing changed", no_ops)
        if arguments.rebuilds:
            contestants = _chosen(REBUILDS, arguments.only)
            _print("rebuild", measure(contestants, project, rounds=arguments.rebuilds, before=new_images))


def _chosen(contestants: Contestants, only: list[str] | None) -> Contestants:
    return {name: each for name, each in contestants.items() if not only or name in only}


def _print(title: str, seconds: dict[str, list[float]]) -> None:
    base = next(iter(seconds))
    print(f"{title}: medians of {len(seconds[base])} rounds in turn, against `{base}` round by round")
    for name, taken in seconds.items():
        ratios = [mine / its for mine, its in zip(taken, seconds[base], strict=True)]
        more = statistics.median(mine - its for mine, its in zip(taken, seconds[base], strict=True))
        print(
            f"{name:26s} {statistics.median(taken):7.1f} s   {more:+7.1f} s   "
            f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()

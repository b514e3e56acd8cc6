"""The services of infra/compose.yaml in containers, run by podman and podman-compose as root.

Debian 12's podman starts no health checks without systemd and knows no `wait --condition=healthy`; so this starts the
services in the order of their `depends_on` and runs the health check that compose.yaml gives each of them.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parents[2] / "containers"
PORTS = {"prefect": 4200, "mlflow": 5000, "s3": 8333, "app": 8000, "orthanc": 8042, "proxy": 8443}
PROXY = 101, 101
"""User and group of nginx in its image."""

HEALTHY_SECONDS = 600
PROGRAMS = ("podman", "podman-compose", "runc", "debootstrap", "iptables")


def require_podman() -> None:
    """Skip the tests where they cannot run, and say what they need."""
    if not os.environ.get("CXR_CONTAINERS"):
        pytest.skip("containers are started by `make test-containers`: it takes 35 GB of disk and half an hour")
    if missing := [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]:
        pytest.fail(f"{', '.join(missing)}: not installed; docs/containers.md says what these tests need")
    if os.getuid() != 0:
        pytest.fail("these tests make images by debootstrap, which needs root")


def search_path() -> str:
    """Return PATH with the places of a system's administrator, where Debian has iptables, and the runtime's."""
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin", str(HERE)])


def environment() -> dict[str, str]:
    """Return the environment of podman: its own store, no registry."""
    files = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf"}
    files["CONTAINERS_REGISTRIES_CONF"] = "registries.conf"
    return {**os.environ, "PATH": search_path(), **{name: str(HERE / file) for name, file in files.items()}}


def run(*command: str, cwd: Path | None = None, code: int = 0, **given: str) -> str:
    """Run a command with podman's environment; return what it prints, errors included."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**environment(), **given},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"{' '.join(command)}\n{done.stdout[-6000:]}"
    return done.stdout


def remove_all() -> None:
    """Remove all that runs in the store of these tests, its data and its secrets; images stay."""
    for kind in ("pod", "container", "volume"):
        run("podman", kind, "rm", "--all", "--force")
    run("podman", "secret", "rm", "--all")


@dataclass
class Stack:
    """A checkout with its services; `owner` is the user and group that the worker runs as."""

    checkout: Path
    owner: int = 1000
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passwords(self) -> dict[str, str]:
        """What infra/secrets.sh has drawn."""
        lines = (self.checkout / "infra" / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def token(self) -> dict[str, str]:
        """The header with the web app's token."""
        return {"Authorization": f"Bearer {(self.checkout / 'infra' / '.env.app-token').read_text()}"}

    @property
    def services(self) -> Mapping[str, Any]:
        """The services of compose.yaml."""
        content: Mapping[str, Any] = yaml.safe_load((self.checkout / "infra" / "compose.yaml").read_text())
        services: Mapping[str, Any] = content["services"]
        return services

    def compose(self, *arguments: str, code: int = 0) -> str:
        """Run podman-compose on the checkout's compose.yaml."""
        profiles = [f"--profile={name}" for name in ("cpu", "images", "tls", "operator")]
        file = str(self.checkout / "infra" / "compose.yaml")
        settings = {"CXR_UID": str(self.owner), "CXR_GID": str(self.owner)}
        return run("podman-compose", "--file", file, *profiles, *arguments, cwd=self.checkout, code=code, **settings)

    def up(self, *names: str) -> None:
        """Start services and what they depend on, each when that is as its `depends_on` asks."""
        for name in names:
            for other in self.services[name].get("depends_on", {}):
                self.up(other)
            if not self.is_well(name):
                self._start(name)

    def _start(self, name: str) -> None:
        begin = time.monotonic()
        self.compose("up", "--detach", "--no-deps", "--no-build", name)
        self.wait(name)
        self.seconds[name] = time.monotonic() - begin

    def wait(self, name: str) -> None:
        """Wait until a service is as those that depend on it want it."""
        _wait_until(lambda: self.is_well(name), lambda: self.logs(name))

    def is_well(self, name: str) -> bool:
        """Whether a service is healthy, or has ended well where it has no health check."""
        state = self.state(name)
        if "healthcheck" not in self.services[name]:
            return state.get("Status") == "exited" and state.get("ExitCode") == 0
        return bool(state.get("Running")) and _succeeds("healthcheck", "run", container(name))

    def state(self, name: str) -> Mapping[str, Any]:
        """Return what podman says of a service's container, nothing where there is none."""
        state: Mapping[str, Any] = json.loads(self._inspected(name, "{{json .State}}") or "{}")
        return state

    def _inspected(self, name: str, template: str) -> str:
        command = ["podman", "inspect", "--format", template, container(name)]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False).stdout

    def logs(self, name: str) -> str:
        """Return the last lines of a service."""
        return run("podman", "logs", "--tail", "100", container(name))

    def make_certificate(self) -> Path:
        """Make the proxy's certificate and key as infra/README.md says; return the certificate."""
        certificate, key = (self.checkout / "infra" / f".env.tls.{kind}" for kind in ("crt", "key"))
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
        run(*command)
        shutil.chown(key, *PROXY)
        return certificate

    def execute(self, name: str, *command: str, says: str = "") -> str:
        """Run a command inside a running service; where it fails, the log of the service `says` tells why."""
        try:
            return run("podman", "exec", container(name), *command)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs(says or name)}") from error

    def play(self, name: str) -> str:
        """Run a deployment of infra/kubernetes/ in place of the stopped service of that name; return its container.

        Its secret holds what compose.yaml gives the service and the manifest does not set. It is waited for by the
        probe of the manifest.
        """
        manifest = self.checkout / "infra" / "kubernetes" / f"{name}.yaml"
        (deployment,) = (one for one in yaml.safe_load_all(manifest.read_text()) if one["kind"] == "Deployment")
        (pod,) = deployment["spec"]["template"]["spec"]["containers"]
        given = dict(one.split("=", 1) for one in json.loads(self._inspected(name, "{{json .Config.Env}}")))
        secret = given.keys() & self.services[name]["environment"].keys() - {one["name"] for one in pod["env"]}
        content = {key: base64.b64encode(given[key].encode()).decode() for key in secret}
        file = self.checkout / f"{name}.json"
        file.write_text(json.dumps(content))
        run("podman", "secret", "create", pod["envFrom"][0]["secretRef"]["name"], str(file))
        file.unlink()
        run("podman", "kube", "play", "--network", f"cxr_default:alias={name}", str(manifest))
        played = f"{name}-pod-0-{name}"
        probe = pod.get("readinessProbe", pod["livenessProbe"])["exec"]["command"]
        _wait_until(lambda: _succeeds("exec", played, *probe), lambda: run("podman", "logs", "--tail", "100", played))
        return played

    def kill(self, name: str) -> None:
        """Kill a service's first process from outside, as a crash does."""
        os.kill(int(self.state(name)["Pid"]), 9)


def container(name: str) -> str:
    """Return the name of a service's container."""
    return f"cxr_{name}_1"


def _succeeds(*arguments: str) -> bool:
    return subprocess.run(["podman", *arguments], env=environment(), capture_output=True, check=False).returncode == 0


def _wait_until(condition: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + HEALTHY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {HEALTHY_SECONDS} s in vain:\n{log()}"
        time.sleep(2)

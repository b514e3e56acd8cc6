"""infra/compose.yaml in containers: built, healthy, the loop on a sample, restarts, backup and restore.

The tests build on each other in the order in which they stand, as an operator's week does. They need root, podman, and
this machine's ports of compose.yaml; docs/containers.md says how to run them and what they showed.
"""

import os
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from tests.integration.test_team_services import SMALL
from tests.support.projects.clones import make_clone
from tests.support.services import compose
from tests.support.services.compose import PORTS, Stack, run
from tests.support.services.orthanc import program
from tests.support.services.pacs_worker import image as chest_xray

SERVERS = ("postgresql", "s3", "mlflow", "prefect")
WORKERS = ("worker", "watch")
READERS = ("app", "orthanc", "pacs", "proxy")
MODEL = "chest-xray-pneumonia"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Build the images and start servers and worker on a checkout of this project; take all away at the end."""
    compose.require_podman()
    compose.remove_all()  # of a run that was killed
    for name, port in PORTS.items():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.fail(f"port {port} of {name} is in use on this machine")
    checkout = tmp_path_factory.mktemp("compose") / "checkout"
    make_clone(checkout, *(f"--set={name}={value}" for name, value in SMALL.items()))
    made = Stack(checkout)
    run("infra/secrets.sh", cwd=checkout)
    run("chown", "--recursive", f"{made.owner}:{made.owner}", str(checkout))
    for folder in checkout.parents:  # pytest's folders are for their owner alone
        if folder.name.startswith(("pytest-", "compose")):
            folder.chmod(0o755)
    run(str(compose.HERE / "stand-ins.sh"))
    if os.environ["CXR_CONTAINERS"] != "built":
        made.compose("build", "worker")
    try:
        made.up(*WORKERS)
        yield made
    finally:
        compose.remove_all()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "ramp.png"
    assert cv2.imwrite(str(path), np.tile(np.linspace(0, 255, 200).astype(np.uint8), (200, 1)))
    return path


def champion(stack: Stack) -> str:
    """Return the number of the champion as MLflow's server says it."""
    query = {"name": MODEL, "alias": "champion"}
    address = f"http://127.0.0.1:{PORTS['mlflow']}/api/2.0/mlflow/registered-models/alias"
    answer = httpx.get(address, params=query, auth=("admin", stack.passwords["MLFLOW_ADMIN_PASSWORD"]), timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model_version"]["version"])


def answer_of(stack: Stack, image: Path) -> dict[str, object]:
    """Return the web app's answer to an image, once its model is loaded."""
    deadline = time.monotonic() + 300
    while httpx.get(f"http://127.0.0.1:{PORTS['app']}/ready", timeout=60).status_code != 200:
        assert time.monotonic() < deadline, "the model is not loaded"
        time.sleep(1)
    address = f"http://127.0.0.1:{PORTS['app']}/predict"
    response = httpx.post(
        address,
        content=image.read_bytes(),
        headers={"Content-Type": "application/octet-stream", **stack.token},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    said: dict[str, object] = response.json()
    return said


def flow_runs(stack: Stack) -> int:
    """Return how many runs Prefect's server knows to have ended well."""
    user, _, password = stack.passwords["PREFECT_AUTH_STRING"].partition(":")
    address = f"http://127.0.0.1:{PORTS['prefect']}/api/flow_runs/count"
    completed = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    counted = httpx.post(address, json=completed, auth=(user, password), timeout=60)
    return int(counted.raise_for_status().text)


def reports(stack: Stack) -> int:
    """Return how many reports Orthanc holds."""
    query = {"Level": "Instance", "Query": {"Modality": "SR"}}
    account = ("cxr", stack.passwords["ORTHANC_PASSWORD"])
    found = httpx.post(f"http://127.0.0.1:{PORTS['orthanc']}/tools/find", json=query, auth=account, timeout=60)
    return len(found.raise_for_status().json())


def tell(stack: Stack, image: Path) -> None:
    """Agree with the web app's answer to an image, as a reader does."""
    said = answer_of(stack, image)
    agreed = {name: said[name] for name in ("sha256", "model_version")}
    agreed |= {"answer": said["predicted_class"], "label": said["predicted_class"]}
    response = httpx.post(f"http://127.0.0.1:{PORTS['app']}/feedback", json=agreed, headers=stack.token, timeout=60)
    assert response.status_code == 200, response.text


def told(stack: Stack) -> int:
    """Return how many rows the web app's table of readers' feedback has."""
    return len(stack.execute("app", "cat", "data/feedback.csv").splitlines()) - 1


def wait_until(count: int, stack: Stack) -> None:
    deadline = time.monotonic() + 300
    while reports(stack) != count:
        assert time.monotonic() < deadline, stack.logs("pacs")
        time.sleep(1)


def test_servers_and_worker_are_healthy_and_accounts_are_made(stack: Stack) -> None:
    assert all(stack.is_well(name) for name in (*SERVERS, *WORKERS))
    assert stack.state("accounts")["ExitCode"] == 0
    page = httpx.get(f"http://127.0.0.1:{PORTS['prefect']}/", timeout=60)
    assert page.status_code == 200, "Prefect writes its page at each start, which a read-only image must allow"


def test_the_deployment_of_the_worker_makes_a_champion_from_raw_images(stack: Stack) -> None:
    stack.execute("worker", "prefect", "deployment", "run", "rebuild/weekly", "--watch", says="worker")
    assert champion(stack) == "1"
    owners = {(stack.checkout / name).stat().st_uid for name in ("dvc.lock", "reports/report.html")}
    assert owners == {stack.owner}


def test_the_page_answers_and_a_sent_image_gets_its_report(stack: Stack, image: Path) -> None:
    stack.up("app", "pacs")
    assert answer_of(stack, image)["model_version"] == "1"
    send(stack, 1)
    wait_until(1, stack)
    tell(stack, image)
    assert told(stack) == 1


def test_the_page_answers_through_tls_to_who_has_the_token(stack: Stack, image: Path) -> None:
    context = ssl.create_default_context(cafile=str(stack.make_certificate()))
    stack.up("proxy")
    with httpx.Client(verify=context, base_url=f"https://localhost:{PORTS['proxy']}", timeout=120) as client:
        image_type = {"Content-Type": "application/octet-stream"}
        assert client.post("/predict", content=image.read_bytes(), headers=image_type).status_code == 401
        answer = client.post("/predict", content=image.read_bytes(), headers={**image_type, **stack.token})
    assert answer.json()["model_version"] == "1"


@pytest.mark.parametrize("name", [*SERVERS, *WORKERS, *READERS])
def test_a_service_that_dies_comes_back_by_itself_and_all_answer(stack: Stack, image: Path, name: str) -> None:
    before = stack.state(name)["Pid"]
    stack.kill(name)
    for other in (name, *SERVERS, *READERS):
        stack.wait(other)
    assert stack.state(name)["Pid"] != before
    assert champion(stack) == "1"
    assert answer_of(stack, image)["model_version"] == "1"


def test_a_study_that_is_sent_while_the_answering_service_is_down_gets_its_report_once(stack: Stack) -> None:
    stack.compose("stop", "pacs")
    send(stack, 2)
    stack.compose("start", "pacs")
    wait_until(2, stack)


def test_nothing_is_lost_by_down_and_up(stack: Stack, image: Path) -> None:
    before = answer_of(stack, image)
    stack.compose("down")
    assert stack.state("mlflow") == {}
    stack.up(*WORKERS, "app", "pacs")
    assert champion(stack) == "1"
    assert answer_of(stack, image) == before
    assert (reports(stack), told(stack)) == (2, 1)
    assert flow_runs(stack) == 1


def test_a_backup_comes_back_on_empty_volumes_and_is_upgraded(stack: Stack, image: Path) -> None:
    before = answer_of(stack, image)
    backups = stack.checkout / "backups"
    backups.mkdir()
    shutil.chown(backups, stack.owner, stack.owner)
    stack.compose("run", "--rm", "--no-deps", "stores")
    (backup,) = (path.parent.name for path in backups.glob("2*/backup.json"))
    stack.compose("down")
    run("podman", "volume", "rm", "cxr_postgresql", "cxr_s3", "cxr_prefect")
    stack.up("postgresql", "s3")
    stores = ("run", "--rm", "--no-deps", "stores", "python", "-m")
    stack.compose(*stores, "tasks.services.restore", f"/backups/{backup}")
    said = stack.compose(*stores, "tasks.services.upgrade", "/backups")
    assert "prefect" in said
    stack.up("worker", "app")
    assert champion(stack) == "1"
    assert answer_of(stack, image) == before


def test_the_deployments_of_kubernetes_run_on_the_same_stores(stack: Stack) -> None:
    """Those that podman can play: it knows no secrets as files, which the web app's manifest has."""
    names = ("mlflow", "prefect", "watch", "pacs")
    stack.up("watch", "pacs")
    stack.compose("stop", *names, "worker", "app", "proxy")
    containers = {name: stack.play(name) for name in names}
    ask = f"import mlflow; print(mlflow.MlflowClient().get_model_version_by_alias('{MODEL}', 'champion').version)"
    assert run("podman", "exec", containers["watch"], "python", "-c", ask).split()[-1] == "1"
    before = reports(stack)
    send(stack, 3)
    wait_until(before + 1, stack)


def test_what_the_containers_take(stack: Stack) -> None:
    """Not a check of a limit: prints what docs/containers.md states."""
    images = run("podman", "images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}")
    memory = run("podman", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}")
    seconds = "\n".join(f"{name} {taken:.0f} s" for name, taken in stack.seconds.items())
    sys.stdout.write(f"\n{images}\n{memory}\n{seconds}\n")
    assert all(f"cxr_{name}_1" in memory for name in (*SERVERS, "worker", "app"))


def send(stack: Stack, number: int) -> None:
    """Send a chest X-ray to Orthanc's port as a modality does."""
    file = stack.checkout.parent / f"{number}.dcm"
    file.write_bytes(chest_xray(number))
    run(program("storescu"), "-aec", "CXR", "127.0.0.1", "4242", str(file))

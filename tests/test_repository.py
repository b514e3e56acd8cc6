"""What the public repository runs by itself: the workflow and the update bot parse and call what exists."""

import json
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
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


def pythons() -> list[str]:
    """Return the versions of Python on which the workflow runs the tests."""
    found: list[str] = read("workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    return found


def test_every_python_that_the_project_allows_is_tested() -> None:
    allowed = SpecifierSet(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"])
    assert pythons() == [f"3.{minor}" for minor in range(30) if allowed.contains(f"3.{minor}.0")]


@pytest.mark.parametrize("python", pythons())
def test_no_locked_package_is_compiled_on_the_users_machine(python: str) -> None:
    minor = int(python.partition(".")[2])
    platforms = [f"manylinux_2_{glibc}_x86_64" for glibc in range(36, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    accepted = {
        *cpython_tags((3, minor), platforms=platforms),
        *compatible_tags((3, minor), interpreter=f"cp3{minor}", platforms=platforms),
    }
    without = {
        package["name"]
        for package in tomllib.loads((PROJECT / "uv.lock").read_text())["package"]
        if "registry" in package["source"]
        and is_for(package.get("resolution-markers", []), f"{python}.9")
        and not any(parse_wheel_filename(wheel_name(one))[3] & accepted for one in package.get("wheels", []))
    }
    assert without == {"antlr4-python3-runtime", "pywin32"}, "the first is Python alone, the second for Windows"


def is_for(markers: list[str], python: str) -> bool:
    """Say whether a locked package is for this version of Python on Linux; without markers it is for all."""
    machine = {"python_full_version": python, "python_version": python.rpartition(".")[0], "sys_platform": "linux"}
    return not markers or any(Marker(marker).evaluate(machine) for marker in markers)


def wheel_name(wheel: dict[str, str]) -> str:
    return unquote(wheel["url"].rpartition("/")[2])


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

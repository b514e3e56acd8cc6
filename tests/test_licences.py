"""Every locked package has a licence that infra/licences.toml allows, and the bill of materials says which."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource

from infra.licences import ROOT, LicenceError, Table, bill_of_materials, is_allowed, locked, problems

ALLOWED = frozenset({"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"})


@pytest.fixture
def table() -> Table:
    return Table.read(ROOT / "infra" / "licences.toml")


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-only OR (MIT AND Apache-2.0)", True),
        ("(GPL-3.0-only OR MIT) AND AGPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("MIT WITH LLVM-exception", False),
        ("MIT of a kind", False),
    ],
)
def test_an_expression_holds_with_the_allowed_licences(expression: str, holds: bool) -> None:
    assert is_allowed(expression, ALLOWED) is holds


def test_every_locked_package_has_an_allowed_licence(table: Table) -> None:
    assert list(problems(table, locked())) == []


def test_another_licence_an_unknown_package_and_a_changed_licence_are_noticed(table: Table) -> None:
    without = replace(table, allowed=table.allowed - {"MPL-2.0"})
    assert any(line.startswith("certifi: MPL-2.0 is not") for line in problems(without, locked()))
    assert any(line.startswith("nowhere: ") for line in problems(table, [*locked(), "nowhere"]))
    judged = {**table.accepted, "pygit2": {**table.accepted["pygit2"], "says": "MIT"}}
    assert any("pygit2: accepted as 'MIT', now" in line for line in problems(replace(table, accepted=judged), locked()))
    assert any("no longer in uv.lock" in line for line in problems(table, [one for one in locked() if one != "pygit2"]))
    with pytest.raises(LicenceError):
        table.licence("nowhere")


def test_the_bill_of_materials_follows_cyclonedx_and_names_every_package_with_its_licence(table: Table) -> None:
    document = bill_of_materials(table)
    assert {component["name"] for component in document["components"]} == set(locked())
    assert all(component["licenses"][0]["expression"] for component in document["components"])
    package = find_spec("cyclonedx")
    assert package is not None
    assert package.origin is not None
    schemas = Path(package.origin).parent / "schema" / "_res"
    known = Registry()
    for name in ("spdx", "jsf-0.82"):
        content = json.loads((schemas / f"{name}.SNAPSHOT.schema.json").read_text())
        known = known.with_resource(content["$id"], Resource.from_contents(content))
    schema = json.loads((schemas / "bom-1.5.SNAPSHOT.schema.json").read_text())
    few = {**document, "components": document["components"][:20]}  # they are alike, and each takes a moment
    jsonschema.validators.validator_for(schema)(schema, registry=known).validate(few)

"""The licences of all packages in uv.lock: a check against infra/licences.toml, and a bill of materials with them.

    python -m infra.licences check          # what `make lint` runs; no network
    python -m infra.licences sbom FILE      # what `make sbom` runs: CycloneDX 1.5, from uv, with the licences

A licence is what the metadata of the installed package say. The table has those of packages that are not installed
here, and those that a person accepted for a reason.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_NO_NAMES = {"OSI Approved", "DFSG approved"}  # classifiers that name no licence
_TOKEN = re.compile(r"\(|\)|[^\s()]+(?:\s+WITH\s+[^\s()]+)?")


class LicenceError(Exception):
    """A package whose licence is unknown or not allowed."""


@dataclass(frozen=True)
class Table:
    """infra/licences.toml."""

    allowed: frozenset[str]
    same: dict[str, str]
    by_hand: dict[str, str]
    accepted: dict[str, dict[str, str]]

    @classmethod
    def read(cls, file: Path) -> Table:
        """Read the table."""
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        return cls(frozenset(found["allowed"]), found["same"], found["by_hand"], found["accepted"])

    @cached_property
    def installed(self) -> dict[str, str]:
        """Package -> what its metadata say of its licence; "" for nothing."""
        return {_normal(one.metadata["Name"]): _said(one, self.same) for one in distributions()}

    def licence(self, package: str) -> str:
        """Return the licence of a package as an SPDX expression. Raises LicenceError."""
        said = self.installed.get(package, "")
        if package in self.accepted:
            entry = self.accepted[package]
            if said and said != entry["says"]:
                raise LicenceError(f"{package}: accepted as {entry['says']!r}, now its metadata say {said!r}")
            return entry["spdx"]
        spdx = said or self.by_hand.get(package, "")
        if not spdx:
            raise LicenceError(f"{package}: its metadata name no licence, or it is not installed here: see by_hand")
        if not is_allowed(spdx, self.allowed):
            raise LicenceError(f"{package}: {spdx} is not among the allowed licences")
        return spdx


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Say whether an SPDX expression holds with the allowed licences: all of an AND, one of an OR."""
    tokens = _TOKEN.findall(expression)

    def term() -> bool:
        token = tokens.pop(0)
        if token != "(":
            return token in allowed
        inner = either()
        tokens.pop(0)
        return inner

    def all_of() -> bool:
        holds = term()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            holds &= term()
        return holds

    def either() -> bool:
        holds = all_of()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            holds |= all_of()
        return holds

    return either() and not tokens


def locked() -> list[str]:
    """Return the names of all packages of uv.lock that come from an index."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    return sorted({package["name"] for package in packages if "registry" in package["source"]})


def problems(table: Table, packages: list[str]) -> Iterator[str]:
    """Yield a line for each package whose licence is unknown or not allowed, and for each entry of none."""
    for package in packages:
        try:
            table.licence(package)
        except LicenceError as error:
            yield str(error)
    for package in sorted({*table.by_hand, *table.accepted} - set(packages)):
        yield f"{package}: in the table, and no longer in uv.lock"


def bill_of_materials(table: Table) -> dict[str, Any]:
    """Return uv's CycloneDX document of every package in uv.lock, with the licences."""
    uv = subprocess.run(["infra/setup.sh", "--print-uv"], cwd=ROOT, check=True, capture_output=True, text=True)
    command = [uv.stdout.strip(), "export", "--quiet", "--frozen", "--offline", "--all-groups"]
    command += ["--preview-features", "sbom-export", "--format", "cyclonedx1.5"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    document: dict[str, Any] = json.loads(done.stdout)
    for component in document["components"]:
        component["licenses"] = [{"expression": table.licence(component["name"])}]
    return document


def _said(package: Distribution, same: dict[str, str]) -> str:
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rpartition("::")[2].strip() for line in metadata.get_all("Classifier", []) if "License ::" in line
    ]
    named = [name for name in classifiers if name not in _NO_NAMES] or [(metadata.get("License") or "").strip()]
    return " AND ".join(same.get(name, name) for name in named if "\n" not in name)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Read the command line and run."""
    table, packages = Table.read(ROOT / "infra" / "licences.toml"), locked()
    if wrong := list(problems(table, packages)):
        lines = "\n".join(f"  {line}" for line in wrong)
        sys.exit(f"error: licences that infra/licences.toml does not allow:\n{lines}")
    if sys.argv[1:2] == ["sbom"]:
        Path(sys.argv[2]).write_text(json.dumps(bill_of_materials(table), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"the licences of {len(packages)} packages are allowed; {len(table.accepted)} accepted by hand\n")


if __name__ == "__main__":
    main()

"""What the documents name exists: commands, options, targets, files, messages, exit codes, versions."""

import ast
import inspect
import re
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cxr.common import errors
from cxr.reporting.paper import PAPER_AUROC, PAPER_CLASSES
from tests.support.project import PROJECT, is_parameter, parameters

PAGES = sorted(
    [
        *PROJECT.glob("*.md"),
        *PROJECT.glob("docs/*.md"),
        *PROJECT.glob("docs/tutorials/*.md"),
        PROJECT / "infra/README.md",
    ]
)
HISTORY = {"CHANGELOG.md", "decisions.md", "results.md", "results-0.5.0.md"}  # of what existed then
PRESENT = [page for page in PAGES if page.name not in HISTORY]

PROGRAMS = {"dvc", "mlflow", "prefect", "pytest"}
PLACEHOLDERS = ("<", "NAME", "...")


def spans(page: Path) -> list[str]:
    """Return the code of a page: spans, and the lines of its blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    return [*lines, *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))]


def source_of(command: str) -> Path | None:
    """Return the file of a command such as `predict`, `flows.study` or `tasks.train`."""
    path = command.replace(".", "/")
    files = [PROJECT / f"tasks/{path}.py", PROJECT / f"{path}.py"]
    return next((file for file in files if file.is_file()), None)


@cache
def strings_of_the_code() -> str:
    """Return all string literals of the product, joined; what is filled in at run time stands as …"""
    found = []
    for folder in ("cxr", "tasks", "flows"):
        for file in (PROJECT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    scripts = [PROJECT / "run", *(PROJECT / "infra").glob("*.sh")]
    return "\n".join([*found, *(script.read_text(encoding="utf-8") for script in scripts)])


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_every_command_that_is_named_exists_with_its_options(page: Path) -> None:
    missing = []
    for code in spans(page):
        for command, rest in re.findall(r"(?:\./run|python -m) ([\w.]+)([^`#|]*)", code):
            if any(word in code for word in PLACEHOLDERS) and source_of(command) is None:
                continue
            if command in PROGRAMS:
                assert find_spec(command) is not None
                continue
            file = source_of(command)
            if file is None:
                missing.append(code)
                continue
            text = file.read_text(encoding="utf-8") + (PROJECT / "cxr/common/cli.py").read_text(encoding="utf-8")
            missing += [f"{code}: {option}" for option in re.findall(r"(--[a-z][\w-]+)", rest) if option not in text]
    assert missing == []


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for code in spans(page) for name in re.findall(r"^make ([a-z]+)", code)}
    assert named - targets == set()


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_every_file_of_the_code_that_is_named_exists(page: Path) -> None:
    named = {
        path.rstrip("/")
        for code in spans(page)
        for path in re.findall(r"^((?:cxr|tasks|flows|infra|tests|profiles|benchmarks)/[\w./-]+)$", code)
    }
    assert [path for path in sorted(named) if not (PROJECT / path).exists() and not path.startswith("infra/.env")] == []


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_every_parameter_that_is_named_exists(page: Path) -> None:
    sections = "|".join(parameters())
    named = {span for span in spans(page) if re.fullmatch(rf"({sections})(\.\w+)+", span)}
    of_files = {name for name in named if name.endswith((".json", ".html"))}  # such as split.json
    assert [name for name in sorted(named - of_files) if not is_parameter(name)] == []


def test_every_message_of_the_troubleshooting_page_is_in_the_code() -> None:
    page = (PROJECT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`)[^|]* \| [^|]+ \|$", page, re.MULTILINE)
    pieces = [
        piece.strip()
        for row in rows
        for message in re.findall(r"`([^`]+)`", row)
        for piece in re.split(r"…|\(… …\)", message)
        if len(piece.strip()) > 3
    ]
    assert len(pieces) > 40
    code = re.sub(r"\s+", " ", strings_of_the_code())
    missing = [piece for piece in pieces if piece not in code]
    assert missing == []


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    page = (PROJECT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    documented = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    classes = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, errors.CxrError)]
    assert documented == {found.__name__: found.exit_code for found in classes}


def test_one_version_everywhere() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = YAML(typ="safe").load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+) \((\S+)\)$", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert (citation["version"], citation["date-released"]) == (newest[1], newest[2]) == (version, newest[2])
    assert f"cxr:{version}" in (PROJECT / "infra/compose.yaml").read_text(encoding="utf-8")


def test_the_papers_figures_stand_under_their_names_in_the_readme() -> None:
    lines = (PROJECT / "README.md").read_text(encoding="utf-8").splitlines()
    heads, paper = (
        next([cell.strip() for cell in line.split("|")] for line in lines if line.startswith(start))
        for start in ("| test images | n |", "| Pham and Nguyen 2023")
    )
    macro_f1 = sum(of_class.f1 for of_class in PAPER_CLASSES.values()) / len(PAPER_CLASSES)
    found = dict(zip(heads, paper, strict=True))
    assert found["accuracy"].startswith("0.918 ")
    assert (found["macro F1"], found["macro AUROC"]) == (f"{macro_f1:.3f}", str(PAPER_AUROC))

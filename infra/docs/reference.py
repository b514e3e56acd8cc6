"""Write the reference pages of the site from the code: commands, parameters, the REST service, metrics.

python -m infra.docs.reference docs/reference
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cxr.common import params
from cxr.evaluation import headline
from cxr.inference.answer import FIELDS
from cxr.webapp.metrics import Metrics
from cxr.webapp.service import Service
from tasks.app import limits_of

ROOT = Path(__file__).parents[2]
_PARSER = re.compile(r"\b(command_parser|step_parser|run_step)\(")
_COMMENT = re.compile(r"\s#\s(?P<text>.*)$")
_CHOICES = re.compile(r"\w+( \| \w+)+")
_KEY = re.compile(r"  (?P<name>\w+):\s*(?P<value>.*)$")


def commands() -> list[str]:
    """Return the modules of tasks/ and flows/ that read a command line, tasks first."""
    files = [*sorted((ROOT / "tasks").rglob("[a-z]*.py")), *sorted((ROOT / "flows").glob("[a-z]*.py"))]
    programs = [file.relative_to(ROOT) for file in files if _PARSER.search(file.read_text(encoding="utf-8"))]
    return [".".join(file.with_suffix("").parts) for file in programs]


def help_of(module: str) -> str:
    """Return what `python -m module --help` prints."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


def commands_page() -> str:
    """Return the page of all commands: what `--help` prints for each."""
    names = commands()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = list(pool.map(help_of, names))
    sections = [f"## {name}\n\n```text\n{text}\n```\n" for name, text in zip(names, texts, strict=True)]
    intro = "# Commands\n\nWhat `--help` prints for each command. `make help` lists the targets of `make`.\n"
    return "\n".join([intro, *sections])


def parameters_page() -> str:
    """Return the page of params.yaml: each parameter with its default, its type and its comment."""
    lines = [
        "# Parameters\n",
        "Every parameter of `params.yaml`, the only place that holds defaults, with the type that is checked when a "
        "command starts. An unknown name, a wrong type or a value out of range ends the command with exit code 2. The "
        "files of `profiles/` hold what differs for the public images.\n",
    ]
    for section, rows in sections((ROOT / "params.yaml").read_text(encoding="utf-8")):
        model = getattr(params, "Paths" if section == "paths" else f"{section.capitalize()}Params")
        schema = model.model_json_schema()
        lines += [f"## {section}\n", f"{model.__doc__}\n", "| name | default | type | meaning |\n|---|---|---|---|"]
        for name, default, comment in rows:
            kind = type_of(schema["properties"][name], schema.get("$defs", {}))
            meaning = "" if _CHOICES.fullmatch(comment) else comment  # the type lists them
            lines.append(f"| `{name}` | {code(default)} | {cell(kind)} | {cell(meaning)} |")
        lines.append("")
    return "\n".join(lines)


def sections(text: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each section of params.yaml with its parameters: name, default, comment."""
    for block in re.split(r"^(?=\w+:$)", text, flags=re.MULTILINE)[1:]:
        head, *rest = block.splitlines()
        yield head.rstrip(":"), list(_rows(rest))


def _rows(lines: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    above: list[str] = []
    name, values, meaning = "", [""], [""]
    for line in lines:
        comment = _COMMENT.search(f" {line}")
        content = line[: comment.start()].rstrip() if comment else line
        if key := _KEY.match(content):
            if name:
                yield name, " ".join(values).strip(), " ".join(meaning).strip()
            name, values, meaning = key["name"], [key["value"]], [*above, comment["text"] if comment else ""]
            above = []
        elif content.strip():
            values.append(content.strip())
        elif comment and line.startswith("    "):
            meaning.append(comment["text"])
        elif comment:
            above.append(comment["text"])
    if name:
        yield name, " ".join(values).strip(), " ".join(meaning).strip()


def type_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return a JSON schema's type in words."""
    if reference := schema.get("$ref"):
        return type_of(definitions[reference.rsplit("/", 1)[1]], definitions)
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return "one of " + ", ".join(f"`{choice}`" for choice in choices)
    if options := schema.get("anyOf"):
        return " or ".join(type_of(option, definitions) for option in options)
    kind = schema.get("type", "value")
    if kind in ("array", "object"):
        return _container_type(schema, definitions)
    if kind == "string":
        kind = "path" if schema.get("format") == "path" else "text"
    return f"{kind} {_bounds(schema)}".rstrip()


def _container_type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if items := schema.get("items"):
        return f"list of {type_of(items, definitions)}"
    if properties := schema.get("properties"):
        return "`{" + ", ".join(properties) + "}`"
    values = schema.get("additionalProperties")
    return f"{type_of(values, definitions)} for each name" if isinstance(values, dict) else "mapping"


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    return ", ".join(f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema)


def rest_page() -> str:
    """Return the page of the REST service, from its OpenAPI description."""
    nothing: Any = None  # the description needs none of the parts that answer
    limits = limits_of(params.read_params(ROOT / "params.yaml").app)
    api = Service(nothing, nothing, nothing, limits, nothing, token=None).app().openapi()
    lines = [
        "# REST service\n",
        f"{api['info']['description']} `make app` starts it on http://127.0.0.1:8000. Where it has a token, "
        "every request but /health and /ready needs `Authorization: Bearer TOKEN`. The service "
        "serves the description that this page is made from at `/openapi.json`.\n",
    ]
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            lines += _operation(f"{method.upper()} {path}", operation)
    lines += ["## Objects\n"]
    for name, schema in api["components"]["schemas"].items():
        if "properties" in schema:
            lines += _object(name, schema, api["components"]["schemas"])
    return "\n".join(lines)


def _operation(title: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"{operation.get('description') or operation['summary']}\n"
    if body := operation.get("requestBody"):
        yield f"Body: {body['description']}. Media types: {', '.join(f'`{kind}`' for kind in body['content'])}.\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | type | default | meaning |\n|---|---|---|---|"
        for parameter in parameters:
            schema = parameter["schema"]
            default = str(schema.get("default", "")).lower()
            meaning = cell(parameter.get("description", ""))
            yield f"| `{parameter['name']}` | {cell(type_of(schema, {}))} | {code(default)} | {meaning} |"
        yield ""
    yield "| status | meaning | body |\n|---|---|---|"
    for status, response in operation["responses"].items():
        yield f"| {status} | {cell(response['description'])} | {_body(response)} |"
    yield ""


def _body(response: Mapping[str, Any]) -> str:
    kinds = response.get("content", {})
    named = [content.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1] for content in kinds.values()]
    pairs = zip(named, kinds, strict=True)
    return ", ".join(f"[{name}](#{name.lower()})" if name else f"`{kind}`" for name, kind in pairs)


def _object(name: str, schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    if description := schema.get("description"):
        yield f"{description}\n"
    yield "| field | type | meaning |\n|---|---|---|"
    for field, of in schema["properties"].items():
        yield f"| `{field}` | {cell(type_of(of, schemas))} | {cell(of.get('description', ''))} |"
    yield ""


def metrics_page() -> str:
    """Return the page of metrics: the headline metrics of an evaluation, and those that the web app exports."""
    promote = params.read_params(ROOT / "params.yaml").promote
    lines = [
        "# Metrics\n",
        "## Headline metrics\n",
        "Every table of results reads these from one list in the code, `cxr/evaluation/headline.py`. Intervals are 95% "
        "intervals over patients. *Gate* shows the thresholds of `params.yaml`: the floor or ceiling, and the margin "
        "of the paired comparison with the champion. The paper's values are those of other test images. *Centred* "
        "intervals are shifted to have the measured value as their median, because resampling biases these metrics.\n",
        "| name in `metrics.json` | metric | meaning | better | interval | gate | Pham and Nguyen 2023 |",
        "|---|---|---|---|---|---|---|",
    ]
    for metric in (*headline.SCORES, *headline.ERRORS):
        better = "higher" if metric.higher_is_better else "lower"
        bounds = {"at least": promote.floors, "at most": promote.ceilings, "margin": promote.non_inferiority_margin}
        gate = ", ".join(f"{word} {of[metric.name]:g}" for word, of in bounds.items() if metric.name in of)
        paper = f"{metric.paper.value:g}" if metric.paper else ""
        interval = metric.interval or "none"
        lines.append(f"| `{metric.name}` | {metric.label} | {metric.note} | {better} | {interval} | {gate} | {paper} |")
    lines += ["\n## Metrics of the web app\n", "`GET /metrics`, in Prometheus's text format.\n"]
    lines += ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for name, collector in vars(Metrics()).items():
        if name != "registry":
            family = next(iter(collector.describe()))
            labels = ", ".join(f"`{label}`" for label in collector._labelnames)
            lines.append(f"| `{family.name}` | {family.type} | {labels} | {cell(family.documentation)} |")
    return "\n".join(lines)


def answer_page() -> str:
    """Return the page of the fields of an answer."""
    lines = [
        "# Fields of an answer\n",
        "`predict`, batch scoring, the REST service, MLflow's server and the DICOM report take their fields from one "
        "table in the code, `cxr/inference/answer.py`.\n",
        "| field | type | columns of tables | may be null | shown to users | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for field in FIELDS:
        columns = f"`{field.prefix}<name>`" if field.prefix else f"`{field.name}`"
        null, shown = ("yes" if field.nullable else "no"), ("no: only stored" if field.stored_only else "yes")
        lines.append(f"| `{field.name}` | {field.type} | {columns} | {null} | {shown} | {cell(field.description)} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Return `text` for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def code(text: str) -> str:
    """Return `text` as code in a cell of a table."""
    return f"`{cell(text)}`" if text else ""


def main() -> None:
    """Write every page into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "commands": commands_page,
        "parameters": parameters_page,
        "rest": rest_page,
        "answer": answer_page,
        "metrics": metrics_page,
    }
    for name, page in pages.items():
        (folder / f"{name}.md").write_text(page().rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

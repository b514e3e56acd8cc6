"""Write values into params.yaml; comments are kept, and a file with these values already is not changed.

    ./run configure --profile profiles/real.yaml --data ../chest-images --weights imagenet
    ./run configure --set train.epochs=20 --set split.protocol=cv

Profiles are applied first, in order, then --data, --weights and --set. A profile is a YAML mapping of dotted names to
values. --data is a folder or a zip that holds `chest_xray` or `Covid19-dataset` or both, as Kaggle's archives unpack,
or a folder with labels.csv; sources that it does not hold are removed. It may also be an https:// or s3:// address.
DVC cannot watch an address: set the source's sha256 in params.yaml to pin what is downloaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, command_parser, run_command


def command_line() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--profile", type=Path, action="append", default=[], metavar="FILE", help="may be repeated")
    parser.add_argument("--data", metavar="FOLDER", help="folder, zip or address of the raw sets")
    parser.add_argument("--weights", metavar="FILE", help="a state dict, or `imagenet`, or `none`")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.common.errors import ParamsError, WeightsError
from cxr.common.files import expanded
from cxr.common.params import override, read_params, with_overrides
from cxr.common.params_file import load_yaml, parse_setting
from cxr.dataset.layouts.table import LAYOUTS, layout_named, layouts_in
from cxr.evaluation.headline import check_gate

ADDRESS_PREFIXES = ("http://", "https://", "s3://")
_MISSING = object()


def configure(path: Path, values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Write `values` (dotted name -> value) into the parameter file at `path`.

    Returns the changed names with the values before and after; without changes the file is not written.

    Raises:
        ParamsError: a name is unknown or a value is invalid; the file is not changed.
    """
    before = read_params(path).model_dump(mode="json", by_alias=True)
    unknown = [name for name in values if _value_at(before, name) is _MISSING]
    if unknown:
        raise ParamsError(f"there is no parameter {', '.join(unknown)}; params.yaml lists them all")
    changed = {name: value for name, value in values.items() if _value_at(before, name) != value}
    if not changed:
        return {}
    new = with_overrides(path, changed)
    for source in new.ingest.sources:
        layout_named(source.layout)
    check_gate(new.promote)
    override(path, changed)
    after = new.model_dump(mode="json", by_alias=True)
    return {name: (_value_at(before, name), _value_at(after, name)) for name in changed}


def read_profile(path: Path) -> dict[str, Any]:
    """Read a profile: a YAML mapping of dotted names to values.

    Raises:
        ParamsError: the file is missing, cannot be read or is not such a mapping.
    """
    if not path.exists():
        raise ParamsError(f"{path}: there is no such profile; the profiles of this project are in profiles/")
    profile = load_yaml(path, anchors=True)
    if not isinstance(profile, dict) or not all(isinstance(name, str) for name in profile):
        raise ParamsError(f"{path}: a profile is a mapping such as `train.epochs: 20`, got {profile!r}")
    return profile


def data_settings(data: str, sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that make ingest read `data`: a folder, a zip, or an http(s) or s3 address.

    The present `sources` keep their order and names if their layouts are those of `data`.

    Raises:
        SourceError: `data` does not exist or holds no set with a known layout.
    """
    if data.startswith(ADDRESS_PREFIXES):
        return {"ingest.watch": "tasks/ingest.py"} | _locations(sources, data)
    path = Path(os.path.realpath(expanded(data)))  # Path.resolve would raise for a link that leads back to itself
    found = layouts_in(path)
    if {source["layout"] for source in sources} == set(found):
        return {"ingest.watch": str(path)} | _locations(sources, str(path))
    return {
        "ingest.watch": str(path),
        "ingest.sources": [
            {"name": LAYOUTS[layout].source_name, "layout": layout, "location": str(path), "sha256": None}
            for layout in found
        ],
    }


def weights_setting(weights: str) -> str:
    """Return `imagenet` and `none` unchanged, and a path as an absolute path.

    Raises:
        WeightsError: the file does not exist.
    """
    if weights in {"imagenet", "none"}:
        return weights
    path = Path(os.path.realpath(expanded(weights)))
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; give the path of a state dict, `imagenet` or `none`")
    return str(path)


def _locations(sources: list[dict[str, Any]], location: str) -> dict[str, Any]:
    return {f"ingest.sources.{number}.location": location for number in range(len(sources))}


def _value_at(tree: Any, name: str) -> Any:
    for part in name.split("."):
        if isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, dict):
            tree = tree.get(part, _MISSING)
        else:
            return _MISSING
    return tree


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for profile in arguments.profile:
        settings |= read_profile(profile)
    if arguments.data:
        sources = read_params(arguments.params).ingest.sources
        settings |= data_settings(arguments.data, [source.model_dump() for source in sources])
    if arguments.weights:
        settings["train.weights"] = weights_setting(arguments.weights)
    return settings | dict(parse_setting(setting) for setting in arguments.set)


def main() -> None:
    """Read the command line, write params.yaml and print the changes."""
    arguments = command_line().parse_args()
    changed = configure(arguments.params, _settings(arguments))
    for name, (before, after) in changed.items():
        print(f"{name}: {before} -> {after}")
    if not changed:
        print(f"{arguments.params} has these values already")


if __name__ == "__main__":
    run_command(main)

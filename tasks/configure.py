"""Write values into params.yaml; comments stay, and a file that says so already is left untouched.

    python -m tasks.configure --profile profiles/real.yaml --data ../chest-images --weights imagenet
    python -m tasks.configure --set train.epochs=20 --set split.protocol=cv

Profiles are applied first, in order, then --data, --weights and --set. A profile is a YAML mapping of
dotted names to values. --data is a folder or a zip that holds `chest_xray` or `Covid19-dataset` or both,
as Kaggle's archives unpack; sets that it does not hold are left out. It may also be an https:// or s3://
address: DVC cannot watch one, so what is fetched is pinned by the source's sha256 in params.yaml alone.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import ParamsError, SourceError, WeightsError

if TYPE_CHECKING:
    import argparse

SOURCE_NAMES = {"chest_xray": "kermany", "covid19": "covid19", "labelled": "hospital"}
"""Layout -> the name that its source gets where params.yaml has none."""

ADDRESS_PREFIXES = ("http://", "https://", "s3://")
_MISSING = object()


def configure(path: Path, values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Write `values` (dotted name -> value) into the parameter file at `path`.

    Returns the names that changed, with the value before and after; with none the file is not written.

    Raises:
        ParamsError: a name is unknown or a value does not fit; the file stays as it was.
    """
    from cxr.common.params import override, read_params

    before = read_params(path).model_dump(mode="json", by_alias=True)
    unknown = [name for name in values if _value_at(before, name) is _MISSING]
    if unknown:
        raise ParamsError(f"there is no parameter {', '.join(unknown)}; params.yaml lists them all")
    changed = {name: value for name, value in values.items() if _value_at(before, name) != value}
    if not changed:
        return {}
    override(path, changed)
    after = read_params(path).model_dump(mode="json", by_alias=True)
    return {name: (_value_at(before, name), _value_at(after, name)) for name in changed}


def read_profile(path: Path) -> dict[str, Any]:
    """Read a profile: a YAML mapping of dotted names to values.

    Raises:
        ParamsError: the file is missing or is not such a mapping.
    """
    try:
        profile = _parse(path.read_text(encoding="utf-8"), name=str(path))
    except FileNotFoundError:
        raise ParamsError(f"{path}: there is no such profile; profiles/ holds those of this project") from None
    if not isinstance(profile, dict) or not all(isinstance(name, str) for name in profile):
        raise ParamsError(f"{path}: a profile is a mapping such as `train.epochs: 20`, got {profile!r}")
    return profile


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split `name=value`; the value is read as YAML, so 1e-3 is a number and [a, b] a list.

    Raises:
        ParamsError: there is no name, no `=`, or the value is not YAML.
    """
    name, equals, value = setting.partition("=")
    if not name or not equals:
        raise ParamsError(f"--set takes name=value, such as train.epochs=20; got {setting!r}")
    return name, _parse(value, name=name)


def data_settings(data: str, sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that make ingest read `data`: a folder, a zip, or an http(s) or s3 address.

    `sources` are the present ones; they keep their order and names when they fit what `data` holds.

    Raises:
        SourceError: `data` does not exist or holds no set that is known here.
    """
    if data.startswith(ADDRESS_PREFIXES):
        return {"ingest.watch": "tasks/ingest.py"} | _locations(sources, data)
    path = Path(data).expanduser().resolve()
    held = _layouts_in(path)
    if {source["layout"] for source in sources} == held:
        return {"ingest.watch": str(path)} | _locations(sources, str(path))
    return {
        "ingest.watch": str(path),
        "ingest.sources": [
            {"name": SOURCE_NAMES[layout], "layout": layout, "location": str(path), "sha256": None}
            for layout in SOURCE_NAMES
            if layout in held
        ],
    }


def weights_setting(weights: str) -> str:
    """Return `imagenet` and `none` as they are, and a path as an absolute one.

    Raises:
        WeightsError: there is no such file.
    """
    if weights in {"imagenet", "none"}:
        return weights
    path = Path(weights).expanduser().resolve()
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file of weights; give a state dict's path, `imagenet` or `none`")
    return str(path)


def _locations(sources: list[dict[str, Any]], location: str) -> dict[str, Any]:
    return {f"ingest.sources.{number}.location": location for number in range(len(sources))}


def _layouts_in(path: Path) -> set[str]:
    """Return the layouts of the sets that `path` holds, or is."""
    from cxr.dataset.labelled_folder import LABELLED, LABELS_FILE
    from cxr.dataset.layouts import LAYOUTS

    if (path / LABELS_FILE).is_file():
        return {LABELLED}
    folders = {layout.folder: name for name, layout in LAYOUTS.items()}
    tops = {path.name, *_top_folders(path)}
    held: set[str] = {name for folder, name in folders.items() if folder in tops}
    if not held:
        found = ", ".join(sorted(tops - {path.name})[:5]) or "no folder"
        raise SourceError(
            f"{path}: expected a folder {' or '.join(folders)} in it, as Kaggle's archives unpack, or a {LABELS_FILE}; "
            f"found {found}"
        )
    return held


def _top_folders(path: Path) -> set[str]:
    if path.is_dir():
        return {entry.name for entry in path.iterdir() if entry.is_dir()}
    if not path.exists():
        raise SourceError(f"{path}: there is no such folder or zip of images")
    try:
        with zipfile.ZipFile(path) as archive:
            return {PurePosixPath(name).parts[0] for name in archive.namelist() if "/" in name}
    except zipfile.BadZipFile:
        raise SourceError(f"{path}: neither a folder nor a zip") from None


def _value_at(tree: Any, name: str) -> Any:
    for part in name.split("."):
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, dict):
            tree = tree.get(part, _MISSING)
        else:
            return _MISSING
    return tree


def _parse(text: str, *, name: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ParamsError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    from cxr.common.params import read_params

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
    """Parse the command line, write params.yaml and print what changed."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--profile", type=Path, action="append", default=[], metavar="FILE", help="may be repeated")
    parser.add_argument("--data", metavar="FOLDER", help="folder, zip or address of the raw sets")
    parser.add_argument("--weights", metavar="FILE", help="a state dict, or `imagenet`, or `none`")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    arguments = parser.parse_args()
    changed = configure(arguments.params, _settings(arguments))
    for name, (before, after) in changed.items():
        print(f"{name}: {before} -> {after}")
    if not changed:
        print(f"{arguments.params} says so already")


if __name__ == "__main__":
    run_command(main)

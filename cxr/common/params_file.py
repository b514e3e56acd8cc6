"""Read a YAML file of parameters, however damaged, and set values in it: errors name the file and the parameter."""

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from cxr.common.errors import ParamsError
from cxr.common.files import is_special

_MOST_BYTES = 1 << 20
_MOST_DEPTH = 12
_SHOWN_CHARACTERS = 80


def load_yaml(path: Path, *, anchors: bool = False) -> Any:
    """Return the content of a YAML file with its comments; with `anchors` without, and parts may refer to others.

    Raises:
        ParamsError: the file is missing, cannot be read, is too large, is not UTF-8 or not YAML, is nested deeper than
            parameters are, or refers to itself.
    """
    # The trials of a study override one file 155 times; parsing it takes ten times as long as a copy.
    return deepcopy(_parsed(_text(path), name=str(path), anchors=anchors))


def parse_yaml(text: str, *, name: str, anchors: bool) -> Any:
    """Return the content of a YAML text, which errors call `name`; see `load_yaml`. Raises ParamsError."""
    try:
        _check_nesting(name, text, anchors=anchors)
        return YAML(typ="safe" if anchors else "rt").load(text)
    except (YAMLError, RecursionError, ValueError) as error:
        raise ParamsError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    except (LookupError, AttributeError) as error:  # ruamel.yaml's, of `!!bool abc` or `!!set abc`
        raise ParamsError(f"{name} is not valid YAML: a value does not fit its tag, which begins with !!") from error


_parsed = lru_cache(maxsize=8)(parse_yaml)


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split `name=value`; the value is read as YAML, so 1e-3 is a number and [a, b] a list.

    Raises:
        ParamsError: there is no name, no `=`, or the value is not YAML.
    """
    name, equals, value = setting.partition("=")
    if not name or not equals:
        raise ParamsError(f"--set expects name=value, such as train.epochs=20; got {setting!r}")
    return name, parse_yaml(value, name=name, anchors=True)


def set_value(tree: Any, name: str, value: Any) -> None:
    """Set the parameter with a dotted name. Raises ParamsError where there is none."""
    *parents, last = name.split(".")
    try:
        for part in parents:
            tree = tree[_key(tree, part)]
        key = _key(tree, last)
        tree[key]  # an unknown name raises KeyError
        tree[key] = value
    except (KeyError, IndexError, TypeError, ValueError):
        raise ParamsError(f"there is no parameter {name}; params.yaml lists them all") from None
    if value == [] and isinstance(tree, CommentedMap):
        _keep_comment_behind(tree, key)


def readable(error: ValidationError, *, if_missing: str = "add it") -> str:
    """Return the name of each wrong parameter, what is expected, and what it is, or what to do if it is missing."""
    named = ((".".join(map(str, problem["loc"])) or "the file", problem) for problem in error.errors())
    return "; ".join(
        f"{name} is missing: {if_missing}"
        if problem["type"] == "missing"
        else f"{name}: {problem['msg']}, got {_shown(problem['input'])}"
        for name, problem in named
    )


def _text(path: Path) -> str:
    if is_special(path):
        raise ParamsError(f"{path} is not a regular file; expected a file of parameters")
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing; run the command from the project root") from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise ParamsError(f"{path} has more than {_MOST_BYTES >> 20} MB; expected a file of parameters")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParamsError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def _check_nesting(name: str, text: str, *, anchors: bool) -> None:
    """Reject what would take the parser seconds or its whole stack; events come one by one, so this stops early."""
    around: list[str | None] = []  # the anchors, if any, of the collections that are open
    for event in YAML().parse(text):
        if isinstance(event, CollectionStartEvent):
            around.append(event.anchor)
        if isinstance(event, CollectionEndEvent):
            around.pop()
        if len(around) > _MOST_DEPTH:
            raise ParamsError(f"{name} is nested more than {_MOST_DEPTH} levels deep; expected sections of parameters")
        if isinstance(event, AliasEvent) and event.anchor in around:
            raise ParamsError(f"{name} refers to *{event.anchor} within itself; write the value")
        if isinstance(event, AliasEvent) and not anchors:
            raise ParamsError(f"{name} refers to *{event.anchor}; write the value itself, anchors are not supported")


def _key(tree: Any, part: str) -> str | int:
    return int(part) if isinstance(tree, list) else part


def _keep_comment_behind(tree: CommentedMap, key: str | int) -> None:
    """Let the comment of a list that has become empty follow it.

    ruamel.yaml notes that the comment stood between the key and the items, and would break the next line with it.
    """
    if comments := tree.ca.items.get(key):
        comments[3] = None


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]} ..."

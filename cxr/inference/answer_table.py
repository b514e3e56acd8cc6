"""Answers as lines for people: a table as wide as the terminal, and what is to be said about all images at its end."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cxr.common.files import printable
from cxr.inference.answer import NO_ANSWER, SHOWN_FIELDS, Answer, AnswerField
from cxr.models.bundle import ModelSpec

Colour = Literal["bold", "red", "yellow", "none"]

_CODES: dict[Colour, str] = {"bold": "\033[1m", "red": "\033[31m", "yellow": "\033[33m", "none": ""}
_MIN_PATH = 16  # characters of a shortened path
_EXAMPLES = 5  # paths that a group of warnings names


@dataclass(frozen=True)
class Result:
    """The result for one image: an `answer`, an `error`, or both where its files could not be written.

    sha256, uid   of the file, and of the DICOM image ("" for another format); None where it was not read
    """

    path: str
    answer: Answer | None = None
    error: str | None = None
    sha256: str | None = None
    uid: str | None = None


@dataclass(frozen=True)
class Style:
    """How lines are shown: `columns` of the terminal, None where the output is none; with colours or without."""

    columns: int | None = None
    has_colours: bool = False

    @classmethod
    def of_output(cls) -> Style:
        """Return the style for standard output; NO_COLOR (https://no-color.org) switches colours off."""
        if not sys.stdout.isatty():
            return cls()
        return cls(shutil.get_terminal_size().columns, not os.environ.get("NO_COLOR"))

    def paint(self, text: str, colour: Colour) -> str:
        """Return a text in a colour, or as it is."""
        return f"{_CODES[colour]}{text}\033[0m" if self.has_colours and colour != "none" else text


class Table:
    """The results as lines for people, a column for each field of an answer; warnings are told at the end."""

    def __init__(self, spec: ModelSpec, paths: Sequence[str], style: Style) -> None:
        """Lay out the table for a model and the paths of all images."""
        self._classes, self._style = spec.classes, style
        self._notes = [one for one in SHOWN_FIELDS if one.type == "string" and one.nullable]
        self._cells = [one for one in SHOWN_FIELDS if one not in self._notes]
        self._width = max(len(printable(path)) for path in paths)
        if style.columns:
            cells = sum(2 + len(cell) for one in self._cells for cell in self._heads(one))
            self._width = min(self._width, max(_MIN_PATH, style.columns - cells))

    def heading(self) -> str:
        """Return the first line."""
        cells = [f"{'file':<{self._width}}", *(cell for one in self._cells for cell in self._heads(one))]
        return self._style.paint("  ".join(cells), "bold")

    def row(self, result: Result) -> str:
        """Return the line of an image, and below it what kept it or its files from being made."""
        path = f"{self._fitted(printable(result.path)):<{self._width}}"
        error = self._style.paint(f"error: {printable(result.error or '')}", "red")
        if result.answer is None:
            return f"{path}  {error}"
        answer = result.answer
        values = {one.name: getattr(answer, one.name) for one in self._cells} | {"predicted_class": answer.verdict}
        line = "  ".join([path, *(cell for one in self._cells for cell in self._values(one, values[one.name]))])
        shown = self._style.paint(line, "yellow" if answer.refer or answer.warning else "none")
        return shown if result.error is None else f"{shown}\n  {error}"

    def _fitted(self, path: str) -> str:
        """Return a path that is no wider than its column: its end tells images of a folder apart."""
        return path if len(path) <= self._width else f"…{path[len(path) - self._width + 1 :]}"

    def _heads(self, one: AnswerField) -> list[str]:
        if one.prefix:
            return list(self._classes)
        return [f"{'class':<{self._class_width}}" if one.name == "predicted_class" else one.name]

    def _values(self, one: AnswerField, value: Any) -> list[str]:
        if one.prefix:
            return [f"{value[name]:>{len(name)}.3f}" for name in self._classes]
        if one.type == "string":
            return [f"{value:<{self._class_width}}"]
        shown = {True: "yes", False: "no", None: "-"}[value] if one.type == "boolean" else f"{value:.3f}"
        return [f"{shown:<{len(one.name)}}"]

    @property
    def _class_width(self) -> int:
        return max(len(name) for name in (*self._classes, NO_ANSWER))


class Summary:
    """What is to be said about all images: how many got which answer, and each warning once with its images."""

    def __init__(self) -> None:
        """Begin without any result."""
        self._counts = dict.fromkeys(("answered", "referred", "unread"), 0)
        self._warnings: dict[str, list[str]] = {}

    def add(self, result: Result) -> None:
        """Count a result."""
        if result.answer is None:
            self._counts["unread"] += 1
            return
        self._counts["answered"] += 1
        self._counts["referred"] += bool(result.answer.refer)
        if result.answer.warning:
            self._warnings.setdefault(result.answer.warning, []).append(printable(result.path))

    def lines(self, style: Style) -> list[str]:
        """Return the warnings, the most frequent first, and the count."""
        ordered = sorted(self._warnings.items(), key=lambda group: -len(group[1]))
        warned = [style.paint(_warning(text, paths), "yellow") for text, paths in ordered]
        return [*warned, style.paint(_count(self._counts, self._warnings), "bold")]


def _warning(text: str, paths: Sequence[str]) -> str:
    named = ", ".join(paths[:_EXAMPLES]) + (f" and {len(paths) - _EXAMPLES} more" if len(paths) > _EXAMPLES else "")
    return f"warning for {_images(len(paths))}: {text}\n  {named}"


def _count(counts: Mapping[str, int], warnings: Mapping[str, Sequence[str]]) -> str:
    parts = [f"{_images(counts['answered'])} answered"]
    if warned := sum(map(len, warnings.values())):
        parts.append(f"{warned} with a warning")
    if counts["referred"]:
        parts.append(f"{counts['referred']} for a reader")
    if counts["unread"]:
        parts.append(f"{counts['unread']} could not be read")
    return ", ".join(parts)


def _images(n: int) -> str:
    return f"{n:,} image" if n == 1 else f"{n:,} images"

"""study.yaml: groups of rows, each a configuration with its seeds. A group becomes a table of docs/results.md."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cxr.common.errors import ParamsError
from cxr.common.params_file import load_yaml, readable

TAG_PREFIX = "study."
MIN_HEADLINE_SEEDS = 5
"""Fewer show the luck of a seed as well as the configuration."""

Slug = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
Content = TypeVar("Content", bound=BaseModel)
Settings = Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})]


class Row(BaseModel):
    """One row of a table; `set` overrides the settings of its group."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Slug
    label: str
    set: Settings = {}
    seeds: list[int] | None = None


class Group(BaseModel):
    """One table: rows that share settings; if `tested`, they are evaluated on the test set, too.

    A `headline` row counts with MIN_HEADLINE_SEEDS seeds from clean commits; the page marks one that has less.
    `together` names groups whose rows are the same on other test sets: the page also compares over all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Slug
    title: str
    text: str
    tested: bool
    headline: bool = False
    seeds: Annotated[list[int], Field(min_length=1)]
    baseline: str | None = None
    together: list[Slug] = []
    seeded: list[str] = ["train.seed"]
    set: Settings = {}
    rows: Annotated[list[Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_fit(self) -> "Group":
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"group {self.name} has two rows with the same name among {', '.join(names)}")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"group {self.name} has no row {self.baseline}, its baseline")
        for seeds in (self.seeds, *(self.seeds_of(row) for row in self.rows)):
            if len(set(seeds)) < len(seeds):  # the second would be the run of the first
                raise ValueError(f"group {self.name} has a seed twice among {', '.join(map(str, seeds))}")
        return self

    def seeds_of(self, row: Row) -> list[int]:
        """Return the seeds of a row."""
        return row.seeds or self.seeds

    def settings(self, row: Row, seed: int) -> dict[str, Any]:
        """Return the settings of a row with a seed that override params.yaml: dotted name -> value."""
        return {**self.set, **row.set, **dict.fromkeys(self.seeded, seed)}

    def tag(self, row: Row, seed: int) -> str:
        """Return the key of the tag that marks the training run of a row with a seed."""
        return f"{TAG_PREFIX}{self.name}.{row.name}.{seed}"


class Study(BaseModel):
    """The content of study.yaml; `quick` only holds settings that groups refer to."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    quick: Settings = {}
    groups: Annotated[list[Group], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> "Study":
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):  # their runs would have the same tags
            raise ValueError(f"two groups have the same name among {', '.join(names)}")
        for group in self.groups:
            if unknown := sorted(set(group.together) - set(names)):
                raise ValueError(f"group {group.name}: together names {', '.join(unknown)}, which does not exist")
            compared = [other for other in self.groups if other.name in group.together]
            if any(not other.tested or other.baseline is None for other in compared):
                raise ValueError(f"group {group.name}: together names a group that is not tested or has no baseline")
        return self

    def group(self, name: str) -> Group | None:
        """Return the group called `name`; None if there is none."""
        return next((group for group in self.groups if group.name == name), None)


def read_study(path: Path) -> Study:
    """Read study.yaml.

    Raises:
        ParamsError: the file is missing, not YAML, or invalid; the message names the position of each mistake.
    """
    return read_as(Study, path)


def read_as(kind: type[Content], path: Path) -> Content:
    """Read a YAML file of the project's root; see `read_study` for its errors."""
    try:
        return kind.model_validate(load_yaml(path, anchors=True))
    except ValidationError as error:
        raise ParamsError(f"{path}: {readable(error)}") from error

"""What study.yaml says: groups of rows, each a recipe with its seeds; a group becomes a table of docs/results.md."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cxr.common.errors import ParamsError

TAG_PREFIX = "study."

Slug = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
Settings = Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})]


class Row(BaseModel):
    """One line of a table: what is set on top of its group's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Slug
    label: str
    set: Settings = {}
    seeds: list[int] | None = None


class Group(BaseModel):
    """One table: rows that share settings; `tested` rows go on to the test set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Slug
    title: str
    text: str
    tested: bool
    seeds: Annotated[list[int], Field(min_length=1)]
    baseline: str | None = None
    seeded: list[str] = ["train.seed"]
    set: Settings = {}
    rows: Annotated[list[Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_fit(self) -> "Group":
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"group {self.name} has two rows of one name among {', '.join(names)}")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"group {self.name} has no row {self.baseline} to be its baseline")
        return self

    def seeds_of(self, row: Row) -> list[int]:
        """Return the seeds that a row is run with."""
        return row.seeds or self.seeds

    def settings(self, row: Row, seed: int) -> dict[str, Any]:
        """Return what a row with a seed sets on top of params.yaml: dotted name -> value."""
        return {**self.set, **row.set, **dict.fromkeys(self.seeded, seed)}

    def tag(self, row: Row, seed: int) -> str:
        """Return the key of the tag that the training's run of a row with a seed carries."""
        return f"{TAG_PREFIX}{self.name}.{row.name}.{seed}"


class Study(BaseModel):
    """The whole of study.yaml; `quick` is there to be referred to."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    quick: Settings = {}
    groups: Annotated[list[Group], Field(min_length=1)]

    def group(self, name: str) -> Group | None:
        """Return the group of a name, None where there is none."""
        return next((group for group in self.groups if group.name == name), None)


def read_study(path: Path) -> Study:
    """Read study.yaml. Raises ParamsError: the file is missing or not YAML, or names the place of each mistake."""
    try:
        return Study.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing; run from the project's root, where study.yaml is") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ParamsError(f"{path}: {places}") from error

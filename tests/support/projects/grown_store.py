"""A tracking store and a DVC cache as many trainings leave them: versions, files, audit log, objects.

The first versions are registered and promoted by the steps themselves. The others are copies of the last of them: the
same rows under other ids and digests, at other times; the same files as hard links, but for the bundle and the
dvc.lock, which every version has of its own. So a thousand versions take a minute and little disk.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy
import torch
from safetensors.torch import save_file
from sqlalchemy import Connection, MetaData, Table

from cxr.common.files import read_json, sha256_of, write_json
from cxr.registry import audit_log, runs, tracking_store, versions
from cxr.registry.audit_log import Head, Move
from cxr.registry.audit_log_store import StoredLog, read_log
from cxr.registry.retention import DATA_LOCK_TAG
from cxr.registry.stored_names import CHALLENGER, CHAMPION, ENTRY_TAG, HEAD_TAG, MODEL, claim_names, entry_tag
from cxr.registry.test_set_looks import record_look
from cxr.registry.versions import BUNDLE_PATH, Version
from tasks import promote
from tests.support.projects.registry_project import register, write_model
from tests.support.projects.tiny_model import write_network

EPOCHS = 25
_CURVES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "validation_macro_f1")
_IDS = ("run_uuid", "run_id", "model_id", "source_id", "destination_id", "source_run_id")
_TIMES_MS = ("creation_time", "last_updated_time", "start_time", "end_time", "timestamp", "metric_timestamp_ms")
_TIMES_MS += ("creation_timestamp_ms", "last_updated_timestamp_ms")
_STAGES = ("ingest", "validate", "split", "preprocess", "train", "evaluate", "register")
_DAY_MS = 24 * 3600 * 1000


def register_one(seed: int, *, network: bool = False, judge: bool = True) -> Version:
    """Register a version by the step, with a run of EPOCHS epochs and a dvc.lock of its own; ask the gate if `judge`.

    Args:
        seed: of the weights.
        network: weights of a network that answers images of 32 px, in place of two numbers.
        judge: ask the gate, which makes it champion.
    """
    write_model(seed=seed)
    if network:
        write_network(seed=seed)
    run_id = runs.start_run(run_id=None, name=f"training-{seed}", tags={"git_commit": "0" * 40})
    runs.log_params(run_id, {"train": {f"parameter_{number}": number for number in range(60)}})
    for epoch in range(1, EPOCHS + 1):
        runs.log_metrics(run_id, dict.fromkeys(_CURVES, 1 / epoch), step=epoch)
    runs.finish_run(run_id, "FINISHED")
    record = Path("models/trained/training.json")
    write_json(record, read_json(record) | {"run_id": run_id})
    _write_lock(Path("dvc.lock"), seed)
    version = register()
    record_look(version.tags["test_set_sha256"], version.tags["weights_sha256"])
    if judge:
        promote.promote(Path("params.yaml"), promote.Request("ann", "passed the gate"))
    return versions.get_version(version.number)


def grow(source: Version, *, until: int, days: int, promoted_every: int = 2) -> None:
    """Copy `source`, the newest version and champion, until there are `until` versions, spread over the last `days`.

    Every `promoted_every`th of them was champion; the last of those is. The newest version is challenger.
    """
    numbers, stored = range(int(source.number) + 1, until + 1), read_log()
    root = _local(tracking_store.client().get_run(source.run_id).info.artifact_uri).parent.parent
    engine = sqlalchemy.create_engine(tracking_store.tracking_uri())
    tables = MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        pattern = _rows_of(connection, tables.sorted_tables, source)
        looks = connection.execute(_tag_of_look(tables.tables["tags"], source)).one().run_uuid
        for number in numbers:
            copy = _Copy(source, number, age_ms=int(_DAY_MS * days * (until - number) / until))
            copy.write_files(root)
            for table, rows in pattern:
                _insert(connection, table, [copy.of_row(row) for row in rows])
            look = {"key": f"model.{copy.weights_sha256[:16]}", "value": "2026-01-01T00:00:00+00:00"}
            connection.execute(tables.tables["tags"].insert(), look | {"run_uuid": looks})
        promoted = [number for number in numbers if number % promoted_every == 0]
        ages = [timedelta(days=days * (until - number) / until) for number in promoted]
        last = _write_entries(connection, tables, stored, promoted, ages)
    engine.dispose()
    client = tracking_store.client()
    client.set_registered_model_tag(MODEL, HEAD_TAG, last.to_text())
    client.set_registered_model_alias(MODEL, CHAMPION, str(promoted[-1]))
    client.set_registered_model_alias(MODEL, CHALLENGER, str(numbers[-1]))


@dataclass
class _Copy:
    """What one copy has of its own; `age_ms` before now it was made."""

    source: Version
    number: int
    age_ms: int

    def __post_init__(self) -> None:
        self.run_id, self.model_id = secrets.token_hex(16), f"m-{secrets.token_hex(16)}"
        self.weights_sha256 = ""
        self.others: dict[str, str] = {self.source.run_id: self.run_id, self.source.model_id: self.model_id}
        self._inputs: dict[str, str] = {}

    def write_files(self, root: Path) -> None:
        """Link the source's files below the store's artifacts and write those that differ."""
        for old, new in (
            (self.source.run_id, self.run_id),
            (f"models/{self.source.model_id}", f"models/{self.model_id}"),
        ):
            shutil.copytree(root / old, root / new, copy_function=os.link)
        self._write_bundle(root / "models" / self.model_id / "artifacts" / BUNDLE_PATH)
        self._write_lock(root / self.run_id / "artifacts" / "data_lock")

    def _write_bundle(self, bundle: Path) -> None:
        spec = (bundle / "model.json").read_text()
        for name in ("model.safetensors", "model.json"):
            (bundle / name).unlink()
        save_file({"w": torch.full((2,), float(self.number))}, bundle / "model.safetensors")
        self.weights_sha256 = sha256_of(bundle / "model.safetensors")
        (bundle / "model.json").write_text(spec.replace(self.source.tags["weights_sha256"], self.weights_sha256))
        self.others[self.source.tags["weights_sha256"]] = self.weights_sha256
        self.others[self.source.tags["spec_sha256"]] = sha256_of(bundle / "model.json")

    def _write_lock(self, folder: Path) -> None:
        old = self.source.tags[f"{DATA_LOCK_TAG}_sha256"]
        shutil.rmtree(folder)
        (folder / "new").mkdir(parents=True)
        _write_lock(folder / "new" / "dvc.lock", self.number)
        new = sha256_of(folder / "new" / "dvc.lock")
        (folder / "new").rename(folder / new[:12])
        self.others |= {old: new, f"data_lock/{old[:12]}": f"data_lock/{new[:12]}"}

    def of_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of the source as a row of this copy."""
        return {column: self._of_value(column, value) for column, value in row.items()}

    def _of_value(self, column: str, value: Any) -> Any:
        if column == "input_uuid":
            return self._inputs.setdefault(value, secrets.token_hex(16))
        if column == "version":
            return self.number
        if column in _TIMES_MS and isinstance(value, int):
            return value - self.age_ms
        if isinstance(value, str):
            for old, new in self.others.items():
                value = value.replace(old, new)
        return value


def _insert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, many a statement: only for rows that are returned does SQLAlchemy do so with pg8000.

    Without it every row is a round trip of its own to PostgreSQL.
    """
    connection.execute(table.insert().returning(*table.primary_key.columns), rows)


def _rows_of(
    connection: Connection, tables: Sequence[Table], version: Version
) -> list[tuple[Table, list[dict[str, Any]]]]:
    """Return the rows of a version, its run and its logged model, by table, in the order in which they are written."""
    ids, inputs, found = {version.run_id, version.model_id}, set(), []
    for table in tables:
        wanted = [table.c[name].in_(inputs if name == "input_uuid" else ids) for name in _IDS if name in table.c]
        if table.name == "input_tags":
            wanted = [table.c.input_uuid.in_(inputs)]
        if table.name.startswith("model_version"):
            wanted.append((table.c.name == MODEL) & (table.c.version == int(version.number)))
        if not wanted:
            continue
        rows = [dict(row) for row in connection.execute(table.select().where(sqlalchemy.or_(*wanted))).mappings()]
        if table.name == "inputs":
            inputs |= {row["input_uuid"] for row in rows}
        if rows:
            found.append((table, rows))
    return found


def _tag_of_look(tags: Table, version: Version) -> Any:
    return tags.select().where(tags.c.key == f"model.{version.tags['weights_sha256'][:16]}")


def _write_entries(
    connection: Connection, tables: MetaData, stored: StoredLog, promoted: Sequence[int], ages: Sequence[timedelta]
) -> Head:
    """Write an entry of the audit log, with its closed claim, for each promoted version; return the new head."""
    experiments, marks = tables.tables["experiments"], tables.tables["experiment_tags"]
    present = connection.execute(experiments.select().where(experiments.c.name == claim_names(1)[0])).mappings().one()
    pattern = {name: value for name, value in present.items() if name != "experiment_id"}
    last, before = stored.last_number, stored.recorded
    previous = audit_log.digest(stored.entries[last])
    for number, age in zip(promoted, ages, strict=True):
        last += 1
        when = (datetime.now(UTC) - age).isoformat(timespec="seconds")
        line = Move(last, when, "promote", before, str(number), "ann", "passed the gate", previous).to_line()
        made = connection.execute(experiments.insert(), pattern | {"name": claim_names(last)[0]})
        mark = {"key": ENTRY_TAG, "value": line, "experiment_id": made.inserted_primary_key[0]}
        connection.execute(marks.insert(), mark)
        tag = {"key": entry_tag(last), "value": line, "name": MODEL}
        workspace = {"workspace": present["workspace"]} if "workspace" in present else {}
        connection.execute(tables.tables["registered_model_tags"].insert(), tag | workspace)
        previous, before = audit_log.digest(line), str(number)
    return Head(last, previous)


def _write_lock(path: Path, number: int) -> None:
    """Write a dvc.lock of all stages, and into DVC's cache the objects that only this version's stages made."""
    lines = ["schema: '2.0'", "stages:"]
    for stage in _STAGES:
        lines += [f"  {stage}:", f"    cmd: python -m tasks.{stage}", "    deps:"]
        for dependency in range(8):
            lines += _lock_entry(f"cxr/{stage}/{dependency}.py", f"code {stage} {dependency}")
        lines.append("    outs:")
        for output in range(2):
            content = f"{stage} {output} of {number if stage in _STAGES[4:] else 'all'}"
            lines += _lock_entry(f"data/{stage}/{output}", content)
            digest = hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()
            cached = Path(".dvc/cache/files/md5", digest[:2], digest[2:])
            cached.parent.mkdir(parents=True, exist_ok=True)
            cached.write_text(content)
    path.write_text("\n".join(lines) + "\n")


def _lock_entry(path: str, content: str) -> list[str]:
    digest = hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()
    return [f"    - path: {path}", "      hash: md5", f"      md5: {digest}", f"      size: {len(content)}"]


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))

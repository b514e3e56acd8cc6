"""Data-quality checks: named checks on tables, run by Great Expectations.

This is the only module that imports Great Expectations. The gates are the steps `validate`, after ingest, and `split`.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it logs many lines at INFO when imported

import great_expectations as gx
import pandas as pd
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)

from cxr.common.errors import GateError, ParamsError

log = logging.getLogger("cxr.gate")

Severity = Literal["error", "warn"]
_OFFENDERS_SHOWN = 5
# The run's time would be part of paths, so that no two runs would write the same files.
_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Check:
    """One expectation on a table.

    name         name in parameters, reports and messages
    kind         class of great_expectations.expectations without "Expect"
    arguments    of that class
    expected     the threshold as text: "64 to 8000"
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]
    expected: str


@dataclass(frozen=True)
class Table:
    """Rows to check. `key` names the columns that identify a row in messages."""

    name: str
    rows: pd.DataFrame
    key: tuple[str, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Outcome:
    """Result of one check; `offenders` are the first rows that failed, as "column=value, ..."."""

    name: str
    severity: Severity
    passed: bool
    observed: str
    expected: str
    offenders: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return the entry of validation.json."""
        return {
            "name": self.name,
            "severity": self.severity,
            "passed": self.passed,
            "observed": self.observed,
            "threshold": self.expected,
        }


def check_tables(
    tables: Sequence[Table], *, suite: str, notes: str, warn_only: Collection[str] = (), docs: Path | None = None
) -> list[Outcome]:
    """Run every check and return the results, in the order of the checks.

    Args:
        tables: tables with their checks.
        suite: name of the gate; the suite of each table is "<suite>-<table>".
        notes: text above the expectations in Data Docs.
        warn_only: names of checks that only warn.
        docs: empty folder for Data Docs as HTML; None: no Data Docs.

    Raises:
        ParamsError: `warn_only` names a check that does not exist.
    """
    known = [check.name for table in tables for check in table.checks]
    unknown = sorted(set(warn_only) - set(known))
    if unknown:
        raise ParamsError(f"warn_only: unknown check {', '.join(unknown)}; expected {', '.join(known)}")
    context = _context(docs)
    outcomes = [outcome for table in tables for outcome in _check_table(context, table, suite, notes, warn_only)]
    if docs:
        context.build_data_docs()  # once for all tables: GX compiles its templates again each time
    return outcomes


def enforce(outcomes: Sequence[Outcome], *, gate: str, hint: str) -> None:
    """Log the failed checks, and raise if one of them is an error.

    Args:
        outcomes: of all checks.
        gate: name of the gate in messages, such as "after ingest".
        hint: what the user can do.

    Raises:
        GateError: at least one check of severity "error" failed.
    """
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if failed:
        log.warning("%s", "\n".join(_failure_table(failed)))
    errors = [outcome.name for outcome in failed if outcome.severity == "error"]
    if errors:
        raise GateError(
            f"the gate {gate} failed: {', '.join(errors)} ({len(errors)} of {len(outcomes)} checks); {hint}"
        )
    log.info(
        "gate %s: %d checks, %d passed, %d warnings", gate, len(outcomes), len(outcomes) - len(failed), len(failed)
    )


def _failure_table(failed: Iterable[Outcome]) -> list[str]:
    lines = [f"{'check':<24}{'severity':<10}{'expected':<44}found"]
    for outcome in failed:
        expected, *more = textwrap.wrap(outcome.expected, 42) or [""]
        lines.append(f"{outcome.name:<24}{outcome.severity:<10}{expected:<44}{outcome.observed}")
        lines += [f"{'':<34}{line}" for line in more]
        lines += [f"    {offender}" for offender in outcome.offenders]
    return lines


def _context(docs: Path | None) -> Any:
    """Return an in-memory GX context that writes only Data Docs, to `docs`, and shows no progress bars."""
    sites: dict[str, Any] = {}
    if docs:
        backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        sites["site"] = {"class_name": "SiteBuilder", "site_index_builder": index, "store_backend": backend}
    config = DataContextConfig(
        data_docs_sites=sites,
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _check_table(context: Any, table: Table, suite: str, notes: str, warn_only: Collection[str]) -> list[Outcome]:
    severity: dict[str, Severity] = {
        check.name: "warn" if check.name in warn_only else "error" for check in table.checks
    }
    name = f"{suite}-{table.name}"
    expectations = context.suites.add(gx.ExpectationSuite(name, notes=notes))
    for check in table.checks:
        expectation = getattr(gx.expectations, f"Expect{check.kind}")
        gx_severity = "warning" if severity[check.name] == "warn" else "critical"
        named = {"meta": {"check": check.name}, "notes": f"{check.name}: {check.expected}", "severity": gx_severity}
        expectations.add_expectation(expectation(**check.arguments, **named))
    asset = context.data_sources.add_pandas(table.name).add_dataframe_asset(table.name)
    data = asset.add_batch_definition_whole_dataframe("all")
    definition = gx.ValidationDefinition(name=name, data=data, suite=expectations)
    checkpoint = gx.Checkpoint(
        name=name,
        validation_definitions=[context.validation_definitions.add(definition)],
        result_format={
            "result_format": "SUMMARY",
            "unexpected_index_column_names": list(table.key),
            "partial_unexpected_count": _OFFENDERS_SHOWN,
        },
    )
    run_id = RunIdentifier(run_name=suite, run_time=_NO_TIME)
    (run,) = checkpoint.run(batch_parameters={"dataframe": table.rows}, run_id=run_id).run_results.values()
    results: list[Any] = [result.to_json_dict() for result in run.results]
    by_name = {result["expectation_config"]["meta"]["check"]: result for result in results}
    return [_outcome(check, table.key, severity[check.name], by_name[check.name]) for check in table.checks]


def _outcome(check: Check, key: Sequence[str], severity: Severity, result: dict[str, Any]) -> Outcome:
    found = result["result"]
    if "unexpected_count" in found:
        observed = f"{found['unexpected_count']} of {found['element_count']} rows fail"
    elif "observed_value" in found:
        observed = str(found["observed_value"])
    else:
        observed = f"the check could not run: {_reason(result['exception_info'])}"
    rows = found.get("partial_unexpected_index_list") or []
    offenders = tuple(_as_text(row, key) for row in rows)
    return Outcome(check.name, severity, bool(result["success"]), observed, check.expected, offenders)


def _as_text(row: dict[str, Any], key: Sequence[str]) -> str:
    """Return the key columns of a row, then the checked columns."""
    names = [*key, *(name for name in row if name not in key)]
    return ", ".join(
        f"{name}={row[name]:.4g}" if isinstance(row[name], float) else f"{name}={row[name]}" for name in names
    )


def _reason(info: dict[str, Any]) -> str:
    """Return the message of GX's exception info, which may be nested under the ID of a metric."""
    nested = [value for value in info.values() if isinstance(value, dict)]
    return str((nested[0] if nested else info).get("exception_message"))

"""Names in the tracking store: those written today, and those of release 0.4.0, which are read and never written.

This is the only module that knows the old names. Whatever it returns has the present ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MODEL = "chest-xray-pneumonia"
CHALLENGER = "challenger"
CHAMPION = "champion"
REQUESTED = "requested"
"""Alias by which people ask for a promotion in MLflow's page."""

EVALUATION_TAG = "evaluation_artifacts"
TRAINING_IMAGES_TAG = "training_images"
TRAINING_THUMBNAILS_TAG = "training_thumbnails"
EXTERNAL_TAG = "external"
SIZE_TAG = "files_bytes"
"""On a version: what its files take, so that listing a thousand versions opens none of their folders."""
DECISION_TAG = "promotion_decision"
VERDICT_TAG = "promotion"
REASON_TAG = "promotion_reason"
HEAD_TAG = "audit_log_head"
ENTRY_TAG = "entry"
MOST_CHARACTERS = 5000
"""Of a description, and of a registered model's tag in PostgreSQL: MLflow's limits."""

_OLD_VERSION_TAGS = {
    "evidence": EVALUATION_TAG,
    "evidence_sha256": f"{EVALUATION_TAG}_sha256",
    "training_films": TRAINING_IMAGES_TAG,
    "training_films_sha256": f"{TRAINING_IMAGES_TAG}_sha256",
}
_OLD_ENTRY_FIELDS = {"who": "approved_by", "why": "reason"}
_OLD_VERDICT_FIELDS = {**_OLD_ENTRY_FIELDS, "evidence": "evaluation"}
_OLD_SUMMARY_FIELDS = {"evidence_sha256": f"{EVALUATION_TAG}_sha256"}
_ENTRY_NAME = re.compile(r"(?:audit_log|ledger)\.(\d+)")


def evaluation_tags(test_set_sha256: str = "") -> tuple[str, str]:
    """Return the tags with the location and the digest of an evaluation; "" for the registration's own test set."""
    end = f".{test_set_sha256[:12]}" if test_set_sha256 else ""
    return f"{EVALUATION_TAG}{end}", f"{EVALUATION_TAG}_sha256{end}"


def current_version_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version under their present names; where both names are set, the present one counts."""
    renamed = {}
    for name, value in tags.items():
        base, dot, test_set = name.partition(".")
        renamed[_OLD_VERSION_TAGS.get(base, base) + dot + test_set] = value
    return renamed | {name: value for name, value in tags.items() if name in renamed}


def entry_tag(number: int) -> str:
    """Return the tag of the registered model that holds an entry of the audit log."""
    return f"audit_log.{number:06d}"


def entry_lines(tags: Mapping[str, str]) -> dict[int, str]:
    """Return the entries of the audit log among the tags of the registered model: number -> line."""
    found = {}
    for name in sorted(tags, reverse=True):  # "ledger" before "audit_log": the present name counts
        if match := _ENTRY_NAME.fullmatch(name):
            found[int(match[1])] = tags[name]
    return dict(sorted(found.items()))


def claim_names(number: int) -> tuple[str, str]:
    """Return the names that the experiment of an entry can have: the one written today, and that of 0.4.0."""
    return f"{MODEL} audit log {number:06d}", f"{MODEL} ledger {number:06d}"


def current_entry(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an audit log entry under their present names."""
    return _renamed(fields, _OLD_ENTRY_FIELDS)


def current_verdict(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a verdict of the gate (reports/promotion.json, the tag `promotion`) under its present names."""
    current = _renamed(verdict, _OLD_VERDICT_FIELDS)
    sides = current.get("evaluation", {})
    current["evaluation"] = {side: _renamed(of, _OLD_SUMMARY_FIELDS) if of else of for side, of in sides.items()}
    return current


def _renamed(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in fields.items()}

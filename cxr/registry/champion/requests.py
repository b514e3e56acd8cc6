"""What people ask for in MLflow's page or client by setting an alias, and the answer on the version's page.

`requested` on a version  asks that it becomes champion
`champion` moved by hand  asks the same, or, where it was removed, for nothing: the recorded champion is put back

The answer is the tag `promotion_reason` of the version and the last section of its description.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cxr.registry import tracking_store
from cxr.registry.audit_log_store import contradiction, read_log
from cxr.registry.stored_names import CHAMPION, MODEL, MOST_CHARACTERS, REASON_TAG, REQUESTED

SECTION = "## Promotion gate"


@dataclass(frozen=True)
class Request:
    """An alias that somebody set or removed; `version` is "" where `champion` was removed."""

    alias: str
    version: str


def open_requests() -> list[Request]:
    """Return what nobody has answered yet, the alias `champion` first; nothing while a move is under way.

    Raises:
        RegistryError: the store does not answer.
    """
    stored, client = read_log(), tracking_store.client()
    found = [Request(CHAMPION, stored.alias)] if contradiction(stored) else []
    with tracking_store.store_errors(f"looking for the alias {REQUESTED}"):
        asked = tracking_store.unless_absent(lambda: client.get_model_version_by_alias(MODEL, REQUESTED))
    return [*found, *([Request(REQUESTED, str(asked.version))] if asked else [])]


def answer(version: str, text: str) -> None:
    """Write an answer on the page of a version, and take the alias `requested` off it.

    Args:
        version: number.
        text: what was decided and why; the time is put before it.
    """
    client, when = tracking_store.client(), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    with tracking_store.store_errors(f"writing the answer on the page of version {version}"):
        page = client.get_model_version(MODEL, version)
        above = (page.description or "").partition(SECTION)[0].rstrip()
        section = f"{SECTION}\n\n{when}: {text}"[:MOST_CHARACTERS]
        room = max(0, MOST_CHARACTERS - len(section) - 2)
        client.set_model_version_tag(MODEL, version, REASON_TAG, section.partition("\n\n")[2])
        client.update_model_version(MODEL, version, f"{above[:room]}\n\n{section}".strip())
        if REQUESTED in page.aliases:
            client.delete_registered_model_alias(MODEL, REQUESTED)

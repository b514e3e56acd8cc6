"""Show which version was champion when, who approved it, and why.

Reads   the audit log in the model registry; writes nothing

Warns where an entry was changed or removed, and where the alias `champion` was moved by hand.
"""

from __future__ import annotations

import csv
import logging
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict

from cxr.common.cli import answer_help, command_parser, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--csv", action="store_true", help="as CSV, for other programs")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.registry.audit_log import NO_VERSION, Move
from cxr.registry.champion import aliases

COLUMNS = ("number", "time", "kind", "before", "after", "approved_by", "reason", "overruled", "found")

log = logging.getLogger("cxr.history")


def history(*, as_csv: bool) -> None:
    """Print the audit log, the oldest move first."""
    moves = aliases.history()
    if as_csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(move) for move in moves)
    else:
        print(_table(moves) if moves else "no version was champion yet; `./run promote` asks the gate")
    if begun := aliases.unfinished():
        log.warning(
            "entry %d, version %s as champion, was cut off; `./run promote` or `./run rollback` finishes it first",
            begun.number,
            begun.after,
        )
    elif found := aliases.mismatch():
        log.warning("%s", found)


def _table(moves: Sequence[Move]) -> str:
    rows = [("time (UTC)", "move", "version", "before", "approved by", "reason")]
    rows += [
        (move.time, move.kind, move.after or "-", move.found or move.before or "-", move.approved_by, _reason(move))
        for move in moves
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _reason(move: Move) -> str:
    notes = [f"overruled by {move.approved_by}: {move.overruled}"] if move.overruled else []
    if move.found and move.found != NO_VERSION and move.kind != "restore":
        notes.append(f"version {move.found} had been set past the gate")
    return " ".join([move.reason, *(f"[{note}]" for note in notes)])


def main() -> None:
    """Read the command line and print the audit log."""
    history(as_csv=command_line().parse_args().csv)


if __name__ == "__main__":
    run_command(main)

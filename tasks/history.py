"""Show which version was champion when, who made it so, and why.

Reads   the record in the model registry; writes nothing
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

from cxr.registry import aliases, versions
from cxr.registry.audit_log import Move

COLUMNS = ("number", "time", "kind", "before", "after", "who", "why", "overruled")

log = logging.getLogger("cxr.history")


def history(*, as_csv: bool) -> None:
    """Print the record, the oldest move first."""
    moves, champion = aliases.history(), versions.champion()
    if as_csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(move) for move in moves)
    else:
        print(_table(moves) if moves else "no version was champion yet; `python -m tasks.promote` asks the gate")
    if begun := aliases.unfinished():
        log.warning(
            "entry %d, version %s as champion, was cut off; `python -m tasks.promote` or `python -m tasks.rollback` "
            "finishes it first",
            begun.number,
            begun.after,
        )
        return
    recorded, present = (moves[-1].after if moves else None), (champion.number if champion else None)
    if recorded != present:
        log.warning(
            "the alias champion is on version %s, the record says %s: somebody moved it past the gate; "
            "`python -m tasks.promote` or `python -m tasks.rollback` decides again",
            present,
            recorded,
        )


def _table(moves: Sequence[Move]) -> str:
    rows = [("time (UTC)", "move", "version", "before", "who", "why")]
    rows += [(move.time, move.kind, move.after, move.before or "-", move.who, _why(move)) for move in moves]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _why(move: Move) -> str:
    return f"{move.why} [overruled by {move.who}: {move.overruled}]" if move.overruled else move.why


def main() -> None:
    """Read the command line and print the record."""
    history(as_csv=command_line().parse_args().csv)


if __name__ == "__main__":
    run_command(main)

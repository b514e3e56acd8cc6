"""Make the previous champion champion again.

Writes  the alias `champion`, and the move with name and reason into the audit log that `./run history` shows

The version that leaves stays registered; the gate holds it until a person approves it. Only versions that passed the
gate, or that a person approved, are gone back to. Where somebody moved the alias by hand, this command puts the
recorded champion back, or removes the alias where there is none. `--version` names an earlier champion than the last.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from cxr.common.cli import answer_help, command_parser, run_command
from cxr.registry.audit_log import present_user


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument(
        "--approved-by", metavar="NAME", default=present_user(), help="name for the audit log (%(default)s)"
    )
    parser.add_argument("--version", metavar="N", help="an earlier champion than the previous one")
    parser.add_argument("--restore-only", action="store_true", help="change nothing but an alias moved by hand")
    parser.add_argument("--reason", default="not stated", help="reason for the audit log (%(default)s)")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.common.errors import ParamsError
from cxr.registry.champion import aliases, requests


def rollback(*, approved_by: str, reason: str, version: str | None = None, restore_only: bool = False) -> None:
    """Go back one champion, or to the recorded one where the alias was moved by hand.

    Args:
        approved_by, reason: for the audit log.
        version: an earlier champion to go back to, wherever the alias is.
        restore_only: do nothing where the alias was not moved by hand.

    Raises:
        RegistryError: there is none to go back to.
        PromotionHeldError: somebody else moved the alias at the same moment.
    """
    aliases.settle()
    standing = aliases.standing()
    if standing.moved_by_hand and not version:
        move = aliases.restore_champion(approved_by=approved_by, reason=reason)
        outcome = (
            f"{move.reason}: {f'version {move.after} is champion again' if move.after else 'there is no champion'}"
        )
        if asked := standing.alias or move.after:
            requests.answer(asked, outcome)
        print(outcome)
        return
    if restore_only:
        print("the alias champion agrees with the audit log; nothing to do")
        return
    target = aliases.earlier_champion(version)
    move = aliases.move_champion(
        target.number,
        instead_of=standing.recorded,
        alias_was=standing.alias,
        kind="rollback",
        approved_by=approved_by,
        reason=reason,
    )
    outcome = f"version {move.after} is champion again; it was version {move.before}"
    requests.answer(move.after, f"{outcome}. Rollback, {approved_by}: {reason}")
    print(outcome)


def main() -> None:
    """Read the command line and go back."""
    given = command_line().parse_args()
    if given.version and given.restore_only:
        raise ParamsError("--version and --restore-only exclude each other: the first moves the champion")
    rollback(approved_by=given.approved_by, reason=given.reason, version=given.version, restore_only=given.restore_only)


if __name__ == "__main__":
    run_command(main)

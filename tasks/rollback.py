"""Make the previous champion champion again.

Writes  the alias `champion`, and the move with name and reason into the audit log that `./run history` shows

The version that leaves stays registered; the gate holds it until a person approves it. Only versions that passed the
gate, or that a person approved, are gone back to. Where somebody moved the alias by hand, this command puts the
recorded champion back, or removes the alias where there is none.
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
    parser.add_argument("--restore-only", action="store_true", help="change nothing but an alias moved by hand")
    parser.add_argument("--reason", default="not stated", help="reason for the audit log (%(default)s)")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.registry import aliases


def rollback(*, approved_by: str, reason: str, restore_only: bool = False) -> None:
    """Go back one champion, or to the recorded one where the alias was moved by hand.

    Args:
        approved_by, reason: for the audit log.
        restore_only: do nothing where the alias was not moved by hand.

    Raises:
        RegistryError: there is none to go back to.
        PromotionHeldError: somebody else moved the alias at the same moment.
    """
    aliases.settle()
    standing = aliases.standing()
    if standing.moved_by_hand:
        move = aliases.restore_champion(approved_by=approved_by, reason=reason)
        print(f"{move.reason}: {f'version {move.after} is champion again' if move.after else 'there is no champion'}")
        return
    if restore_only:
        print("the alias champion agrees with the audit log; nothing to do")
        return
    target = aliases.previous_champion()
    move = aliases.move_champion(
        target.number, instead_of=standing.recorded, kind="rollback", approved_by=approved_by, reason=reason
    )
    print(f"version {move.after} is champion again; it was version {move.before}")


def main() -> None:
    """Read the command line and go back."""
    given = command_line().parse_args()
    rollback(approved_by=given.approved_by, reason=given.reason, restore_only=given.restore_only)


if __name__ == "__main__":
    run_command(main)

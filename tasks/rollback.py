"""Make the champion before the present one champion again.

Writes  the alias `champion`, and the move with who and why into the record that `python -m tasks.history` shows

The version that leaves stays registered; the gate holds it back until a person approves it.
"""

from __future__ import annotations

import sys

from cxr.common.cli import command_parser, run_command
from cxr.registry.audit_log import present_user


def rollback(*, who: str, why: str) -> None:
    """Go back one champion.

    Raises:
        RegistryError: there is none to go back to.
        PromotionHeldError: somebody else moved the alias at the same moment.
    """
    from cxr.registry import aliases, versions

    aliases.settle()
    target, present = aliases.previous_champion(), versions.champion()
    move = aliases.move_champion(
        target.number, instead_of=present.number if present else "", kind="rollback", who=who, why=why
    )
    print(f"version {move.after} is champion again; it was version {move.before}")


def main() -> None:
    """Read the command line and go back."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--who", default=present_user(), help="name for the record (%(default)s)")
    parser.add_argument("--why", default="not stated", help="reason for the record (%(default)s)")
    given = parser.parse_args()
    rollback(who=given.who, why=given.why)


if __name__ == "__main__":
    run_command(main)

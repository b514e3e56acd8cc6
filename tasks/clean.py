"""Show what takes space and what of it may go, then remove that.

Reads   params.yaml (section `clean`), the registry, DVC's cache, .runs, .checkpoints, data/scores, mlruns/cache, and
        the bucket `score.exchange`, if there is one
Writes  nothing with --dry-run; else it removes exactly what --dry-run lists

A version stays while an alias is on it or the audit log names it, as champion or as one that a rollback goes back to;
so do the newest `keep_versions`, and whatever is younger than `keep_days`. Of a version that goes, the run with its
metrics stays. DVC's cache keeps what the present dvc.lock, the tips of all branches and tags, the worktrees and the
versions that stay name. After an interruption run the same command again.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from cxr.common.cli import answer_help, run_command, step_parser


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = step_parser(sys.modules[__name__])
    parser.add_argument("--dry-run", action="store_true", help="only list")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import time
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path

from cxr.common.errors import CxrError
from cxr.common.locks import step_lock
from cxr.common.params import Params, read_params
from tasks.retention.dvc_cache import forget_runs
from tasks.retention.items import Item
from tasks.retention.plan import cache_folder, plan


def clean(params: Params, *, dry_run: bool) -> None:
    """List every item, then remove those that may go, unless this is a dry run.

    Raises:
        SourceError: the exchange of scores cannot be reached; nothing was removed.
        CxrError: some could not be removed; all others were.
    """
    items = _plan(params)
    for line in _lines(items):
        print(line)
    if dry_run:
        return
    going = [item for item in items if not item.kept_as]
    failures = _remove(item for item in going if item.kind == "version")
    if failures:  # a version may be needed by now, and with it its scores and the data that it was made from
        still = {(item.kind, item.name) for item in _plan(params) if not item.kept_as}
        going = [item for item in going if (item.kind, item.name) in still]
    failures += _remove(item for item in going if item.kind != "version")
    forget_runs(cache_folder(Path()))
    if failures:
        raise CxrError(f"{len(failures)} could not be removed, first {failures[0]}; run the same command again")


def _plan(params: Params) -> list[Item]:
    return plan(Path(), params.clean, params.paths, exchange=params.score.exchange, now_s=time.time())


def _remove(items: Iterable[Item]) -> list[str]:
    """Remove items; return a line for each that could not be."""
    failures = []
    for item in items:
        try:
            item.remove()
        except (CxrError, OSError) as error:
            failures.append(f"{item.kind} {item.name}: {error}")
    return failures


def _lines(items: Iterable[Item]) -> Iterable[str]:
    """Yield a line an item; DVC's objects, of which there are thousands, and what is kept as "in use" are summed up."""
    freed = 0
    for (kind, kept_as), group in groupby(items, key=lambda item: (item.kind, item.kept_as)):
        members = list(group)
        total = sum(item.size_bytes for item in members)
        freed += 0 if kept_as else total
        verdict = f"kept: {kept_as}" if kept_as else "goes"
        if kind == "DVC object":
            yield f"{verdict:<32} {total / 1e6:9.1f} MB  {len(members)} DVC objects"
        else:
            yield from (f"{verdict:<32} {item.size_bytes / 1e6:9.1f} MB  {kind} {item.name}" for item in members)
    yield f"{'together':<32} {freed / 1e6:9.1f} MB  may go"


def main() -> None:
    """Read the command line and clean the checkout that is the working directory."""
    given = command_line().parse_args()
    params = read_params(given.params)
    with nullcontext() if given.dry_run else step_lock(params.paths.checkpoints, "clean"):
        clean(params, dry_run=given.dry_run)


if __name__ == "__main__":
    run_command(main)

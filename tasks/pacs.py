"""Classify the chest X-rays that arrive in a PACS (Orthanc) with the champion, and store the results beside them.

    ./run pacs http://127.0.0.1:8042

Follows  Orthanc's feed of changes from its beginning; reads CR, DX and RG images of the chest and skips all other
         objects by their tags
Stores   a Structured Report (DICOM SR, TID 1500) in the study of each image: the probability of each class, and
         whether a reader should look first; with --overlay also the image with its heat map
Keeps    its position in the feed in --state-file; without the file it starts over and finds the existing reports
Account  CXR_PACS_USER and CXR_PACS_PASSWORD, or in the address, where other users of this machine can see them

Each image is processed exactly once, even if Orthanc, this command or the machine crashes. A new champion processes the
images that arrive after it; with --reprocess also those that an older version processed. An image that cannot be read
gets no report but a log line with its Orthanc ID and the reason. Runs until Ctrl-C; with --once until the end of the
feed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from cxr.common.cli import add_engine_argument, answer_help, command_parser, run_command

ADDRESS_VARIABLE = "CXR_PACS_URL"
STATE_FILE = Path(".checkpoints/pacs.json")


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument(
        "address", metavar="ADDRESS", nargs="?", help=f"of Orthanc's REST API; default: the variable {ADDRESS_VARIABLE}"
    )
    parser.add_argument("--once", action="store_true", help="stop at the end of the feed")
    parser.add_argument("--overlay", action="store_true", help="also store the image with its heat map")
    parser.add_argument(
        "--reprocess", action="store_true", help="start over, and also process images that an older version processed"
    )
    add_engine_argument(parser, default="torch")
    parser.add_argument(
        "--poll-interval",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="between two polls of the feed (%(default)s)",
    )
    parser.add_argument(
        "--state-file", type=Path, default=STATE_FILE, help="file with the position in the feed (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.common.engines import Engine, require_torch
from cxr.common.errors import ParamsError, RegistryError
from cxr.common.locks import file_lock
from cxr.inference.classifier import Classifier, load_classifier
from cxr.pacs.orthanc import Orthanc, OrthancUnavailableError
from cxr.pacs.worker import PacsWorker
from cxr.registry.versions import CHAMPION, Version, fetch_bundle, get_version

MAX_RETRY_SECONDS = 30.0

log = logging.getLogger("cxr")


def pacs(worker: PacsWorker, *, once: bool, poll_seconds: float) -> None:
    """Follow the feed to its end, or for ever.

    Args:
        worker: processes the images of the feed.
        once: stop at the end of the feed, and when Orthanc or the registry does not respond.
        poll_seconds: between two polls of a feed with nothing new.

    Raises:
        SourceError: Orthanc rejects the password; with `once` also: it does not respond.
        RegistryError: with `once`, the registry does not respond or has no champion.
    """
    failures = 0
    while True:
        before = replace(worker.summary)
        try:
            is_end = worker.process_next()
        except (OrthancUnavailableError, RegistryError) as error:
            if once:
                raise
            failures += 1
            if failures == 1:  # not at each try: an outage of an hour is one line
                log.warning("pacs: %s. Retrying until it responds", error)
            time.sleep(min(2.0 ** (failures - 1), MAX_RETRY_SECONDS))
            continue
        if failures:
            log.info("pacs: connection restored")
            failures = 0
        if replace(worker.summary, skipped=before.skipped) != before:
            log.info("pacs: %s", worker.summary)
        if is_end and once:
            return
        if is_end:
            time.sleep(poll_seconds)


def champion(engine: Engine) -> Callable[[], Classifier]:
    """Return a function that returns the current champion; it reloads when the version changes."""
    loaded: tuple[Version, Classifier] | None = None

    def current() -> Classifier:
        nonlocal loaded
        version = get_version(CHAMPION)
        if loaded is None or (loaded[0].number, loaded[0].run_id) != (version.number, version.run_id):
            classifier = load_classifier(fetch_bundle(version), number=version.number, engine=engine)
            log.info("pacs: version %s in use, engine %s", version.number, classifier.engine)
            loaded = version, classifier
        return loaded[1]

    return current


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # docker and systemd stop a service with SIGTERM; treat it as Ctrl-C


def main() -> None:
    """Read the command line and follow the feed."""
    given = command_line().parse_args()
    if given.overlay:
        require_torch()
    address = given.address or os.environ.get(ADDRESS_VARIABLE)
    if not address:
        raise ParamsError(f"no PACS given: pass an address such as http://127.0.0.1:8042, or set {ADDRESS_VARIABLE}")
    signal.signal(signal.SIGTERM, _stop)
    with file_lock(given.state_file.with_suffix(".lock")):
        if given.reprocess:
            given.state_file.unlink(missing_ok=True)
        worker = PacsWorker(
            Orthanc(address),
            champion(given.engine),
            given.state_file,
            overlay=given.overlay,
            reprocess=given.reprocess,
        )
        log.info("pacs: following %s", worker.orthanc.address)
        pacs(worker, once=given.once, poll_seconds=given.poll_interval)
    print(worker.summary)


if __name__ == "__main__":
    run_command(main)

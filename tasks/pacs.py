"""Classify the chest X-rays that arrive in a PACS with the champion, and store the results beside them.

    ./run pacs http://127.0.0.1:8042                                an Orthanc, by its own API
    ./run pacs --dicomweb http://127.0.0.1:8042/dicom-web           any PACS with DICOMweb
    ./run pacs --listen CXR@11112 --send-to ARCHIVE@10.0.0.5:104    any PACS: C-STORE in and out

Reads    CR, DX and RG images of the chest, and skips all other objects by their tags: of Orthanc, all in its feed of
         changes; by DICOMweb, those in studies of the last --days; by C-STORE, those that are sent to it
Stores   a Structured Report (DICOM SR, TID 1500) in the study of each image: the certainty of each class, and whether
         a reader should look first; with --overlay also the image with its heat map,
         with --heat-map the values of that map (DICOM Parametric Map)
Keeps    its position in the feed in --state-file, and beside it what it has found or received; a line an answer in
         --audit-log
Account  CXR_PACS_USER and CXR_PACS_PASSWORD, or in the address, where other users of this machine can see them

Each image is processed exactly once, even if the PACS, this command or the machine crashes; by C-STORE its answer may
be sent twice, with one UID. A new champion processes the images that arrive after it; with --reprocess also those that
an older version processed. An image that cannot be read gets no report but a log line with its ID and the reason; so
does one that takes longer than --decode-timeout to decode, or more memory than an image of its size needs. Runs until
Ctrl-C; with --once until the end of the feed.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cxr.common.cli import add_engine_argument, answer_help, command_parser, number_within, run_command

ADDRESS_VARIABLE = "CXR_PACS_URL"
STATE_FILE = Path(".checkpoints/pacs.json")

_DAY_SECONDS = 86_400


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument(
        "address", metavar="ADDRESS", nargs="?", help=f"of Orthanc's REST API; default: the variable {ADDRESS_VARIABLE}"
    )
    parser.add_argument("--dicomweb", metavar="URL", help="of a DICOMweb service, in place of ADDRESS")
    parser.add_argument(
        "--days",
        type=number_within(int, 0, 36500),
        default=7,
        metavar="N",
        help="search studies of N days by DICOMweb; 0: all (%(default)s)",
    )
    parser.add_argument("--listen", metavar="AE@PORT", help="receive images by C-STORE, in place of ADDRESS")
    parser.add_argument("--send-to", metavar="AE@HOST:PORT", help="with --listen: where answers go")
    parser.add_argument(
        "--max-object-mb",
        type=number_within(int, 1, 1_000_000),
        default=400,
        metavar="MB",
        help="with --listen: that an image may have as it arrives (%(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="stop at the end of the feed")
    parser.add_argument("--overlay", action="store_true", help="also store the image with its heat map")
    parser.add_argument("--heat-map", action="store_true", help="also store the heat map's values (Parametric Map)")
    parser.add_argument(
        "--reprocess", action="store_true", help="start over, and also process images that an older version processed"
    )
    add_engine_argument(parser, default="torch")
    parser.add_argument(
        "--poll-interval",
        type=number_within(float, 0, _DAY_SECONDS),
        default=2.0,
        metavar="SECONDS",
        help="between two polls of the feed (%(default)s)",
    )
    parser.add_argument(
        "--decode-timeout",
        type=number_within(float, 1, _DAY_SECONDS),
        default=30.0,
        metavar="SECONDS",
        help="that an image may take to decode; then it is skipped (%(default)s)",
    )
    parser.add_argument(
        "--state-file", type=Path, default=STATE_FILE, help="file with the position in the feed (%(default)s)"
    )
    parser.add_argument(
        "--audit-log",
        type=Path,
        metavar="FILE",
        help="who asked, which image, version and when; default: beside the state file, with .audit.jsonl",
    )
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.common.engines import Engine, require_torch
from cxr.common.errors import ParamsError, RegistryError
from cxr.common.locks import file_lock
from cxr.inference.classifier import Classifier, load_classifier
from cxr.inference.decoding.decoders import Decoders
from cxr.pacs.audit_log import AuditLog
from cxr.pacs.feed import Pacs, PacsUnavailableError
from cxr.pacs.orthanc import Orthanc
from cxr.pacs.worker import PacsWorker
from cxr.registry.versions import CHAMPION, Version, fetch_bundle, get_version

MAX_RETRY_SECONDS = 30.0

log = logging.getLogger("cxr")


def pacs(worker: PacsWorker, *, once: bool, poll_seconds: float) -> None:
    """Follow the feed to its end, or for ever.

    Args:
        worker: processes the images of the feed.
        once: stop at the end of the feed, and when the PACS or the registry does not respond.
        poll_seconds: between two polls of a feed with nothing new.

    Raises:
        SourceError: the PACS rejects the password; with `once` also: it does not respond.
        RegistryError: with `once`, the registry does not respond or has no champion.
    """
    pause = 0.0  # since the PACS has not responded
    while True:
        before = replace(worker.summary)
        try:
            is_end = worker.process_next()
        except (PacsUnavailableError, RegistryError) as error:
            if once:
                raise
            if not pause:  # not at each try: an outage of an hour is one line
                log.warning("pacs: %s. Retrying until it responds", error)
            pause = min(2 * pause or 1.0, MAX_RETRY_SECONDS)
            time.sleep(pause)
            continue
        if pause:
            log.info("pacs: connection restored")
            pause = 0.0
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


@contextmanager
def connect(given: Namespace, decoders: Decoders) -> Iterator[Pacs]:
    """Yield the PACS that the command line names; `decoders` read what is sent to it.

    Raises:
        ParamsError: it names none, or more than one.
        SourceError: an address is invalid, or the port to listen on is not free.
    """
    ways = [way for way in (given.address, given.dicomweb, given.listen) if way]
    if len(ways) > 1:
        raise ParamsError("more than one PACS given: pass an ADDRESS, --dicomweb or --listen")
    if bool(given.listen) != bool(given.send_to):
        raise ParamsError("--listen and --send-to go together: where images arrive, and where their answers go")
    if given.dicomweb:
        from cxr.pacs.dicomweb import DicomWeb

        yield DicomWeb(given.dicomweb, beside(given.state_file, ".found"), days=given.days)
    elif given.listen:
        from cxr.pacs.listener import Listener, Node

        if given.reprocess:
            raise ParamsError(
                "--reprocess is not possible with --listen: images are not kept; send them again to a worker with "
                "another --state-file"
            )
        own, to = Node.parse(given.listen, host="0.0.0.0"), Node.parse(given.send_to)
        folder, most_bytes = beside(given.state_file, ".received"), given.max_object_mb << 20
        with Listener(own, to, folder, decoders, most_bytes=most_bytes) as listener:
            yield listener
    else:
        address = given.address or os.environ.get(ADDRESS_VARIABLE)
        if not address:
            raise ParamsError(
                f"no PACS given: pass an address such as http://127.0.0.1:8042, or set {ADDRESS_VARIABLE}"
            )
        yield Orthanc(address)


def beside(state_file: Path, ending: str) -> Path:
    """Return the path of what is kept beside a state file: site.1.json and site.2.json share nothing."""
    return state_file.with_name(state_file.name.removesuffix(".json") + ending)


def main() -> None:
    """Read the command line and follow the feed."""
    given = command_line().parse_args()
    if given.overlay or given.heat_map:
        require_torch()
    with file_lock(beside(given.state_file, ".lock"), waits_for=f"another worker with {given.state_file}"):
        if given.reprocess:
            given.state_file.unlink(missing_ok=True)
        with Decoders(1, seconds=given.decode_timeout) as decoders, connect(given, decoders) as connected:
            worker = PacsWorker(
                connected,
                champion(given.engine),
                decoders,
                given.state_file,
                overlay=given.overlay,
                heat_map=given.heat_map,
                reprocess=given.reprocess,
                audit_log=AuditLog(given.audit_log or beside(given.state_file, ".audit.jsonl")),
            )
            log.info("pacs: following %s", connected.address)
            pacs(worker, once=given.once, poll_seconds=given.poll_interval)
    print(worker.summary)


if __name__ == "__main__":
    run_command(main)

"""Answer the chest X-rays of a PACS (Orthanc) as they come in, with the champion.

    python -m tasks.pacs http://127.0.0.1:8042

Follows  Orthanc's feed of changes, from the first image it has; CR, DX and RG of the chest are read, all else is
         passed over by its tags
Stores   beside each image, in its study, a Structured Report (DICOM SR, TID 1500): the probability of each class and
         whether a reader should look first; with --overlay also a picture of where the model looked
Keeps    its place in the feed, in --place; it may be lost, and costs a look at each image then
Asks     CXR_PACS_USER and CXR_PACS_PASSWORD for the account, or takes it from the address, where others of this
         machine can see it

Each image is answered once, whatever is killed meanwhile: Orthanc, this command, the machine. A newer champion answers
the images that come after it; with --again the images that an older one answered too. An image that cannot be read gets no
answer but a line here, with Orthanc's ID of it and the reason. Runs until Ctrl-C; with --once until the feed's end.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import ParamsError, RegistryError

if TYPE_CHECKING:
    from cxr.inference.classifier import Classifier
    from cxr.pacs.worker import Link

ADDRESS_VARIABLE = "CXR_PACS_URL"
PLACE = Path(".checkpoints/pacs.json")
LONGEST_WAIT_SECONDS = 30.0

log = logging.getLogger("cxr")


def pacs(link: Link, *, once: bool, every_seconds: float) -> None:
    """Follow the feed: to its end, or for ever.

    Args:
        link: what is followed, and who answers.
        once: stop at the end of the feed, and stop when Orthanc or the registry does not answer.
        every_seconds: between two looks at a feed that has nothing new.

    Raises:
        SourceError: Orthanc refuses the password, or with `once` does not answer.
        RegistryError: with `once`, the registry does not answer or has no champion.
    """
    from cxr.pacs.orthanc import OrthancAwayError

    failures = 0
    while True:
        before = replace(link.tally)
        try:
            is_end = link.round()
        except (OrthancAwayError, RegistryError) as error:
            if once:
                raise
            failures += 1
            if failures == 1:  # not at each try: an hour's outage is one line
                log.warning("pacs: %s. Trying until then", error)
            time.sleep(min(2.0 ** (failures - 1), LONGEST_WAIT_SECONDS))
            continue
        if failures:
            log.info("pacs: going on")
            failures = 0
        if replace(link.tally, passed=before.passed) != before:
            log.info("pacs: %s", link.tally)
        if is_end and once:
            return
        if is_end:
            time.sleep(every_seconds)


def champion(*, fast: bool) -> Callable[[], Classifier]:
    """Return a function that returns the champion, loaded anew when it is another version."""
    from cxr.inference.classifier import load_classifier
    from cxr.registry.versions import CHAMPION, Version, fetch_bundle, get_version

    loaded: tuple[Version, Classifier] | None = None

    def current() -> Classifier:
        nonlocal loaded
        version = get_version(CHAMPION)
        if loaded is None or (loaded[0].number, loaded[0].run_id) != (version.number, version.run_id):
            classifier = load_classifier(
                fetch_bundle(version), number=version.number, engine="openvino" if fast else "torch"
            )
            log.info("pacs: version %s answers", version.number)
            loaded = version, classifier
        return loaded[1]

    return current


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # as Ctrl-C does: docker and systemd end a service with SIGTERM


def main() -> None:
    """Read the command line and follow the feed."""
    import os

    parser = command_parser(sys.modules[__name__])
    parser.add_argument("address", metavar="ADDRESS", nargs="?", help=f"of Orthanc's REST API; else {ADDRESS_VARIABLE}")
    parser.add_argument("--once", action="store_true", help="end at the end of the feed")
    parser.add_argument("--overlay", action="store_true", help="also store a picture of where the model looked")
    parser.add_argument(
        "--again", action="store_true", help="also answer what an older version answered, from the start"
    )
    parser.add_argument("--fast", action="store_true", help="answer through the exported graph where there is one")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (%(default)s)")
    parser.add_argument("--place", type=Path, default=PLACE, help="file with the place in the feed (%(default)s)")
    given = parser.parse_args()
    address = given.address or os.environ.get(ADDRESS_VARIABLE)
    if not address:
        raise ParamsError(f"which PACS? give an address such as http://127.0.0.1:8042, or set {ADDRESS_VARIABLE}")

    from cxr.common.locks import file_lock
    from cxr.pacs.orthanc import Orthanc
    from cxr.pacs.worker import Link

    signal.signal(signal.SIGTERM, _stop)
    with file_lock(given.place.with_suffix(".lock")):
        if given.again:
            given.place.unlink(missing_ok=True)
        link = Link(Orthanc(address), champion(fast=given.fast), given.place, overlay=given.overlay, again=given.again)
        log.info("pacs: following %s", link.orthanc.address)
        pacs(link, once=given.once, every_seconds=given.every)
    print(link.tally)


if __name__ == "__main__":
    run_command(main)

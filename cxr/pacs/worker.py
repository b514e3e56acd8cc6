"""The link to a PACS: what its feed of changes tells of is answered once, whatever dies when.

Exactly once rests on the PACS alone. An answer's UIDs are derived from its image's, an image is looked up by them before
it is scored, and a PACS stores a UID once. The place in the feed only spares going over what was seen: it moves when
the answers are stored, and may be lost or behind at any time.

The feed's NewInstance lines are followed. Orthanc writes them in the transaction that stores the image. StableSeries,
a minute of quiet later, is known to its memory alone until then: a crash in that minute loses it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.common.files import read_json, write_json
from cxr.dicom.header import MODALITIES, is_other_body_part
from cxr.inference.dicom_sr import Author, answer_uid, answers_uid, secondary_capture, structured_report
from cxr.models.forward import BATCH_SIZE
from cxr.models.grad_cam import overlay
from cxr.pacs.orthanc import Change, Changes, Orthanc

if TYPE_CHECKING:
    from cxr.inference.answer import Answer
    from cxr.inference.classifier import Classifier

LINES_A_ROUND = 100
TRIES = 3
"""How often the process may die over one image before the image is passed over."""

log = logging.getLogger("cxr")


@dataclass(frozen=True)
class Place:
    """How far the feed of `server` was followed.

    since         number of the last line that is done with
    mark          what that line was: another database's feed says something else there
    tries         how often the lines after it were begun without an end
    alone_until   up to this line the images are taken one by one, for the process died over a batch of them
    """

    server: str
    since: int = 0
    mark: str = ""
    tries: int = 0
    alone_until: int = 0


@dataclass
class Tally:
    """What became of the objects of the feed.

    answered   an answer was stored
    known      there was an answer already
    refused    an image that cannot be answered: unreadable, lateral, too much for the model; a log line says which
    passed     no radiograph of a chest, our own answers among them, or deleted since
    """

    answered: int = 0
    known: int = 0
    refused: int = 0
    passed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.answered} images answered, {self.known} answered before, {self.refused} without an answer, "
            f"{self.passed} other objects"
        )


@dataclass(frozen=True)
class _Image:
    line: Change
    sop_uid: str


@dataclass
class Link:
    """The way of images from `orthanc` to the champion, and of its answers back.

    champion    returns the champion; asked when there are images to answer, so that a newer one takes over
    place_file  where the place in the feed is kept, whole or not at all
    overlay     also store a picture of where the model looked
    again       also answer images that another version has answered
    """

    orthanc: Orthanc
    champion: Callable[[], Classifier]
    place_file: Path
    overlay: bool = False
    again: bool = False
    tally: Tally = field(default_factory=Tally)
    _place: Place | None = None

    def round(self) -> bool:
        """Answer the images of the next lines of the feed; say whether that was the end of it.

        Raises:
            OrthancAwayError, RegistryError: the same round may be tried again later.
            SourceError: the PACS refuses the password, or is none.
        """
        place = self._place or self._find_place()
        self._place = None  # found anew after whatever goes wrong below
        changes = self.orthanc.changes(place.since, LINES_A_ROUND)
        images = self._chest_xrays(changes)
        if images and place.since < place.alone_until:
            changes, images = _up_to(changes, images[0])
        if images:
            self._answer(images, place, changes.last)
        if changes.lines:
            mark = changes.lines[-1].mark
            place = Place(place.server, changes.last, mark, alone_until=place.alone_until)
            self._keep(place)
        self._place = place
        return changes.done

    def _find_place(self) -> Place:
        kept = self._kept_place()
        if kept.since == 0:
            return kept
        line = self.orthanc.line(kept.since)
        # A line goes with the object that it told of; then only a feed that ends before it tells of another database.
        is_other = line.mark != kept.mark if line else self.orthanc.last_change() < kept.since
        if is_other:
            log.warning("pacs: %s has a new feed; following it from its beginning", self.orthanc.address)
            return Place(self.orthanc.address)
        return kept

    def _kept_place(self) -> Place:
        fresh = Place(self.orthanc.address)
        try:
            kept = Place(**read_json(self.place_file))
        except (OSError, ValueError, TypeError):
            return fresh
        return kept if kept.server == fresh.server else fresh

    def _chest_xrays(self, changes: Changes) -> list[_Image]:
        """Return the chest X-rays that the lines tell of, by Orthanc's index alone."""
        images = []
        for line in changes.lines:
            if line.kind != "NewInstance":
                continue
            found = self.orthanc.instance(line.resource)
            if found and found.modality in MODALITIES and not is_other_body_part(found.body_part):
                images.append(_Image(line, found.sop_uid))
            else:
                self.tally.passed += 1
        return images

    def _answer(self, images: list[_Image], place: Place, last: int) -> None:
        """Answer images, or find out that they are; while it lasts the kept place says that it was begun."""
        classifier = self.champion()
        author = Author.of(classifier.number, classifier.spec)
        new = [image for image in images if not self._is_answered(image, author)]
        self.tally.known += len(images) - len(new)
        if not new:
            return
        if place.tries >= TRIES and place.since < place.alone_until:
            self._refuse(new[0], f"the program was stopped {place.tries} times while it answered it")
            return
        self._keep(replace(place, tries=place.tries + 1, alone_until=max(place.alone_until, last)))
        try:
            for start in range(0, len(new), BATCH_SIZE):
                self._answer_batch(new[start : start + BATCH_SIZE], classifier, author)
        except BaseException:
            self._keep(place)  # stopped in order: the images are not to blame
            raise

    def _is_answered(self, image: _Image, author: Author) -> bool:
        by_it = answer_uid(image.sop_uid, author, "report")
        return self.orthanc.has(by_it if self.again else answers_uid(image.sop_uid, "report"))

    def _answer_batch(self, images: list[_Image], classifier: Classifier, author: Author) -> None:
        read = [(image, *parts) for image in images if (parts := self._read(image, classifier)) is not None]
        if not read:
            return
        try:
            prepared = np.stack([picture for _, _, picture in read])
            answers = classifier.answer(prepared)
            shown = self._overlays(prepared, answers, classifier)
        except Exception as error:  # whatever the model met: an image that it cannot take must not hold up the feed
            if len(images) == 1:
                self._refuse(images[0], type(error).__name__)
            else:
                for image in images:
                    self._answer_batch([image], classifier, author)
            return
        for (image, source, _), answer, picture in zip(read, answers, shown, strict=True):
            self._store(image, _objects(source, answer, picture, author))

    def _read(self, image: _Image, classifier: Classifier) -> tuple[bytes, NDArray[np.uint8]] | None:
        source = self.orthanc.file(image.line.resource)
        if source is None:
            self._refuse(image, "the PACS has no file of it, or has lost it")
            return None
        try:
            return source, classifier.read(source, name="the image")
        except ImageError as error:
            self._refuse(image, error.reason)
        except Exception as error:  # whatever a decoder met; its words may quote a tag
            self._refuse(image, type(error).__name__)
        return None

    def _overlays(
        self, images: NDArray[np.uint8], answers: list[Answer], classifier: Classifier
    ) -> list[NDArray[np.uint8] | None]:
        if not self.overlay:
            return [None] * len(answers)
        heats = classifier.heat(images, [answer.predicted_class for answer in answers])
        return [overlay(image, heat) for image, heat in zip(images, heats, strict=True)]

    def _store(self, image: _Image, objects: Iterator[bytes]) -> None:
        try:
            made = list(objects)
        except ImageError as error:
            self._refuse(image, error.reason)
            return
        if all(self.orthanc.store(each) for each in made):
            self.tally.answered += 1
        else:
            self._refuse(image, "the PACS does not take its answer")

    def _refuse(self, image: _Image, reason: str) -> None:
        self.tally.refused += 1
        log.warning("pacs: image %s gets no answer: %s", image.line.resource, reason)

    def _keep(self, place: Place) -> None:
        write_json(self.place_file, asdict(place))


def _objects(source: bytes, answer: Answer, picture: NDArray[np.uint8] | None, author: Author) -> Iterator[bytes]:
    """Yield what is stored of an answer; the report, by which an image counts as answered, comes last."""
    now, name = datetime.now(), "the image"
    if picture is not None:
        yield secondary_capture(source, picture, answer, author=author, name=name, made_at=now)
    yield structured_report(source, answer, author=author, name=name, made_at=now)


def _up_to(changes: Changes, image: _Image) -> tuple[Changes, list[_Image]]:
    """Return the lines up to the image's own, and it alone."""
    lines = tuple(line for line in changes.lines if line.number <= image.line.number)
    return Changes(lines, image.line.number, done=False), [image]

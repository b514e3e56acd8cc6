"""The PACS worker: follows the feed of changes and stores one report for each chest X-ray, despite crashes.

Processing exactly once rests on the PACS alone. The UIDs of a report are derived from those of its image; the worker
looks a report up before it classifies the image, and a PACS stores a UID once. The position in the feed only saves
work: it moves when the reports are stored, and may be lost or outdated at any time.

The worker follows the feed's NewInstance lines, which Orthanc writes in the transaction that stores the image.
StableSeries follows after a minute without new images and is kept in memory until then: a crash loses it. DICOMweb and
C-STORE have no such feed; their clients keep a journal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from cxr.common.errors import ImageError, MemoryLimitError
from cxr.common.files import read_json, write_json
from cxr.dicom.header import MODALITIES, is_other_body_part
from cxr.inference.classifier import Classifier
from cxr.inference.decoding.decoders import Decoders
from cxr.inference.dicom_objects.answer import answer_objects
from cxr.inference.dicom_objects.report import Explains
from cxr.inference.dicom_objects.shared import Author, earlier_series_uid, is_report_of, object_uid
from cxr.inference.explanation import Explanation, explain
from cxr.inference.pipeline import AnsweredImage, PreparedImage, answer_prepared
from cxr.models.forward import BATCH_SIZE
from cxr.pacs.audit_log import AuditLog
from cxr.pacs.feed import NEW_INSTANCE, Change, Changes, Pacs

MAX_LINES = 100
"""Lines of the feed that are processed together."""

MAX_TRIES = 3
"""How often the process may crash on one image before the image is skipped."""

_NO_MEMORY = (MemoryError, MemoryLimitError)
_NAME = "the image"  # its name in errors: its UID must not appear in a log

log = logging.getLogger("cxr")


@dataclass(frozen=True)
class FeedPosition:
    """The position in the feed of `server`, as in the state file.

    since         number of the last processed line
    mark          content of that line; another database has different content under that number
    tries         how often processing of the lines after it was started and not finished
    alone_until   up to this line images are processed one at a time, because the process crashed on a batch of them
    """

    server: str
    since: int = 0
    mark: str = ""
    tries: int = 0
    alone_until: int = 0


@dataclass
class WorkerSummary:
    """Counts of the objects in the feed.

    classified   images whose report was stored
    known        images that already had a report
    rejected     images that cannot be classified, such as unreadable or lateral ones; a log line names each
    skipped      other objects: not a chest radiograph, our own reports, or deleted
    """

    classified: int = 0
    known: int = 0
    rejected: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return (
            f"{self.classified} images classified, {self.known} already had a report, {self.rejected} rejected, "
            f"{self.skipped} other objects"
        )


@dataclass(frozen=True)
class _Instance:
    line: Change
    study_uid: str
    sop_uid: str


@dataclass
class PacsWorker:
    """Classifies the images of `pacs` and stores the reports there.

    champion     returns the current champion; called when there are images to classify
    decoders     decode the images: one that is slow, crashes or asks for too much memory is rejected
    state_file   holds the position in the feed; written atomically
    overlay      also store the image with its heat map
    heat_map     also store the values of the heat map
    reprocess    also classify images that another version has classified
    audit_log    gets a line for each answer
    """

    pacs: Pacs
    champion: Callable[[], Classifier]
    decoders: Decoders
    state_file: Path
    overlay: bool = False
    heat_map: bool = False
    reprocess: bool = False
    audit_log: AuditLog | None = None
    summary: WorkerSummary = field(default_factory=WorkerSummary)
    _position: FeedPosition | None = None

    def process_next(self) -> bool:
        """Process the next lines of the feed; return whether its end was reached.

        Raises:
            PacsUnavailableError, RegistryError: the call may be retried.
            SourceError: the PACS rejects the account, or the address is not that of a PACS.
        """
        position = self._position or self._find_position()
        self._position = None  # read from the file again if anything below fails
        changes = self.pacs.changes(position.since, MAX_LINES)
        images = self._chest_xrays(changes)
        if images and position.since < position.alone_until:
            changes, images = _up_to(changes, images[0])
        if images:
            self._process(images, position, changes.last)
        if changes.lines:
            mark = changes.lines[-1].mark
            position = FeedPosition(position.server, changes.last, mark, alone_until=position.alone_until)
            self._save(position)
        self._position = position
        return changes.done

    def _find_position(self) -> FeedPosition:
        saved = self._read_position()
        if saved.since == 0:
            return saved
        line = self.pacs.line(saved.since)
        # A line is deleted with its object; then a feed that ends before it is that of another database.
        is_other = line.mark != saved.mark if line else self.pacs.last_change() < saved.since
        if is_other:
            log.warning("pacs: %s has a new feed; following it from its beginning", self.pacs.address)
            return FeedPosition(self.pacs.address)
        return saved

    def _read_position(self) -> FeedPosition:
        start = FeedPosition(self.pacs.address)
        try:
            saved = FeedPosition(**read_json(self.state_file))
        except (OSError, ValueError, TypeError):
            return start
        return saved if saved.server == start.server else start

    def _chest_xrays(self, changes: Changes) -> list[_Instance]:
        """Return the new chest X-rays among the lines, by the PACS's index alone."""
        images = []
        for line in changes.lines:
            if line.kind != NEW_INSTANCE:
                continue
            found = self.pacs.instance(line.resource)
            if found and found.modality in MODALITIES and not is_other_body_part(found.body_part):
                images.append(_Instance(line, found.study_uid, found.sop_uid))
            else:
                self.summary.skipped += 1
        return images

    def _process(self, images: list[_Instance], position: FeedPosition, last: int) -> None:
        """Classify the images that have no report; meanwhile the state file records that processing has started."""
        classifier = self.champion()
        author = Author.of(classifier.number, classifier.spec)
        new = [image for image in images if not self._has_report(image, author)]
        self.summary.known += len(images) - len(new)
        if not new:
            return
        if position.tries >= MAX_TRIES and position.since < position.alone_until:
            self._reject(new[0], f"the program was stopped {position.tries} times while it processed it")
            return
        self._save(replace(position, tries=position.tries + 1, alone_until=max(position.alone_until, last)))
        try:
            for start in range(0, len(new), BATCH_SIZE):
                batch = [self._read(image, classifier) for image in new[start : start + BATCH_SIZE]]
                self._answer([image for image in batch if image is not None], classifier, author)
        except _NO_MEMORY:
            raise  # one of the images may have caused it: the try counts, as of a process that was killed
        except BaseException:
            self._save(position)  # an orderly stop: the images did not cause it
            raise

    def _has_report(self, image: _Instance, author: Author) -> bool:
        reports = self.pacs.report_uids(image.study_uid)
        if self.reprocess:
            return object_uid(image.sop_uid, author, "report") in reports
        has_one = any(is_report_of(uid, image.sop_uid) for uid in reports)
        return has_one or self.pacs.has_series(earlier_series_uid(image.sop_uid))

    def _answer(self, images: list[PreparedImage[_Instance, bytes]], classifier: Classifier, author: Author) -> None:
        try:
            answered = answer_prepared(classifier, images)
            explanations = self._explanations(answered, classifier)
        except _NO_MEMORY:
            raise
        except Exception as error:  # of any kind: an image that the model cannot process must not hold up the feed
            if len(images) == 1:
                self._reject(images[0].key, error.reason if isinstance(error, ImageError) else type(error).__name__)
            else:
                for image in images:
                    self._answer([image], classifier, author)
            return
        for one, looked in zip(answered, explanations, strict=True):
            self._store(one.image.key, self._objects(one, looked, author), author)

    def _read(self, image: _Instance, classifier: Classifier) -> PreparedImage[_Instance, bytes] | None:
        source = self.pacs.file(image.line.resource)
        if source is None:
            self._reject(image, "its file is missing from the PACS")
            return None
        try:
            read = self.decoders.model_input(source, classifier, name=_NAME)
        except ImageError as error:
            self._reject(image, error.reason)
            return None
        return PreparedImage(image, read.pixels, sha256=read.sha256, kept=source)

    def _explanations(
        self, answered: list[AnsweredImage[_Instance, bytes]], classifier: Classifier
    ) -> list[Explanation | None]:
        if not self._explained_by or not answered:
            return [None] * len(answered)
        return [
            None
            if image.pixels is None or image.kept is None or answer is None
            else explain(self.decoders.grey(image.kept, classifier, name=_NAME), image.pixels, answer, classifier)
            for image, answer in ((one.image, one.answer) for one in answered)
        ]

    @property
    def _explained_by(self) -> tuple[Explains, ...]:
        asked: dict[Explains, bool] = {"overlay": self.overlay, "heat": self.heat_map}
        return tuple(kind for kind, wanted in asked.items() if wanted)

    def _objects(
        self, answered: AnsweredImage[_Instance, bytes], looked: Explanation | None, author: Author
    ) -> Iterator[bytes]:
        """Yield the objects to store; the report comes last, because it marks the image as processed."""
        source, answer, now = answered.image.kept, answered.answer, datetime.now()
        if source is None or answer is None:
            raise ValueError("expected an image that was prepared with its file and answered")
        for _, made in answer_objects(
            source, answer, looked, explained_by=self._explained_by, author=author, name=_NAME, made_at=now
        ):
            yield made

    def _store(self, image: _Instance, objects: Iterator[bytes], author: Author) -> None:
        try:
            created = list(objects)
        except ImageError as error:
            self._reject(image, error.reason)
            return
        if self.audit_log is not None:
            sender = self.pacs.sender(image.line.resource)
            self.audit_log.add(requested_by=sender, sop_uid=image.sop_uid, version=author.version)
        if all(self.pacs.store(each) for each in created):
            self.summary.classified += 1
        else:
            self._reject(image, "the PACS rejects its report")

    def _reject(self, image: _Instance, reason: str) -> None:
        self.summary.rejected += 1
        log.warning("pacs: image %s rejected: %s", image.line.resource, reason)

    def _save(self, position: FeedPosition) -> None:
        write_json(self.state_file, asdict(position))


def _up_to(changes: Changes, image: _Instance) -> tuple[Changes, list[_Instance]]:
    """Return the lines up to that of `image`, and `image` alone."""
    lines = tuple(line for line in changes.lines if line.number <= image.line.number)
    return Changes(lines, image.line.number, done=False), [image]

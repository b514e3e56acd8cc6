"""A DICOM node for any PACS: images arrive by C-STORE and wait in a folder; answers leave by C-STORE.

An image is on the disk before its sender is told of success, and is removed when it is processed. Errors and log lines
hold no name, number or UID: images have a digest of their UID there.

    <folder>/<digest>.dcm   images that wait
    <folder>/received       journal of all that arrived: the feed
    <folder>/sent           reports that were sent: digest of the study's UID, and the report's UID, itself a digest
"""

from __future__ import annotations

import io
import logging
import os
import re
import socket
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt

from cxr.common.errors import ImageError, ParamsError, SourceError
from cxr.common.files import atomic_file
from cxr.dicom.header import MODALITIES, SYNTAXES
from cxr.dicom.tags import quiet_libraries
from cxr.inference.decoding.decoders import Decoders
from cxr.pacs.arriving import Arriving
from cxr.pacs.feed import Change, Changes, Instance, PacsUnavailableError
from cxr.pacs.journal import Journal, digest_of

_VERIFICATION = "1.2.840.10008.1.1"
_CONNECT_SECONDS = 10
_SUCCESS, _NO_ROOM, _REFUSED = 0x0000, 0xA700, 0xC000
_WARNING, _DUPLICATE, _OTHER_CLASS, _OTHER_CONTENT = 0xB000, 0x0111, 0x0122, 0xA900
_TAGS = ("StudyInstanceUID", "SOPInstanceUID", "Modality", "BodyPartExamined")
_NODE = re.compile(r"(?P<title>[!-?A-~ ]{1,16})@(?:(?P<host>[^:]+):)?(?P<port>\d{1,5})")

log = logging.getLogger("cxr")


@dataclass(frozen=True)
class Node:
    """A DICOM node: application entity title, host and port."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, given: str, *, host: str = "") -> Node:
        """Return the node of a text TITLE@HOST:PORT; `host` where it has none. Raises ParamsError."""
        found = _NODE.fullmatch(given)
        named = (found["host"] or host) if found else ""
        if not found or not named or not 0 < int(found["port"]) < 65536:
            raise ParamsError(f"{given!r} is not a DICOM node; expected one such as CXR@127.0.0.1:4242")
        return cls(found["title"], named, int(found["port"]))


class Listener:
    """A node that receives images and sends answers, a `cxr.pacs.feed.Pacs`; a context that listens.

    Args:
        own: title and port to listen on.
        to: where answers go.
        folder: of waiting images.
        decoders: read the tags of an image: a small file may hold millions of them.
        most_bytes: that an image may have as it arrives; the connection of a larger one is closed.
    """

    def __init__(self, own: Node, to: Node, folder: Path, decoders: Decoders, *, most_bytes: int) -> None:
        self._peer = f"{to.title}@{to.host}:{to.port}"
        self.address = f"{own.title}@{own.port}, answers to {self._peer}"
        self._own, self._to, self._folder, self._decoders = own, to, folder, decoders
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # images that wait have their patients' tags
        self._received, self._sent = Journal(folder / "received"), Journal(folder / "sent")
        self._reports: dict[str, set[str]] = defaultdict(set)
        for sent in self._sent:
            study, _, uid = sent.partition("/")
            self._reports[study].add(uid)
        self._arriving = Arriving(most_bytes)
        self._removed = 0  # lines whose images are gone
        self._taking = Lock()
        quiet_libraries()
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        for left in sorted(folder.glob("*.dcm")):  # by a crash between file and journal
            self._received.append(left.stem)
        for half in folder.glob(".*.partial"):  # by a crash while an image arrived
            half.unlink()

    def __enter__(self) -> Listener:
        """Start to listen. Raises SourceError if the port is not free."""
        node = AE(self._own.title)
        node.require_called_aet = True
        for stored in (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation):
            node.add_supported_context(stored, sorted(SYNTAXES))
        node.add_supported_context(_VERIFICATION)
        try:
            node.start_server(
                (self._own.host, self._own.port),
                block=False,
                evt_handlers=[(evt.EVT_C_STORE, self._take), *self._arriving.handlers],
            )
        except OSError as error:
            raise SourceError(f"port {self._own.port} cannot be listened on: {error.strerror}; name another") from None
        self._node = node
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to listen, and end the associations that are open."""
        self._node.shutdown()

    def changes(self, since: int, limit: int) -> Changes:
        """Return up to `limit` lines of the feed after line `since`; the images of those up to it are removed."""
        for number in range(self._removed, since):
            self._path(self._received[number]).unlink(missing_ok=True)
        self._removed = max(self._removed, since)
        return self._received.changes(since, limit)

    def last_change(self) -> int:
        """Return the number of the newest line; 0 before the first."""
        return len(self._received)

    def line(self, number: int) -> Change | None:
        """Return one line of the feed."""
        found = self._received.changes(number - 1, 1).lines
        return found[0] if found else None

    def instance(self, resource: str) -> Instance | None:
        """Return an image that waits; None if it was removed."""
        data = self.file(resource)
        if data is None:
            return None
        try:
            study_uid, sop_uid, modality, body_part = self._decoders.tags(data, _TAGS, name="the image")
        except ImageError:
            return Instance("", "", MODALITIES[0], "")  # the worker will find out, and say so
        return Instance(study_uid, sop_uid, modality.upper(), body_part.upper())

    def file(self, resource: str) -> bytes | None:
        """Return the DICOM file of an image that waits; None if it was removed."""
        try:
            return self._path(resource).read_bytes()
        except FileNotFoundError:
            return None

    def sender(self, resource: str) -> str:
        """Return the title of the application entity that sent an image."""
        meta = read_file_meta_info(self._path(resource))
        return str(meta.get("SourceApplicationEntityTitle", "")) or "unknown"

    def report_uids(self, study_uid: str) -> frozenset[str]:
        """Return the UIDs of the reports that were sent for a study: a node cannot be asked for them."""
        return frozenset(self._reports.get(digest_of(study_uid), ()))

    def has_series(self, uid: str) -> bool:
        """Return False: no earlier release sent answers by C-STORE."""
        del uid
        return False

    def store(self, dicom: bytes) -> bool:
        """Send an object. Returns False if the node does not take objects of this kind."""
        dataset = dcmread(io.BytesIO(dicom))
        try:
            status = self._send(dataset)
        except ValueError:  # no presentation context
            return False
        if status == _OTHER_CLASS or status >> 8 == _OTHER_CONTENT >> 8:
            return False
        if status not in {_SUCCESS, _DUPLICATE} and status >> 12 != _WARNING >> 12:
            raise PacsUnavailableError(f"{self._peer} does not store an answer (status {status:04X}); see its log")
        if dataset.Modality == "SR":
            study, uid = digest_of(dataset.StudyInstanceUID), str(dataset.SOPInstanceUID)
            self._sent.append(f"{study}/{uid}")
            self._reports[study].add(uid)
        return True

    def _send(self, dataset: Dataset) -> int:
        """Send an object and return the status. Raises ValueError without a presentation context for it."""
        node = AE(self._own.title)
        for stored in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage, ParametricMapStorage):
            node.add_requested_context(stored, ExplicitVRLittleEndian)
        try:  # pynetdicom leaks its socket where nobody listens
            socket.create_connection((self._to.host, self._to.port), _CONNECT_SECONDS).close()
        except OSError as error:
            raise PacsUnavailableError(
                f"{self._peer} does not respond ({type(error).__name__}); does it run?"
            ) from None
        link: Any = node.associate(self._to.host, self._to.port, ae_title=self._to.title)
        if not link.is_established:
            raise PacsUnavailableError(
                f"{self._peer} does not accept an association; does it run, and does it know this node?"
            )
        try:
            status: int | None = link.send_c_store(dataset).get("Status")
        except RuntimeError:  # it has closed the association
            status = None
        finally:
            link.release()
        if status is None:
            raise PacsUnavailableError(f"{self._peer} does not say whether it stored an answer; see its log")
        return status

    def _take(self, event: Any) -> int:
        """Keep an image and return the status for its sender."""
        try:
            resource = digest_of(str(event.request.AffectedSOPInstanceUID))
            with self._taking:  # two associations may bring the same image at once
                self._keep(resource, event)
        except OSError as error:
            log.warning("pacs: an image cannot be kept: %s", error.strerror)
            return _NO_ROOM
        except Exception as error:  # pydicom raises any; its text may quote a patient's tag
            log.warning("pacs: an image was rejected: %s", type(error).__name__)
            return _REFUSED
        return _SUCCESS

    def _keep(self, resource: str, event: Any) -> None:
        if resource in self._received:
            return
        with atomic_file(self._path(resource)) as partial, partial.open("wb") as file:
            file.write(_head(event))
            file.write(event.request.DataSet.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        self._received.append(resource)

    def _path(self, resource: str) -> Path:
        return self._folder / f"{resource}.dcm"


def _head(event: Any) -> bytes:
    """Return the start of the file of an object that arrived, with the title of its sender."""
    meta = event.file_meta
    meta.SourceApplicationEntityTitle = str(event.assoc.requestor.ae_title)[:16]
    head = DicomBytesIO()
    head.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(head, meta)
    return bytes(head.getvalue())

"""A DICOMweb service on loopback that answers as a real one cannot be made to: in small pages, with any status."""

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom import dcmread

from tests.support.services.servers import serving

SUFFIX = ".1"
"""Of a study's UID gives that of its one series."""


@dataclass
class DicomWebService:
    """Objects by study, and how to answer.

    images           SOP Instance UIDs by study; each study has one DX series
    study_date       of every study
    file             the file of each image
    multipart        the answer with a file; none: that of `file`
    status           of the answer to a request, by its last noun, such as "GET series"; others succeed
    page             the most items in one answer
    ignores_offset   answer each page with the first
    after_last       status of a page after the last
    garbage          the body of every search
    failure_reason   of every object that is sent; none: it is accepted
    received         what was posted
    says             the body of the answer to an object that is sent, whatever became of it, and its media type
    """

    url: str = ""
    images: dict[str, list[str]] = field(default_factory=dict)
    study_date: date = field(default_factory=date.today)
    file: bytes = b""
    multipart: bytes | None = None
    status: dict[str, int] = field(default_factory=dict)
    page: int = 1000
    ignores_offset: bool = False
    after_last: int = 200
    garbage: bytes | None = None
    failure_reason: int | None = None
    received: list[bytes] = field(default_factory=list)
    says: tuple[bytes, str] | None = None

    def answer(self, path: str, query: dict[str, str]) -> list[dict[str, Any]]:
        """Return what a search finds."""
        found = self._found([part for part in path.split("/") if part], query)
        start = 0 if self.ignores_offset else int(query.get("offset", 0))
        return found[start : start + min(self.page, int(query.get("limit", self.page)))]

    def stored(self, sent: bytes) -> tuple[bytes, str]:
        """Return the answer to an object that is sent: a body and its media type."""
        if self.says is not None:
            return self.says
        uid = dcmread(io.BytesIO(sent.partition(b"\r\n\r\n")[2]), stop_before_pixels=True).SOPInstanceUID
        item = {"00081155": {"vr": "UI", "Value": [uid]}}
        if self.failure_reason is not None:
            item["00081197"] = {"vr": "US", "Value": [self.failure_reason]}
        sequence = "00081199" if self.failure_reason is None else "00081198"
        return json.dumps({sequence: {"vr": "SQ", "Value": [item]}}).encode(), "application/dicom+json; charset=utf-8"

    def _found(self, path: list[str], query: dict[str, str]) -> list[dict[str, Any]]:
        if path == ["studies"]:
            studies = self.images.items() if query.get("ModalitiesInStudy") == "DX" else []
            today = f"{self.study_date:%Y%m%d}"
            first, _, last = query.get("StudyDate", "-").partition("-")
            if not first <= today <= (last or "9"):
                return []
            return [_tags(x0020000D=study, x00080020=today, x00201208=len(held)) for study, held in studies]
        if path[-1] == "series":
            is_dx = len(path) == 3 and query.get("Modality") == "DX"
            return [_tags(x0020000E=path[1] + SUFFIX, x00080060="DX")] if is_dx else []
        wanted = query.get("SOPInstanceUID")
        return [_tags(x00080018=one) for one in self.images.get(path[1], []) if wanted in (None, one)]


@contextlib.contextmanager
def serve_dicomweb() -> Iterator[DicomWebService]:
    """Serve an empty service on a free port."""
    service = DicomWebService()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            noun = parts.path.split("/")[-1]
            if noun in {"studies", "series", "instances"}:
                found = service.answer(parts.path, query)
                success = 200 if found or query.get("offset", "0") == "0" else service.after_last
                body = json.dumps(found).encode() if service.garbage is None else service.garbage
                self._send(service.status.get(f"GET {noun}", success), "application/dicom+json", body)
            else:
                body = multipart(service.file) if service.multipart is None else service.multipart
                kind = 'multipart/related; type="application/dicom"; boundary=x'
                self._send(service.status.get("GET file", 200), kind, body)

        def do_POST(self) -> None:
            service.received.append(self.rfile.read(int(self.headers["Content-Length"])))
            body, kind = service.stored(service.received[-1])
            self._send(service.status.get("POST studies", 200), kind, body)

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if 300 <= status < 400:
                self.send_header("Location", f"{service.url}/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield service


def multipart(file: bytes) -> bytes:
    """Return the body of an answer with a file, with the boundary x."""
    return b"\r\n--x\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n--x--"


def _tags(**values: Any) -> dict[str, Any]:
    return {tag.removeprefix("x"): {"Value": [value]} for tag, value in values.items()}

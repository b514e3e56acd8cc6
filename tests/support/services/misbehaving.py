"""A web server on loopback that misbehaves: pages in place of JSON, another form, errors, half an answer, or none."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any

from tests.support.services.servers import serving

ANSWERS: dict[str, tuple[int, str, bytes]] = {
    "a page": (200, "text/html", b"<!doctype html><html><body><p>Sign in to the guest network</p></body></html>"),
    "a list": (200, "application/json", b"[]"),
    "an empty object": (200, "application/json", b"{}"),
    "an error": (500, "application/json", b'{"error_code": "INTERNAL_ERROR", "message": "disk full"}'),
}
"""Status, type and content of the answer to every request, by manner."""
MANNERS = (*ANSWERS, "half an answer", "nothing")
DRIPPING = ("a dripping header", "a dripping answer", "a dripping answer without a length")


@contextlib.contextmanager
def misbehaving(manner: str) -> Iterator[str]:
    """Serve in one of MANNERS or DRIPPING; yield the address. "nothing" holds a request until the block ends."""
    ended = threading.Event()

    def drip(file: BufferedIOBase) -> None:
        with contextlib.suppress(OSError):  # the client has hung up
            while not ended.wait(0.05):
                file.write(b" ")

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if manner == "nothing":
                ended.wait()
                self.close_connection = True
                return
            if manner == "a dripping header":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nServer:")
                drip(self.wfile)
                return
            status, kind, content = ANSWERS.get(manner, ANSWERS["an empty object"])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if manner != "a dripping answer without a length":
                more = 1000 if manner in {"half an answer", "a dripping answer"} else 0
                self.send_header("Content-Length", str(len(content) + more))
            self.end_headers()
            self.wfile.write(content)
            if manner in DRIPPING:
                drip(self.wfile)

        def __getattr__(self, name: str) -> Callable[[], None]:
            if not name.startswith("do_"):
                raise AttributeError(name)
            return self.answer  # to every method

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with serving(server):
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            ended.set()

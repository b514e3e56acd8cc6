"""A web address and a mailbox on loopback that keep what is sent to them."""

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.services.servers import serving


@contextlib.contextmanager
def receive_posts(*, silent_to: str | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield an address and the JSON bodies that were posted to it; the message `silent_to` gets no answer."""
    posts: list[dict[str, Any]] = []
    closed = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if posts[-1]["message"] == silent_to:
                closed.wait()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", posts
        finally:
            closed.set()


@contextlib.contextmanager
def receive_mail() -> Iterator[tuple[int, list[str]]]:
    """Yield the port of an SMTP server and the mails that came in, with their headers."""
    mails: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            for line in self.rfile:
                verb = line.split()[0].upper() if line.split() else b""
                if verb == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    mails.append("".join(part.decode() for part in iter(self.rfile.readline, b".\r\n")))
                self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
                if verb == b"QUIT":
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield server.server_address[1], mails

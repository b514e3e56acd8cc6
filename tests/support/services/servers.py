"""Real servers on loopback for the tests of fetching: HTTP that misbehaves on demand, and S3."""

import contextlib
import itertools
import os
import random
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.waiting import wait_for

_WEED = str(Path(sys.executable).with_name("weed"))
ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"


@dataclass
class Web:
    """What the server holds, how it misbehaves, and what it was asked."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # one entry a response: bytes sent before the cut
    statuses: list[int] = field(default_factory=list)  # one entry a response: answered instead of the file
    redirects: dict[str, str] = field(default_factory=dict)
    authorization: str | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked_range = self.headers.get("Range")
            web.asked.append((self.path, asked_range))
            if self.path in web.redirects:
                self._answer(302, {"Location": web.redirects[self.path]})
            elif web.statuses:
                self._answer(web.statuses.pop(0), {})
            elif web.authorization and self.headers.get("Authorization") != web.authorization:
                self._answer(401, {})
            elif self.path not in web.files:
                self._answer(404, {})
            else:
                self._send(web.files[self.path], asked_range)

        def _send(self, body: bytes, asked_range: str | None) -> None:
            headers = {"ETag": web.etag} if web.etag else {}
            start, status = 0, 200
            if asked_range and web.ranges and self.headers.get("If-Range") == web.etag:
                start, status = int(asked_range.removeprefix("bytes=").removesuffix("-")), 206
                if start >= len(body):
                    self._answer(416, {"Content-Range": f"bytes */{len(body)}"})
                    return
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            sent = body[start:]
            cut = web.cut_after.pop(0) if web.cut_after else len(sent)
            self._answer(status, headers | {"Content-Length": str(len(sent))})
            self.wfile.write(sent[:cut])

        def _answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({} if status in {200, 206} else {"Content-Length": "0"} | headers).items():
                self.send_header(name, value)
            if status in {200, 206}:
                for name, value in headers.items():
                    self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    return Handler


@contextlib.contextmanager
def serve_web() -> Iterator[Web]:
    """Serve over HTTP on a free port of loopback."""
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(web))
    web.address = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield web


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Serve in a thread while the block runs."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], *, log: Path, answers: Callable[[], object]
) -> Iterator[None]:
    """Run a server while the block runs, which begins once the server answers."""
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as server:
        try:
            wait_for(answers, log=log)
            yield
        finally:
            server.terminate()


@contextlib.contextmanager
def serve_s3(folder: Path, bucket: str) -> Iterator[str]:
    """Serve S3 (SeaweedFS) on free ports of loopback; yields the endpoint. Keys: ACCESS_KEY, SECRET_KEY."""
    command, port = s3_command(folder, bucket)
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    environment.pop("AWS_ENDPOINT_URL", None)
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            endpoint = f"http://127.0.0.1:{port}"
            _wait_for(endpoint, bucket, process, folder / "weed.log")
            yield endpoint
        finally:
            process.kill()
            process.wait()


def s3_settings(endpoint: str) -> dict[str, str]:
    """Return the environment that leads boto3 to a server of `serve_s3`, with its keys."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def s3_command(folder: Path, bucket: str) -> tuple[list[str], int]:
    """Return the command of an S3 server over `folder` on free ports, and the port of S3.

    Its keys are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its environment.
    """
    ports = dict(zip(("s3", "master", "volume", "filer", "admin"), free_ports(5), strict=True))
    off = ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    arguments = [*off, *(f"-{name}.port={port}" for name, port in ports.items())]
    mini = [_WEED, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={bucket}"]
    return [*mini, *arguments], ports["s3"]


def s3_answers(endpoint: str, bucket: str, *, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> bool:
    """Say whether the server answers and has the bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
    )
    with contextlib.suppress(BotoCoreError, ClientError):
        client.head_bucket(Bucket=bucket)
        return True
    return False


def free_ports(count: int) -> list[int]:
    """Return free ports of loopback, each with the port 10,000 above it free too, which SeaweedFS takes.

    They are below those that Linux gives to outgoing connections, each worker of the tests has its own thousand, and
    none is given twice: nobody takes one before its server starts.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 10_500 + worker % 8 * 1000
    candidates = random.SystemRandom().sample(range(first, first + 1000), 1000)
    found = list(itertools.islice(filter(_is_free, (one for one in candidates if one not in _given)), count))
    _given.update(found)
    return found


_given: set[int] = set()


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", port))
        other.bind(("127.0.0.1", port + 10_000))
        return True
    return False


def _wait_for(endpoint: str, bucket: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            break
        if s3_answers(endpoint, bucket):
            return
        time.sleep(0.25)
    raise RuntimeError(f"weed did not start: {log.read_text()[-2000:]}")

"""Feed damaged inputs to everything that reads a stranger's bytes, for some minutes; `make fuzz MINUTES=10`.

    python -m tests.support.fuzz --minutes 10 --first 0

Input number N is always the same bytes, of the kind N modulo the number of kinds: images and DICOM files, zips,
labels.csv, params.yaml, files that stages leave for later ones, requests to the web app, what readers say, answers of a
DICOMweb service, and messages to the watch of aliases. What is expected is a
result or one of the product's own errors, within ten seconds of one core. Anything else is printed with its number;
`--first N --inputs 1` shows it again. A child process does the work, so that a crash of a decoder is found too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import numpy as np

from cxr.common.archives import unpack
from cxr.common.errors import CxrError
from cxr.common.files import write_json
from cxr.common.params import read_params
from cxr.dataset.corrections import read_corrections
from cxr.dataset.image_array import read_image_array
from cxr.dataset.layouts.table import LAYOUTS
from cxr.dataset.manifest import read_split
from cxr.evaluation.result_files import read_calibration, read_metrics, read_predictions
from cxr.inference.feedback import Feedback, add_feedback, read_feedback
from cxr.models.bundle import read_spec
from cxr.pacs.dicomweb import DicomWeb
from flows.watch import Watch, handler
from tests.support.images import hostile_files
from tests.support.images.dicom_images import dicom_image, picture
from tests.support.project import PROJECT
from tests.support.services.dicomweb_service import DicomWebService, multipart, serve_dicomweb
from tests.support.services.servers import serving

MOST_SECONDS = 10.0
_INPUTS_A_CHILD = 600
_LABELS = (
    "path,label,patient_id,acquired\n"
    "a.png,normal,1,2020-01-01\nb/c.png,viral,2,2020-01-02\nd.dcm,bacterial,,2020-01-03\n"
)


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Return `data` with some bytes changed, removed, repeated or replaced by telling ones."""
    changed = bytearray(data)
    words = [
        b"",
        b"\0",
        b"\xff\xfe",
        b'"',
        b"\n",
        b",",
        b"[]",
        b"{",
        b"-1",
        b"1e999",
        b"nan",
        b"../",
        b"9" * 400,
        b"null",
    ]
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, len(changed) + 1))
        length = int(rng.integers(0, 40))
        match int(rng.integers(5)):
            case 0:
                changed[at : at + length] = rng.bytes(length)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length] * int(rng.integers(1, 20))
            case 3:
                del changed[at:]
            case _:
                changed[at : at + int(rng.integers(0, 3))] = words[int(rng.integers(len(words)))]
    return bytes(changed)


def image(number: int, rng: np.random.Generator) -> None:
    """Read an image or a DICOM file as the product does."""
    del rng
    if (outcome := hostile_files.read(hostile_files.hostile_file(number))).startswith("OTHER"):
        raise AssertionError(outcome)


def archive(number: int, rng: np.random.Generator) -> None:
    """Unpack a zip."""
    del number
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name in ("chest_xray/train/NORMAL/IM-1.jpeg", "a/b.txt", "c"):
            made.writestr(name, rng.bytes(50) + bytes(2000))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.zip"
        path.write_bytes(damaged(rng, buffer.getvalue()))
        unpack(path, Path(folder) / "downloads")


def labels(number: int, rng: np.random.Generator) -> None:
    """Read labels.csv of a hospital's folder, and the labels that a reader corrected."""
    del number
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.png", "b/c.png", "d.dcm"):
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).touch()
        text = damaged(rng, _LABELS.encode())
        (Path(folder) / "labels.csv").write_bytes(text)
        with contextlib.suppress(CxrError):
            read_corrections(Path(folder) / "labels.csv")
        LAYOUTS["labelled"].open(Path(folder))


def parameters(number: int, rng: np.random.Generator) -> None:
    """Read params.yaml."""
    del number
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(damaged(rng, (PROJECT / "params.yaml").read_bytes()))
        read_params(path)


def artifacts(number: int, rng: np.random.Generator) -> None:
    """Read a file that a stage left for a later one."""
    reader, name, content = _artifacts()[number % len(_artifacts())]
    with tempfile.TemporaryDirectory() as folder:
        for other, whole in {file: text for _, file, text in _artifacts()}.items():
            (Path(folder) / other).write_bytes(whole)
        (Path(folder) / name).write_bytes(damaged(rng, content))
        reader(Path(folder))


def request(number: int, rng: np.random.Generator) -> None:
    """Send an image, or what is left of one, to the web app."""
    data = hostile_files.hostile_file(number) if number % 2 else damaged(rng, _image())
    path = ("/predict", "/pixels", "/report", "/overlay")[number // 2 % 4]
    query = damaged(rng, b"image=true&heat=true&class=viral").decode("latin-1")
    answer = httpx.post(f"{_address()}{path}", params=query, content=data, timeout=60)
    if answer.status_code >= 500:
        raise AssertionError(f"{path}?{query}: status {answer.status_code} {answer.text[:200]}")


def feedback(number: int, rng: np.random.Generator) -> None:
    """Send what a reader says to the web app, and read a table of it."""
    del number
    said = {"sha256": "a" * 64, "model_version": "1", "answer": "viral", "label": "normal", "note": "in words"}
    answer = httpx.post(f"{_address()}/feedback", content=damaged(rng, json.dumps(said).encode()), timeout=60)
    if answer.status_code >= 500:
        raise AssertionError(f"/feedback: status {answer.status_code} {answer.text[:200]}")
    with tempfile.TemporaryDirectory() as folder:
        table, row = Path(folder) / "feedback.csv", Feedback("2026-03-01", *said.values())
        for _ in range(3):
            add_feedback(table, row)
        table.write_bytes(damaged(rng, table.read_bytes()))
        with contextlib.suppress(CxrError):
            read_feedback(table)
        add_feedback(table, row)
        assert table.read_bytes().endswith(b",in words\n"), "a row is added whole"


def dicomweb(number: int, rng: np.random.Generator) -> None:
    """Follow a DICOMweb service whose answers to a search, or whose files, are damaged."""
    service = _dicomweb_service()
    with tempfile.TemporaryDirectory() as folder:
        pacs = DicomWeb(service.url, Path(folder) / "found", days=0)
        service.garbage = damaged(rng, _QIDO) if number % 2 else None
        service.multipart = damaged(rng, multipart(dicom_image(picture(16, 16)))) if rng.integers(2) else None
        for line in pacs.changes(0, 10).lines:
            pacs.instance(line.resource)
            pacs.file(line.resource)
        pacs.report_uids("1.2.3")


def message(number: int, rng: np.random.Generator) -> None:
    """Send a message to the watch of aliases."""
    del number
    server = _watch()
    with socket.create_connection(server.server_address[:2], timeout=60) as connection:
        connection.sendall(damaged(rng, _MESSAGE))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    if server.errors:
        raise server.errors.pop()


Kind = Callable[[int, np.random.Generator], None]
KINDS: tuple[Kind, ...] = (
    image, archive, labels, parameters, artifacts, request, feedback, dicomweb, message
)  # fmt: skip


def run_input(number: int) -> str:
    """Run one input; return "result" or the name of the product's error. Raises what the product must not raise."""
    began = time.process_time()  # of this process, whose other threads are the web app
    message, outcome = "", "result"
    try:
        KINDS[number % len(KINDS)](number, np.random.default_rng(number))
    except CxrError as error:
        message, outcome = str(error), type(error).__name__
    seconds = time.process_time() - began
    assert "\n" not in message, "a message has one line"
    assert seconds < MOST_SECONDS, f"took {seconds:.0f} s"
    return outcome


@cache
def _artifacts() -> list[tuple[Callable[[Path], object], str, bytes]]:
    import pandas as pd

    from cxr.dataset.image_array import write_index
    from cxr.imaging.preprocess import Preprocessing
    from tests.support.projects import registry_project
    from tests.support.projects.stage_files import write_split_files

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        rows = [(f"i{n}", ("train", "validation", "test")[n % 3], "normal") for n in range(9)]
        write_split_files(folder, pd.DataFrame(rows, columns=["image_id", "split", "label"]))
        np.save(folder / "images.npy", np.zeros((3, 4, 4), np.uint8))
        write_index(folder, ["i0", "i1", "i2"], Preprocessing(4, "stretch", "none", 2.0, 8, 100))
        registry_project.write_predictions(folder / "predictions.csv", [("i2", "normal", "viral")])
        write_json(folder / "metrics.json", registry_project.metrics(1.0, n_test=1))
        (folder / "calibration.json").write_text('{"temperature": 1.5, "bias": [0.0], "refer_below": null}')
        import torch

        from cxr.models.bundle import write_bundle

        write_bundle(folder, {"w": torch.zeros(2)}, registry_project.spec())
        readers: dict[str, Callable[[Path], object]] = {
            "splits.csv": read_split,
            "split.json": read_split,
            "images.npy": read_image_array,
            "index.csv": read_image_array,
            "preprocessing.json": read_image_array,
            "predictions.csv": lambda here: read_predictions(here / "predictions.csv"),
            "metrics.json": lambda here: read_metrics(here / "metrics.json"),
            "calibration.json": read_calibration,
            "model.json": read_spec,
        }
        return [(reader, name, (folder / name).read_bytes()) for name, reader in readers.items()]


@cache
def _image() -> bytes:
    from tests.support.services.webapp_server import IMAGE

    return IMAGE


SERVERS = contextlib.ExitStack()
"""What inputs are sent to: started with the first of its kind, ended by who enters this."""


@cache
def _address() -> str:
    from tests.support.services.webapp_server import serve_here, tiny_classifier

    return SERVERS.enter_context(serve_here(tiny_classifier())).address


_QIDO = json.dumps(
    [
        {
            "00080018": {"vr": "UI", "Value": ["1.2.3.4.5"]},
            "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
            "0020000E": {"vr": "UI", "Value": ["1.2.3.4"]},
            "00080060": {"vr": "CS", "Value": ["DX"]},
            "00201208": {"vr": "IS", "Value": [1]},
        }
    ]
).encode()
_MESSAGE = (
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-MLflow-Delivery-Id: one\r\nX-MLflow-Timestamp: 1770000000\r\n"
    b"X-MLflow-Signature: v1,AAAA\r\nContent-Length: 2\r\n\r\n{}"
)


@cache
def _dicomweb_service() -> DicomWebService:
    service = SERVERS.enter_context(serve_dicomweb())
    service.images = {"1.2.3": ["1.2.3.4.5"]}
    return service


class _WatchServer(ThreadingHTTPServer):
    """The receiver of the watch; keeps what its handlers raise."""

    errors: ClassVar[list[BaseException]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep what was raised."""
        del request, client_address
        if error := sys.exception():
            self.errors.append(error)


@cache
def _watch() -> _WatchServer:
    server = _WatchServer(("127.0.0.1", 0), handler(Watch("a secret")))
    SERVERS.enter_context(serving(server))
    return server


def run_inputs(first: int, count: int, until: float, at: Path | None) -> Iterator[tuple[int, str]]:
    """Run inputs one after another, as long as there is time; yield the number and the outcome of each."""
    for number in range(first, first + count):
        if time.time() > until:
            return
        if at:
            at.write_text(str(number))
        try:
            yield number, run_input(number)
        except Exception:  # what this program looks for
            yield number, "FOUND " + traceback.format_exc()


def _child(first: int, count: int, until: float, at: Path) -> bool:
    """Run inputs here and print what was found; return whether all was well."""
    seen: Counter[str] = Counter()
    with SERVERS:
        for number, outcome in run_inputs(first, count, until, at):
            kind = KINDS[number % len(KINDS)].__name__
            seen[f"{kind}: {outcome.split(chr(10))[0]}"] += 1
            if outcome.startswith("FOUND"):
                sys.stdout.write(f"input {number} ({kind}): {outcome}\n")
    for name, times in sorted(seen.items()):
        sys.stdout.write(f"  {times:5d} {name}\n")
    return not any("FOUND" in name for name in seen)


def main() -> None:
    """Read the command line, then run children until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="how many inputs; default: until the time ends")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    until = time.time() + 60 * given.minutes
    os.environ.setdefault("CXR_PATIENT_KEY", "0" * 64)
    if given.child:
        sys.exit(not _child(given.first, given.inputs, until, given.child))
    number, end, clean = given.first, given.first + given.inputs, True
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch) / "at"
        while time.time() < until and number < end:
            count = min(_INPUTS_A_CHILD, end - number)
            minutes = (until - time.time()) / 60
            sys.stdout.write(f"inputs {number} to {number + count - 1}\n")
            sys.stdout.flush()
            command = [sys.executable, "-m", "tests.support.fuzz", "--child", str(at), "--first", str(number)]
            done = subprocess.run([*command, "--inputs", str(count), "--minutes", str(minutes)], check=False)
            clean &= done.returncode == 0
            if done.returncode < 0:  # a signal: the rest of the inputs comes next
                sys.stdout.write(f"input {at.read_text()}: ended by signal {-done.returncode}\n")
                number = int(at.read_text()) + 1
            else:
                number += count
    sys.exit(not clean)


if __name__ == "__main__":
    main()

"""Feed damaged inputs to everything that reads a stranger's bytes, for some minutes; `make fuzz MINUTES=10`.

    python -m tests.support.fuzz --minutes 10 --first 0

Input number N is always the same bytes, of the kind N modulo the number of kinds: images and DICOM files, zips,
labels.csv, params.yaml, files that stages leave for later ones, and requests to the web app. What is expected is a
result or one of the product's own errors, within ten seconds of one core. Anything else is printed with its number;
`--first N --inputs 1` shows it again. A child process does the work, so that a crash of a decoder is found too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import httpx
import numpy as np

from cxr.common.archives import unpack
from cxr.common.errors import CxrError
from cxr.common.files import write_json
from cxr.common.params import read_params
from cxr.dataset.corrections import read_corrections
from cxr.dataset.image_array import read_image_array
from cxr.dataset.layouts import LAYOUTS
from cxr.dataset.manifest import read_split
from cxr.evaluation.result_files import read_calibration, read_metrics, read_predictions
from cxr.models.bundle import read_spec
from tests.support import hostile_files
from tests.support.project import PROJECT

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


Kind = Callable[[int, np.random.Generator], None]
KINDS: tuple[Kind, ...] = (image, archive, labels, parameters, artifacts, request)


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
    from tests.support import registry_project
    from tests.support.stage_files import write_split_files

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
    from tests.support.webapp_server import IMAGE

    return IMAGE


_SERVERS = contextlib.ExitStack()


@cache
def _address() -> str:
    from tests.support.webapp_server import serve_here, tiny_classifier

    return _SERVERS.enter_context(serve_here(tiny_classifier())).address


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
    with _SERVERS:
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

"""Load test of the web app: 32 clients without a pause, then a single one.

    ./run benchmarks.webapp_load FOLDER [--seconds 90] [--clients 32] [--port 8765]

Sends the images of FOLDER unchanged to `./run app`, which it starts with the store in MLFLOW_TRACKING_URI. Prints the
responses by status, images a second, latencies, and what the service and its decoding processes take together:
processor time, and memory after the warm-up, in the middle and at the end. The exit code is 1 if a response was neither
200 nor 429.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

HEADERS = {"Content-Type": "application/octet-stream"}
IMAGES = 200


@dataclass
class Responses:
    """The responses to all clients, and the latency of each."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: str, seconds: float, version: str = "") -> None:
        """Count one response."""
        with self.lock:
            self.statuses[status] += 1
            if status == "200":
                self.seconds.append(seconds)
                self.versions.add(version)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--engine", choices=("torch", "openvino"), default="openvino")
    given = parser.parse_args()
    files = sorted(path for path in given.folder.rglob("*") if path.suffix.lower() in {".jpeg", ".jpg", ".png"})
    images = [path.read_bytes() for path in files[:: max(1, len(files) // IMAGES)][:IMAGES]]
    address = f"http://127.0.0.1:{given.port}"
    command = [sys.executable, "-m", "tasks.app", "--port", str(given.port), "--engine", given.engine]
    started = time.perf_counter()
    with subprocess.Popen(command) as server:
        try:
            _wait(address, server)
            print(f"ready after {time.perf_counter() - started:.1f} s, engine {_engine(address)}, {len(images)} images")
            return _measure(address, psutil.Process(server.pid), images, seconds=given.seconds, clients=given.clients)
        finally:
            server.terminate()
            server.wait()


def _measure(address: str, service: psutil.Process, images: list[bytes], *, seconds: float, clients: int) -> int:
    # Heat maps need torch, which is loaded in the background: its memory must not look like a leak.
    httpx.post(f"{address}/predict", params={"heat": "true"}, content=images[0], headers=HEADERS, timeout=300)
    _load(address, images, seconds=seconds / 9, clients=clients)  # pools, caches and arenas reach their full size
    memory, cpu_seconds, batches = [_memory_mb(service)], _cpu_seconds(service), _batches(address)
    halves = []
    for _ in range(2):
        halves.append(_load(address, images, seconds=seconds / 2, clients=clients))
        memory.append(_memory_mb(service))
    cpu_seconds = _cpu_seconds(service) - cpu_seconds
    answered, taken = (after - before for after, before in zip(_batches(address), batches, strict=True))
    single = _load(address, images, seconds=seconds / 6, clients=1)
    statuses = sum((half.statuses for half in halves), Counter())
    latencies = [one for half in halves for one in half.seconds]
    print(f"{clients} clients, {seconds:g} s: {json.dumps(statuses)}, {len(latencies) / seconds:.1f} images/s")
    print(f"  seconds: {_percentiles(latencies)}")
    print(f"  CPU time of the service: {1000 * cpu_seconds / max(1, len(latencies)):.1f} ms an image")
    print(f"  images in a batch, mean: {answered / max(1, taken):.1f}")
    print(f"  MB in memory: {', '.join(f'{one:.0f}' for one in memory)} (after warm-up, middle, end)")
    print(f"1 client: {json.dumps(single.statuses)}, {len(single.seconds) / (seconds / 6):.1f} images/s")
    print(f"  seconds: {_percentiles(single.seconds)}")
    return int(bool((statuses | single.statuses).keys() - {"200", "429"}))


def _load(address: str, images: list[bytes], *, seconds: float, clients: int) -> Responses:
    responses, until = Responses(), time.perf_counter() + seconds

    def send(number: int) -> None:
        with httpx.Client(timeout=120) as client:
            while time.perf_counter() < until:
                started = time.perf_counter()
                image = images[number % len(images)]
                try:
                    response = client.post(f"{address}/predict", content=image, headers=HEADERS)
                    version = response.json().get("model_version", "")
                    responses.add(str(response.status_code), time.perf_counter() - started, version)
                    if response.status_code == 429:
                        time.sleep(0.2)
                except httpx.HTTPError as error:
                    responses.add(type(error).__name__, 0.0)
                number += clients

    threads = [threading.Thread(target=send, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return responses


def _percentiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {cuts[49]:.3f}, p95 {cuts[94]:.3f}, p99 {cuts[98]:.3f}, longest {max(seconds):.3f}"


def _family(service: psutil.Process) -> list[psutil.Process]:
    """Return the service and its decoding processes."""
    return [service, *service.children(recursive=True)]


def _memory_mb(service: psutil.Process) -> float:
    """Return what would be free without them: pages that they share count once."""
    return sum(one.memory_full_info().pss for one in _family(service)) / 1e6


def _cpu_seconds(service: psutil.Process) -> float:
    return sum(one.cpu_times().user + one.cpu_times().system for one in _family(service))


def _batches(address: str) -> tuple[float, float]:
    """Return how many images the model has answered, and in how many batches."""
    metrics = httpx.get(f"{address}/metrics").text
    images, batches = (re.search(rf"^cxr_batch_images_{of} (\S+)", metrics, re.MULTILINE) for of in ("sum", "count"))
    return (float(images.group(1)), float(batches.group(1))) if images and batches else (0.0, 0.0)


def _engine(address: str) -> str:
    return str(httpx.get(f"{address}/model").json()["engine"])


def _wait(address: str, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        try:
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the service stopped before it was ready")


if __name__ == "__main__":
    sys.exit(main())

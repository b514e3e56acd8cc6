"""Threads that read and decode the next images while the network computes, with a few batches in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_BATCHES_AHEAD = 2

Given = TypeVar("Given")
Prepared = TypeVar("Prepared")


def prepared_batches(
    given: Sequence[Given], prepare: Callable[[Given], Prepared], *, batch_size: int, workers: int
) -> Generator[list[Prepared], None, None]:
    """Yield what `prepare` makes of `given`, in order, in lists of `batch_size`; the last may be shorter.

    OpenCV decodes, and hashlib hashes, beside other threads. What `prepare` raises is raised here.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="image")
    waiting: deque[list[Future[Prepared]]] = deque()
    try:
        for start in range(0, len(given), batch_size):
            waiting.append([pool.submit(prepare, one) for one in given[start : start + batch_size]])
            if len(waiting) > _BATCHES_AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)

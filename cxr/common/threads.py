"""Work through many items in threads, with few of them in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_PENDING_PER_WORKER = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """Yield `function(item)` of each item, in their order; a few items of each thread wait or are in progress.

    `ThreadPoolExecutor.map` takes all items at once: with tens of thousands, a kilobyte for each.

    Args:
        function: called in threads.
        items: taken as they are needed.
        workers: threads; 0 means one per core.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_threads(workers)) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= most_pending(workers):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def most_pending(workers: int) -> int:
    """Return the largest number of items that `map_in_order` has taken and not yet returned."""
    return _threads(workers) * _PENDING_PER_WORKER


def _threads(workers: int) -> int:
    return workers or os.cpu_count() or 1

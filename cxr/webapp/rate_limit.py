"""How many requests one client may send in a minute.

The work itself is shared in turn (cxr.webapp.fair_turns), and what costs much is refused before it starts
(cxr.imaging.decode). This limit is above what a machine answers: it stops floods of requests that cost little each.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict

from cxr.webapp.limits import RejectedError

_MOST_CLIENTS = 10_000


class RateLimit:
    """A bucket of `per_minute` requests for each client, which fills again within a minute; for one event loop.

    `what` names the requests in the message.
    """

    def __init__(self, per_minute: int, what: str) -> None:
        self.per_minute, self.what = per_minute, what
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count a request of a client. Raises RejectedError above the limit."""
        now = time.monotonic()
        left, at = self._buckets.pop(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - at) * self.per_minute / 60)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)  # the one that was silent longest
        if left < 1:
            raise RejectedError(
                429,
                "too many requests",
                f"one client may send {self.per_minute:,} {self.what} a minute; send it again later",
                retry_seconds=math.ceil((1 - left) * 60 / self.per_minute),
            )

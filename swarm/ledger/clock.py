"""The ledger's clock between blocks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from swarm.errors import LedgerError
from swarm.ledger.records import Block

RESYNC_SECONDS = 2.0  # the least time between two looks at the chain
KEPT_OFFSETS = 32  # enough to meet a fresh block, few enough to follow a drifting machine's clock


class LedgerClock:
    """Estimates the ledger's time in Unix seconds from the latest block and this machine's monotonic clock.

    Every new block gives a lower bound: the time was at least its timestamp when we saw it. The best of the
    last 32 bounds is the estimate. It is never ahead of a chain whose blocks carry the time of their making,
    and behind by at most one block interval, one second of rounding, one request and, before the first new
    block was seen, up to the age of the last one. `now` never goes back. While the chain makes no block or
    does not answer, it goes on.
    """

    def __init__(
        self, latest_block: Callable[[], Block], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._latest_block = latest_block
        self._monotonic = monotonic
        self._polling = threading.Lock()
        self._offsets: deque[float] = deque(maxlen=KEPT_OFFSETS)
        self._offset: float | None = None  # the best of them
        self._block_number = -1
        self._polled_at = float("-inf")
        self._last = float("-inf")

    def now(self) -> float:
        """The estimate, with one call to the chain at most every two seconds. Any thread may call it.

        Raises `LedgerUnavailable` only before the chain's first answer, if no time was assumed.
        """
        stale = self._offset is None or self._monotonic() - self._polled_at >= RESYNC_SECONDS
        # While one thread asks the chain, others take the estimate as it is, if there is one.
        if stale and self._polling.acquire(blocking=self._offset is None):
            try:
                self._poll()
            finally:
                self._polled_at = self._monotonic()
                self._polling.release()
        if not self._offsets:
            return self.estimate()  # assumed: the chain's first answer may set it back
        self._last = max(self._last, self.estimate())
        return self._last

    def assume(self, unix_seconds: float) -> None:
        """Take this as the time, until the chain answers for the first time."""
        if self._offset is None:
            self._offset = unix_seconds - self._monotonic()

    def estimate(self) -> float:
        """The estimate as it is, without a call to the chain. Only after the first `now` or `assume`."""
        assert self._offset is not None
        return self._monotonic() + self._offset

    def observe(self, block: Block) -> None:
        """Take in the latest block, from whoever asked for it."""
        if block.number != self._block_number:
            self._block_number = block.number
            self._offsets.append(block.timestamp - self._monotonic())
        self._offset = max(self._offsets)

    def _poll(self) -> None:
        try:
            self.observe(self._latest_block())
        except LedgerError:
            if self._offset is None:
                raise

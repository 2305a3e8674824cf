"""All events of the contract, block range after block range, as large as the server allows."""

from __future__ import annotations

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.client import LedgerClient
from swarm.ledger.logs import Logged
from swarm.ledger.registry import ANSWERS_TO_GROW
from swarm.ledger.rpc import LOG_BLOCKS


class EventReader:
    """Reads from block `next` on. Every refusal halves the blocks of a question; answers let them grow again.

    Servers limit what one question may cover, each in words of its own. `ledger` is for its user's thread.
    """

    def __init__(self, ledger: LedgerClient, first: int) -> None:
        self.next = first
        self._ledger = ledger
        self._blocks = LOG_BLOCKS  # at once
        self._answers = 0  # since `_blocks` changed

    def end(self, last: int) -> int:
        """The last block of the next question, if there are blocks up to `last`."""
        return min(last, self.next + self._blocks - 1)

    def read(self, last: int) -> list[Logged] | None:
        """The events of the next blocks, up to `end(last)`, by one question.

        None if the server refused: then less is asked for the next time. `LedgerError` if it is away, or does
        not even answer for one block; the next call goes on where this one was.
        """
        end = self.end(last)
        try:
            found = self._ledger.events(self.next, end)
        except LedgerError as error:
            is_last = end == self.next
            self._blocks, self._answers = max(1, (end + 1 - self.next) // 2), 0
            if is_last or isinstance(error, LedgerUnavailable):
                raise
            return None
        self.next = end + 1
        self._answers += 1
        if self._answers == ANSWERS_TO_GROW:
            self._blocks, self._answers = min(2 * self._blocks, LOG_BLOCKS), 0
        return found

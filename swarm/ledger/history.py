"""All that happened on the ledger since the deployment, round by round: what reputation is made from."""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.client import LedgerClient
from swarm.ledger.event_reader import EventReader
from swarm.ledger.logs import Logged
from swarm.ledger.records import Block, Dated, Event, Reported
from swarm.ledger.registry import REORG_BLOCKS
from swarm.ledger.rpc import LOG_BLOCKS


class HistoryChanged(LedgerError):
    """The chain took back what was read already: everything after it is another story. Begin again."""


class Begun(Struct, frozen=True):
    """A round that has begun, and what happened in the one before it."""

    number: int
    beacon: bytes | None  # None: the ledger made no block in the round
    events: list[Event]  # of clock round `number` - 1, in the ledger's order; for round 0 all before it


class History:
    """Reads the rounds one after the other. `ledger` is for its user's thread alone.

    Of old rounds, a question about logs covers as many blocks as the server allows. The newest 32 blocks are
    read only up to the round that is asked for.
    """

    def __init__(self, ledger: LedgerClient) -> None:
        self._ledger = ledger
        self._number = 0  # of the next round
        self._boundary: Block | None = None  # the first block of the last round, or of a later one
        self._is_recent = False  # that block was so new that the chain might take it back
        self._latest = -1  # the number of the latest block when it was last asked for
        self._reader: EventReader | None = None
        self._read: deque[Logged] = deque()  # events that are of no round yet

    def next(self) -> Begun | None:
        """The next round; None if it has not begun on the ledger.

        `LedgerError` if the ledger does not answer, or not this; the next call goes on where this one was.
        But after `HistoryChanged` a new `History` is needed, with a new client.
        """
        ledger, number = self._ledger, self._number
        boundary = ledger.first_block(number)
        if boundary is None:
            return None
        self._check_last(boundary)
        self._read_up_to(boundary.number)
        events: list[Event] = []
        while self._read and self._read[0].block_number < boundary.number:
            events.append(dated(self._read.popleft(), number - 1))
        is_inside = boundary.timestamp < ledger.genesis + (number + 1) * ledger.round_seconds
        self._number, self._boundary = number + 1, boundary
        self._is_recent = boundary.number > self._latest - REORG_BLOCKS
        return Begun(number, boundary.hash if is_inside else None, events)

    def _check_last(self, boundary: Block) -> None:
        """Look whether the last round still begins with the block that it did."""
        if self._boundary is None or not self._is_recent:
            return
        last, host = self._boundary, self._ledger.host
        found = self._ledger.rpc.block_hash(last.number)
        if found is None and boundary.number > last.number:  # another of the server's machines, that lags
            raise LedgerUnavailable(f"the ledger at {host} has no block {last.number} yet, and had it before")
        if found != last.hash:
            raise HistoryChanged(f"the ledger at {host} has another block {last.number} than before")

    def _read_up_to(self, end: int) -> None:
        """Read the blocks below `end`, and beyond while they are old."""
        ledger = self._ledger
        if self._reader is None:
            self._reader = EventReader(ledger, ledger.deployment_block)
        while (first := self._reader.next) < end:
            if self._latest < first + LOG_BLOCKS:
                self._latest = ledger.rpc.block(None).number
            self._read.extend(self._reader.read(max(end - 1, self._latest - REORG_BLOCKS)) or ())


def dated(event: Logged, clock_round: int) -> Event:
    """An event of a block in that round of the clock; `HistoryChanged` if a report says otherwise."""
    if not isinstance(event, Reported):
        return event
    if event.late != (event.round < clock_round) or event.round > clock_round:
        raise HistoryChanged(f"a report of round {event.round} is in a block of round {clock_round}")
    return Dated(report=event, clock_round=clock_round)

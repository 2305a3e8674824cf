"""Watches the ledger in a thread of its own, so that one that is slow or away never holds up a round."""

from __future__ import annotations

import logging
import threading
import time
from typing import NamedTuple

from swarm.errors import LedgerError
from swarm.ledger.background import Background
from swarm.ledger.client import LedgerClient
from swarm.ledger.records import Block
from swarm.ledger.refusals import kind_of_trouble
from swarm.ledger.registry import Registry
from swarm.ledger.rpc import REQUEST_SECONDS

log = logging.getLogger("swarm.ledger")

# Between looks, in seconds: while a round's beacon is waited for, a hundredth of a round; else a twentieth.
MIN_POLL, MAX_POLL = 0.1, 2.0
MIN_IDLE, MAX_IDLE = 1.0, 10.0
FIRST_BACKOFF, MAX_BACKOFF = 0.5, 15.0  # seconds, doubling, while the ledger is away
STOP_SECONDS = 1.0
NO_BLOCK = "the ledger made no block"


class Seen(NamedTuple):
    """What a round is drawn from."""

    beacon: bytes
    active: int


class Follower:
    """Knows the ledger's time, each round's beacon, the bootnodes and who is registered (`registry`).

    Nothing here blocks but `await_round`.
    `ledger` is for the follower's thread alone; its clock has a time already (asked or assumed).
    """

    def __init__(self, ledger: LedgerClient) -> None:
        self._ledger = ledger
        self._changed = threading.Condition()
        self._seen: dict[int, Seen] = {}
        self._bootnodes: list[str] = []
        self.lonely = False  # set it while bootnodes are urgent: they are then read at every look
        self._latest: Block | None = None
        self._checked_in: int | None = None  # the round in which we made sure of the chain
        self._away_since: float | None = None
        self._backoff = FIRST_BACKOFF
        self._kind = ""  # of the trouble that was logged last
        self.trouble = NO_BLOCK  # why there is no beacon
        self._stopping = False
        self._wake = threading.Event()
        self.registry = Registry(ledger, self._wake.set)
        self._thread = Background("follower", self._run)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; a request under way is not waited for."""
        self._stopping = True
        self._wake.set()
        self._thread.join(STOP_SECONDS)

    def now(self) -> float:
        """The ledger's time in Unix seconds, as far as it is known."""
        return self._ledger.now_without_asking()

    def bootnodes(self) -> list[str]:
        """The bootnodes that the ledger listed last."""
        return self._bootnodes

    def await_round(self, number: int, until: float) -> Seen | None:
        """A round's beacon and count of active peers; None if not seen by `until` (Unix seconds)."""
        self._wake.set()
        with self._changed:
            while number not in self._seen:
                self._thread.check()
                left = until - self.now()
                if left <= 0:
                    return None
                self._changed.wait(min(left, MIN_IDLE))
            return self._seen[number]

    def _run(self) -> None:
        while not self._stopping:
            try:
                pause = self._look()
            except LedgerError as error:
                pause = self._away(error)
            self._wake.wait(pause)
            self._wake.clear()

    def _look(self) -> float:
        """Look at the chain once; how many seconds until the next look."""
        ledger = self._ledger
        block = ledger.rpc.block(None)
        if self._is_surprising(block):
            ledger.check_chain()  # another one may answer at this URL now: its time is not ours
        ledger.observe(block)
        number = self._round()
        self._latest, self._checked_in = block, number
        poll = min(max(ledger.round_seconds / 100, MIN_POLL), MAX_POLL)
        idle = min(max(ledger.round_seconds / 20, MIN_IDLE), MAX_IDLE)
        if number >= 0 and number not in self._seen:
            beacon = ledger.beacon(number)
            if beacon is None:
                self._back()
                return poll
            seen = Seen(beacon, ledger.active(number))
            with self._changed:
                self._seen = {number: seen}
                self._changed.notify_all()
            self._bootnodes = ledger.bootnodes()
        if self.lonely:
            self._bootnodes = ledger.bootnodes()
            idle = MIN_IDLE
        self._back()
        next_round = ledger.genesis + (number + 1) * ledger.round_seconds
        # An answer about the registered that hangs must not hide the next beacon.
        if next_round - self.now() > min(REQUEST_SECONDS, ledger.round_seconds / 4):
            idle = min(idle, self.registry.look(number))
        return min(idle, max(poll, next_round - self.now()))

    def _round(self) -> int:
        return int((self.now() - self._ledger.genesis) // self._ledger.round_seconds)

    def _is_surprising(self, block: Block) -> bool:
        """Whether to make sure of the chain: once a round, after trouble, and when time or number jump."""
        off = abs(block.timestamp - self.now())
        return (
            self._away_since is not None
            or self._latest is None
            or block.number < self._latest.number
            or self._checked_in != self._round()
            or off > self._ledger.round_seconds
        )

    def _away(self, error: LedgerError) -> float:
        if self._away_since is None:
            self._away_since = time.monotonic()
        if kind_of_trouble(error) != self._kind:
            log.warning("ledger away, training goes on in rounds of our own error=%r", str(error))
        self._kind, self.trouble = kind_of_trouble(error), str(error)
        self._backoff, pause = min(2 * self._backoff, MAX_BACKOFF), self._backoff
        return pause

    def _back(self) -> None:
        if self._away_since is not None:
            log.info("ledger back after_seconds=%.0f", time.monotonic() - self._away_since)
        self._away_since, self._backoff = None, FIRST_BACKOFF
        self._kind, self.trouble = "", NO_BLOCK

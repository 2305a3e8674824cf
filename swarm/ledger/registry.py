"""Who is registered, in this machine's memory: so that a node can refuse strangers' records one by one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.client import PAGE, LedgerClient
from swarm.ledger.rpc import LOG_BLOCKS, MAX_LOG_QUESTIONS

log = logging.getLogger("swarm.ledger")

# The least time between two readings, however many strangers are asked about; or a hundredth of a round.
MIN_READING_SECONDS = 2.0
STEP_SECONDS = 0.1  # between the questions of a reading
REORG_BLOCKS = 32  # an epoch of Ethereum; read again each time
ANSWERS_TO_GROW = 16  # ranges in a row; then twice as many blocks are tried again
FIRST_BACKOFF, MAX_BACKOFF = 0.1, 15.0  # seconds, doubling; a refusal after the longest is taken as final


class Span(NamedTuple):
    """Blocks, both ends included."""

    first: int
    last: int


class Registry:
    """The peers that the ledger has as registered. Read in the follower's thread, asked from any other.

    The first reading takes the peers that ever reported from the contract's storage, and all others from the
    logs, the newest first, back to the deployment. Later ones take the logs since the last one, once in every
    round and when somebody unknown was asked about. Servers limit what one question about logs may cover,
    each in its own words (too many blocks, too many results, too old; an error, HTTP 413 or a time-out), so
    every refusal halves the range. When a single block stays refused though newer ones were answered, the
    older ones are given up: who registered there is known once it has reported.

    Not covered: what a reorganization of over 32 blocks puts into blocks that were read already, and a
    registration or rotation that is reorganized away for good; both stay wrong until the next start.
    """

    def __init__(self, ledger: LedgerClient, wake: Callable[[], None]) -> None:
        """`ledger` is used in `look` alone; `wake` is called from any thread, to have `look` called soon."""
        self._ledger = ledger
        self._wake = wake
        # Both only grow, so events may come in any order: a retired peer is never registered again.
        self._registered: set[bytes] = set()
        self._retired: set[bytes] = set()
        self._read_round: int | None = None  # when the last complete reading was begun
        self._wanted = False  # somebody unknown was asked about since the last reading was begun
        # The reading under way, or the last one.
        self._round: int | None = None  # of its latest block
        self._latest = -1  # the number of that block
        self._begun_at = -inf  # by the machine's monotonic clock
        self._unread: list[Span] = []  # newest last; there is one while there may be more reporters
        self._may_have_more = False  # reporters
        self._reporters = 0  # how many of them were read
        self._gave_up = False  # on old blocks
        # How the server is asked.
        self._blocks = LOG_BLOCKS  # at once
        self._answers = 0  # ranges, since `_blocks` changed
        self._questions = 0  # ranges, since all was read
        self._backoff = FIRST_BACKOFF
        self._resume_at = -inf
        self._warned = False

    def registered(self, peer: bytes, round: int = 0) -> bool | None:
        """Whether a peer is registered. For any thread at any time: it neither waits nor raises.

        False if it was not at the last reading of the ledger, begun after `round` began, or if it is
        retired, which is for ever. None if there was no such reading (yet): the ledger is away, stands still,
        or is being read for the first time. After False it is read again soon: the peer may be new.
        """
        read_round = self._read_round  # before the sets: what ends in between must not make a wrong False
        if peer in self._retired:
            return False
        if peer in self._registered:
            return True
        if read_round is None or read_round < round:
            return None
        if not self._wanted:
            self._wanted = True
            self._wake()
        return False

    def look(self, number: int) -> float:
        """Ask the ledger's next question, if one is due; how many seconds until the next.

        Called by the follower in round `number`, when it has seen that round's beacon. Asks for one page of
        reporters or one range of logs at most. `LedgerError` only if the ledger answers nothing at all.
        """
        left = self._resume_at - time.monotonic()
        if left > 0:
            return left
        if self._wait(number) <= 0:
            self._begin()
        if self._unread:
            try:
                self._ask()
            except LedgerError as error:
                return self._refused(error)
            self._backoff = FIRST_BACKOFF
        if self._unread:
            return STEP_SECONDS
        self._read_round = self._round
        self._questions, self._warned = 0, False
        return self._wait(number)

    def _wait(self, number: int) -> float:
        """Seconds until a new reading; `inf` if none is wanted."""
        if self._round is not None and number <= self._round and not self._wanted:
            return inf
        least = max(MIN_READING_SECONDS, self._ledger.round_seconds / 100)
        return self._begun_at + least - time.monotonic()

    def _begin(self) -> None:
        ledger = self._ledger
        self._wanted = False  # before the block is asked for: who registers after it is asked about again
        block = ledger.rpc.block(None)
        first = max(ledger.deployment_block, min(self._latest, block.number) + 1 - REORG_BLOCKS)
        self._may_have_more = self._round is None or self._gave_up or bool(self._unread)
        if self._unread and self._unread[-1].last == self._latest:  # nothing of the last reading was answered
            first = min(first, self._unread.pop().first)
        self._unread.append(Span(min(first, block.number), block.number))
        self._latest, self._begun_at = block.number, time.monotonic()
        self._round = (block.timestamp - ledger.genesis) // ledger.round_seconds

    def _ask(self) -> None:
        if self._may_have_more:
            page = self._ledger.records(self._reporters)
            self._registered.update(record.peer for record in page)
            self._reporters += len(page)
            self._may_have_more = len(page) == PAGE
            return
        asked = self._next()
        registered, retired = self._ledger.changes(*asked)
        self._registered.update(registered)
        self._retired.update(retired)
        span = self._unread.pop()
        if span.first < asked.first:
            self._unread.append(Span(span.first, asked.first - 1))
        self._questions += 1
        self._answers += 1
        if self._answers == ANSWERS_TO_GROW:
            self._blocks, self._answers = min(2 * self._blocks, LOG_BLOCKS), 0
        if self._unread and self._questions >= MAX_LOG_QUESTIONS:
            self._give_up(self._unread[0].last, f"{self._questions} questions were not enough")

    def _next(self) -> Span:
        """The blocks to ask for now: the newest of the unread ones."""
        span = self._unread[-1]
        return Span(max(span.first, span.last + 1 - self._blocks), span.last)

    def _refused(self, error: LedgerError) -> float:
        """Draw the conclusion from a refusal; seconds until the next question."""
        asked = self._next()
        blocks = asked.last + 1 - asked.first
        if not self._may_have_more:
            if blocks == 1 and asked.last < self._latest and self._backoff == MAX_BACKOFF:
                self._give_up(asked.last, str(error))
                return STEP_SECONDS
            self._blocks, self._answers = max(1, blocks // 2), 0
            if blocks > 1 and not isinstance(error, LedgerUnavailable):
                return STEP_SECONDS
        if self._backoff == MAX_BACKOFF and not self._warned:
            self._warned = True
            log.warning("cannot read who is registered error=%r", str(error))
        self._backoff, pause = min(2 * self._backoff, MAX_BACKOFF), self._backoff
        self._resume_at = time.monotonic() + pause
        return pause

    def _give_up(self, last: int, reason: str) -> None:
        """Leave the blocks up to `last` unread."""
        self._unread = [span for span in self._unread if span.first > last]
        if not self._gave_up:
            log.warning(
                "peers registered up to block %d are unknown until they report error=%r", last, reason
            )
        self._gave_up = True

"""Keeps a `Reputation` up to date with the ledger, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf

from swarm.errors import LedgerError, WrongLedger
from swarm.ledger.background import Background
from swarm.ledger.client import LedgerClient
from swarm.ledger.follower import (
    FIRST_BACKOFF,
    MAX_BACKOFF,
    MAX_IDLE,
    MAX_POLL,
    MIN_IDLE,
    MIN_POLL,
    STOP_SECONDS,
)
from swarm.ledger.history import History, HistoryChanged
from swarm.ledger.refusals import kind_of_trouble
from swarm.verde.cases import Settled
from swarm.verde.reputation import Reputation
from swarm.verde.standing import Inherited

log = logging.getLogger("swarm.verde")

SAY_SECONDS = 2.0  # between lines for somebody who waits
MAX_GENERATIONS = 8  # of swarms that continue one another, read for one reputation
PROGRESS_SECONDS = 10.0  # between lines about a long history
KEPT_SETTLED = 4096  # that were not handed on yet

Progress = Callable[[str], None]
OnRound = Callable[[int, Sequence[Settled]], None]


def read_history(ledger: LedgerClient, say: Progress) -> tuple[Reputation, list[Settled]]:
    """The reputation as of now, and all that was ever settled; for commands.

    Args:
        ledger: for the caller's thread.
        say: hears how far it is, where that takes long.
    """
    history, settled = History(ledger), list[Settled]()
    reputation = begin_reputation(ledger) or Reputation(ledger.swarm_id, ledger.manifest().audits)
    said_at = time.monotonic()
    current = int((ledger.now() - ledger.genesis) // ledger.round_seconds)
    while (begun := history.next()) is not None:
        settled += reputation.enter(begun.number, begun.beacon, begun.events)
        if time.monotonic() - said_at > SAY_SECONDS:
            say(f"read {begun.number:,} of {current:,} rounds")
            said_at = time.monotonic()
    return reputation, settled


def begin_reputation(ledger: LedgerClient, generation: int = 0) -> Reputation | None:
    """The reputation with which a swarm begins: new, or what its predecessor's was at that moment.

    None while the swarm has not begun on the ledger: the predecessor may go on until then. A manifest that
    names a contract which is not the predecessor's inherits nothing. `LedgerError` if the ledger is away.
    """
    manifest = ledger.manifest()
    if ledger.first_block(0) is None:
        return None
    before = manifest.predecessor
    inherited: dict[bytes, Inherited] = {}
    if before and before.contract and "reputation" in before.keep and generation < MAX_GENERATIONS:
        old = LedgerClient(ledger.rpc_url, before.contract)
        with suppress(WrongLedger):
            old.check()
            if old.swarm_id.hex() == before.swarm:
                inherited = _inheritance(old, ledger.genesis, generation + 1)
    return Reputation(ledger.swarm_id, manifest.audits, inherited)


def _inheritance(ledger: LedgerClient, until: int, generation: int) -> dict[bytes, Inherited]:
    """What a swarm's peers take with them to one that begins then (Unix seconds)."""
    reputation, history = begin_reputation(ledger, generation), History(ledger)
    last = (until - ledger.genesis) // ledger.round_seconds
    if reputation is None:
        return {}
    while reputation.number < last and (begun := history.next()) is not None:
        reputation.enter(begun.number, begun.beacon, begun.events)
    return reputation.inheritance()


class Standings:
    """The reputation of the swarm's peers, as of the last round that the ledger has begun.

    `ledger` is for this thread alone. It reads the ledger's whole history at the start, and never ends on a
    ledger that is slow, away or forgetful: it tries again. When the chain takes back what was read, it reads
    everything anew, and meanwhile answers from what it has.
    """

    def __init__(self, ledger: LedgerClient) -> None:
        self._ledger = ledger
        self._changed = threading.Condition()
        self._reputation = Reputation(ledger.swarm_id, ledger.manifest().audits)  # shown
        self._entering: Reputation | None = None  # read into; mostly the same
        self._history = History(ledger)
        self._listeners: list[OnRound] = []
        self._settled: deque[Settled] = deque(maxlen=KEPT_SETTLED)
        self._told = -1  # the round of which the listeners heard last
        self._kind = ""  # of the trouble that was logged last
        self._backoff = FIRST_BACKOFF
        self._progress_at = -inf
        self._is_behind = False  # a line about progress was logged
        self._wake = threading.Event()
        self._stopping = False
        self._thread = Background("standings", self._run)

    def on_round(self, listener: OnRound) -> None:
        """Have `listener(number, settled)` called, in this thread, after each round that the ledger begins.

        Only when there is no later one; `settled` is what was settled since the last call. Call it before
        `start`.
        """
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; a request under way is not waited for."""
        self._stopping = True
        self._wake.set()
        self._thread.join(STOP_SECONDS)

    def ready_for(self, number: int) -> bool:
        """Whether round `number` was entered. For any thread; never waits."""
        self._thread.check()
        return self._reputation.number >= number

    def wait(self, number: int, seconds: float) -> bool:
        """Wait until round `number` is entered, at most so long; whether it is."""
        self._wake.set()
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self.ready_for(number):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, MIN_IDLE))  # not longer: the thread may have failed
        return True

    @contextmanager
    def reading(self) -> Iterator[Reputation]:
        """The reputation, which does not change inside; keep it short. Do not keep it."""
        self._thread.check()
        with self._changed:
            yield self._reputation

    def _run(self) -> None:
        while not self._stopping:
            try:
                pause = self._look()
                self._kind, self._backoff = "", FIRST_BACKOFF
            except LedgerError as error:
                pause = self._away(error)
            if pause > 0:
                self._wake.wait(pause)
                self._wake.clear()

    def _look(self) -> float:
        """Enter the next round, if there is one; how many seconds until the next look."""
        if self._entering is None:
            self._entering = begin_reputation(self._ledger)
        if self._entering is None:
            return self._pause()
        try:
            begun = self._history.next()
        except HistoryChanged:
            self._begin_again()
            raise
        if begun is None:
            self._caught_up()
            return self._pause()
        with self._changed:
            entering = self._entering
            self._settled.extend(entering.enter(begun.number, begun.beacon, begun.events))
            self._changed.notify_all()
        self._show_progress(begun.number)
        return 0.0

    def _caught_up(self) -> None:
        assert self._entering is not None  # something was read into it
        with self._changed:
            self._reputation = self._entering
            self._changed.notify_all()
        number = self._reputation.number
        if self._is_behind:
            log.info("the ledger's history is read round=%d", number)
        self._is_behind, self._progress_at = False, time.monotonic()
        if number <= self._told:
            return
        settled, self._told = tuple(self._settled), number
        self._settled.clear()
        for listener in self._listeners:
            listener(number, settled)

    def _pause(self) -> float:
        ledger = self._ledger
        poll = min(max(ledger.round_seconds / 100, MIN_POLL), MAX_POLL)
        idle = min(max(ledger.round_seconds / 20, MIN_IDLE), MAX_IDLE)
        number = -1 if self._entering is None else self._entering.number
        next_round = ledger.genesis + (number + 1) * ledger.round_seconds
        return min(idle, max(poll, next_round - ledger.now()))

    def _show_progress(self, number: int) -> None:
        if time.monotonic() - self._progress_at < PROGRESS_SECONDS:
            return
        ledger = self._ledger
        current = int((ledger.now() - ledger.genesis) // ledger.round_seconds)
        if current > number:
            log.info("reading the ledger's history round=%d of=%d", number, current)
            self._is_behind = True
        self._progress_at = time.monotonic()

    def _begin_again(self) -> None:
        self._ledger.check_chain()  # another one may answer at this URL now
        log.warning("the ledger took something back, reading its history anew")
        self._ledger = self._ledger.another()
        self._history = History(self._ledger)
        self._entering = None
        self._settled.clear()

    def _away(self, error: LedgerError) -> float:
        if kind_of_trouble(error) != self._kind:
            log.warning("cannot read the ledger's history error=%r", str(error))
        self._kind = kind_of_trouble(error)
        self._backoff, pause = min(2 * self._backoff, MAX_BACKOFF), self._backoff
        return pause

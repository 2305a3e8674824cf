"""The outbox: what a peer reports is written down first, then sent until the ledger has it.

A thread of its own does the sending, so a ledger that is away, slow or full costs the node no time. It may be
killed at any moment: every step is written down before it is taken, and taking it again does no harm.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from types import TracebackType

from identity import Identity
from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.account import Carrier
from swarm.ledger.background import Background
from swarm.ledger.client import LedgerClient
from swarm.ledger.deliveries import Deliveries, Delivery
from swarm.ledger.records import Entry, Report
from swarm.ledger.refusals import ContractRefusal, kind_of_trouble

log = logging.getLogger("swarm.ledger")

MAX_BATCH = 64  # the contract's constant
OPEN_SECONDS = 1.0  # between looks at what is under way
WATCH_SECONDS = 15.0  # and at what is mined, but not deep enough
MISSING_SECONDS = 30.0  # a server of a balanced many may lag behind the others so long
SETTLED_BLOCKS = 64  # no chain in use reorganizes deeper
FIRST_BACKOFF, MAX_BACKOFF = 1.0, 30.0  # seconds, doubling, while the ledger is away
STOP_SECONDS = 1.0  # a request under way is not waited for: nothing is lost with it
DRAIN_POLL_SECONDS = 0.2

# The contract will say the same for ever.
_FINAL_REFUSALS = {"AlreadyReported", "TooLate", "TooManyGroups", "RewardTooHigh", "VerdictsTooLarge"}


class Outbox:
    """Gets the reports of one peer on one swarm's ledger. Use as a context manager, or `start` and `stop`.

    Args:
        deliveries: closed when this stops.
        ledger, carrier: for this thread alone.
        now: the ledger's time in Unix seconds.
        window: rounds that a report may be late.
        chores: called after every pass that went well, for what else must not hold up the node.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        ledger: LedgerClient,
        carrier: Carrier,
        identity: Identity,
        now: Callable[[], float],
        window: int,
        chores: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._deliveries = deliveries
        self.ledger = ledger
        self._carrier = carrier
        self._identity = identity
        self._now = now
        self._window = window
        self._chores = chores
        self._wake = threading.Event()
        self._stopping = False
        self.contradicted = False  # whether the ledger has a report of this peer that is not ours
        self._missing: dict[int, float] = {}  # rounds that the ledger should have, and since when it does not
        self._next_watch = 0.0
        self._trouble = ""  # what was last complained of, so that it is one line
        self._backoff = FIRST_BACKOFF
        self._thread = Background("outbox", self._run)

    def __enter__(self) -> Outbox:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin sending, what an earlier process left included."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sending; what is not sent yet goes out after the next start."""
        self._stopping = True
        self._wake.set()
        if self._thread.join(STOP_SECONDS):
            self._deliveries.close()  # else the thread still uses it, until the process ends

    def put(self, *reports: Report) -> None:
        """Take reports; when this returns, no crash can lose them. The first one of a round stays.

        `LedgerError` if they cannot be written down.
        """
        self._deliveries.put(*reports)
        self.wake()
        self._thread.check()

    def wake(self) -> None:
        """Do a pass now."""
        self._wake.set()

    def drain(self, seconds: float) -> int:
        """Wait until everything is on the ledger, at most so long; how many reports are still open."""
        deadline = time.monotonic() + seconds
        while (left := len(self._deliveries.open())) and time.monotonic() < deadline:
            self._thread.check()
            time.sleep(DRAIN_POLL_SECONDS)
        return left

    def _run(self) -> None:
        while not self._stopping:
            pause = self._attempt()
            self._wake.wait(pause)
            self._wake.clear()

    def _attempt(self) -> float:
        """One pass; how many seconds to wait before the next, if nothing is put until then."""
        try:
            self.deliver()
            pause = OPEN_SECONDS if self._deliveries.open() else WATCH_SECONDS
        except LedgerError as error:
            self._complain(error)
            self._backoff, pause = min(2 * self._backoff, MAX_BACKOFF), self._backoff
            return pause
        if self._trouble:
            log.info("ledger takes reports again")
        self._trouble, self._backoff = "", FIRST_BACKOFF
        for chore in self._chores:
            chore()
        return pause

    def deliver(self) -> None:
        """One pass over everything; tests call it, the thread does for everybody else."""
        if self._trouble:
            self.ledger.check_chain()  # another one may answer now
        self._carrier.follow()
        self._pack()
        waiting = self._deliveries.open()
        trouble: LedgerError | None = None
        for parcel, group in groupby(waiting, key=lambda delivery: delivery.parcel):
            if parcel is None or self._stopping:
                continue
            deliveries = list(group)
            try:
                self._carry(parcel, deliveries)
            except LedgerUnavailable:
                raise
            except LedgerError as error:
                self._deliveries.held_up(_rounds(deliveries), str(error))
                trouble = error
        if trouble:
            raise trouble
        self._watch()

    def _pack(self) -> None:
        """Decide what is sent together: all that is new in one batch, what was refused before by itself."""
        loose = [delivery for delivery in self._deliveries.open() if delivery.parcel is None]
        if not loose:
            return
        oldest = self._oldest()
        for delivery in [delivery for delivery in loose if delivery.round < oldest]:
            self._give_up(delivery, f"not on the ledger within {self._window} rounds")
        loose = [delivery for delivery in loose if delivery.round >= oldest]
        new = [delivery.round for delivery in loose if delivery.error is None]
        parcels = [new[start : start + MAX_BATCH] for start in range(0, len(new), MAX_BATCH)]
        parcels += [[delivery.round] for delivery in loose if delivery.error is not None]
        for rounds in parcels:
            self._deliveries.pack(f"{rounds[0]}-{rounds[-1]}x{len(rounds)}", rounds)

    def _carry(self, parcel: str, deliveries: list[Delivery]) -> None:
        reports = [delivery.report for delivery in deliveries]
        try:
            carried = self._carrier.carry(self._identity.peer, parcel, reports)
        except ContractRefusal as refusal:
            self._refused(refusal, deliveries)
            return
        if carried.state == "sent":
            said = ("sent", carried.tx, carried.error)
            if any((delivery.state, delivery.tx, delivery.error) != said for delivery in deliveries):
                self._deliveries.sent(_rounds(deliveries), carried.tx, carried.error)
            return
        for delivery in deliveries:
            entry = self.ledger.entry(self._identity.peer, delivery.round)
            if entry is not None:
                self._mined(delivery, carried.tx, entry)
                self._missing.pop(delivery.round, None)
            elif self._is_missing(delivery):  # until then, the server may lag behind the receipt
                self._deliveries.unpack([delivery.round])

    def _refused(self, refusal: ContractRefusal, deliveries: list[Delivery]) -> None:
        if refusal.name == "NotRegistered":
            self._carrier.register(self._identity)  # the chain took the registration back, or never had it
        elif len(deliveries) > 1:
            self._deliveries.unpack(_rounds(deliveries), str(refusal))  # find the one that is to blame
        elif refusal.name in _FINAL_REFUSALS or deliveries[0].round < self._oldest():
            self._give_up(deliveries[0], str(refusal))
        else:
            raise refusal  # perhaps somebody mends it: it is tried again until it is too late

    def _give_up(self, delivery: Delivery, why: str) -> None:
        """Fail, unless the very report is on the ledger after all."""
        peer = self._identity.peer
        entry = self.ledger.entry(peer, delivery.round)
        if entry is None:
            self._deliveries.failed(delivery.round, why)
            log.error("report failed round=%d error=%r", delivery.round, why)
            return
        try:
            logged = self.ledger.find_report(peer, delivery.round)
        except LedgerUnavailable:
            raise
        except LedgerError:
            logged = None  # a server without old logs
        if logged is not None:
            same = logged.commitment == delivery.report.commitment
        else:
            same = entry.reward_micros == delivery.report.reward_micros
        if same:
            self._mined(delivery, logged.tx if logged else delivery.tx, entry)
            return
        other = f"another report of round {delivery.round} is on the ledger: is a copy of this peer running?"
        self.contradicted = True
        self._deliveries.failed(delivery.round, other)
        log.error("report failed round=%d error=%r", delivery.round, other)

    def _mined(self, delivery: Delivery, tx: str | None, entry: Entry) -> None:
        self._deliveries.mined(delivery.round, tx, late_rounds=entry.late_rounds, block=entry.block_number)
        log.info("reported round=%d late=%s tx=%s", delivery.round, entry.late_rounds > 0, tx)

    def _watch(self) -> None:
        """See now and then that what is mined stays so while the chain may still take it back."""
        watched = self._deliveries.watched()
        if not watched or time.monotonic() < self._next_watch:
            return
        self._next_watch = time.monotonic() + WATCH_SECONDS
        latest = self.ledger.rpc.block(None).number
        for delivery in watched:
            entry = self.ledger.entry(self._identity.peer, delivery.round)
            if entry is not None:
                self._missing.pop(delivery.round, None)
                if entry.block_number != delivery.block:
                    self._mined(delivery, delivery.tx, entry)
            elif self._is_missing(delivery):
                log.warning("report taken back by the chain round=%d tx=%s", delivery.round, delivery.tx)
                self._deliveries.sent([delivery.round], delivery.tx)
        self._deliveries.settle(latest - SETTLED_BLOCKS)

    def _is_missing(self, delivery: Delivery) -> bool:
        """Whether the ledger lacks a report for so long that it is not just a server that lags."""
        since = self._missing.setdefault(delivery.round, time.monotonic())
        if time.monotonic() < since + MISSING_SECONDS:
            return False
        del self._missing[delivery.round]
        return True

    def _oldest(self) -> int:
        """The oldest round that may still be reported."""
        current = (self._now() - self.ledger.genesis) // self.ledger.round_seconds
        return int(current) - self._window

    def _complain(self, error: LedgerError) -> None:
        """One line when trouble begins, not one a second."""
        if kind_of_trouble(error) != self._trouble:
            log.warning("reports wait error=%r", str(error))  # which ones, `swarm status` says
        self._trouble = kind_of_trouble(error)


def _rounds(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.round for delivery in deliveries]

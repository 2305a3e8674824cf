"""Follows the ledger into the index and into a reputation, in a thread of its own.

It reads from the contract's first block on, as fast as the server allows, then goes on from where it is. The
chain may take blocks back: at every look the last block that was read must still have its hash, else
everything after the last block that has is forgotten and read again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from swarm.board.index import Index
from swarm.board.known import TREND_ROUNDS, Known, State
from swarm.draw import Draw
from swarm.errors import LedgerError, LedgerUnavailable, SwarmError
from swarm.ledger.background import Background
from swarm.ledger.client import ACTIVE_LAG, LedgerClient
from swarm.ledger.event_reader import EventReader
from swarm.ledger.follower import FIRST_BACKOFF, MAX_BACKOFF, STOP_SECONDS
from swarm.ledger.history import HistoryChanged, dated
from swarm.ledger.logs import Logged
from swarm.ledger.records import Block, Dated, Event
from swarm.ledger.refusals import kind_of_trouble
from swarm.ledger.registry import REORG_BLOCKS
from swarm.verde.reputation import Reputation
from swarm.verde.standings import begin_reputation

log = logging.getLogger("swarm.board")

MIN_POLL, MAX_POLL = 0.5, 3.0  # seconds between looks, or a fiftieth of a round
PROGRESS_SECONDS = 10.0  # between lines about a long history
BOOTNODES_SECONDS = 30.0


class Indexer:
    """The thread. What it finds is in the index, and in `known`. `ledger` is for this thread alone."""

    def __init__(self, ledger: LedgerClient, path: Path) -> None:
        """`LedgerError` if the ledger must be asked for what it is and does not answer."""
        ledger.assume_time(time.time())
        self.known = Known(ledger.manifest(), ledger.facts, ledger.now_without_asking)
        self._ledger = ledger
        self._path = path
        self._listeners: list[Callable[[], None]] = []
        self._reader: EventReader | None = None
        self._latest = Block(-1, 0, b"")
        self._reputation = self._young()
        self._must_rebuild = True
        self._took_back = False  # since the last time that others were told
        self._ranked: dict[bytes, dict[int, bool]] = {}  # what of this the index knows, of recent rounds
        self._bootnodes_at = 0.0  # monotonic: when to ask for them again
        self._kind, self._backoff = "", FIRST_BACKOFF
        self._progress_at = time.monotonic()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = Background("indexer", self._run)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have it called, in this thread, after each look that brought something. Call it before `start`."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; a request under way is not waited for."""
        self._stopping = True
        self._wake.set()
        self._thread.join(STOP_SECONDS)

    def check(self) -> None:
        """Raise what ended the thread, if something did."""
        self._thread.check()

    @property
    def has_failed(self) -> bool:
        """Whether `check` would raise."""
        return self._thread.has_failed

    # ---- the thread ----

    def _run(self) -> None:
        index = Index(self._path)
        index.begin(msgspec.json.encode(self.known.facts))
        while not self._stopping:
            try:
                pause = self._look(index)
                if self._kind:
                    log.info("going on")
                self._kind, self._backoff = "", FIRST_BACKOFF
            except LedgerError as error:
                pause = self._away(error, kind_of_trouble(error))
            except (
                sqlite3.Error
            ) as error:  # a full disk, mostly: the index is as it was, what is in memory not
                self._reader, self._must_rebuild = None, True
                pause = self._away(SwarmError(f"cannot write the board's index: {error}"), "index")
            if pause > 0:
                self._wake.wait(pause)
                self._wake.clear()
        index.close()

    def _look(self, index: Index) -> float:
        """Read what is new, or a part of it; seconds until the next look."""
        ledger, known = self._ledger, self.known
        if self._reader is None:
            ledger.check_chain()
        self._latest = latest = ledger.rpc.block(None)
        ledger.observe(latest)
        known.latest_block = latest.number
        if not self._still_holds(index, latest.number):
            return 0.0
        if self._must_rebuild:
            self._rebuild(index)
        assert self._reader is not None  # since it still holds
        changed = False
        if self._reader.next <= latest.number and not self._stopping:
            end = self._reader.end(latest.number)
            # The header first: had the chain changed in between, the next look would find another hash.
            last = latest if end == latest.number else ledger.rpc.block(end)
            found = self._reader.read(end)
            if found is not None:
                index.add(found, last)
                changed = bool(found)
                if known.take_in(found, last.number):
                    known.fill(index)
        changed |= self._enter_rounds(index)
        self._find_bootnodes()
        is_behind = self._reader.next <= latest.number
        if not is_behind:
            known.looked_at = time.monotonic()
        self._show("reading" if is_behind else "ok", changed and not is_behind)
        return 0.0 if is_behind else self._poll

    @property
    def _poll(self) -> float:
        return min(max(self.known.manifest.round_seconds / 50, MIN_POLL), MAX_POLL)

    # ---- what the chain takes back ----

    def _still_holds(self, index: Index, latest: int) -> bool:
        """Whether what was read last is still on the chain; if not, what is not is forgotten."""
        ledger = self._ledger
        checkpoint = newest = index.checkpoint()
        while checkpoint is not None and (
            checkpoint[0] > latest or ledger.rpc.block_hash(checkpoint[0]) != checkpoint[1]
        ):
            checkpoint = index.checkpoint(below=checkpoint[0])
        if checkpoint != newest:
            assert newest is not None
            if newest[0] > latest and checkpoint is not None and checkpoint == index.checkpoint(latest + 1):
                # Nothing that it has differs from what was read: it is merely behind.
                raise LedgerUnavailable(
                    f"the ledger at {ledger.host} has {latest} as its latest block, and had {newest[0]}"
                )
            self._take_back(index, checkpoint)
            return False
        if self._reader is None:
            self._reader = EventReader(
                ledger, ledger.deployment_block if checkpoint is None else checkpoint[0] + 1
            )
        return True

    def _take_back(self, index: Index, checkpoint: tuple[int, bytes] | None) -> None:
        """Forget all that came after a checkpoint, or everything."""
        self._ledger.check_chain()  # another one may answer at this URL now
        block = -1 if checkpoint is None else checkpoint[0]
        log.warning("the ledger took back what was read after block=%d, reading it again", block)
        entered = index.last_round()
        stays = index.take_back(block)
        self._forget_headers()
        self._reader, self._took_back = None, True
        self._must_rebuild |= stays < entered
        self.known.set_draw(None)
        self.known.fill(index)

    def _forget_headers(self) -> None:
        """A new client: the old one remembers blocks that are no more."""
        ledger = self._ledger.another()
        ledger.assume_time(self.known.clock())
        self._ledger, self.known.clock = ledger, ledger.now_without_asking
        if self._reader is not None:
            self._reader = EventReader(ledger, self._reader.next)

    # ---- rounds ----

    def _young(self) -> Reputation:
        return Reputation(self._ledger.swarm_id, self.known.manifest.audits)

    def _rebuild(self, index: Index) -> None:
        """Make the reputation anew from the index."""
        last = index.last_round()
        reputation = (begin_reputation(self._ledger) if last >= 0 else None) or self._young()
        for kept in reversed(index.rounds(before=last + 1, limit=-1)):
            if self._stopping:
                return
            number = kept.number
            events = _dated(index.events(number), number)
            reputation.enter(number, self._beacon(number, kept.first), events)
            self._progress(number, last, "index")
        self._reputation = reputation
        self.known.set_reputation(reputation)
        self.known.fill(index)
        self._ranked.clear()
        self._rank(index, (standing.peer for standing in reputation.standings()))
        self._must_rebuild = False

    def _enter_rounds(self, index: Index) -> bool:
        """Enter the rounds whose first block was read; whether there were any."""
        entered = False
        while not self._stopping and not self._must_rebuild:
            number = index.last_round() + 1
            first = self._first_block(number)
            if first is None:
                break
            if number == 0:  # only now it is known what the predecessor's scores were in the end
                self._reputation = begin_reputation(self._ledger) or self._young()
                self.known.set_reputation(self._reputation)
            try:
                events = _dated(index.events_before(first.number, number), number)
            except HistoryChanged:  # the server contradicts itself: read the last blocks again
                self._take_back(index, index.checkpoint(below=self.known.block - REORG_BLOCKS))
                raise
            with self.known.reputation():
                settled = self._reputation.enter(number, self._beacon(number, first), events)
            index.enter(number, first, settled)
            self.known.standings_round = number
            reporters = {event.report.peer for event in events if isinstance(event, Dated)}
            self._rank(index, reporters | {one.peer for one in settled})
            self.known.forget_before(number - TREND_ROUNDS)
            self._progress(number, self.known.current_round, "ledger")
            entered = True
        self._find_draw(index)
        return entered

    def _first_block(self, number: int) -> Block | None:
        """The first block when a round has begun; None if it was not read yet."""
        ledger, begins = self._ledger, self.known.starts_at(number)
        if begins > self._latest.timestamp:
            return None
        first = ledger.first_block(number)
        if first is None or first.number > self.known.block:
            return None
        if first.number > self._latest.number - REORG_BLOCKS:
            # Headers that were asked for before they were read may be of blocks that are no more.
            before = ledger.rpc.block(first.number - 1) if first.number else None
            if ledger.rpc.block(first.number) != first or (before and before.timestamp >= begins):
                self._forget_headers()
                return None
        return first

    def _rank(self, index: Index, peers: Iterable[bytes]) -> None:
        """Write down which of the peers' recent reports count, as far as that has changed."""
        changes, known = [], {}
        for peer in peers:
            before, now = self._ranked.get(peer, {}), self._reputation.ranked(peer)
            if before != now:
                changes += [
                    (value, number, peer) for number, value in now.items() if before.get(number) != value
                ]
                known[peer] = now
        index.rank(changes)
        self._ranked |= known

    def _find_draw(self, index: Index) -> None:
        last = index.rounds(before=2**62, limit=1)
        drawn = self.known.draw()
        if not last or (drawn is not None and drawn[0] == last[0].number):
            return
        number, beacon = last[0].number, self._beacon(last[0].number, last[0].first)
        active = index.on_time(number - ACTIVE_LAG) if number >= ACTIVE_LAG else 0
        cell_size = self.known.manifest.cell_size
        self.known.set_draw(
            (number, Draw(self._ledger.swarm_id, beacon, active, cell_size)) if beacon else None
        )

    def _beacon(self, number: int, first: Block) -> bytes | None:
        """The round's, if its first block is inside it."""
        return first.hash if first.timestamp < self.known.starts_at(number + 1) else None

    def _find_bootnodes(self) -> None:
        if time.monotonic() >= self._bootnodes_at:
            self.known.bootnodes = tuple(self._ledger.bootnodes())
            wait = BOOTNODES_SECONDS if self.known.bootnodes else self._poll
            self._bootnodes_at = time.monotonic() + wait

    # ---- telling ----

    def _progress(self, number: int, last: int, where: str) -> None:
        if number < last and time.monotonic() - self._progress_at > PROGRESS_SECONDS:
            self._progress_at = time.monotonic()
            log.info("reading the swarm's history from=%s round=%d of=%d", where, number, last)

    def _show(self, state: State, changed: bool) -> None:
        changed |= self._took_back or self.known.state != state
        self._took_back = False
        self.known.state, self.known.trouble = state, ""
        self.known.version += changed
        if changed:
            self._tell()

    def _away(self, error: SwarmError, kind: str) -> float:
        if kind != self._kind:
            log.warning("waiting, and trying again error=%r", str(error))
        self._kind = kind
        self.known.state, self.known.trouble = "away", str(error)
        self._tell()
        self._backoff, pause = min(2 * self._backoff, MAX_BACKOFF), self._backoff
        return pause

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def _dated(events: Iterable[Logged], number: int) -> list[Event]:
    return [dated(event, number - 1) for event in events]

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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from swarm.board.index import Index
from swarm.draw import Draw
from swarm.errors import LedgerError, LedgerUnavailable, SwarmError
from swarm.ledger.background import Background
from swarm.ledger.client import ACTIVE_LAG, LedgerClient
from swarm.ledger.event_reader import EventReader
from swarm.ledger.follower import FIRST_BACKOFF, MAX_BACKOFF, STOP_SECONDS
from swarm.ledger.history import HistoryChanged, dated
from swarm.ledger.logs import Logged
from swarm.ledger.records import Block, Dated, Event, Reported
from swarm.ledger.refusals import kind_of_trouble
from swarm.manifest import Manifest
from swarm.verde.reputation import Reputation
from swarm.verde.standings import begin_reputation

log = logging.getLogger("swarm.board")

MIN_POLL, MAX_POLL = 0.5, 3.0  # seconds between looks, or a fiftieth of a round
PROGRESS_SECONDS = 10.0  # between lines about a long history
BOOTNODES_SECONDS = 30.0
TREND_ROUNDS = 24
ALIVE_ROUNDS = 3  # the running one and those before it in which a peer that is alive has reported
REREAD_BLOCKS = 32  # of a ledger whose blocks contradict one another

State = Literal["ok", "reading", "away"]


class Indexer:
    """The thread. What it knows is read through `reading`; what is in the index, by an `IndexReader`.

    `ledger` is for this thread alone.
    """

    def __init__(self, ledger: LedgerClient, path: Path) -> None:
        """`LedgerError` if the ledger must be asked for what it is and does not answer."""
        self.manifest: Manifest = ledger.manifest()
        self.facts = ledger.facts
        self._ledger = ledger
        self._path = path
        self._lock = threading.RLock()
        self._index: Index | None = None  # in the thread
        self._reader: EventReader | None = None
        self._latest = Block(-1, 0, b"")
        self._rebuilding = True
        self._ranked: dict[bytes, dict[int, bool]] = {}  # what of this the index knows, of recent rounds
        # Below: read by others, inside `reading`.
        self.reputation: Reputation | None = None
        self.accounts: dict[bytes, str] = {}  # of the registered peers, by their current keys
        self.trends: defaultdict[bytes, dict[int, int]] = defaultdict(dict)  # rewards of recent rounds
        self.block = -1  # that was read last
        self.latest_block = -1
        self.state: State = "reading"
        self.trouble = ""
        self.looked_at = 0.0  # monotonic: when the ledger last answered
        self.version = 0
        self._alive = (-1, -1, 0, 0)  # see `alive`: as of which block and round
        self._draw: tuple[int, Draw] | None = None
        self._bootnodes: list[str] = []
        # Of the thread.
        self._bootnodes_at = 0.0  # monotonic: when to ask for them again
        self._listeners: list[Callable[[], None]] = []
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

    def now(self) -> float:
        """The ledger's time in Unix seconds, as far as it is known; never waits."""
        return self._ledger.now_without_asking()

    def draw(self) -> tuple[int, Draw] | None:
        """The running round and its draw; None if that is not known (yet). For any thread; never waits."""
        found = self._draw
        current = int((self.now() - self.facts.genesis) // self.manifest.round_seconds)
        return found if found is not None and found[0] == current else None

    def alive(self, number: int) -> tuple[int, int]:
        """How many peers reported in round `number` or one of the two before, and how many in it."""
        with self._lock:
            block, of, alive, reported = self._alive
            if (block, of) != (self.block, number):
                trends = self.trends.values()
                alive = sum(any(one > number - ALIVE_ROUNDS for one in trend) for trend in trends)
                reported = sum(number in trend for trend in trends)
                self._alive = (self.block, number, alive, reported)
            return alive, reported

    def bootnodes(self) -> list[str]:
        """The multiaddrs that the ledger listed last. For any thread; never waits."""
        return self._bootnodes

    def registered(self, peer: bytes) -> bool | None:
        """Whether a peer is registered; None if that is not known (yet). For any thread; never waits."""
        if peer in self.accounts:
            return True
        return False if self.state == "ok" else None

    @contextmanager
    def reading(self) -> Iterator[Indexer]:
        """What is known, which does not change inside; keep it short."""
        with self._lock:
            yield self

    # ---- the thread ----

    def _run(self) -> None:
        self._ledger.assume_time(time.time())
        self._index = Index(self._path)
        self._index.begin(msgspec.json.encode(self.facts))
        while not self._stopping:
            try:
                pause = self._look()
                self._kind, self._backoff = "", FIRST_BACKOFF
            except LedgerError as error:
                pause = self._away(error, kind_of_trouble(error))
            except sqlite3.Error as error:  # a full disk, mostly: what was read is as it was
                pause = self._away(SwarmError(f"cannot write {self._path}: {error}"), "index")
            if pause > 0:
                self._wake.wait(pause)
                self._wake.clear()
        self._index.close()

    @property
    def _poll(self) -> float:
        return min(max(self.manifest.round_seconds / 50, MIN_POLL), MAX_POLL)

    def _look(self) -> float:
        """Read what is new, or a part of it; seconds until the next look."""
        ledger, index = self._ledger, self._index
        assert index is not None
        if self._reader is None:
            ledger.check_chain()
        latest = ledger.rpc.block(None)
        ledger.observe(latest)
        self._latest = latest
        with self._lock:
            self.latest_block, self.looked_at = latest.number, time.monotonic()
        if not self._still_holds(latest.number):
            return 0.0
        if self._rebuilding:
            self._rebuild()
        assert self._reader is not None
        changed = False
        if self._reader.next <= latest.number:
            end = self._reader.end(latest.number)
            last = latest if end == latest.number else ledger.rpc.block(end)
            found = self._reader.read(end)
            if self._reader.next <= end:  # the server allowed less
                last = ledger.rpc.block(self._reader.next - 1)
            index.add(found, last)
            changed = bool(found)
            self._take_in(found, last.number)
        changed |= self._enter_rounds()
        self._find_bootnodes()
        is_behind = self._reader.next <= latest.number
        self._show("reading" if is_behind else "ok", changed and not is_behind)
        return 0.0 if is_behind else self._poll

    def _still_holds(self, latest: int) -> bool:
        """Whether what was read last is still on the chain; if not, what is not is forgotten."""
        index, ledger = self._index, self._ledger
        assert index is not None
        checkpoint = newest = index.checkpoint()
        while checkpoint is not None and (
            checkpoint[0] > latest or ledger.rpc.block_hash(checkpoint[0]) != checkpoint[1]
        ):
            checkpoint = index.checkpoint(below=checkpoint[0])
        if newest is not None and checkpoint != newest:
            if newest[0] > latest and checkpoint is not None and self._lags(checkpoint[0], latest):
                raise LedgerUnavailable(
                    f"the ledger at {ledger.host} has {latest} as its latest block, and had {newest[0]}"
                )
            self._take_back(-1 if checkpoint is None else checkpoint[0])
            return False
        if self._reader is None:
            first = ledger.deployment_block if checkpoint is None else checkpoint[0] + 1
            self._reader = EventReader(ledger, first)
        return True

    def _lags(self, holds: int, latest: int) -> bool:
        """Whether the server is merely behind: no block that it has differs from what was read."""
        index = self._index
        assert index is not None
        known = index.checkpoint(below=latest + 1)
        return known is not None and known[0] == holds

    def _take_back(self, block: int) -> None:
        assert self._index is not None
        self._ledger.check_chain()  # another one may answer at this URL now
        log.warning("the ledger took back what was read after block=%d, reading it again", block)
        entered = self._index.last_round()
        stays = self._index.take_back(block)
        self._ledger = self._ledger.another()  # the old one knows blocks that are no more
        self._ledger.assume_time(time.time())
        self._reader = None
        self._rebuilding = self._rebuilding or stays < entered
        with self._lock:
            self.block = block
        self._fill_memory()

    def _rebuild(self) -> None:
        """Make the reputation anew from the index."""
        index = self._index
        assert index is not None
        last = index.last_round()
        reputation = (begin_reputation(self._ledger) if last >= 0 else None) or self._young()
        for number in range(last + 1):
            if self._stopping:
                return
            kept = index.rounds(before=number + 1, limit=1)[0]
            reputation.enter(
                number, self._beacon(number, kept.first), self._dated(index.events(number), number)
            )
            self._progress(number, last, "index")
        with self._lock:
            self.reputation = reputation
        self._fill_memory()
        self._ranked.clear()
        self._rank(standing.peer for standing in reputation.standings())
        self._rebuilding = False

    def _young(self) -> Reputation:
        return Reputation(self._ledger.swarm_id, self.manifest.audits)

    def _fill_memory(self) -> None:
        """What is remembered beside the index, from the index."""
        index = self._index
        assert index is not None
        trends: defaultdict[bytes, dict[int, int]] = defaultdict(dict)
        for key, number, reward in index.rewards_since(max(0, index.last_round() - TREND_ROUNDS)):
            trends[bytes(key)][number] = reward
        checkpoint = index.checkpoint()
        with self._lock:
            self.accounts = dict(index.registered())
            self.trends = trends
            self.block = -1 if checkpoint is None else checkpoint[0]

    def _take_in(self, found: Iterable[Logged], block: int) -> None:
        index = self._index
        assert index is not None
        has_bindings = False
        with self._lock:
            for event in found:
                if isinstance(event, Reported):
                    self.trends[event.peer][event.round] = event.reward_micros
                else:
                    has_bindings = True
            self.block = block
        if has_bindings:
            self._fill_memory()

    def _enter_rounds(self) -> bool:
        """Enter the rounds whose first block was read; whether there were any."""
        index, ledger = self._index, self._ledger
        assert index is not None
        entered = False
        while not self._stopping:
            number = index.last_round() + 1
            if ledger.genesis + number * ledger.round_seconds > self._latest.timestamp:
                break
            first = ledger.first_block(number)
            if first is None or first.number > self.block:
                break
            if number == 0:  # only now it is known what the predecessor's scores were in the end
                with self._lock:
                    self.reputation = begin_reputation(ledger) or self._young()
            try:
                events = self._dated(index.events_before(first.number, number), number)
            except HistoryChanged:
                self._take_back(max(-1, self.block - REREAD_BLOCKS))
                raise
            assert self.reputation is not None
            with self._lock:
                settled = self.reputation.enter(number, self._beacon(number, first), events)
            index.enter(number, first, settled)
            self._rank(
                {event.report.peer for event in events if isinstance(event, Dated)}
                | {one.peer for one in settled}
            )
            entered = True
            self._prune(number)
            self._progress(number, int((self.now() - ledger.genesis) // ledger.round_seconds), "ledger")
        self._find_draw()
        return entered

    def _rank(self, peers: Iterable[bytes]) -> None:
        """Write down which of the peers' recent reports count, as far as that has changed."""
        index, reputation = self._index, self.reputation
        assert index is not None and reputation is not None
        changes = []
        for peer in peers:
            before, now = self._ranked.get(peer, {}), reputation.ranked(peer)
            if before != now:
                changes += [
                    (value, number, peer) for number, value in now.items() if before.get(number) != value
                ]
                self._ranked[peer] = now
        index.rank(changes)

    def _prune(self, number: int) -> None:
        oldest = number - TREND_ROUNDS
        with self._lock:
            for trend in self.trends.values():
                for old in [one for one in trend if one < oldest]:
                    del trend[old]

    def _find_draw(self) -> None:
        index = self._index
        assert index is not None
        last = index.rounds(before=2**62, limit=1)
        if not last or (self._draw is not None and self._draw[0] == last[0].number):
            return
        number, beacon = last[0].number, self._beacon(last[0].number, last[0].first)
        active = index.on_time(number - ACTIVE_LAG) if number >= ACTIVE_LAG else 0
        self._draw = (
            (number, Draw(self._ledger.swarm_id, beacon, active, self.manifest.cell_size)) if beacon else None
        )

    def _find_bootnodes(self) -> None:
        if time.monotonic() >= self._bootnodes_at:
            self._bootnodes = self._ledger.bootnodes()
            self._bootnodes_at = time.monotonic() + (BOOTNODES_SECONDS if self._bootnodes else self._poll)

    def _beacon(self, number: int, first: Block) -> bytes | None:
        """The round's, if its first block is inside it."""
        end = self.facts.genesis + (number + 1) * self.manifest.round_seconds
        return first.hash if first.timestamp < end else None

    @staticmethod
    def _dated(events: Iterable[Logged], number: int) -> list[Event]:
        return [dated(event, number - 1) for event in events]

    def _progress(self, number: int, last: int, where: str) -> None:
        if number < last and time.monotonic() - self._progress_at > PROGRESS_SECONDS:
            self._progress_at = time.monotonic()
            log.info("reading the swarm's history from=%s round=%d of=%d", where, number, last)

    def _show(self, state: State, changed: bool) -> None:
        with self._lock:
            changed |= self.state != state
            self.state, self.trouble = state, ""
            self.version += changed
        if changed:
            self._tell()

    def _away(self, error: SwarmError, kind: str) -> float:
        if kind != self._kind:
            log.warning("cannot go on error=%r", str(error))
        self._kind = kind
        with self._lock:
            self.state, self.trouble = "away", str(error)
        self._tell()
        self._backoff, pause = min(2 * self._backoff, MAX_BACKOFF), self._backoff
        return pause

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

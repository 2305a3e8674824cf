"""What a board knows of its swarm beside the index: the indexer writes it, whoever answers reads it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from swarm.board.index_reader import IndexReader
from swarm.draw import Draw
from swarm.ledger.facts import Facts
from swarm.ledger.logs import Logged
from swarm.ledger.records import Reported
from swarm.manifest import Manifest
from swarm.verde.reputation import Reputation

TREND_ROUNDS = 24
ALIVE_ROUNDS = 3  # the running one and those before it in which a peer that is alive has reported

State = Literal["ok", "reading", "away"]


class Known:
    """For any thread. Only `reputation` may keep its reader waiting, while a round is entered into it."""

    def __init__(self, manifest: Manifest, facts: Facts, clock: Callable[[], float]) -> None:
        """`clock` gives the ledger's time in Unix seconds at once, as far as it is known."""
        self.manifest = manifest
        self.facts = facts
        self.clock = clock
        self.state: State = "reading"
        self.trouble = ""
        self.block = -1  # that was read last
        self.latest_block = -1
        self.standings_round = -1
        self.version = 0  # grows whenever anything changed but the time
        self.bootnodes: tuple[str, ...] = ()  # that the ledger listed last
        self.accounts: Mapping[bytes, str] = {}  # of the registered peers, by their present keys
        self.looked_at: float | None = None  # monotonic: when all that the ledger had was taken in
        self._lock = threading.Lock()  # around the rewards
        self._trends: defaultdict[bytes, dict[int, int]] = defaultdict(dict)
        self._alive = (-1, -1, 0, 0)  # see `alive`: as of which block and round
        self._draw: tuple[int, Draw] | None = None
        self._reputation: Reputation | None = None
        self._entering = threading.Lock()

    # ---- read ----

    @property
    def current_round(self) -> int:
        """By the ledger's clock; negative before the first."""
        return int((self.clock() - self.facts.genesis) // self.manifest.round_seconds)

    @property
    def behind_seconds(self) -> float:
        """Since all that the ledger had was taken in; -1: it never was."""
        return -1.0 if self.looked_at is None else time.monotonic() - self.looked_at

    def starts_at(self, number: int) -> int:
        """When a round begins, in Unix seconds."""
        return self.facts.genesis + number * self.manifest.round_seconds

    def draw(self) -> tuple[int, Draw] | None:
        """The running round and its draw; None if that is not known (yet)."""
        found = self._draw
        return found if found is not None and found[0] == self.current_round else None

    def registered(self, peer: bytes) -> bool | None:
        """Whether a peer is registered; None if that is not known (yet)."""
        if peer in self.accounts:
            return True
        return False if self.state == "ok" else None

    def alive(self, number: int) -> tuple[int, int]:
        """How many peers reported in round `number` or one of the two before, and how many in it."""
        with self._lock:
            block, of, alive, reported = self._alive
            if (block, of) != (self.block, number):
                trends = self._trends.values()
                alive = sum(any(one > number - ALIVE_ROUNDS for one in trend) for trend in trends)
                reported = sum(number in trend for trend in trends)
                self._alive = (self.block, number, alive, reported)
            return alive, reported

    def trends(self) -> dict[bytes, dict[int, int]]:
        """Each peer's rewards in the last rounds, by round; a copy."""
        with self._lock:
            return {peer: dict(trend) for peer, trend in self._trends.items() if trend}

    @contextmanager
    def reputation(self) -> Iterator[Reputation | None]:
        """As of the round that was entered last, unchanged inside; None before it is made."""
        with self._entering:
            yield self._reputation

    # ---- written by the indexer ----

    def set_draw(self, draw: tuple[int, Draw] | None) -> None:
        """The newest round's; None: the ledger made no block in it, or took it back."""
        self._draw = draw

    def set_reputation(self, reputation: Reputation) -> None:
        """Another one takes its place."""
        with self._entering:
            self._reputation = reputation
        self.standings_round = reputation.number

    def take_in(self, events: Iterable[Logged], block: int) -> bool:
        """Add what came up to a block; whether who is registered must be read anew."""
        has_bindings = False
        with self._lock:
            for event in events:
                if isinstance(event, Reported):
                    self._trends[event.peer][event.round] = event.reward_micros
                else:
                    has_bindings = True
            self.block = block
        return has_bindings

    def fill(self, index: IndexReader) -> None:
        """Begin anew with what the index has."""
        trends: defaultdict[bytes, dict[int, int]] = defaultdict(dict)
        for peer, number, reward in index.rewards_since(max(0, index.last_round() - TREND_ROUNDS)):
            trends[bytes(peer)][number] = reward
        checkpoint = index.checkpoint()
        self.accounts = dict(index.registered())
        with self._lock:
            self._trends = trends
            self.block = -1 if checkpoint is None else checkpoint[0]
            self._alive = (-1, -1, 0, 0)

    def forget_before(self, number: int) -> None:
        """Drop the rewards of older rounds."""
        with self._lock:
            for trend in self._trends.values():
                for old in [one for one in trend if one < number]:
                    del trend[old]

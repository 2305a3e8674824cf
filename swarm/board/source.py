"""What the API answers from: the indexer, the index, what is overheard, and who waits for news."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from identity import IdentityError, peer_digest
from swarm.board import schema, view
from swarm.board.index_reader import IndexReader, Readers
from swarm.board.indexer import Indexer
from swarm.board.known import Known
from swarm.board.view import Ranks

MAX_STREAMS, MAX_STREAMS_OF_ONE = 256, 8  # at once, of all and of one caller


class Overhears(Protocol):
    """Who knows what a cell says; `swarm.board.listening` in a board."""

    def conversation(self, cell: int | None) -> schema.Conversation:
        """At once, from memory."""


class News:
    """Wakes the streams; `tell` may be called from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Event] = set()
        self._streams = Counter[str]()  # by caller
        self.is_over = False  # the streams are to end
        # Of each cell that said something: when (in the order of all that was said), and in which round.
        self.gossip: dict[int, tuple[int, int]] = {}
        self._heard = itertools.count(1)

    def attach(self) -> None:
        """Called in the server's loop."""
        self._loop = asyncio.get_running_loop()

    def detach(self) -> None:
        """Called before the loop ends."""
        self._loop = None

    def tell(self) -> None:
        """There is something new."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(self._wake)

    def tell_gossip(self, round_number: int, cell: int) -> None:
        """A cell said something."""
        said = {**self.gossip, cell: (next(self._heard), round_number)}
        self.gossip = {one: (at, of) for one, (at, of) in said.items() if of >= round_number - 1}
        self.tell()

    def heard_since(self, at: int) -> tuple[int, list[tuple[int, int]]]:
        """What was said after that: up to when it is, and (round, cell) of each cell that said something."""
        said = self.gossip
        newest = max((one for one, _ in said.values()), default=at)
        return newest, [(of, cell) for cell, (one, of) in said.items() if one > at]

    def has_room(self, who: str) -> bool:
        """Whether a caller may open one more stream."""
        return len(self._waiting) < MAX_STREAMS and self._streams[who] < MAX_STREAMS_OF_ONE

    @contextmanager
    def waiting(self, who: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever there is something new, for a stream of that caller."""
        event = asyncio.Event()
        self._waiting.add(event)
        self._streams[who] += 1
        try:
            yield event
        finally:
            self._waiting.discard(event)
            self._streams[who] -= 1
            self._streams += Counter()  # forgets those at 0

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()


class Source:
    """All of it.

    `own` are the user's peers that live here, each with its record of itself: shown to nobody else. `pins`
    are those that everybody may see on top.
    """

    def __init__(
        self,
        indexer: Indexer,
        index: Path,
        facts: schema.SwarmFacts,
        overhears: Overhears,
        own: Mapping[bytes, Path],
        pins: Collection[bytes],
    ) -> None:
        self.known: Known = indexer.known
        self.facts = facts
        self.overhears = overhears
        self.pins = frozenset(pins)
        self._own = own
        self._marked = (frozenset[bytes](), frozenset[bytes]())
        self._files: dict[bytes, Path] = {}
        self.news = News()
        self._readers = Readers(index)
        self._ranks = view.NO_RANKS
        indexer.on_change(self.refresh)

    def refresh(self) -> None:
        """Make the leaderboard anew if anything changed; called by the indexer's thread."""
        if self._ranks.version != self.known.version:
            self._ranks = view.ranks(self.known)
            present = {peer: self.index.current_key(peer) or peer for peer in (*self.pins, *self._own)}
            self._marked = frozenset(map(present.__getitem__, self.pins)), frozenset(present.values())
            self._files = {present[peer]: file for peer, file in self._own.items()}
        self.news.tell()

    def marked_for(self, is_user: bool) -> frozenset[bytes]:
        """The present keys of the peers to mark: the pins, and for the user also those of his home."""
        return self._marked[is_user]

    def file_of(self, peer: bytes) -> Path | None:
        """An own peer's record of itself."""
        return self._files.get(peer)

    @property
    def ranks(self) -> Ranks:
        """Every peer's line, as of the last change."""
        return self._ranks

    @property
    def index(self) -> IndexReader:
        """For the thread that asks."""
        return self._readers.get()

    def find(self, name: str) -> bytes | None:
        """The present key of the peer with this id, name or account; None if nobody has it."""
        ranks = self._ranks
        if (key := ranks.by_name.get(name.lower())) is not None:
            return key
        try:
            found = self.index.current_key(peer_digest(name))
        except IdentityError:
            return None
        return found if found in ranks.place else None

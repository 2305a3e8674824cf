"""What the API answers from: the indexer, the index, what is overheard, and who waits for news."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from identity import IdentityError, peer_digest
from swarm.board import schema, view
from swarm.board.index_reader import IndexReader, Readers
from swarm.board.indexer import Indexer
from swarm.board.view import Ranks


class Overhears(Protocol):
    """Who knows what a cell says; `swarm.board.listening` in a board."""

    def conversation(self, cell: int | None) -> schema.Conversation:
        """At once, from memory."""


class News:
    """Wakes the streams; `tell` may be called from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Event] = set()
        self.gossip: tuple[int, int] | None = None  # (round, cell) heard last
        self.heard = 0  # how often something was

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
            loop.call_soon_threadsafe(self._wake)

    def tell_gossip(self, round_number: int, cell: int) -> None:
        """A cell said something."""
        self.gossip, self.heard = (round_number, cell), self.heard + 1
        self.tell()

    def event(self) -> asyncio.Event:
        """Set whenever there is something new, until `forget`."""
        event = asyncio.Event()
        self._waiting.add(event)
        return event

    def forget(self, event: asyncio.Event) -> None:
        """Set it no more."""
        self._waiting.discard(event)

    @property
    def streams(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()


class Source:
    """All of it. `own`: the user's peers, each with its record of itself if it has one here."""

    def __init__(
        self,
        indexer: Indexer,
        index: Path,
        facts: schema.SwarmFacts,
        overhears: Overhears,
        own: dict[bytes, Path | None],
    ) -> None:
        self.indexer = indexer
        self.facts = facts
        self.overhears = overhears
        self.own = own
        self.news = News()
        self._readers = Readers(index)
        self._ranks = view.NO_RANKS
        indexer.on_change(self.refresh)

    def refresh(self) -> None:
        """Make the leaderboard anew if anything changed; called by the indexer's thread."""
        if self._ranks.version != self.indexer.version:
            self._ranks = view.ranks(self.indexer, self.own)
        self.news.tell()

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

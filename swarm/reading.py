"""Texts read and scored in one round, and which of them there was no time for.

That is the one thing that another machine would not find out by itself, so a peer lists it (`unread` of its
commitment), and nothing on the list counts, for itself as for those who play its round again. What one text
says is found once, however often it is met: a second time it might be too slow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TypeVar, cast

from swarm.errors import SandboxDied, SandboxTimeout
from swarm.tasks import Drawn, Judged, Tasks
from swarm.tasks.mixture import within
from swarm.tasks.prompts import UNREADABLE, Named

T = TypeVar("T")

# Who plays a round again may take so many times as long as its player: an auditor has about a quarter of what
# it wants of its machine (`audit_process.NICE`), and that may be a fifth as fast.
PATIENCE = 20.0
# A player lists every text that it did not score. Who plays its round again and finds so many that cannot be
# scored, in its patience, and are not listed, is patient no more.
MAX_TOO_SLOW_HERE = 2


class Reading:
    """Reads with the round's tasks; texts go by their leaves, whole groups by their digests."""

    def __init__(self, tasks: Tasks, replayed: Collection[bytes] | None = None) -> None:
        """`replayed`: of a round that is played again, what its player left unread. Then no clock decides."""
        self._tasks = tasks
        self.is_replay = replayed is not None
        self.unread: list[bytes] = list(replayed or ())
        self.too_slow_here = 0  # played again: texts that were not scored here and are not listed
        self._passed_over = set(self.unread)
        self._said: dict[bytes, object] = {}
        self._judged: dict[bytes, Judged] = {}

    def is_unread(self, digest: bytes) -> bool:
        """Whether it was left out, by the player or now."""
        return digest in self._passed_over

    def leave(self, digests: Iterable[bytes]) -> None:
        """There is no time for these."""
        for digest in digests:
            self._passed_over.add(digest)
            if not self.is_replay:
                self.unread.append(digest)
                continue
            self.too_slow_here += 1
            if self.too_slow_here >= MAX_TOO_SLOW_HERE:
                self._tasks.patience = 1.0

    def read(self, leaf: bytes, text: Callable[[], T], otherwise: T) -> T:
        """What `text` finds; `otherwise`, and the leaf is left, if it takes too long or its process dies."""
        if self.is_unread(leaf):
            return otherwise
        if leaf not in self._said:
            try:
                self._said[leaf] = text()
            except (SandboxTimeout, SandboxDied):
                self.leave([leaf])
                return otherwise
        return cast(T, self._said[leaf])

    def judge(self, question: Drawn, leaves: Sequence[bytes], texts: Sequence[str]) -> list[Judged]:
        """Each completion's score and gist; without a score is what was left."""
        new = [
            (leaf, text)
            for leaf, text in zip(leaves, texts, strict=True)
            if leaf not in self._judged and not self.is_unread(leaf)
        ]
        if new:
            judged = self._tasks.judge(question, [text for _, text in new])
            for (leaf, _), one in zip(new, judged, strict=True):
                if one.score is None:
                    self.leave([leaf])
                else:
                    self._judged[leaf] = one
        return [self._judged.get(leaf, Judged(None, "")) for leaf in leaves]

    def critique(self, question: Drawn, leaf: bytes, text: str, shown: int) -> Named:
        """Whom a critique names."""
        named = self.read(leaf, partial(self._tasks.read_critique, question, text, shown), UNREADABLE)
        return within(named, shown)  # its author may have published it with other answers than it was shown

    def revisions(
        self, question: Drawn, leaves: Sequence[bytes], texts: Sequence[str], shown: int
    ) -> list[tuple[float, Named]]:
        """What each final answer scores and whom it names; nothing of either if one of them took too long."""
        read = [
            self.read(leaf, partial(self._tasks.read_revision, question, text, shown), ("", UNREADABLE))
            for leaf, text in zip(leaves, texts, strict=True)
        ]
        judged = self.judge(question, leaves, [final for final, _ in read])
        return [
            (0.0, UNREADABLE) if one.score is None else (one.score, named)
            for one, (_, named) in zip(judged, read, strict=True)
        ]

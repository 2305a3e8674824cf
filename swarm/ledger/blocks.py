"""Finding blocks by their time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from swarm.ledger.records import Block

KEPT_BLOCKS = 4096  # what a search remembers
INTERPOLATIONS = 4  # enough on a chain of even block times; then halving guarantees an end


class BlockSearch:
    """Finds the first block at or after a time, remembering the headers it has seen.

    On a chain with even block times a search takes about three calls, however long the chain; at worst two
    times log2 of its length. Headers are taken as final: a chain that reorganizes deeply can leave a wrong
    one here.
    """

    def __init__(self, fetch: Callable[[int | None], Block]) -> None:
        """`fetch(number)` gets a header, `fetch(None)` the latest one."""
        self._fetch = fetch
        self._known: list[
            tuple[int, int, bytes]
        ] = []  # (timestamp, number, hash), ascending in both of the first

    def first_at(self, timestamp: int) -> Block | None:
        """The first block whose timestamp is `timestamp` or later; None if there is none yet."""
        if not self._known or self._known[-1][0] < timestamp:
            latest = self._get(None)
            if latest.timestamp < timestamp:
                return None
        place = bisect_left(self._known, (timestamp, -1, b""))
        after = self._block(place)
        if after.number == 0:
            return after
        before = self._block(place - 1) if place else self._get(0)
        if before.timestamp >= timestamp:
            return before
        tries = 0
        while after.number - before.number > 1:
            tries += 1
            middle = self._get(
                _between(before, after, timestamp, halve=tries > INTERPOLATIONS and tries % 2 == 0)
            )
            if middle.timestamp < timestamp:
                before = middle
            else:
                after = middle
        return after

    def _get(self, number: int | None) -> Block:
        block = self._fetch(number)
        entry = (block.timestamp, block.number, block.hash)
        place = bisect_left(self._known, entry)
        if self._known[place : place + 1] != [entry]:
            self._known.insert(place, entry)
        if len(self._known) > KEPT_BLOCKS:
            del self._known[: KEPT_BLOCKS // 2]  # the oldest: rounds move on
        return block

    def _block(self, place: int) -> Block:
        timestamp, number, digest = self._known[place]
        return Block(number, timestamp, digest)


def _between(before: Block, after: Block, timestamp: int, *, halve: bool) -> int:
    gap = after.number - before.number
    if halve:
        return before.number + gap // 2
    guess = before.number + gap * (timestamp - before.timestamp) // (after.timestamp - before.timestamp)
    return min(max(guess, before.number + 1), after.number - 1)

"""What the beacon decides: cells, questions, seeds, and which of the others' work a peer uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from msgspec import Struct

from swarm.digest import Purpose, derive

T = TypeVar("T")


class Draw(Struct, frozen=True):
    """One round's draws. `active` is the ledger's count of reporters two rounds earlier."""

    swarm_id: bytes
    beacon: bytes
    active: int
    cell_size: int

    @property
    def cells(self) -> int:
        """How many cells there are; at least one."""
        return max(1, -(-self.active // self.cell_size))

    def cell(self, peer: bytes) -> int:
        """The cell of a peer (32-byte digest)."""
        return int.from_bytes(derive(Purpose.CELL, self.swarm_id, self.beacon, peer), "big") % self.cells

    def question_seed(self, cell: int, index: int) -> bytes:
        """The 32-byte seed of a cell's question j."""
        return derive(Purpose.QUESTION, self.swarm_id, self.beacon, cell, index)

    def proposal_seed(self, peer: bytes, index: int) -> bytes:
        """The 32-byte seed of the example in a peer's propose prompt."""
        return derive(Purpose.PROPOSE, self.swarm_id, self.beacon, peer, index)

    def asker(self, cell: int) -> bytes:
        """The reader in whose order a cell's proposals are asked, the same for all of it."""
        return derive(Purpose.ASK, self.swarm_id, self.beacon, cell)

    def sample_seed(self, peer: bytes, stage: int, index: int, g: int) -> bytes:
        """The 32-byte seed of a peer's completion g of question j in a stage."""
        return derive(Purpose.SAMPLE, self.swarm_id, self.beacon, peer, stage, index, g)

    def planted_seed(self, peer: bytes, index: int) -> bytes:
        """A seed that is nobody's: for a completion that is a planted fault."""
        return derive(Purpose.PLANTED, self.swarm_id, self.beacon, peer, index)

    def order(self, reader: bytes, leaf: bytes) -> bytes:
        """The place of a leaf in a reader's order: sort by it."""
        return derive(Purpose.PICK, self.swarm_id, self.beacon, reader, leaf)

    def pick(
        self,
        reader: bytes,
        candidates: Iterable[T],
        limit: int,
        *,
        leaf: Callable[[T], bytes],
        sender: Callable[[T], bytes],
    ) -> list[T]:
        """The common rule: order by H(beacon, reader, leaf), one per sender before a second of the same."""
        ordered = sorted(candidates, key=lambda item: self.order(reader, leaf(item)))
        turn: Counter[bytes] = Counter()
        with_turn = []
        for item in ordered:
            with_turn.append((turn[sender(item)], item))
            turn[sender(item)] += 1
        with_turn.sort(key=lambda pair: pair[0])  # stable: the hash order stays within a turn
        return [item for _, item in with_turn[:limit]]

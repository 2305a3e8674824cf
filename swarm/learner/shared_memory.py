"""Memory that the processes of one node share: through it go gradients and weights.

Not torch.distributed: its collectives hang, or take the process down, when a member dies; and all of us are
on one machine, where memory is the network. A sum is made in the order of the ranks, a slice by one rank
each, so every rank gets the same bits.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

# Of one rank's region: small enough for any machine, and large enough that meeting (some 100 µs) costs little
# beside copying it.
CHUNK_BYTES = 16 * 2**20
_PAGE = mmap.PAGESIZE  # the first page has the flag


class SharedMemory:
    """A flag, and two buffers with a region for each rank.

    Successive chunks use the buffers in turn: a rank that is ahead writes into the other one while the last
    one is still being read, and it cannot get two ahead, because all meet in between.
    """

    def __init__(self, descriptor: int, ranks: int) -> None:
        self._map = mmap.mmap(descriptor, self.size(ranks))
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        self._regions = whole[_PAGE:].view(2, ranks, CHUNK_BYTES)
        self._ranks = ranks

    @staticmethod
    def size(ranks: int) -> int:
        """Bytes in all."""
        return _PAGE + 2 * ranks * CHUNK_BYTES

    @staticmethod
    def create(ranks: int) -> int:
        """A file descriptor of fresh memory, to be inherited by the other ranks."""
        if hasattr(os, "memfd_create"):  # not /dev/shm, of which a container has 64 MiB
            descriptor = os.memfd_create("swarm-ranks")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, SharedMemory.size(ranks))
        return descriptor

    @property
    def stop(self) -> bool:
        """Whether sampling should stop, as rank 0 last said."""
        return self._map[0] != 0

    @stop.setter
    def stop(self, value: bool) -> None:
        self._map[0] = int(value)

    def sum(self, rank: int, tensors: Sequence[torch.Tensor], meet: Callable[[], None]) -> None:
        """Put the sum over all ranks in place of each rank's own fp32 tensors, of equal shapes everywhere.

        Every rank calls it at once; `meet` returns when all of them have called it.
        """
        for index, pieces in enumerate(_chunks(tensors)):
            regions = self._regions[index % 2].view(torch.float32)
            count = _lay(pieces, regions[rank])
            meet()
            low, high = count * rank // self._ranks, count * (rank + 1) // self._ranks
            total = regions[0, low:high]
            for other in range(1, self._ranks):
                total += regions[other, low:high]
            meet()
            _take(pieces, regions[0])

    def give(self, tensors: Sequence[torch.Tensor], meet: Callable[[], None]) -> None:
        """Rank 0's part of `take`."""
        for index, pieces in enumerate(_chunks(tensors)):
            _lay(pieces, self._regions[index % 2, 0].view(pieces[0].dtype))
            meet()

    def take(self, tensors: Sequence[torch.Tensor], meet: Callable[[], None]) -> None:
        """Put what rank 0 gives in place of tensors of the same shapes and types."""
        for index, pieces in enumerate(_chunks(tensors)):
            meet()
            _take(pieces, self._regions[index % 2, 0].view(pieces[0].dtype))


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> int:
    """64 bits that differ when a bit does, but for a rare chance; no digest, but as fast as memory."""
    total = 0
    for tensor in tensors.values():
        flat = tensor.detach().reshape(-1)
        words = flat.view(torch.int32) if flat.element_size() % 4 == 0 else flat.view(torch.uint8)
        total = (total * 0x9E3779B97F4A7C15 + int(words.sum(dtype=torch.int64))) % 2**64
    return total


def _chunks(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors' flat content, of one type and up to `CHUNK_BYTES` at a time, as views in order."""
    pieces: list[torch.Tensor] = []
    room = 0
    for tensor in tensors:
        flat = tensor.detach().view(-1)
        start = 0
        while start < len(flat):
            if pieces and (room == 0 or pieces[0].dtype != flat.dtype):
                yield pieces
                pieces = []
            if not pieces:
                room = CHUNK_BYTES // flat.element_size()
            piece = flat[start : start + room]
            pieces.append(piece)
            start += len(piece)
            room -= len(piece)
    if pieces:
        yield pieces


def _lay(pieces: Sequence[torch.Tensor], region: torch.Tensor) -> int:
    """Copy the pieces into the region, one after another; how many elements they are."""
    offset = 0
    for piece in pieces:
        region[offset : offset + len(piece)].copy_(piece)
        offset += len(piece)
    return offset


def _take(pieces: Sequence[torch.Tensor], region: torch.Tensor) -> None:
    """The other way round."""
    offset = 0
    for piece in pieces:
        piece.copy_(region[offset : offset + len(piece)])
        offset += len(piece)

"""Messages and bytes over a libp2p stream, with an end to every wait.

A message is one wire struct in msgpack behind two bytes of length (big-endian). A peer that is silent, or
so slow that it might as well be, is given up with `ExchangeError("peer stalled")`; one that ends the stream
too early shows as `EOFError` or `ConnectionError`, which the callers turn into what it means to them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from msgspec import Struct

from swarm.errors import ExchangeError, WireError
from swarm.exchange import wire

CHUNK_BYTES = 256 * 1024
LENGTH_BYTES = 2
STALL_SECONDS = 5.0
# An uplink of 1 Mbit/s shared by the 32 readers that a peer serves at once (`serving.MAX_SERVES`).
MIN_BYTES_PER_SECOND = 4096

T = TypeVar("T")
Message = TypeVar("Message", bound=Struct)


async def send_message(writer: asyncio.StreamWriter, message: Struct) -> None:
    """Send one wire struct; it must encode to at most `wire.MAX_MESSAGE_BYTES`."""
    body = wire.encode(message)
    await send(writer, len(body).to_bytes(LENGTH_BYTES, "big") + body)


async def receive_message(reader: asyncio.StreamReader, kind: type[Message]) -> Message:
    """The next wire struct, whole within `STALL_SECONDS`; `WireError` if it is not one of this kind.

    Raises `EOFError` or `ConnectionError` if the stream ends first.
    """
    return wire.decode(kind, await _unless_stalled(_frame(reader)), wire.MAX_MESSAGE_BYTES)


async def receive_bytes(reader: asyncio.StreamReader, count: int) -> AsyncIterator[bytes]:
    """The next `count` bytes in chunks as they come; what the consumer does meanwhile takes no time here.

    Raises `EOFError` or `ConnectionError` if the stream ends first, `ExchangeError` if the peer is silent
    for `STALL_SECONDS` or sends less than `MIN_BYTES_PER_SECOND` over as long.
    """
    clock = asyncio.get_running_loop().time
    waited, came = 0.0, 0  # since the pace was last looked at
    while count:
        asked_at = clock()
        chunk = await _unless_stalled(reader.read(min(CHUNK_BYTES, count)))
        if not chunk:
            raise EOFError
        count -= len(chunk)
        waited, came = waited + clock() - asked_at, came + len(chunk)
        if waited >= STALL_SECONDS:
            if count and came < MIN_BYTES_PER_SECOND * waited:
                raise ExchangeError("peer stalled")
            waited, came = 0.0, 0
        yield chunk


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write, and wait until libp2p has taken all of it; `ExchangeError` if the peer reads too slowly."""
    transport = writer.transport
    transport.set_write_buffer_limits(0)  # drain() waits for the last byte; what it left, no timeout guards
    writer.write(data)
    while True:
        left = transport.get_write_buffer_size()
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await writer.drain()
                return
        except TimeoutError:
            if left - transport.get_write_buffer_size() < MIN_BYTES_PER_SECOND * STALL_SECONDS:
                raise ExchangeError("peer stalled") from None


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size_bytes = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
    if size_bytes > wire.MAX_MESSAGE_BYTES:
        raise WireError(f"message is over its size limit: {size_bytes} bytes of {wire.MAX_MESSAGE_BYTES}")
    return await reader.readexactly(size_bytes)


async def _unless_stalled(reading: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(STALL_SECONDS):
            return await reading
    except TimeoutError:
        raise ExchangeError("peer stalled") from None


class Limit:
    """So many at once in all and per peer; who comes when it is reached is turned away."""

    def __init__(self, total: int, per_peer: int) -> None:
        self._total = total
        self._per_peer = per_peer
        self._taken: Counter[bytes] = Counter()

    @contextmanager
    def slot(self, peer: bytes) -> Iterator[bool]:
        """Whether there was a free slot, which then is taken until the end of the block."""
        if self._taken.total() >= self._total or self._taken[peer] >= self._per_peer:
            yield False
            return
        self._taken[peer] += 1
        try:
            yield True
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]

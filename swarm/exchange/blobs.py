"""Fetches blobs from peers (`serving` is the other side) and trusts none of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Protocol

from hivemind.p2p import P2P, P2PDaemonError

from swarm.errors import ExchangeError
from swarm.exchange import streams, wire
from swarm.exchange.protocol import libp2p_peer
from swarm.exchange.store import BlobStore, Partial
from swarm.exchange.validator import reason

MAX_FETCHES = 8
MAX_FETCHES_PER_PEER = 2
MAX_FETCHED_BYTES = 64 * 2**20  # of the blobs that are fetched at once, which are held in memory
OPEN_SECONDS = 5.0
BUSY_RETRY_SECONDS = 0.2
# p2pd asks the peers that it is connected to where another one is, and learns who they are only after the
# connection stands: in milliseconds, or on a busy machine tenths of a second.
_KNOWS_NOBODY, _ACQUAINTED_TRIES = "failed to find any peer in table", 5


class Fetcher:
    """Fetches blobs into a store, within limits; lives in the exchange's asyncio thread.

    A peer that serves something wrong or stalls is shunned: nothing more is fetched from it until `forgive`,
    so that it costs its reader that much once a round and no more.
    """

    def __init__(self, store: BlobStore) -> None:
        self.shunned: dict[bytes, str] = {}  # peer to reason
        self.fetched_bytes = 0  # in all, of blobs that broke off or were wrong too
        self._store = store
        self._gate = _Gate()

    def forgive(self) -> None:
        """Called at each new round, from any thread: shunned peers may be fetched from again."""
        self.shunned.clear()

    async def fetch(self, p2p: P2P, peer: bytes, digest: bytes, size_bytes: int, *, timeout: float) -> bytes:
        """A blob of exactly `size_bytes` from a peer (its 32-byte digest), within `timeout` seconds.

        Goes on where an earlier attempt ended, and is in the store afterwards if that has room. Waiting for
        other fetches to end counts as time. What the peer may send after the blob is not read.
        Raises `ExchangeError` with the reason; what stands before its first colon is from a fixed set.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._fetch(p2p, peer, digest, size_bytes)
        except TimeoutError:
            raise ExchangeError("blob did not come in time") from None
        except NotServed:
            raise
        except ExchangeError as error:
            self.shunned[peer] = reason(error)
            raise

    async def _fetch(self, p2p: P2P, peer: bytes, digest: bytes, size_bytes: int) -> bytes:
        broke_off = False
        while True:
            self._refuse_shunned(peer)
            async with self._gate.slot(peer, size_bytes), self._begun(digest, size_bytes) as partial:
                self._refuse_shunned(peer)  # it may have failed another fetch meanwhile
                begins = partial.offset
                resumed = begins > 0
                try:
                    served = await download(p2p, peer, partial)
                except (EOFError, ConnectionError):
                    if broke_off:
                        raise ExchangeError("peer broke off the blob") from None
                    broke_off = True
                    continue
                finally:
                    self.fetched_bytes += partial.offset - begins
                if served:
                    try:
                        return await asyncio.to_thread(partial.finish)
                    except ExchangeError:
                        if not resumed:
                            raise
                        continue  # from zero: the first part may be another peer's fault
            # Outside the gate, so that a peer which says busy for ever keeps nobody waiting.
            await asyncio.sleep(BUSY_RETRY_SECONDS)

    @asynccontextmanager
    async def _begun(self, digest: bytes, size_bytes: int) -> AsyncIterator[Partial]:
        beginning = asyncio.create_task(asyncio.to_thread(self._store.begin, digest, size_bytes))
        try:
            yield await asyncio.shield(beginning)
        finally:  # whenever and however often this is cancelled: an open partial keeps its file to itself
            await asyncio.shield(_close(beginning))

    def _refuse_shunned(self, peer: bytes) -> None:
        if peer in self.shunned:
            raise NotServed(f"sender failed earlier in this round: {self.shunned[peer]}")


class NotServed(ExchangeError):
    """There is no blob from this peer now, and that is not its misbehaviour."""


class Sink(Protocol):
    """Where a download goes: `Partial` in memory, `FileDownload` on disk."""

    @property
    def digest(self) -> bytes:
        """The blob's SHA-256."""

    @property
    def size_bytes(self) -> int:
        """The whole blob's."""

    @property
    def offset(self) -> int:
        """How many bytes are there."""

    def write(self, chunk: bytes) -> None:
        """Append; called in a thread, one at a time."""


async def _close(beginning: asyncio.Task[Partial]) -> None:
    await asyncio.to_thread((await beginning).close)


async def download(p2p: P2P, peer: bytes, sink: Sink) -> bool:
    """Let a peer serve the rest of a blob; False if it is busy.

    Raises `NotServed`; `EOFError` or `ConnectionError` if the blob breaks off in the middle; and another
    `ExchangeError` for what only a bad peer does.
    """
    reader, writer = await _open_stream(p2p, peer)
    with closing(writer):
        try:
            await streams.send_message(writer, wire.BlobRequest(digest=sink.digest, offset=sink.offset))
            header = await streams.receive_message(reader, wire.BlobHeader)
        except (EOFError, ConnectionError):
            return False  # too many streams are open there
        if header.status == wire.BLOB_BUSY:
            return False
        if header.status == wire.BLOB_UNKNOWN:
            raise NotServed("peer does not have the blob")
        if header.status == wire.BLOB_REFUSED:
            raise NotServed("peer serves no more of its files today")
        if header.size_bytes != sink.size_bytes:
            raise ExchangeError("blob has another size than announced")
        async for chunk in streams.receive_bytes(reader, sink.size_bytes - sink.offset):
            await asyncio.to_thread(sink.write, chunk)
    return True


async def _open_stream(p2p: P2P, peer: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A blob stream to a peer that need not be connected; `NotServed` if it cannot be reached."""
    tries = _ACQUAINTED_TRIES
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            while True:
                try:
                    opened = await p2p.call_binary_stream_handler(libp2p_peer(peer), wire.BLOB_STREAM)
                    return opened[1], opened[2]
                except P2PDaemonError as error:
                    tries -= 1
                    if not tries or _KNOWS_NOBODY not in str(error):
                        raise
                await asyncio.sleep(BUSY_RETRY_SECONDS)
    except TimeoutError:
        raise NotServed(f"peer cannot be reached: no answer in {OPEN_SECONDS:g} seconds") from None
    except (P2PDaemonError, EOFError, OSError) as error:
        raise NotServed(f"peer cannot be reached: {' '.join(str(error).split())[:200]}") from error


class _Gate:
    """`MAX_FETCHES` at once, `MAX_FETCHES_PER_PEER` from one peer, and `MAX_FETCHED_BYTES`; others wait.

    A blob of more bytes than that passes when it is alone.
    """

    def __init__(self) -> None:
        self._peers: Counter[bytes] = Counter()
        self._bytes = 0
        self._freed = asyncio.Event()  # each serves once

    @asynccontextmanager
    async def slot(self, peer: bytes, size_bytes: int) -> AsyncIterator[None]:
        """Wait for a slot and take it until the end of the block."""
        while not self._has_room(peer, size_bytes):
            await self._freed.wait()
        self._peers[peer] += 1
        self._bytes += size_bytes
        try:
            yield
        finally:
            self._peers[peer] -= 1
            self._bytes -= size_bytes
            if not self._peers[peer]:
                del self._peers[peer]
            freed, self._freed = self._freed, asyncio.Event()
            freed.set()

    def _has_room(self, peer: bytes, size_bytes: int) -> bool:
        return not self._peers or (
            self._peers.total() < MAX_FETCHES
            and self._peers[peer] < MAX_FETCHES_PER_PEER
            and self._bytes + size_bytes <= MAX_FETCHED_BYTES
        )

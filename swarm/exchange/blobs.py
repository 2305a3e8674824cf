"""Blobs between peers: the server that hands out a store's, and the fetcher that trusts no server.

On a `wire.BLOB_STREAM` the reader sends a `BlobRequest`, the server a `BlobHeader` and then, if it has the
blob and is not busy, the blob's bytes from the asked offset on.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import BinaryIO, NamedTuple

from hivemind.p2p import P2P, P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from swarm.errors import ExchangeError
from swarm.exchange import streams, wire
from swarm.exchange.protocol import libp2p_peer, peer_digest
from swarm.exchange.store import BlobStore, Partial
from swarm.exchange.validator import Registered, reason

MAX_STREAMS = 256  # open at once, each a file descriptor; a stock process has 1024
MAX_STREAMS_PER_PEER = 8
MAX_SERVES = 32  # of these served at once; each holds one chunk in memory
MAX_SERVES_PER_PEER = 4
MAX_STRANGERS_STREAMS, MAX_STRANGERS_SERVES = 32, 4  # of all who are not registered together

MAX_FETCHES = 8
MAX_FETCHES_PER_PEER = 2
MAX_FETCHED_BYTES = 64 * 2**20  # of the blobs that are fetched at once, which are held in memory
OPEN_SECONDS = 5.0
BUSY_RETRY_SECONDS = 0.2


class _Places(NamedTuple):
    streams: streams.Limit
    serves: streams.Limit


class BlobServer:
    """Hands out a store's blobs to whoever asks; lives in the exchange's asyncio thread.

    Those of whom the ledger knows nothing share a small part of it, so that they cannot keep others waiting.
    """

    def __init__(self, store: BlobStore, registered: Registered) -> None:
        self._store = store
        self._registered = registered
        self._for_peers = _Places(
            streams.Limit(MAX_STREAMS, MAX_STREAMS_PER_PEER), streams.Limit(MAX_SERVES, MAX_SERVES_PER_PEER)
        )
        self._for_strangers = _Places(
            streams.Limit(MAX_STRANGERS_STREAMS, MAX_SERVES_PER_PEER), streams.Limit(MAX_STRANGERS_SERVES, 1)
        )

    async def start(self, p2p: P2P) -> None:
        """Begin to answer on `p2p`."""
        await p2p.add_binary_stream_handler(wire.BLOB_STREAM, self._handle)

    async def _handle(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # Called by hivemind for each stream that a peer opens. Whatever the peer does, slow, silent or
        # gone, ends this one stream and nothing else.
        peer = peer_digest(info.peer_id)
        places = self._for_strangers if self._registered(peer) is False else self._for_peers
        peer = peer or info.peer_id.to_bytes()
        with places.streams.slot(peer) as admitted, suppress(ExchangeError, EOFError, OSError):
            try:
                if admitted:
                    await self._answer(peer, places.serves, reader, writer)
            finally:
                writer.transport.abort()  # loses nothing: `send` waits until all is out

    async def _answer(
        self,
        peer: bytes,
        serves: streams.Limit,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        request = await streams.receive_message(reader, wire.BlobRequest)
        with serves.slot(peer) as free:
            if not free:
                await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_BUSY))
                return
            file = await asyncio.to_thread(self._open, request)
            if file is None:
                await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_UNKNOWN))
                return
            with file:
                await self._send(file, writer)

    async def _send(self, file: BinaryIO, writer: asyncio.StreamWriter) -> None:
        size_bytes = os.fstat(file.fileno()).st_size
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=size_bytes))
        while chunk := await asyncio.to_thread(file.read, streams.CHUNK_BYTES):
            await streams.send(writer, chunk)

    def _open(self, request: wire.BlobRequest) -> BinaryIO | None:
        """The blob's file at the asked offset; None if it has no such offset, or is not here."""
        path, size_bytes = self._store.path(request.digest), self._store.size(request.digest)
        if path is None or size_bytes is None or request.offset > size_bytes:
            return None
        try:
            file = path.open("rb", buffering=0)
        except OSError:
            return None
        file.seek(request.offset)
        return file


class Fetcher:
    """Fetches blobs into a store, within limits; lives in the exchange's asyncio thread.

    A peer that serves something wrong or stalls is shunned: nothing more is fetched from it until `forgive`,
    so that it costs its reader that much once a round and no more.
    """

    def __init__(self, store: BlobStore) -> None:
        self.shunned: dict[bytes, str] = {}  # peer to reason
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
        except _NotServed:
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
                resumed = partial.offset > 0
                try:
                    served = await _download(p2p, peer, partial)
                except (EOFError, ConnectionError):
                    if broke_off:
                        raise ExchangeError("peer broke off the blob") from None
                    broke_off = True
                    continue
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
            raise _NotServed(f"sender failed earlier in this round: {self.shunned[peer]}")


class _NotServed(ExchangeError):
    """There is no blob from this peer now, and that is not its misbehaviour."""


async def _close(beginning: asyncio.Task[Partial]) -> None:
    await asyncio.to_thread((await beginning).close)


async def _download(p2p: P2P, peer: bytes, partial: Partial) -> bool:
    """Let a peer serve the rest of a blob; False if it is busy.

    Raises `_NotServed`; `EOFError` or `ConnectionError` if the blob breaks off in the middle; and another
    `ExchangeError` for what only a bad peer does.
    """
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            _, reader, writer = await p2p.call_binary_stream_handler(libp2p_peer(peer), wire.BLOB_STREAM)
    except TimeoutError:
        raise _NotServed(f"peer cannot be reached: no answer in {OPEN_SECONDS:g} seconds") from None
    except (P2PDaemonError, EOFError, OSError) as error:
        raise _NotServed(f"peer cannot be reached: {' '.join(str(error).split())[:200]}") from error
    with closing(writer):
        try:
            await streams.send_message(writer, wire.BlobRequest(digest=partial.digest, offset=partial.offset))
            header = await streams.receive_message(reader, wire.BlobHeader)
        except (EOFError, ConnectionError):
            return False  # too many streams are open there
        if header.status == wire.BLOB_BUSY:
            return False
        if header.status == wire.BLOB_UNKNOWN:
            raise _NotServed("peer does not have the blob")
        if header.size_bytes != partial.size_bytes:
            raise ExchangeError("blob has another size than announced")
        async for chunk in streams.receive_bytes(reader, partial.size_bytes - partial.offset):
            await asyncio.to_thread(partial.write, chunk)
    return True


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

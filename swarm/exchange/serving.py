"""Serves blobs: those of the store, and the large files that are shared beside it.

On a `wire.BLOB_STREAM` the reader sends a `BlobRequest`, the server a `BlobHeader` and then, if it has the
blob and neither is busy nor refuses, the blob's bytes from the asked offset on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from swarm.errors import ExchangeError
from swarm.exchange import streams, wire
from swarm.exchange.protocol import peer_digest
from swarm.exchange.sharing import Quota, SharedFiles
from swarm.exchange.store import BlobStore
from swarm.exchange.streams import Limit
from swarm.exchange.validator import Registered

MAX_STREAMS = 256  # open at once, each a file descriptor; a stock process has 1024
MAX_STREAMS_PER_PEER = 8
MAX_SERVES = 32  # of these served at once; each holds one chunk in memory
MAX_SERVES_PER_PEER = 4
MAX_STRANGERS_STREAMS, MAX_STRANGERS_SERVES = 32, 4  # of all who are not registered together
# Of shared files. They take minutes or hours where a stage's blobs take seconds.
MAX_FILES, MAX_STRANGERS_FILES = 4, 1
STRANGERS_SHARE = 0.5  # of the day's bytes, so that keys which cost nothing cannot spend them all
# Of each auditor. They are so few (drawn by the ledger, 16 for a round at most) that all have their places.
MAX_AUDITORS = 64
MAX_STREAMS_PER_AUDITOR, MAX_FILES_PER_AUDITOR = 4, 2


class _Places(NamedTuple):
    """What one kind of askers has for itself."""

    streams: Limit
    blobs: Limit  # the store's
    files: Limit  # shared ones
    quota_share: float | None  # of the day's bytes of shared files; None: as many as they ask for


class BlobServer:
    """Hands out blobs to whoever asks; lives in the exchange's asyncio thread.

    Those of whom the ledger knows nothing share a small part of it, so that they cannot keep others waiting;
    auditors have places of their own, so that nobody can keep them waiting.

    Attributes:
        shared: the files that are served beside the store.
        served_bytes: how much was sent so far.
    """

    def __init__(self, store: BlobStore, registered: Registered, others_bytes_per_day: int) -> None:
        self.shared = SharedFiles()
        self.served_bytes = 0
        self._store = store
        self._registered = registered
        self._auditors: frozenset[bytes] = frozenset()
        self._quota = Quota(others_bytes_per_day)
        self._for_auditors = _Places(
            streams=Limit(MAX_AUDITORS * MAX_STREAMS_PER_AUDITOR, MAX_STREAMS_PER_AUDITOR),
            blobs=Limit(MAX_AUDITORS * MAX_STREAMS_PER_AUDITOR, MAX_STREAMS_PER_AUDITOR),
            files=Limit(MAX_AUDITORS * MAX_FILES_PER_AUDITOR, MAX_FILES_PER_AUDITOR),
            quota_share=None,
        )
        self._for_peers = _Places(
            streams=Limit(MAX_STREAMS, MAX_STREAMS_PER_PEER),
            blobs=Limit(MAX_SERVES, MAX_SERVES_PER_PEER),
            files=Limit(MAX_FILES, 1),
            quota_share=1.0,
        )
        self._for_strangers = _Places(
            streams=Limit(MAX_STRANGERS_STREAMS, MAX_SERVES_PER_PEER),
            blobs=Limit(MAX_STRANGERS_SERVES, 1),
            files=Limit(MAX_STRANGERS_FILES, 1),
            quota_share=STRANGERS_SHARE,
        )

    async def start(self, p2p: P2P) -> None:
        """Begin to answer on `p2p`."""
        await p2p.add_binary_stream_handler(wire.BLOB_STREAM, self._handle)

    def set_auditors(self, peers: Collection[bytes]) -> None:
        """Called from any thread: these peers (digests), and no others, are assigned to audit us now."""
        self._auditors = frozenset(peers)

    async def _handle(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # Called by hivemind for each stream that a peer opens. Whatever the peer does, slow, silent or
        # gone, ends this one stream and nothing else.
        peer = peer_digest(info.peer_id)
        places = self._places_of(peer)
        peer = peer or info.peer_id.to_bytes()
        with places.streams.slot(peer) as admitted, suppress(ExchangeError, EOFError, OSError):
            try:
                if admitted:
                    await self._answer(peer, places, reader, writer)
            finally:
                writer.transport.abort()  # loses nothing: `send` waits until all is out

    def _places_of(self, peer: bytes) -> _Places:
        if peer in self._auditors:
            return self._for_auditors
        return self._for_strangers if self._registered(peer) is False else self._for_peers

    async def _answer(
        self, peer: bytes, places: _Places, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request = await streams.receive_message(reader, wire.BlobRequest)
        is_shared = request.digest in self.shared and self._store.path(request.digest) is None
        quota_share = places.quota_share if is_shared else None
        with (places.files if is_shared else places.blobs).slot(peer) as free:
            if not free:
                await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_BUSY))
                return
            if quota_share is not None and not self._quota.has_left(quota_share):
                await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_REFUSED))
                return
            file = await asyncio.to_thread(self.open, request.digest, request.offset)
            if file is None:
                await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_UNKNOWN))
                return
            with file:
                await self._send(file, writer, quota_share)

    async def _send(self, file: BinaryIO, writer: asyncio.StreamWriter, quota_share: float | None) -> None:
        size_bytes = os.fstat(file.fileno()).st_size
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=size_bytes))
        while chunk := await asyncio.to_thread(file.read, streams.CHUNK_BYTES):
            if quota_share is None:
                await streams.send(writer, chunk)
            elif self._quota.has_left(quota_share):
                self._quota.spend(len(chunk))  # also if the reader is gone: what is on its way was sent
                await streams.send(writer, chunk)
            else:
                return  # it asks for the rest, and is told
            self.served_bytes += len(chunk)

    def open(self, digest: bytes, offset: int = 0) -> BinaryIO | None:
        """The blob's file at this offset; None if it has no such offset, or is not here. Blocks."""
        path = self._store.path(digest)
        try:
            file = self.shared.open(digest) if path is None else path.open("rb", buffering=0)
        except OSError:
            return None
        if file is None:
            return None
        if offset > os.fstat(file.fileno()).st_size:
            file.close()
            return None
        file.seek(offset)
        return file

"""Blobs: files named by their SHA-256, and the stream protocol by which peers hand them to each other.

request   32 bytes: the digest
answer    1 status byte; if it is OK, 8 bytes big-endian: the size, then the content
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from hivemind.p2p import P2P, P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from swarm.errors import ExchangeError
from swarm.exchange.dht import libp2p_peer

PROTOCOL = "/swarm/blob/1"
DIGEST_BYTES = 32
SIZE_BYTES = 8
CHUNK_BYTES = 256 * 1024
OK, UNKNOWN, BUSY = b"\x00", b"\x01", b"\x02"

MAX_SERVES = 32  # streams at once; each holds one chunk in memory
MAX_SERVES_PER_PEER = 4
CHUNK_TIMEOUT_SECONDS = 5.0  # silence after which the other side counts as stalled
BUSY_RETRY_SECONDS = 0.2


class BlobStore:
    """Content-addressed files in one folder, at most `max_bytes` in total; safe to use from any thread.

    When full, the blobs written longest ago go first. Files are written whole or not at all.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.partial"):
            leftover.unlink(missing_ok=True)
        files = sorted((entry for entry in folder.iterdir() if _is_blob(entry)), key=_written_at)
        self._sizes = {bytes.fromhex(file.name): file.stat().st_size for file in files}  # oldest first
        self._total = sum(self._sizes.values())

    def put(self, data: bytes) -> bytes:
        """Keep `data`, making room if needed; returns its digest. `ExchangeError` if it cannot fit."""
        if len(data) > self.max_bytes:
            raise ExchangeError(
                f"blob of {len(data)} bytes is over the store's {self.max_bytes}: raise the quota"
            )
        digest = hashlib.sha256(data).digest()
        with self._lock:
            if digest in self._sizes and self.path(digest).exists():
                self._sizes[digest] = self._sizes.pop(digest)  # now the newest
                os.utime(self.path(digest))
                return digest
            self._forget(digest)
            self._make_room(len(data))
            partial = self.folder / f".{digest.hex()}.partial"
            try:
                partial.write_bytes(data)
                partial.replace(self.path(digest))
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise ExchangeError(
                    f"cannot keep a blob of {len(data)} bytes in {self.folder}: {error.strerror}"
                ) from error
            self._sizes[digest] = len(data)
            self._total += len(data)
        return digest

    def get(self, digest: bytes) -> bytes | None:
        """The blob, or None if it is not here. One that the disk has spoiled is removed and not here."""
        try:
            data = self.path(digest).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).digest() == digest:
            return data
        with self._lock:
            self._forget(digest)
            self.path(digest).unlink(missing_ok=True)
        return None

    def path(self, digest: bytes) -> Path:
        """Where the blob is, if it is here."""
        return self.folder / digest.hex()

    def _make_room(self, needed: int) -> None:
        while self._sizes and self._total + needed > self.max_bytes:
            oldest = next(iter(self._sizes))
            self._forget(oldest)
            self.path(oldest).unlink(missing_ok=True)

    def _forget(self, digest: bytes) -> None:
        self._total -= self._sizes.pop(digest, 0)


class BlobServer:
    """Hands out a store's blobs to whoever asks; lives in the exchange's asyncio thread."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._serving: Counter[bytes] = Counter()

    async def start(self, p2p: P2P) -> None:
        """Begin to answer on `p2p`."""
        await p2p.add_binary_stream_handler(PROTOCOL, self._handle)

    async def _handle(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # Called by hivemind for each stream that a peer opens. Whatever the peer does, slow, silent or
        # gone, ends this one stream and nothing else.
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            try:
                # Read before answering BUSY: a stream closed in front of the request looks broken.
                digest = await asyncio.wait_for(reader.readexactly(DIGEST_BYTES), CHUNK_TIMEOUT_SECONDS)
                with self._slot(info.peer_id.to_bytes()) as free:
                    await (self._serve(digest, writer) if free else _send(writer, BUSY))
            except TimeoutError:
                writer.transport.abort()  # close() would wait for the peer to take what is buffered

    async def _serve(self, digest: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            file = self._store.path(digest).open("rb")
        except OSError:
            await _send(writer, UNKNOWN)
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            await _send(writer, OK + size.to_bytes(SIZE_BYTES, "big"))
            while chunk := file.read(CHUNK_BYTES):
                await _send(writer, chunk)

    @contextmanager
    def _slot(self, peer: bytes) -> Iterator[bool]:
        if self._serving.total() >= MAX_SERVES or self._serving[peer] >= MAX_SERVES_PER_PEER:
            yield False
            return
        self._serving[peer] += 1
        try:
            yield True
        finally:
            self._serving[peer] -= 1
            if not self._serving[peer]:
                del self._serving[peer]


async def fetch(p2p: P2P, peer: bytes, digest: bytes, size_bytes: int, timeout: float) -> bytes:
    """Read a blob of exactly `size_bytes` from a peer (its 32-byte digest) within `timeout` seconds.

    Raises `ExchangeError` with the reason: unreachable, unknown blob, wrong size, wrong digest, stalled.
    """
    try:
        async with asyncio.timeout(timeout):
            while (data := await _fetch_once(p2p, peer, digest, size_bytes)) is None:
                await asyncio.sleep(BUSY_RETRY_SECONDS)
    except TimeoutError:
        raise ExchangeError("blob did not come in time") from None
    except (asyncio.IncompleteReadError, ConnectionError):
        raise ExchangeError("peer broke off the blob") from None
    except (P2PDaemonError, OSError) as error:
        raise ExchangeError(f"peer cannot be reached: {' '.join(str(error).split())[:200]}") from error
    return data


async def _fetch_once(p2p: P2P, peer: bytes, digest: bytes, size_bytes: int) -> bytes | None:
    """One attempt; None if the peer is busy."""
    _, reader, writer = await p2p.call_binary_stream_handler(libp2p_peer(peer), PROTOCOL)
    with closing(writer):
        await _send(writer, digest)
        status = await _receive(reader, 1)
        if status == BUSY:
            return None
        if status != OK:
            raise ExchangeError("peer does not have the blob")
        if int.from_bytes(await _receive(reader, SIZE_BYTES), "big") != size_bytes:
            raise ExchangeError("blob has another size than announced")
        content, hashed = bytearray(), hashlib.sha256()
        while len(content) < size_bytes:
            chunk = await _read(reader.read(min(CHUNK_BYTES, size_bytes - len(content))))
            if not chunk:
                raise ExchangeError("peer broke off the blob")
            content += chunk
            hashed.update(chunk)
    if hashed.digest() != digest:
        raise ExchangeError("blob has another digest than announced")
    return bytes(content)


async def _receive(reader: asyncio.StreamReader, count: int) -> bytes:
    return await _read(reader.readexactly(count))


async def _read(reading: object) -> bytes:
    try:
        return await asyncio.wait_for(reading, CHUNK_TIMEOUT_SECONDS)  # type: ignore[arg-type]
    except TimeoutError:
        raise ExchangeError("peer stalled") from None


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await asyncio.wait_for(writer.drain(), CHUNK_TIMEOUT_SECONDS)


def _is_blob(path: Path) -> bool:
    return path.is_file() and len(path.name) == 2 * DIGEST_BYTES and set(path.name) <= set("0123456789abcdef")


def _written_at(path: Path) -> float:
    return path.stat().st_mtime

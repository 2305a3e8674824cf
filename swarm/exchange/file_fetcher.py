"""Fetches blobs of any size into files, for who wants one from a certain peer: an auditor, as a rule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from hivemind.p2p import P2P

from swarm.errors import ExchangeError
from swarm.exchange import blobs, streams
from swarm.exchange.file_download import READ_BYTES, FileDownload, unfinished_path

MAX_FILES = 4  # fetched at once
MAX_PAUSE_SECONDS = 5.0  # between questions to a peer that is busy


class FileFetcher:
    """Lives in the exchange's asyncio thread. It shuns nobody: what a failure means, its caller decides.

    `own(digest, offset)` opens what this peer serves itself, or is None: peers share a swarm's first state.
    """

    def __init__(self, own: Callable[[bytes, int], BinaryIO | None]) -> None:
        self._own = own
        self.fetched_bytes = 0  # in all, of files that broke off or were wrong too
        self._gate = asyncio.Semaphore(MAX_FILES)
        self._under_way: set[Path] = set()

    async def fetch(
        self, p2p: P2P, peer: bytes, digest: bytes, size_bytes: int, path: Path, *, timeout: float
    ) -> None:
        """A blob of exactly `size_bytes` from a peer (its 32-byte digest) into a file, in `timeout` seconds.

        Goes on where an earlier attempt with this or another peer ended; waiting for other fetches counts as
        time. Raises `ExchangeError` with the reason; what stands before its first colon is from a fixed set.
        """
        unfinished = unfinished_path(path, digest)
        try:
            async with asyncio.timeout(timeout):
                while unfinished in self._under_way:
                    await asyncio.sleep(blobs.BUSY_RETRY_SECONDS)
                self._under_way.add(unfinished)
                try:
                    async with self._gate:
                        await self._fetch(p2p, peer, digest, size_bytes, path)
                finally:
                    self._under_way.discard(unfinished)
        except TimeoutError:
            raise ExchangeError("blob did not come in time") from None

    async def _fetch(self, p2p: P2P, peer: bytes, digest: bytes, size_bytes: int, path: Path) -> None:
        may_copy = True
        while True:
            async with _begun(path, digest, size_bytes) as download:
                while await asyncio.to_thread(download.resume):
                    pass
                all_of_peer = download.offset == 0
                if may_copy and await self._copy(download):
                    all_of_peer = may_copy = False
                else:
                    begins = download.offset
                    try:
                        await _pull(p2p, peer, download)
                    finally:
                        self.fetched_bytes += download.offset - begins
                if await asyncio.to_thread(download.finish):
                    return
                if all_of_peer:
                    raise ExchangeError("blob has another digest than announced")
            # Again, from zero: the first part may have been another peer's fault.

    async def _copy(self, download: FileDownload) -> bool:
        """Take the rest from this peer's own files; whether it is there."""
        file = await asyncio.to_thread(self._own, download.digest, download.offset)
        if file is None:
            return False
        with file:
            while chunk := await asyncio.to_thread(file.read, READ_BYTES):
                await asyncio.to_thread(download.write, chunk)
        return True


@asynccontextmanager
async def _begun(path: Path, digest: bytes, size_bytes: int) -> AsyncIterator[FileDownload]:
    download = FileDownload(path, digest, size_bytes)
    try:
        yield download
    finally:  # whenever this is cancelled: the file is nobody's before the next one takes it
        await asyncio.shield(asyncio.to_thread(download.close))


async def _pull(p2p: P2P, peer: bytes, download: FileDownload) -> None:
    """Let the peer serve the rest, however often it breaks off as long as something comes."""
    pause, gave_nothing = blobs.BUSY_RETRY_SECONDS, False
    while (before := download.offset) < download.size_bytes:
        try:
            if await blobs.download(p2p, peer, download):
                return
        except (EOFError, ConnectionError):
            if download.offset - before < streams.CHUNK_BYTES:
                if gave_nothing:
                    raise ExchangeError("peer broke off the blob") from None
                gave_nothing = True
            continue
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)

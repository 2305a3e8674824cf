"""What tests of blobs are played by: bare libp2p hosts, and handlers that serve right or wrong."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from exchange_cast import nobody_knows
from hivemind.p2p import P2P

from identity import Identity
from swarm.exchange import streams, wire
from swarm.exchange.serving import BlobServer
from swarm.exchange.store import BlobStore
from swarm.exchange.validator import Registered

WAIT_SECONDS = 30.0  # for what is meant to end by itself
PEERS = 3

Handler = Callable[[Any, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Hosts:
    """Three connected libp2p hosts on one stock event loop."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.DefaultEventLoopPolicy().new_event_loop()
        identities = [Identity.create(folder / f"{n}.pem") for n in range(PEERS)]
        self.peers = [identity.peer for identity in identities]
        self.p2p: list[P2P] = []
        self._serving: set[int] = set()
        for identity in identities:
            self.p2p.append(self.run(self._start(identity)))

    async def _start(self, identity: Identity) -> P2P:
        known = [str(address) for p2p in self.p2p for address in await p2p.get_visible_maddrs()]
        return await P2P.create(
            known,
            identity_path=str(identity.path),
            auto_nat=False,
            nat_port_map=False,
            use_relay=False,
            check_if_identity_free=False,
        )

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, WAIT_SECONDS))

    def serve(self, n: int, handler: Handler) -> None:
        """Let a host answer blob streams with this handler."""
        self.run(self._serve(n, lambda: self.p2p[n].add_binary_stream_handler(wire.BLOB_STREAM, handler)))

    def serve_store(
        self,
        n: int,
        store: BlobStore,
        registered: Registered = nobody_knows,
        others_bytes_per_day: int = 2**40,
    ) -> BlobServer:
        """Let a host answer blob streams as a peer does."""
        server = BlobServer(store, registered, others_bytes_per_day)
        self.run(self._serve(n, lambda: server.start(self.p2p[n])))
        return server

    async def _serve(self, n: int, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if n in self._serving:
            await self.p2p[n].remove_binary_stream_handler(wire.BLOB_STREAM)
        await begin()
        self._serving.add(n)

    async def open(self, reader: int, server: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A blob stream, nothing sent on it."""
        opened = await self.p2p[reader].call_binary_stream_handler(self.p2p[server].peer_id, wire.BLOB_STREAM)
        return opened[1], opened[2]

    def stop(self) -> None:
        async def end() -> None:
            for p2p in self.p2p:
                await p2p.shutdown()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self._loop.run_until_complete(end())
        self._loop.close()


def answering(*pieces: bytes, size_bytes: int = 7, status: int = wire.BLOB_FOLLOWS) -> Handler:
    """Serves these bytes, whatever is asked for and from wherever."""

    async def answer(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.receive_message(reader, wire.BlobRequest)
        await streams.send_message(writer, wire.BlobHeader(status=status, size_bytes=size_bytes))
        with suppress(OSError):
            for piece in pieces:
                await streams.send(writer, piece)
        writer.close()

    return answer


async def silent(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the other side gives up
    writer.close()


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()

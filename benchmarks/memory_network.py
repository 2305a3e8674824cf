"""libp2p without libp2p: as many peers as one process can hold, their calls counted.

`MemoryP2P` has just what `swarm.exchange` and hivemind's `DHTNode` call on a `P2P`. Everything above it is
the real thing: `Peer`, the guarded DHT protocol, the record validator, the blob server. Calls travel as
serialized protobufs, streams through socket pairs; nothing is lost, and only the work itself takes time.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from hivemind.p2p import P2P, P2PContext, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from identity import Identity
from swarm.exchange import dht
from swarm.exchange.host import Host
from swarm.exchange.protocol import libp2p_peer
from swarm.exchange.reach import Reach
from swarm.exchange.storage import RecordStorage
from swarm.exchange.validator import AnnouncementValidator

Handler = Callable[[Any, P2PContext], Coroutine[Any, Any, Any]]
StreamHandler = Callable[[StreamInfo, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Tally:
    """What one peer sent and received, by the name of the call (`rpc_find`) or of the stream.

    A request is a message and so is its answer; each counts for the peer that sends and for the one that
    receives it. Of streams the openings count, on both sides, and no bytes.
    """

    messages: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)  # of the protobufs

    def count(self, name: str, message: Any) -> None:
        """Note a protobuf that passes."""
        self.messages[name] += 1
        self.bytes[name] += message.ByteSize()

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.messages + other.messages, self.bytes + other.bytes)

    def __sub__(self, other: Tally) -> Tally:
        return Tally(self.messages - other.messages, self.bytes - other.bytes)


class Counted:
    """Mixed into a `P2P`: counts what passes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.tally = Tally()

    async def call_protobuf_handler(self, peer_id: PeerID, name: str, input: Any, output: type) -> Any:
        """Called by hivemind's stubs, for each request to another peer."""
        kind = name.rpartition(".")[2]
        self.tally.count(kind, input)
        answer = await super().call_protobuf_handler(peer_id, name, input, output)  # type: ignore[misc]
        self.tally.count(kind, answer)
        return answer

    async def add_protobuf_handler(self, name: str, handler: Handler, input: type, **options: Any) -> None:
        """Called by hivemind's servicers, for each kind of request that they answer."""
        kind = name.rpartition(".")[2]

        async def counted(request: Any, context: P2PContext) -> Any:
            self.tally.count(kind, request)
            answer = await handler(request, context)
            self.tally.count(kind, answer)
            return answer

        await super().add_protobuf_handler(name, counted, input, **options)  # type: ignore[misc]

    async def call_binary_stream_handler(self, peer_id: PeerID, name: str) -> Any:
        """Called for each stream to another peer."""
        self.tally.messages[name] += 1
        return await super().call_binary_stream_handler(peer_id, name)  # type: ignore[misc]

    async def add_binary_stream_handler(self, name: str, handler: StreamHandler) -> None:
        """Called for each kind of stream that is answered."""

        async def counted(info: StreamInfo, reader: Any, writer: Any) -> None:
            self.tally.messages[name] += 1
            await handler(info, reader, writer)

        await super().add_binary_stream_handler(name, counted)  # type: ignore[misc]


class CountedP2P(Counted, P2P):
    """hivemind's own, with a p2pd."""


class MemoryP2P:
    """One peer's end of the network that is this process."""

    everybody: ClassVar[dict[PeerID, MemoryP2P]] = {}

    def __init__(self) -> None:
        self.peer_id = PeerID(b"")
        self._handlers: dict[str, tuple[Handler, type]] = {}
        self._stream_handlers: dict[str, StreamHandler] = {}
        self._client = SimpleNamespace(connect=self._connect)
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, peer_id: PeerID) -> None:
        """Be found by others from now on."""
        self.peer_id = peer_id
        self.everybody[peer_id] = self

    async def shutdown(self) -> None:
        """Be found no more."""
        del self.everybody[self.peer_id]

    async def get_visible_maddrs(self, latest: bool = False) -> list[str]:
        """An address that parses, and that nobody dials."""
        return [f"/ip4/127.0.0.1/tcp/1/p2p/{self.peer_id.to_base58()}"]

    async def add_protobuf_handler(self, name: str, handler: Handler, input: type, **_: Any) -> None:
        """As `P2P.add_protobuf_handler`."""
        self._handlers[name] = handler, input

    async def call_protobuf_handler(self, peer_id: PeerID, name: str, input: Any, output: type) -> Any:
        """As `P2P.call_protobuf_handler`, without streams of protobufs."""
        handler, kind = self._other(peer_id)._handlers[name]
        context = P2PContext(handle_name=name, local_id=peer_id, remote_id=self.peer_id)
        request = kind.FromString(input.SerializeToString())  # type: ignore[attr-defined]
        await asyncio.sleep(0)  # as the wire would, let others go first
        # The caller's context variables do not travel, and its impatience does not end the work.
        answering = asyncio.create_task(handler(request, context), context=contextvars.Context())
        try:
            answer = await asyncio.shield(answering)
        except Exception as error:
            raise P2PHandlerError(f"Failed to call handler `{name}`: {error}") from error
        return output.FromString(answer.SerializeToString())  # type: ignore[attr-defined]

    async def add_binary_stream_handler(self, name: str, handler: StreamHandler) -> None:
        """As `P2P.add_binary_stream_handler`."""
        self._stream_handlers[name] = handler

    async def call_binary_stream_handler(self, peer_id: PeerID, name: str) -> Any:
        """As `P2P.call_binary_stream_handler`."""
        handler = self._other(peer_id)._stream_handlers[name]
        ours, theirs = socket.socketpair()
        info = StreamInfo(self.peer_id, "/memory", name)
        task = asyncio.create_task(handler(info, *await asyncio.open_connection(sock=theirs)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return info, *await asyncio.open_connection(sock=ours)

    async def _connect(self, peer_id: PeerID, _addresses: Any) -> None:
        self._other(peer_id)

    def _other(self, peer_id: PeerID) -> MemoryP2P:
        try:
            return self.everybody[peer_id]
        except KeyError:
            raise P2PDaemonError("no such peer") from None


class CountedMemoryP2P(Counted, MemoryP2P):
    """A `MemoryP2P` that counts."""


class MemoryHost(Host):
    """A `Host` without p2pd, which therefore never dies."""

    @classmethod
    async def start(
        cls,
        identity_path: Path,
        reach: Reach,
        validator: AnnouncementValidator,
        storage: RecordStorage,
        serve: Callable[[P2P], Awaitable[None]],
    ) -> MemoryHost:
        """As `Host.start`."""
        p2p: Any = CountedMemoryP2P()
        p2p.listen(libp2p_peer(Identity.load(identity_path).peer))
        node = await dht.create_node(p2p, validator, storage)
        await serve(p2p)
        return cls(p2p, node, Path())

    async def died(self) -> str:
        """As `Host.died`."""
        return await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        """As `Host.stop`."""
        self.node.is_alive = False
        await self.p2p.shutdown()

"""What exchange tests are played by: a swarm's rules, and a real hivemind node that keeps to none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
from hivemind.dht import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2P, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.timed_storage import ValueWithExpiration

from identity import Identity, Journal, Slot
from swarm.exchange import wire
from swarm.exchange.protocol import node_id
from swarm.exchange.service import Exchange
from swarm.exchange.validator import Registered, SwarmRules

WAIT_SECONDS = 60.0  # for what is meant to happen by itself, on a machine that is busy


def until(condition: Callable[[], object]) -> None:
    """Wait for what happens in other threads and processes."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def p2pds() -> set[psutil.Process]:
    """The p2pds of this process, those included that ended and that nobody waited for."""
    return {child for child in psutil.Process().children(recursive=True) if child.name() == "p2pd"}


def p2pd_of(exchange: Exchange) -> psutil.Process:
    """The one on which an exchange runs now."""
    host = exchange._peer._host
    assert host is not None, "libp2p is being started"
    return psutil.Process(host.p2p._child.pid)


def nobody_knows(_peer: bytes) -> bool | None:
    """Who is registered, while the ledger has not said."""
    return None


@dataclass(frozen=True)
class Swarm:
    """What all peers of one test agree on. Rounds are long: none turns while a test runs."""

    swarm_id: bytes = b"\x01" * 32
    round_seconds: int = 3600
    genesis: int = int(time.time()) - 10 * 3600 - 600

    @property
    def round(self) -> int:
        return int(time.time() - self.genesis) // self.round_seconds

    def rules(self, registered: Registered = nobody_knows) -> SwarmRules:
        return SwarmRules(
            swarm_id=self.swarm_id,
            genesis=self.genesis,
            round_seconds=self.round_seconds,
            now=time.time,
            registered=registered,
        )

    def announcement(self, blob: bytes = b"b" * 32, blob_bytes: int = 1, **changes: Any) -> wire.Announcement:
        number = changes.get("round", self.round)
        announcement = wire.Announcement(
            swarm=self.swarm_id,
            round=number,
            stage=0,
            cell=0,
            expiration=wire.expiration(self.genesis, self.round_seconds, number),
            groups=1,
            root=b"r" * 32,
            blob=blob,
            blob_bytes=blob_bytes,
        )
        return msgspec.structs.replace(announcement, **changes)


class _Verbatim(DictionaryDHTValue):
    """Goes over the wire as the bytes that it is made of, whatever they are."""

    def __init__(self, packed: bytes) -> None:
        super().__init__()
        self.packed = packed


class _LooseSerializer(MSGPackSerializer):
    @classmethod
    def dumps(cls, value: object) -> bytes:
        return value.packed if isinstance(value, _Verbatim) else super().dumps(value)


class Rogue:
    """A hivemind node without a validator, able to send its victim anything and to serve anything."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def start(self, victim: str, **options: Any) -> None:
        self.p2p = await P2P.create(
            [victim],
            identity_path=str(self.identity.path),
            auto_nat=False,
            nat_port_map=False,
            use_relay=False,
            check_if_identity_free=False,
            **options,
        )
        self.victim = PeerID.from_base58(victim.rpartition("/")[2])
        self.node = await DHTNode.create(
            p2p=self.p2p, node_id=node_id(self.p2p.peer_id), initial_peers=[victim]
        )

    def stop(self) -> None:
        async def end() -> None:
            await self.p2p.shutdown()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def connect(self, other: str) -> None:
        """Make another honest peer's acquaintance."""
        address, _, peer = other.rpartition("/p2p/")
        await self.p2p._client.connect(PeerID.from_base58(peer), [Multiaddr(address)])
        await self.node.protocol.call_ping(PeerID.from_base58(peer))

    def store(
        self,
        key: str,
        value: bytes,
        expiration: float,
        subkey: bytes | None,
        victim: PeerID | None = None,
    ) -> bool:
        """Ask the victim to store a record; whether it did."""
        packed = self.node.protocol.serializer.dumps(value)
        asked = self.node.protocol.call_store(
            victim or self.victim, [DHTID.generate(source=key)], [packed], [expiration], subkeys=[subkey]
        )
        stored = self.run(asked)
        return bool(stored and stored[0])

    def answer(self, key: str, records: dict[bytes, bytes], expiration: float) -> None:
        """Give these records (subkey to envelope) to whoever asks this node for the key."""

        async def keep() -> None:
            for subkey, value in records.items():
                packed = self.node.protocol.serializer.dumps(value)
                self.node.protocol.storage.store(
                    DHTID.generate(source=key), packed, expiration, subkey=subkey
                )

        self.run(keep())

    def forget(self, key: str) -> None:
        """Hold nothing for a key any more; else it is handed over, too, whenever the victim is met again."""

        async def drop() -> None:
            del self.node.protocol.storage[DHTID.generate(source=key)]

        self.run(drop())

    def answer_verbatim(self, key: str, packed: bytes, expiration: float, plain: bool = False) -> None:
        """Give these bytes to whoever asks for the key: as a plain value, or as if they were a dictionary."""

        async def keep() -> None:
            protocol = self.node.protocol
            protocol.serializer = _LooseSerializer
            value = packed if plain else _Verbatim(packed)
            protocol.storage.data[DHTID.generate(source=key)] = ValueWithExpiration(value, expiration)

        self.run(keep())

    def claim_expiration(self, key: str, expiration: float) -> None:
        """Let the answer for a key say that it expires at another time than its records do."""

        async def change() -> None:
            data = self.node.protocol.storage.data
            key_id = DHTID.generate(source=key)
            data[key_id] = ValueWithExpiration(data[key_id].value, expiration)

        self.run(change())

    def tell_neighbours(self, neighbours: list[tuple[bytes, bytes]]) -> None:
        """Answer every search with these (node id, peer id) beside what is asked for."""
        handlers = self.p2p._client.control.unary_handlers
        answer = handlers["DHTProtocol.rpc_find"]

        async def lie(request: bytes, remote: PeerID) -> bytes:
            response = dht_pb2.FindResponse.FromString(await answer(request, remote))
            for result in response.results:
                del result.nearest_node_ids[:], result.nearest_peer_ids[:]
                result.nearest_node_ids.extend(node for node, _ in neighbours)
                result.nearest_peer_ids.extend(peer for _, peer in neighbours)
            return response.SerializeToString()

        handlers["DHTProtocol.rpc_find"] = lie

    def serve(self, protocol: str, handler: Callable[..., Any]) -> None:
        """Answer the streams of a protocol with `handler(stream_info, reader, writer)`."""
        self.run(self.p2p.add_binary_stream_handler(protocol, handler))


def signer_of(identity: Identity, path: Path) -> wire.Signer:
    """Signs as a node does: through a journal."""
    journal = Journal.create(path, identity.peer)
    return lambda number, stage, message: journal.sign(identity, Slot("test", number, stage), message)


def signed(identity: Identity, announcement: wire.Announcement) -> bytes:
    """An envelope by somebody who keeps no journal."""
    return wire.sign(
        identity.public_key, announcement, lambda _round, _stage, message: identity.sign(message)
    )


def key_of(announcement: wire.Announcement) -> str:
    """The DHT key under which an announcement belongs."""
    return wire.dht_key(announcement.swarm, announcement.round, announcement.stage, announcement.cell)


def one_group(text: str = "an answer") -> bytes:
    """The smallest honest blob."""
    completion = wire.Completion.of((1, 2, 3), text)
    return wire.encode(wire.GroupsBlob(groups=(wire.Group(index=0, completions=(completion,)),)))

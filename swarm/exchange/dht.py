"""The DHT as the exchange uses it: a node on hivemind's, joining, reading and storing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

import msgspec
from hivemind.dht import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.proto import dht_pb2

from swarm.errors import ExchangeError
from swarm.exchange import multiaddr
from swarm.exchange.protocol import GuardedProtocol, StrictSerializer, node_id
from swarm.exchange.storage import RecordStorage
from swarm.exchange.validator import AnnouncementValidator

#: What hivemind raises when p2pd is gone, or answers that something failed.
LIBP2P_ERRORS = (OSError, EOFError, TimeoutError, P2PDaemonError, P2PHandlerError)

RPC_TIMEOUT_SECONDS = 3.0  # hivemind's default `wait_timeout`
RPC_SHARE = 1 / 20  # of a round: in short rounds a silent node may not hold up a stage for seconds
CONNECT_TIMEOUT_SECONDS = 5.0
# Nodes that a search keeps in sight. More than the 5 replicas of a record, so that one that has just joined
# or died among them hides nothing; few, so that a search costs the same in a swarm of any size.
BEAM = 8
_PARALLEL_DIALS = 16


async def create_node(p2p: P2P, validator: AnnouncementValidator, storage: RecordStorage) -> DHTNode:
    """A DHT node on `p2p` that holds what is in `storage` and knows nobody yet; see `join`."""
    node = await DHTNode.create(
        p2p=p2p,
        node_id=node_id(p2p.peer_id),
        record_validator=validator,
        wait_timeout=min(RPC_TIMEOUT_SECONDS, RPC_SHARE * validator.rules.round_seconds),
        # Keeping what was read, pushing it to yet other nodes, and refreshing it unasked, is traffic for
        # nothing: we always read with latest=True, and a record lives for at most three rounds.
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
        cache_refresh_before_expiry=0,
        ensure_bootstrap_success=False,
        strict=False,
        client_mode=True,
    )
    # DHTNode.create has no argument for its protocol class. A client's protocol answers nobody: so it becomes
    # ours before it begins to.
    protocol = node.protocol
    protocol.__class__ = GuardedProtocol
    protocol.serializer = StrictSerializer(validator)
    protocol.storage = protocol.cache = storage
    protocol.client_mode = False
    protocol.tasks = set()
    protocol.answers = {}
    protocol.node_info = dht_pb2.NodeInfo(node_id=node.node_id.to_bytes())
    await protocol.add_p2p_handlers(p2p)
    return node


async def join(node: DHTNode, p2p: P2P, addresses: Iterable[str]) -> list[str]:
    """Connect to peers by multiaddress and learn their neighbours; returns the addresses that failed."""
    unique = list(dict.fromkeys(addresses))
    gate = asyncio.Semaphore(_PARALLEL_DIALS)

    async def meet(address: str) -> bool:
        async with gate:
            return await _meet(node, p2p, address)

    answered = await asyncio.gather(*(meet(address) for address in unique))
    if any(answered):
        with _hivemind():
            await node.find_nearest_nodes([node.node_id])
    return [address for address, ok in zip(unique, answered, strict=True) if not ok]


async def _meet(node: DHTNode, p2p: P2P, address: str) -> bool:
    try:
        endpoint = multiaddr.parse(address)
        peer = PeerID.from_base58(endpoint.peer)
        if peer == p2p.peer_id:
            return True
        # P2P.create(initial_peers=…) would do this too, but then p2pd dies when none is reachable.
        await asyncio.wait_for(p2p._client.connect(peer, [endpoint]), CONNECT_TIMEOUT_SECONDS)
        return await node.protocol.call_ping(peer) is not None
    except Exception:  # noqa: BLE001 - malformed, refused, silent: hivemind raises many kinds; one boundary
        return False


async def store(node: DHTNode, key: str, peer: bytes, envelope: bytes, expiration: float) -> None:
    """Hand a record to the nodes that are to hold it; returns when the first has it."""
    with _hivemind():
        await node.store(
            key,
            envelope,
            expiration,
            subkey=peer,
            await_all_replicas=False,  # the others are written while the round goes on
            beam_size=BEAM,
        )


async def read(node: DHTNode, key: str, timeout: float) -> tuple[dict[bytes, tuple[bytes, float]], bool]:
    """The records under a key, subkey to (envelope, expiration), and whether the search came to its end.

    When it does not within `timeout` seconds, what was found until then is there.
    """
    key_id = DHTID.generate(source=key)
    protocol = cast(GuardedProtocol, node.protocol)
    found = protocol.answers.setdefault(key_id, {})
    complete = False
    try:
        with _hivemind(), suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await node.get(key, latest=True, beam_size=BEAM)
            complete = True
    finally:
        protocol.answers.pop(key_id, None)
        if not node.pending_get_requests.get(key_id):
            node.pending_get_requests.pop(key_id, None)  # hivemind keeps an empty one for every key
    return {**_unwrapped(found), **held(protocol.storage, key)}, complete


def held(storage: RecordStorage, key: str) -> dict[bytes, tuple[bytes, float]]:
    """The records under a key that this node itself holds: subkey to (envelope, expiration)."""
    found = storage.get(DHTID.generate(source=key))
    return {} if found is None else _unwrapped(found.value.data)


def _unwrapped(records: dict[bytes, tuple[bytes, float]]) -> dict[bytes, tuple[bytes, float]]:
    return {
        subkey: (msgspec.msgpack.decode(value, type=bytes), expiration)
        for subkey, (value, expiration) in records.items()
    }


@contextmanager
def _hivemind() -> Iterator[None]:
    """What hivemind makes of other nodes' answers raises many kinds of errors; here they become one."""
    try:
        yield
    except (*LIBP2P_ERRORS, ExchangeError):
        raise
    except Exception as error:
        raise ExchangeError(f"DHT search failed: {type(error).__name__} {error}") from error

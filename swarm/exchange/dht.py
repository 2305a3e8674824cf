"""hivemind's `DHTNode`, hardened where hivemind 1.1 believes what other nodes say."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any

from hivemind.dht import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2P, PeerID
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.timed_storage import ValueWithExpiration

from identity.key import MULTIHASH_PREFIX
from swarm.errors import ExchangeError
from swarm.exchange.validator import AnnouncementValidator

RPC_TIMEOUT_SECONDS = 3.0  # hivemind's default `wait_timeout`
RPC_SHARE = 1 / 20  # of a round: in short rounds a silent node may not hold up a stage for seconds
CONNECT_TIMEOUT_SECONDS = 5.0


def libp2p_peer(peer: bytes) -> PeerID:
    """hivemind's peer id of a 32-byte peer digest."""
    return PeerID(MULTIHASH_PREFIX + peer)


def node_id(peer: PeerID) -> DHTID:
    """A peer's place in the DHT: hashed from its peer id, so that nobody chooses what it stores."""
    return DHTID.generate(source=peer.to_bytes())


async def create_node(p2p: P2P, validator: AnnouncementValidator) -> DHTNode:
    """A DHT node on `p2p` that knows nobody yet; see `join`."""
    node = await DHTNode.create(
        p2p=p2p,
        node_id=node_id(p2p.peer_id),
        record_validator=validator,
        wait_timeout=min(RPC_TIMEOUT_SECONDS, RPC_SHARE * validator.round_seconds),
        # Pushing what was read to yet other nodes, and refreshing it unasked, is traffic for nothing:
        # we always read with latest=True, and a record lives for at most three rounds.
        cache_nearest=0,
        cache_on_store=False,
        cache_refresh_before_expiry=0,
        ensure_bootstrap_success=False,
        strict=False,
    )
    # DHTNode.create has no argument for its protocol class. Its handlers are bound to this object, so
    # from here on they run our overrides; nobody knows our address before this line.
    node.protocol.__class__ = _GuardedProtocol
    return node


async def join(node: DHTNode, p2p: P2P, addresses: Iterable[str]) -> list[str]:
    """Connect to peers by multiaddress and learn their neighbours; returns the addresses that failed."""
    unique = list(dict.fromkeys(addresses))
    answered = await asyncio.gather(*(_meet(node, p2p, address) for address in unique))
    if any(answered):
        await node.find_nearest_nodes([node.node_id])
    return [address for address, ok in zip(unique, answered, strict=True) if not ok]


async def _meet(node: DHTNode, p2p: P2P, address: str) -> bool:
    try:
        multiaddr = Multiaddr(address)
        peer = PeerID.from_base58(multiaddr["p2p"])
        if peer == p2p.peer_id:
            return True
        # P2P.create(initial_peers=…) would do this too, but then p2pd dies when none is reachable.
        await asyncio.wait_for(
            p2p._client.connect(peer, [multiaddr.decapsulate("/p2p/" + peer.to_base58())]),
            CONNECT_TIMEOUT_SECONDS,
        )
        return await node.protocol.call_ping(peer) is not None
    except Exception:  # noqa: BLE001 - malformed, refused, silent: hivemind raises many kinds; one boundary
        return False


def held_locally(node: DHTNode, key: bytes) -> dict[bytes, tuple[bytes, float]]:
    """What this node itself holds under the 20-byte key: subkey to (envelope, expiration)."""
    records = {}
    for storage in (node.protocol.cache, node.protocol.storage):
        found = storage.get(DHTID.from_bytes(key))
        if found is not None and isinstance(found.value, DictionaryDHTValue):
            for subkey, (value, expiration) in found.value.items():
                records[subkey] = node.protocol.serializer.loads(value), expiration
    return records


def split_listen_address(address: str) -> tuple[str, int]:
    """Host and TCP port of a multiaddress to listen on; `ExchangeError` if it is none."""
    try:
        multiaddr = Multiaddr(address)
        return multiaddr["ip4"], int(multiaddr["tcp"])
    except Exception as error:  # hivemind's multiaddr raises many kinds; one boundary
        raise ExchangeError(
            f"cannot listen on {address!r}: expected a multiaddress such as /ip4/0.0.0.0/tcp/38331"
        ) from error


class _GuardedProtocol(DHTProtocol):
    """Three beliefs of hivemind's corrected; each is named where it is overridden."""

    def _validate_dictionary(self, key_bytes: bytes, dictionary: DictionaryDHTValue) -> bool:
        """Called for a dictionary that a node sent us to store, or as its answer.

        hivemind refuses the whole dictionary for one bad record, which would let one bad record hide a
        cell; here the bad ones are taken out (and counted by the validator) and the rest is kept.
        """
        with dictionary.freeze():
            for subkey, (value, expiration) in list(dictionary.items()):
                if not self._validate_record(key_bytes, self.serializer.dumps(subkey), value, expiration):
                    del dictionary[subkey]
        return True

    async def call_find(self, peer: PeerID, keys: Collection[DHTID]) -> dict[DHTID, tuple[Any, Any]] | None:
        """Called by every search, for each node it asks.

        hivemind takes the answer's own word for when it expires. "Never" would end a search for the
        latest value at once and stay in the cache for ever; here the records' own expirations count.
        """
        found = await super().call_find(peer, keys)
        if found is None:
            return None
        return {
            key: (_with_own_expiration(value), {uid: p for uid, p in nearest.items() if uid == node_id(p)})
            for key, (value, nearest) in found.items()
        }

    async def update_routing_table(self, node: DHTID | None, peer_id: PeerID, responded: bool = True) -> None:
        """Called for each request and answer of another node.

        hivemind lets nodes choose their ids, and so which keys they hold; here a wrong one is not listed.
        """
        if node is None or node == node_id(peer_id):
            await super().update_routing_table(node, peer_id, responded)


def _with_own_expiration(found: ValueWithExpiration[Any] | None) -> ValueWithExpiration[Any] | None:
    if found is None or not isinstance(found.value, DictionaryDHTValue):
        return None
    with found.value.freeze():
        expirations = [expiration for _, (_, expiration) in found.value.items()]
    if not expirations:
        return None
    found.value.latest_expiration_time = max(expirations)
    return ValueWithExpiration(found.value, max(expirations))

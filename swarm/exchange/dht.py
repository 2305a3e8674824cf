"""hivemind's `DHTNode`, hardened where hivemind 1.1 believes what other nodes say."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from hivemind.dht import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import ValueWithExpiration
from msgspec import Meta

from identity.key import MULTIHASH_PREFIX
from swarm.errors import WireError
from swarm.exchange import multiaddr
from swarm.exchange.storage import MAX_RECORDS_PER_KEY, RecordStorage, frozen_dictionary
from swarm.exchange.validator import AnnouncementValidator, handed_by, reason

RPC_TIMEOUT_SECONDS = 3.0  # hivemind's default `wait_timeout`
RPC_SHARE = 1 / 20  # of a round: in short rounds a silent node may not hold up a stage for seconds
CONNECT_TIMEOUT_SECONDS = 5.0
# Nodes that a search keeps in sight. More than the 5 replicas of a record, so that one that has just joined
# or died among them hides nothing; few, so that a search costs the same in a swarm of any size.
BEAM = 8
MAX_KEYS_PER_REQUEST = 32  # a hand-over to a new node is sent in parts of this many
_PARALLEL_DIALS = 16


def libp2p_peer(peer: bytes) -> PeerID:
    """hivemind's peer id of a 32-byte peer digest."""
    return PeerID(MULTIHASH_PREFIX + peer)


def peer_digest(peer: PeerID) -> bytes:
    """The 32-byte digest in a libp2p peer id; empty if it is not that of an RSA key."""
    prefix, digest = peer.to_bytes()[: len(MULTIHASH_PREFIX)], peer.to_bytes()[len(MULTIHASH_PREFIX) :]
    return digest if prefix == MULTIHASH_PREFIX and len(digest) == 32 else b""


def node_id(peer: PeerID) -> DHTID:
    """A peer's place in the DHT: hashed from its peer id, so that nobody chooses what it stores."""
    return DHTID.generate(source=peer.to_bytes())


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
    protocol.__class__ = _GuardedProtocol
    protocol.serializer = _StrictSerializer(validator)
    protocol.storage = protocol.cache = storage
    protocol.client_mode = False
    protocol.tasks = set()
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


def records_of(found: ValueWithExpiration[Any] | None) -> dict[bytes, tuple[bytes, float]]:
    """What a storage holds under a key, or a search found there: subkey to (envelope, expiration)."""
    if found is None:
        return {}
    if isinstance(found.value, DictionaryDHTValue):
        return {
            subkey: (msgspec.msgpack.decode(value, type=bytes), expiration)
            for subkey, (value, expiration) in found.value.data.items()
        }
    return {subkey: (value, expiration) for subkey, (value, expiration) in found.value.items()}


class _StrictSerializer(MSGPackSerializer):
    """Reads what honest nodes send: bytes, or a dictionary of them. hivemind's own reads anything.

    That builds what the bytes claim to be (nested extensions, arrays of millions) before anybody can look at
    it. Called by hivemind for the answers and store requests of other nodes.
    """

    def __init__(self, validator: AnnouncementValidator) -> None:
        self._validator = validator

    def loads(self, buf: bytes) -> bytes | DictionaryDHTValue:
        """The bytes or the dictionary; `WireError` for anything else. Odd records are left out."""
        try:
            value = _decode(_VALUE, buf)
            if isinstance(value, bytes):
                return value
            if value.code != _DICTIONARY_CODE:
                raise WireError("value is neither bytes nor a dictionary")
            _, _, records = _decode(_DICTIONARY, value.data)
        except WireError as error:
            self._validator.drop(reason(error))
            raise
        dictionary = frozen_dictionary()
        for raw in records:
            try:
                dictionary.store(*_decode(_RECORD, raw))
            except WireError as error:
                self._validator.drop(reason(error))
        return dictionary


_DICTIONARY_CODE = MSGPackSerializer._ext_types[DictionaryDHTValue]
_VALUE = msgspec.msgpack.Decoder(bytes | msgspec.msgpack.Ext)
# Of hivemind's three fields the first two, the dictionary's own limit and expiration, are of no interest.
_DICTIONARY = msgspec.msgpack.Decoder(
    tuple[float | None, float, Annotated[list[msgspec.Raw], Meta(max_length=MAX_RECORDS_PER_KEY)]]
)
_RECORD = msgspec.msgpack.Decoder(tuple[bytes, bytes, float])  # subkey, value, expiration


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes | memoryview | msgspec.Raw) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"not a DHT value: {error}") from error


class _GuardedProtocol(DHTProtocol):
    """Beliefs of hivemind's corrected; each is named where it is overridden."""

    tasks: set[asyncio.Task[object]]

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        """Called for the name of a libp2p handler; hivemind's own, from which it is not to differ."""
        return str(DHTProtocol._get_handle_name(namespace, method_name))

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        """Called for another node's request to store records.

        hivemind takes any number of them from anybody.
        """
        sender = peer_digest(context.remote_id)
        with _handed_over_by(sender):
            if len(request.keys) > MAX_KEYS_PER_REQUEST or self.record_validator.is_ignored(sender):
                self.record_validator.drop("node sends too many records")
                raise ValueError("too many records")
            return await super().rpc_store(request, context)

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        """Called for another node's search. hivemind looks up any number of keys for anybody."""
        if len(request.keys) > MAX_KEYS_PER_REQUEST:
            raise ValueError("too many keys")
        return await super().rpc_find(request, context)

    def _validate_dictionary(self, key_bytes: bytes, dictionary: DictionaryDHTValue) -> bool:
        """Called for a dictionary that a node sent us to store, or as its answer.

        hivemind refuses the whole dictionary for one bad record, which would let one bad record hide a
        cell; here the bad ones are taken out (and counted by the validator) and the rest is kept.
        """
        if self.record_validator.is_ignored(handed_by.get()):
            return False
        for subkey, (value, expiration) in list(dictionary.items()):
            if not self._validate_record(key_bytes, self.serializer.dumps(subkey), value, expiration):
                del dictionary[subkey]
        return True

    async def call_find(self, peer: PeerID, keys: Collection[DHTID]) -> dict[DHTID, tuple[Any, Any]] | None:
        """Called by every search, for each node it asks.

        hivemind takes the answer's own word for when it expires. "Never" would end a search for the
        latest value at once and stay in the cache for ever; here the records' own expirations count.
        """
        with _handed_over_by(peer_digest(peer)):
            found = await super().call_find(peer, keys)
        if found is None:
            return None
        return {
            key: (_with_own_expiration(value), {uid: p for uid, p in nearest.items() if uid == node_id(p)})
            for key, (value, nearest) in found.items()
        }

    async def update_routing_table(self, node: DHTID | None, peer_id: PeerID, responded: bool = True) -> None:
        """Called for each request and answer of another node.

        hivemind lets nodes choose their ids, and so which keys they hold; here a wrong one is not listed. Nor
        is one that is not registered: else places in the table would cost nothing. What a newcomer should
        hold goes to it in parts; hivemind sends it in one message, which fails when it is large.
        """
        if node is not None and node != node_id(peer_id):
            return
        if not responded:
            await super().update_routing_table(node, peer_id, responded)
            return
        node = node if node is not None else self.routing_table.get(peer_id=peer_id)
        rules = self.record_validator.rules
        if node is None or rules.registered(peer_digest(peer_id), rules.current_round) is False:
            return
        if node not in self.routing_table:
            self._begin(self._hand_over(peer_id, self._keys_for(node)))
        oldest = self.routing_table.add_or_update_node(node, peer_id)
        if oldest is not None:  # the bucket is full: it makes room if it does not answer
            self._begin(self.call_ping(oldest[1]))

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _keys_for(self, newcomer: DHTID) -> list[DHTID]:
        """What a node that we just met should hold, and we are the one to tell it (Kademlia, section 2.5)."""
        keys = []
        for key, _ in self.storage.items():
            others = self.routing_table.get_nearest_neighbors(key, self.num_replicas, exclude=self.node_id)
            if not others or (
                newcomer.xor_distance(key) < others[-1][0].xor_distance(key)
                and self.node_id.xor_distance(key) < others[0][0].xor_distance(key)
            ):
                keys.append(key)
        return keys

    async def _hand_over(self, peer_id: PeerID, keys: list[DHTID]) -> None:
        for first in range(0, len(keys), MAX_KEYS_PER_REQUEST):
            held = [(key, self.storage.get(key)) for key in keys[first : first + MAX_KEYS_PER_REQUEST]]
            values = [(key, item.value, item.expiration_time) for key, item in held if item is not None]
            if values and await self.call_store(peer_id, *zip(*values, strict=True)) is None:
                return


@contextmanager
def _handed_over_by(peer: bytes) -> Iterator[None]:
    token = handed_by.set(peer)
    try:
        yield
    finally:
        handed_by.reset(token)


def _with_own_expiration(found: ValueWithExpiration[Any] | None) -> ValueWithExpiration[Any] | None:
    if found is None or not isinstance(found.value, DictionaryDHTValue):
        return None
    expirations = [expiration for _, (_, expiration) in found.value.items()]
    if not expirations:
        return None
    found.value.latest_expiration_time = max(expirations)
    return ValueWithExpiration(found.value, max(expirations))

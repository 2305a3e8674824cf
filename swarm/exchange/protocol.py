"""hivemind's `DHTProtocol`, hardened where hivemind 1.1 believes what other nodes say."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import ValueWithExpiration
from msgspec import Meta

from identity.key import MULTIHASH_PREFIX
from swarm.errors import WireError
from swarm.exchange.storage import MAX_RECORDS_PER_KEY, frozen_dictionary
from swarm.exchange.validator import AnnouncementValidator, handed_by, reason

# A hand-over to a new node is sent in parts of so many keys; about 250 kB, and never refused for its bytes.
MAX_KEYS_PER_STORE = 16
MAX_STORE_BYTES = 2**20
# We search for one at a time. More, with 512 records each, would not fit into hivemind's message of 4 MiB.
MAX_KEYS_PER_FIND = 4
_PEER_ID_BYTES = len(MULTIHASH_PREFIX) + 32


def libp2p_peer(peer: bytes) -> PeerID:
    """hivemind's peer id of a 32-byte peer digest."""
    return PeerID(MULTIHASH_PREFIX + peer)


def peer_digest(peer: PeerID) -> bytes:
    """The 32-byte digest in a libp2p peer id; empty if it is not that of an RSA key."""
    return _digest(peer.to_bytes())


def node_id(peer: PeerID) -> DHTID:
    """A peer's place in the DHT: hashed from its peer id, so that nobody chooses what it stores."""
    return DHTID.generate(source=peer.to_bytes())


class StrictSerializer(MSGPackSerializer):
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


class GuardedProtocol(DHTProtocol):
    """Beliefs of hivemind's corrected; each is named where it is overridden."""

    record_validator: AnnouncementValidator
    tasks: set[asyncio.Task[object]]
    #: What nodes have answered for the keys that are being read: subkey to (value, expiration).
    answers: dict[DHTID, dict[bytes, tuple[bytes, float]]]

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        """Called for the name of a libp2p handler; hivemind's own, from which it is not to differ."""
        return str(DHTProtocol._get_handle_name(namespace, method_name))

    def is_stranger(self, peer_id: PeerID) -> bool:
        """Whether the ledger knows no such peer."""
        return self.record_validator.rules.registered(peer_digest(peer_id)) is False

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        """Called for another node's request to store records.

        hivemind takes any number of them from anybody.
        """
        sender = peer_digest(context.remote_id)
        with _handed_over_by(sender):
            if (
                len(request.keys) > MAX_KEYS_PER_STORE
                or sum(map(len, request.values)) > MAX_STORE_BYTES
                or self.record_validator.is_ignored(sender)
            ):
                self.record_validator.drop("node sends too many records")
                raise ValueError("too many records")
            return await super().rpc_store(request, context)

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        """Called for another node's search. hivemind looks up any number of keys for anybody."""
        if len(request.keys) > MAX_KEYS_PER_FIND:
            raise ValueError("too many keys")
        return await super().rpc_find(request, context)

    def _validate_dictionary(self, key_bytes: bytes, dictionary: DictionaryDHTValue) -> bool:
        """Called for a dictionary that a node sent us to store, or as its answer.

        hivemind refuses the whole dictionary for one bad record, which would let one bad record hide a
        cell; here the bad ones are taken out (and counted by the validator) and the rest is kept.
        """
        for subkey, (value, expiration) in list(dictionary.items()):
            if not self._validate_record(key_bytes, self.serializer.dumps(subkey), value, expiration):
                del dictionary[subkey]
        return True

    def get_stub(self, peer: PeerID) -> _CheckedStub:
        """Called for each request to another node; its answer is checked before hivemind unpacks it."""
        return _CheckedStub(super().get_stub(peer), self)

    async def call_find(self, peer: PeerID, keys: Collection[DHTID]) -> dict[DHTID, tuple[Any, Any]] | None:
        """Called by every search, for each node it asks.

        hivemind takes the answer's own word for when it expires. "Never" would end a search for the
        latest value at once and stay in the cache for ever; here the records' own expirations count. What
        one node answered is kept at once: a search that another one holds up would lose it.
        """
        with _handed_over_by(peer_digest(peer)):
            found = await super().call_find(peer, keys)
        if found is None:
            return None
        for key, (value, _) in found.items():
            if key in self.answers and value is not None and isinstance(value.value, DictionaryDHTValue):
                for subkey, (record, expiration) in value.value.data.items():
                    self.answers[key].setdefault(subkey, (record, expiration))
        return {key: (_with_own_expiration(value), nearest) for key, (value, nearest) in found.items()}

    async def update_routing_table(self, node: DHTID | None, peer_id: PeerID, responded: bool = True) -> None:
        """Called for each request and answer of another node.

        hivemind lets nodes choose their ids, and so which keys they hold; here a wrong one is not listed. Nor
        is one that is not registered: else places in the table would cost nothing. What a newcomer should
        hold goes to it in parts; hivemind sends it in one message, which fails when it is large.
        """
        if node is not None and node != node_id(peer_id):
            return
        table = self.routing_table
        node = node if node is not None else table.get(peer_id=peer_id)
        if node is None:
            return
        if not responded or self.is_stranger(peer_id):
            if node in table:
                del table[node]
            return
        is_new = node not in table
        oldest = table.add_or_update_node(node, peer_id)
        bucket = table.buckets[table.get_bucket_index(node)]
        while len(bucket.replacement_nodes) > bucket.size:
            bucket.replacement_nodes.pop(next(iter(bucket.replacement_nodes)))
        if oldest is not None:  # the bucket is full: it makes room if it does not answer
            self._begin(self.call_ping(oldest[1]))
        elif is_new:
            self._begin(self._hand_over(peer_id, self._keys_for(node)))

    def forget_strangers(self) -> None:
        """Take those out of the routing table whom the ledger does not know, now that it was read."""
        for peer_id, node in list(self.routing_table.peer_id_to_uid.items()):
            if self.is_stranger(peer_id):
                del self.routing_table[node]

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _keys_for(self, newcomer: DHTID) -> list[DHTID]:
        """What a node that we just met should hold, and we are the one to tell it (Kademlia, section 2.5)."""
        keys = []
        for key, _ in self.storage.items():
            others = [
                uid
                for uid, _ in self.routing_table.get_nearest_neighbors(
                    key, self.num_replicas + 1, exclude=self.node_id
                )
                if uid != newcomer
            ]
            if not others or (
                newcomer.xor_distance(key) < others[-1].xor_distance(key)
                and self.node_id.xor_distance(key) < others[0].xor_distance(key)
            ):
                keys.append(key)
        return keys

    async def _hand_over(self, peer_id: PeerID, keys: list[DHTID]) -> None:
        for first in range(0, len(keys), MAX_KEYS_PER_STORE):
            held = [(key, self.storage.get(key)) for key in keys[first : first + MAX_KEYS_PER_STORE]]
            values = [(key, item.value, item.expiration_time) for key, item in held if item is not None]
            if values and await self.call_store(peer_id, *zip(*values, strict=True)) is None:
                return


class _CheckedStub:
    """Another node's methods, whose answers are what they should be."""

    def __init__(self, stub: Any, protocol: GuardedProtocol) -> None:
        self._protocol = protocol
        self.rpc_ping = stub.rpc_ping
        self.rpc_store = stub.rpc_store
        self._rpc_find = stub.rpc_find

    async def rpc_find(self, request: dht_pb2.FindRequest, timeout: float) -> dht_pb2.FindResponse:
        """Leaves in the answer only neighbours that may be some.

        hivemind encodes each peer id in base58 first, which takes minutes for a long one, and asks whatever
        nodes it is told of: made-up ones next to a key would hide it from everybody.
        """
        response = await self._rpc_find(request, timeout=timeout)
        for result in response.results:
            told = list(zip(result.nearest_node_ids, result.nearest_peer_ids, strict=False))
            del result.nearest_node_ids[:], result.nearest_peer_ids[:]
            for uid, peer in told[: self._protocol.bucket_size]:
                if self._is_plausible(uid, peer):
                    result.nearest_node_ids.append(uid)
                    result.nearest_peer_ids.append(peer)
        return response

    def _is_plausible(self, uid: bytes, peer: bytes) -> bool:
        if not _digest(peer):
            return False
        peer_id = PeerID(peer)
        return node_id(peer_id).to_bytes() == uid and not self._protocol.is_stranger(peer_id)


@contextmanager
def _handed_over_by(peer: bytes) -> Iterator[None]:
    token = handed_by.set(peer)
    try:
        yield
    finally:
        handed_by.reset(token)


def _digest(peer: bytes) -> bytes:
    is_rsa = len(peer) == _PEER_ID_BYTES and peer.startswith(MULTIHASH_PREFIX)
    return peer[len(MULTIHASH_PREFIX) :] if is_rsa else b""


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes | memoryview | msgspec.Raw) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"not a DHT value: {error}") from error


def _with_own_expiration(found: ValueWithExpiration[Any] | None) -> ValueWithExpiration[Any] | None:
    if found is None or not isinstance(found.value, DictionaryDHTValue):
        return None
    expirations = [expiration for _, (_, expiration) in found.value.items()]
    if not expirations:
        return None
    found.value.latest_expiration_time = max(expirations)
    return ValueWithExpiration(found.value, max(expirations))

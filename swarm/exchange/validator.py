"""What every node asks of a DHT record before it keeps it or believes it.

Every check gives the same answer on every node, except the clock's. A DHT key belongs to one round,
so all its records have one age, and a clock that disagrees refuses a whole key, never one record in it.
That is why storing and reading need no different rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.utils import MSGPackSerializer

from swarm.errors import WireError
from swarm.exchange import wire

#: Rounds that a peer's clock may be off, and how long a late announcement is still of use.
ROUND_TOLERANCE = 1
#: hivemind wraps the value in msgpack once more: a type byte and at most four bytes of length.
_WRAPPING_BYTES = 5


def key_hash(key: str) -> bytes:
    """The 20 bytes by which hivemind's nodes know a key; all that a validator sees of it."""
    return bytes(DHTID.generate(source=key).to_bytes())


class AnnouncementValidator(RecordValidatorBase):
    """Lets pass the signed announcements of one swarm, one per peer and slot, and nothing else.

    `now` gives the ledger's time in Unix seconds. `refused` counts the refusals by reason; there are
    few different reasons, whatever peers send.
    """

    def __init__(self, swarm_id: bytes, genesis: int, round_seconds: int, now: Callable[[], float]) -> None:
        self.swarm_id = swarm_id
        self.genesis = genesis
        self.round_seconds = round_seconds
        self.now = now
        self.refused: Counter[str] = Counter()

    def validate(self, record: DHTRecord) -> bool:
        """Whether to keep or believe the record. Never raises.

        hivemind calls it when another node or this one asks to store a record, and for each record that
        another node returns. That a slot is never replaced follows from the fixed expiration: hivemind
        overwrites a record only by one that expires later.
        """
        try:
            self._check_record(record)
        except WireError as error:
            self.refused[reason(error)] += 1
            return False
        return True

    def open(self, key: bytes, peer: bytes, envelope: bytes, expiration: float) -> wire.Heard:
        """The announcement in `envelope`; `WireError` unless it belongs under this key, peer and expiration.

        `key` is the 20-byte `key_hash`, `peer` the 32-byte digest used as subkey, `expiration` Unix seconds.
        """
        heard = wire.open_envelope(envelope)
        announcement = heard.announcement
        if heard.peer != peer:
            raise WireError("subkey is not the signer's peer digest")
        if announcement.swarm != self.swarm_id:
            raise WireError("announcement is of another swarm")
        slot_key = wire.dht_key(announcement.swarm, announcement.round, announcement.stage, announcement.cell)
        if key_hash(slot_key) != key:
            raise WireError("key is not that of the announced round, stage and cell")
        fixed = wire.expiration(self.genesis, self.round_seconds, announcement.round)
        if not expiration == announcement.expiration == fixed:
            raise WireError("expiration is not the one that the round fixes")
        current_round = (self.now() - self.genesis) // self.round_seconds
        if announcement.round < current_round - ROUND_TOLERANCE:
            raise WireError("round is too old")
        if announcement.round > current_round + ROUND_TOLERANCE:
            raise WireError("round is ahead of the clock")
        return heard

    def _check_record(self, record: DHTRecord) -> None:
        if record.subkey == DHTProtocol.IS_REGULAR_VALUE:
            raise WireError("plain value instead of a dictionary's")
        # Records inside a dictionary come undecoded from another node: any msgpack type can be here.
        if not isinstance(record.value, bytes) or not isinstance(record.expiration_time, int | float):
            raise WireError("record is not bytes with an expiration")
        if len(record.value) > wire.MAX_ANNOUNCEMENT_BYTES + _WRAPPING_BYTES:
            raise WireError("record is over the size limit")
        try:
            peer = msgspec.msgpack.decode(record.subkey, type=bytes)
        except msgspec.DecodeError as error:
            raise WireError("subkey is not a peer digest") from error
        if MSGPackSerializer.dumps(peer) != record.subkey:
            raise WireError("subkey is not a peer digest")
        try:
            envelope = msgspec.msgpack.decode(record.value, type=bytes)
        except msgspec.DecodeError as error:
            raise WireError("record is not an envelope") from error
        self.open(record.key, peer, envelope, record.expiration_time)


def reason(error: Exception) -> str:
    """The countable part of an error: what stands before the colon; details after it vary without end."""
    return str(error).partition(":")[0]

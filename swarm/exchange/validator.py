"""What every node asks of a DHT record before it keeps it or believes it.

hivemind shows a validator each record that is stored here and each that another node returns. Both are held
to the same rules, record by record: `dht` sees to it that one refused record hides no other. So a rule may
rest on what nodes know at different times (the clock, who is registered, the round's draw): a node that knows
less believes less, or for a moment more, and the limits of `storage` hold what nobody can judge yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID

from swarm.errors import WireError
from swarm.exchange import wire

#: Rounds that a peer's clock may be off, and how long a late announcement is still of use.
ROUND_TOLERANCE = 1
#: hivemind wraps the value in msgpack once more: a type byte and at most four bytes of length.
_WRAPPING_BYTES = 5
#: Slots of which the first announcement is remembered; three rounds of a swarm of thousands.
MAX_REMEMBERED = 50_000
#: Refused records in one round after which nobody looks at what a node hands over: checking a signature costs
#: us more than sending one costs it. An honest node holds what we hold, but for a turn of the round.
MAX_REFUSED_FROM_ONE = 256

#: The libp2p peer (32-byte digest) that handed us the record being looked at; None for our own.
handed_by: ContextVar[bytes | None] = ContextVar("handed_by", default=None)

#: Whether a peer is registered, as the ledger was read last; None before it was.
Registered = Callable[[bytes], bool | None]


class Doubted(WireError):
    """Refused for what nodes may know differently; whoever handed it over may have done so in good faith."""


class Slot(NamedTuple):
    """Where a peer has exactly one announcement."""

    peer: bytes
    round: int
    stage: int


@dataclass(frozen=True)
class SwarmRules:
    """What makes a swarm's announcements its own. Both callables answer at once, from memory."""

    swarm_id: bytes
    genesis: int  # Unix seconds
    round_seconds: int
    now: Callable[[], float]  # the ledger's time, Unix seconds
    registered: Registered

    @property
    def current_round(self) -> int:
        """The round that the clock says."""
        return int((self.now() - self.genesis) // self.round_seconds)

    def expiration(self, round_number: int) -> int:
        """When a round's announcements leave the DHT: Unix seconds."""
        return wire.expiration(self.genesis, self.round_seconds, round_number)

    def key(self, round_number: int, stage: int, cell: int) -> str:
        """The DHT key of one stage of one cell."""
        return wire.dht_key(self.swarm_id, round_number, stage, cell)


class Witness(Protocol):
    """Who is told of what peers do; called from the exchange's thread, must not block."""

    def dropped(self, reason: str, *, peer: bytes | None = None, via: bytes | None = None) -> None:
        """Something was refused. The sender is what the record claims, whoever handed it over is certain."""

    def equivocated(self, peer: bytes, round: int, stage: int, first: bytes, second: bytes) -> None:
        """A peer signed two different announcements for one slot; both envelopes are the evidence."""


def key_hash(key: str) -> bytes:
    """The 20 bytes by which hivemind's nodes know a key; all that a validator sees of it."""
    return bytes(DHTID.generate(source=key).to_bytes())


class AnnouncementValidator(RecordValidatorBase):
    """Lets pass the signed announcements of one swarm, one per peer and slot, and nothing else."""

    def __init__(self, rules: SwarmRules, witness: Witness) -> None:
        self.rules = rules
        self._witness = witness
        self._cell_of: dict[int, Callable[[bytes], int]] = {}
        self._first: dict[Slot, bytes] = {}  # the envelope that was seen first, its signature checked
        self._refused_from: Counter[bytes] = Counter()  # in this round, by who handed the record over

    def enter(self, round_number: int, cell_of: Callable[[bytes], int] | None) -> None:
        """Called at each round's beginning: forget old rounds, and know this one's cells.

        From now on, announcements of this round that are in another cell than the draw says are refused; with
        None, when the ledger has not given the draw, all cells pass.
        """
        oldest = round_number - 2 * ROUND_TOLERANCE
        self._cell_of = {number: known for number, known in self._cell_of.items() if number >= oldest}
        if cell_of is not None:
            self._cell_of[round_number] = cell_of
        self._first = {slot: seen for slot, seen in self._first.items() if slot.round >= oldest}
        self._refused_from.clear()

    def validate(self, record: DHTRecord) -> bool:
        """Whether to keep or believe the record. Never raises.

        hivemind calls it when another node or this one asks to store a record, and for each record that
        another node returns.
        """
        try:
            self._check_record(record)
        except WireError as error:
            self.drop(reason(error), _claimed_peer(record), blame=not isinstance(error, Doubted))
            return False
        return True

    def drop(self, reason: str, peer: bytes | None = None, *, blame: bool = True) -> None:
        """Note what was refused, and who handed it over; `blame` if it could have known."""
        via = handed_by.get()
        if via is not None and blame:
            self._refused_from[via] += 1
        self._witness.dropped(reason, peer=peer, via=via)

    def is_ignored(self, node: bytes | None) -> bool:
        """Whether a node (its peer digest) has handed over too many bad records in this round."""
        return node is not None and self._refused_from[node] > MAX_REFUSED_FROM_ONE

    def open(self, key: bytes, peer: bytes, envelope: bytes, expiration: float) -> wire.Heard:
        """The announcement in `envelope`; `WireError` unless it belongs under this key, peer and expiration.

        `key` is the 20-byte `key_hash`, `peer` the 32-byte digest used as subkey, `expiration` Unix seconds.
        """
        rules = self.rules
        sealed = wire.unpack_envelope(envelope)
        announcement = sealed.announcement
        if sealed.key.peer != peer:
            raise WireError("subkey is not the signer's peer digest")
        if announcement.swarm != rules.swarm_id:
            raise WireError("announcement is of another swarm")
        if key_hash(rules.key(announcement.round, announcement.stage, announcement.cell)) != key:
            raise WireError("key is not that of the announced round, stage and cell")
        if not expiration == announcement.expiration == rules.expiration(announcement.round):
            raise WireError("expiration is not the one that the round fixes")
        if announcement.round < rules.current_round - ROUND_TOLERANCE:
            raise Doubted("round is too old")
        if announcement.round > rules.current_round + ROUND_TOLERANCE:
            raise Doubted("round is ahead of the clock")
        if rules.registered(peer) is False:
            raise Doubted("sender is not registered")
        cell_of = self._cell_of.get(announcement.round)
        if cell_of is not None and cell_of(peer) != announcement.cell:
            raise WireError("sender is not of this cell")
        return self._open_once(sealed, envelope)

    def _open_once(self, sealed: wire.Sealed, envelope: bytes) -> wire.Heard:
        """Check the signature, and that the peer signed nothing else for the slot."""
        announcement = sealed.announcement
        slot = Slot(sealed.key.peer, announcement.round, announcement.stage)
        first = self._first.get(slot)
        if first == envelope:
            return sealed.opened()
        heard = sealed.open()
        if first is not None:
            self._witness.equivocated(*slot, first, envelope)
            raise Doubted("sender announced something else before")
        if len(self._first) < MAX_REMEMBERED:
            self._first[slot] = envelope
        return heard

    def _check_record(self, record: DHTRecord) -> None:
        if record.subkey == DHTProtocol.IS_REGULAR_VALUE:
            raise WireError("plain value instead of a dictionary's")
        # Records inside a dictionary come undecoded from another node: any msgpack type can be here.
        if not isinstance(record.value, bytes) or not isinstance(record.expiration_time, int | float):
            raise WireError("record is not bytes with an expiration")
        if len(record.value) > wire.MAX_ANNOUNCEMENT_BYTES + _WRAPPING_BYTES:
            raise WireError("record is over the size limit")
        peer = _claimed_peer(record)
        if peer is None:
            raise WireError("subkey is not a peer digest")
        try:
            envelope = msgspec.msgpack.decode(record.value, type=bytes)
        except msgspec.DecodeError as error:
            raise WireError("record is not an envelope") from error
        self.open(record.key, peer, envelope, record.expiration_time)


def _claimed_peer(record: DHTRecord) -> bytes | None:
    """The peer that a record's subkey names; None if it is no canonical 32 bytes."""
    try:
        peer = msgspec.msgpack.decode(record.subkey, type=bytes)
    except msgspec.DecodeError:
        return None
    return peer if len(peer) == 32 and msgspec.msgpack.encode(peer) == record.subkey else None


def reason(error: Exception) -> str:
    """The countable part of an error: what stands before the colon; details after it vary without end."""
    return str(error).partition(":")[0]

"""Everything that peers send each other, as typed structs with size limits; msgpack, no pickle.

| sent as               | struct                        | at most                    | version          |
|-----------------------|-------------------------------|----------------------------|------------------|
| DHT value             | `Envelope` of `Announcement`  | `MAX_ANNOUNCEMENT_BYTES`   | in the struct    |
| blob                  | `GroupsBlob`                  | `MAX_GROUPS_BLOB_BYTES`    | in the struct    |
| stream `BLOB_STREAM`  | `BlobRequest`, `BlobHeader`   | `MAX_MESSAGE_BYTES`        | in the stream id |
| stream `REACH_STREAM` | `ReachRequest`, `ReachAnswer` | `MAX_MESSAGE_BYTES`        | in the stream id |
| stream `HELLO_STREAM` | `Hello`                       | `MAX_MESSAGE_BYTES`        | in the stream id |

Decoding hostile bytes raises `WireError` and nothing else, and allocates at most 16 times their length and
half a MiB (measured in tests/exchange/test_exchange_wire.py; the worst are tiny completions): whatever
repeats is bounded in number, and token ids stay packed. Structs are arrays on the wire and open with a
version, so a later format is refused by name instead of misread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from identity import IdentityError, PublicKey
from swarm.digest import Purpose, derive
from swarm.errors import WireError

MAX_ANNOUNCEMENT_BYTES = 2048  # DESIGN.md, section 5
MAX_GROUPS_BLOB_BYTES = 16 * 2**20
MAX_MESSAGE_BYTES = 1024  # of one message that asks or answers on a stream
# What a manifest may ask for; one swarm's own, lower limits come in a `GroupsLimit`.
MAX_GROUPS = 4096
MAX_COMPLETIONS = 256
MAX_TOKENS = 8192
MAX_TEXT_CHARS = 32768
MAX_SHOWN = 26

BLOB_STREAM = "/swarm/blob/2"
REACH_STREAM = "/swarm/reach/1"
HELLO_STREAM = "/swarm/hello/1"

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Modulus = Annotated[bytes, Meta(min_length=256, max_length=256)]
Signature = Annotated[bytes, Meta(min_length=256, max_length=256)]
U16 = Annotated[int, Meta(ge=0, lt=2**16)]
U32 = Annotated[int, Meta(ge=0, lt=2**32)]
U48 = Annotated[int, Meta(ge=0, lt=2**48)]


class Announcement(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What a peer made in one stage: where the blob of its groups is, and the root of their digests."""

    version: Literal[1] = 1
    swarm: Digest
    round: U48
    stage: Annotated[int, Meta(ge=0, le=3)]  # manifest.STAGE_NUMBER
    cell: U32
    expiration: U48  # Unix seconds, fixed by the round: see `expiration`
    groups: Annotated[int, Meta(ge=1, le=MAX_GROUPS)]
    root: Digest  # Merkle root over the groups' digests (verde.commitment)
    blob: Digest  # SHA-256 of the encoded GroupsBlob
    blob_bytes: Annotated[int, Meta(ge=1, le=MAX_GROUPS_BLOB_BYTES)]


class Envelope(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """The DHT value: an encoded announcement, its sender's RSA modulus, and the signature over both."""

    modulus: Modulus
    body: Annotated[bytes, Meta(max_length=1024)]
    signature: Signature


# gc=False: these can come by the million; neither can be part of a cycle, and a collector's header is up to a
# third of each.
class Completion(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One sampled completion: the sender's token ids (with EOS, for audits) and the text that they make.

    The ids travel packed, four bytes little-endian each, so that a hostile one costs its reader no object. At
    least one: EOS, or what `max_tokens` left.
    """

    packed: Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_TOKENS)]
    text: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]

    def __post_init__(self) -> None:
        if len(self.packed) % 4:
            raise ValueError("packed token ids are four bytes each")

    @classmethod
    def of(cls, tokens: Iterable[int], text: str) -> Completion:
        """A completion of these token ids."""
        ids = tuple(tokens)
        return cls(packed=struct.pack(f"<{len(ids)}I", *ids), text=text)

    @property
    def length(self) -> int:
        """How many tokens."""
        return len(self.packed) // 4

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids."""
        return struct.unpack(f"<{self.length}I", self.packed)


class Group(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The G completions of one prompt. The prompt itself is redrawn, not sent.

    `index` is the question's j, or says which proposed question it is (`swarm.cellmates`). `answers` and
    `critiques` are the leaves of what the prompt showed, in order; both are empty in the answer stage.
    """

    index: U32
    answers: Annotated[tuple[Digest, ...], Meta(max_length=MAX_SHOWN)] = ()
    critiques: Annotated[tuple[Digest, ...], Meta(max_length=MAX_SHOWN)] = ()
    completions: Annotated[tuple[Completion, ...], Meta(min_length=1, max_length=MAX_COMPLETIONS)]


class GroupsBlob(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """All groups that one peer made in one stage; the blob that an announcement names."""

    version: Literal[1] = 1
    groups: Annotated[tuple[Group, ...], Meta(min_length=1, max_length=MAX_GROUPS)]


class _GroupsFrame(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """A `GroupsBlob` whose groups are still bytes."""

    version: Literal[1] = 1
    groups: Annotated[tuple[msgspec.Raw, ...], Meta(min_length=1, max_length=MAX_GROUPS)]


class GroupsLimit(Struct, frozen=True, kw_only=True):
    """What one peer's groups of a stage may amount to in this swarm."""

    max_bytes: int = MAX_GROUPS_BLOB_BYTES
    max_groups: int = MAX_GROUPS
    completions: int | None = None  # of each group, exactly; None: any number


class BlobRequest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """Asks for a blob's bytes from `offset` on."""

    digest: Digest
    offset: U48 = 0


BLOB_FOLLOWS: Final = 0
BLOB_UNKNOWN: Final = 1
BLOB_BUSY: Final = 2  # ask again soon
BLOB_REFUSED: Final = 3  # of a shared file only: what others than auditors get in a day is spent


class BlobHeader(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """The answer to a `BlobRequest`; after `BLOB_FOLLOWS` come the bytes, `size_bytes` less the offset."""

    status: Literal[0, 1, 2, 3]
    size_bytes: U48 = 0  # of the whole blob


class ReachRequest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """Asks whether the sender's TCP ports can be reached at the address from which it is connected."""

    ports: Annotated[tuple[U16, ...], Meta(min_length=1, max_length=4)]


class ReachAnswer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """Where the asker is seen, and which of its ports answered as libp2p does."""

    address: Annotated[str, Meta(max_length=64)]  # an IP address; empty if connected through a relay
    reached: Annotated[tuple[U16, ...], Meta(max_length=4)] = ()


class Hello(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """Where the answering peer can be reached; what is seen of a connection that it dialled does not tell."""

    addresses: Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=4)]  # multiaddrs


class Heard(Struct, frozen=True, kw_only=True):
    """An announcement whose signature is its sender's."""

    peer: bytes  # 32-byte digest of the sender
    announcement: Announcement
    envelope: bytes  # as it was signed, so that anyone can check it again with `open_envelope`


#: Signs a message for a round and stage with `swarm.pem`; `IdentityError` if another was signed there before.
Signer = Callable[[int, int, bytes], bytes]

Message = TypeVar("Message", bound=Struct)


def encode(value: Struct) -> bytes:
    """The canonical msgpack bytes of a wire struct."""
    return msgspec.msgpack.encode(value)


def decode(kind: type[Message], data: bytes | msgspec.Raw, max_bytes: int) -> Message:
    """A wire struct from hostile bytes; `WireError` if too big, malformed or out of limits."""
    size = memoryview(data).nbytes
    if size > max_bytes:
        raise WireError(f"{_name(kind)} is over its size limit: {size} bytes of {max_bytes}")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"not a valid {_name(kind)}: {error}") from error


def decode_groups(data: bytes, announced: int, limit: GroupsLimit) -> tuple[Group, ...]:
    """The `announced` number of groups in a blob; `WireError` at the first that breaks a limit.

    One group is decoded after the other, so that a blob full of tiny completions is given up early.
    """
    if announced > limit.max_groups:
        raise WireError("more groups than the stage allows")
    frame = decode(_GroupsFrame, data, limit.max_bytes)
    if len(frame.groups) != announced:
        raise WireError("blob has another number of groups than announced")
    groups = []
    for raw in frame.groups:
        group = decode(Group, raw, limit.max_bytes)
        if limit.completions not in (None, len(group.completions)):
            raise WireError("group has the wrong size")
        groups.append(group)
    return tuple(groups)


def _name(kind: type[Struct]) -> str:
    return GroupsBlob.__name__ if kind is _GroupsFrame else kind.__name__


def expiration(genesis: int, round_seconds: int, round_number: int) -> int:
    """When a round's announcements leave the DHT: Unix seconds, one whole round after their own."""
    return genesis + (round_number + 2) * round_seconds


def sign(key: PublicKey, announcement: Announcement, signer: Signer) -> bytes:
    """The envelope bytes that go into the DHT, signed by `signer` with the private half of `key`."""
    body = encode(announcement)
    signature = signer(announcement.round, announcement.stage, _signed_message(announcement.swarm, body))
    return encode(Envelope(modulus=key.modulus, body=body, signature=signature))


class Sealed(Struct, frozen=True, kw_only=True):
    """An envelope taken apart, its signature not checked yet: the cheap half of opening it."""

    key: PublicKey
    envelope: Envelope
    announcement: Announcement
    data: bytes  # the envelope's

    def open(self) -> Heard:
        """Check the signature; `WireError` if it is not the sender's."""
        message = _signed_message(self.announcement.swarm, self.envelope.body)
        if not self.key.verify(message, self.envelope.signature):
            raise WireError("signature is not the sender's")
        return self.opened()

    def opened(self) -> Heard:
        """What `open` gives, for when the signature was checked before."""
        return Heard(peer=self.key.peer, announcement=self.announcement, envelope=self.data)


def unpack_envelope(data: bytes) -> Sealed:
    """Decode an envelope without checking its signature; `WireError` says what is wrong with it."""
    envelope = decode(Envelope, data, MAX_ANNOUNCEMENT_BYTES)
    if encode(envelope) != data:  # else anyone could make a second record of the same announcement
        raise WireError("envelope is not in canonical form")
    announcement = decode(Announcement, envelope.body, MAX_ANNOUNCEMENT_BYTES)
    if encode(announcement) != envelope.body:
        raise WireError("announcement is not in canonical form")
    try:
        key = PublicKey(envelope.modulus)
    except IdentityError as error:
        raise WireError(str(error)) from error
    return Sealed(key=key, envelope=envelope, announcement=announcement, data=data)


def open_envelope(data: bytes) -> Heard:
    """Decode an envelope and check its signature; `WireError` says what is wrong with it."""
    return unpack_envelope(data).open()


def dht_key(swarm: bytes, round_number: int, stage: int, cell: int) -> str:
    """The DHT key of one stage of one cell."""
    return f"{swarm.hex()}/{round_number}/{stage}/{cell}"


def _signed_message(swarm: bytes, body: bytes) -> bytes:
    return derive(Purpose.ANNOUNCE, swarm) + body

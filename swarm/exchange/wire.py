"""Everything that peers send each other, as typed structs with size limits; msgpack, no pickle.

Decoding hostile bytes raises `WireError` and nothing else. Structs are arrays on the wire and open
with a version, so a later format is refused by name instead of misread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from identity import IdentityError, PublicKey
from swarm.digest import Purpose, derive
from swarm.errors import WireError

MAX_ANNOUNCEMENT_BYTES = 2048  # DESIGN.md, section 5
MAX_GROUPS_BLOB_BYTES = 16 * 2**20
MAX_GROUPS = 4096
MAX_COMPLETIONS = 256
MAX_TOKENS = 8192
MAX_TEXT_CHARS = 32768
MAX_SHOWN = 26

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Modulus = Annotated[bytes, Meta(min_length=256, max_length=256)]
Signature = Annotated[bytes, Meta(min_length=256, max_length=256)]
U32 = Annotated[int, Meta(ge=0, lt=2**32)]
U48 = Annotated[int, Meta(ge=0, lt=2**48)]


class Announcement(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What a peer made in one stage: where the blob of its groups is, and the root of their digests."""

    version: Literal[1] = 1
    swarm: Digest
    round: U48
    stage: Annotated[int, Meta(ge=0, le=2)]  # manifest.STAGE_NUMBER
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


class Completion(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """One sampled completion: the sender's token ids (with EOS, for audits) and the text that they make."""

    tokens: Annotated[tuple[U32, ...], Meta(max_length=MAX_TOKENS)]
    text: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]


class Group(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """The G completions of one prompt. The prompt itself is redrawn, not sent.

    `index` is the question's j. `answers` and `critiques` are the leaves of what the prompt showed, in
    order; both are empty in the answer stage.
    """

    index: U32
    answers: Annotated[tuple[Digest, ...], Meta(max_length=MAX_SHOWN)] = ()
    critiques: Annotated[tuple[Digest, ...], Meta(max_length=MAX_SHOWN)] = ()
    completions: Annotated[tuple[Completion, ...], Meta(min_length=1, max_length=MAX_COMPLETIONS)]


class GroupsBlob(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """All groups that one peer made in one stage; the blob that an announcement names."""

    version: Literal[1] = 1
    groups: Annotated[tuple[Group, ...], Meta(min_length=1, max_length=MAX_GROUPS)]


class Heard(Struct, frozen=True, kw_only=True):
    """An announcement whose signature is its sender's."""

    peer: bytes  # 32-byte digest of the sender
    announcement: Announcement


#: Signs a message for a round and stage with `swarm.pem`; `IdentityError` if another was signed there before.
Signer = Callable[[int, int, bytes], bytes]

T = TypeVar("T", Announcement, Envelope, GroupsBlob)


def encode(value: Announcement | Envelope | GroupsBlob) -> bytes:
    """The canonical msgpack bytes of a wire struct."""
    return msgspec.msgpack.encode(value)


def decode(kind: type[T], data: bytes, max_bytes: int) -> T:
    """A wire struct from hostile bytes; `WireError` if too big, malformed or out of limits."""
    if len(data) > max_bytes:
        raise WireError(f"{kind.__name__} of {len(data)} bytes is over {max_bytes}")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"not a valid {kind.__name__}: {error}") from error


def expiration(genesis: int, round_seconds: int, round_number: int) -> int:
    """When a round's announcements leave the DHT: Unix seconds, one whole round after their own."""
    return genesis + (round_number + 2) * round_seconds


def sign(key: PublicKey, announcement: Announcement, signer: Signer) -> bytes:
    """The envelope bytes that go into the DHT, signed by `signer` with the private half of `key`."""
    body = encode(announcement)
    signature = signer(announcement.round, announcement.stage, _signed_message(announcement.swarm, body))
    return encode(Envelope(modulus=key.modulus, body=body, signature=signature))


def open_envelope(data: bytes) -> Heard:
    """Decode an envelope and check its signature; `WireError` says what is wrong with it."""
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
    if not key.verify(_signed_message(announcement.swarm, envelope.body), envelope.signature):
        raise WireError("signature is not the sender's")
    return Heard(peer=key.peer, announcement=announcement)


def dht_key(swarm: bytes, round_number: int, stage: int, cell: int) -> str:
    """The DHT key of one stage of one cell."""
    return f"{swarm.hex()}/{round_number}/{stage}/{cell}"


def _signed_message(swarm: bytes, body: bytes) -> bytes:
    return derive(Purpose.ANNOUNCE, swarm) + body

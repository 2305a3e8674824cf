"""Hostile bytes at the decoder: whatever they are, the only error is `WireError`."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from exchange_cast import one_group, signed
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import WireError
from swarm.exchange import wire


def _opens(data: bytes) -> wire.Heard | None:
    with suppress(WireError):
        return wire.open_envelope(data)
    return None


@pytest.fixture(scope="module")
def envelope(identities) -> bytes:
    announcement = wire.Announcement(
        swarm=bytes(32),
        round=1,
        stage=0,
        cell=0,
        expiration=9,
        groups=1,
        root=bytes(32),
        blob=bytes(32),
        blob_bytes=5,
    )
    return signed(identities[0], announcement)


def test_signed_announcement_opens_and_fits(envelope, identities):
    heard = wire.open_envelope(envelope)
    assert heard.peer == identities[0].peer and heard.announcement.expiration == 9
    assert len(envelope) <= wire.MAX_ANNOUNCEMENT_BYTES


@given(st.binary(max_size=3000))
def test_random_bytes_raise_only_wire_errors(data):
    assert _opens(data) is None
    for kind in (wire.Announcement, wire.Envelope, wire.GroupsBlob):
        with suppress(WireError):
            wire.decode(kind, data, 2048)


@settings(max_examples=300)
@given(changes=st.lists(st.tuples(st.integers(0, 700), st.integers(1, 255)), min_size=1, max_size=4))
def test_mutated_envelope_never_speaks_for_its_sender(envelope, changes):
    mutated = bytearray(envelope)
    for position, flip in changes:
        mutated[position % len(mutated)] ^= flip
    heard = _opens(bytes(mutated))
    assert heard is None or bytes(mutated) == envelope


@given(cut=st.integers(0, 700), tail=st.binary(max_size=40))
def test_cut_or_lengthened_envelope_does_not_open(envelope, cut, tail):
    data = envelope[:cut] + tail
    assert _opens(data) is None or data == envelope


@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_mutated_blob_raises_only_wire_errors(position, flip):
    blob = bytearray(one_group("text " * 50))
    blob[position % len(blob)] ^= flip
    with suppress(WireError):
        wire.decode(wire.GroupsBlob, bytes(blob), len(blob))


def test_deeply_nested_message_raises_only_wire_errors():
    with pytest.raises(WireError):
        wire.decode(wire.GroupsBlob, b"\x91" * 100_000, 2**20)


def test_envelope_in_another_encoding_of_the_same_content_does_not_open(envelope):
    parts = msgspec.msgpack.decode(envelope)
    body = parts[1]
    longer = envelope.replace(
        b"\xc4" + bytes([len(body)]) + body, b"\xc5" + len(body).to_bytes(2, "big") + body
    )
    assert msgspec.msgpack.decode(longer) == parts and longer != envelope
    with pytest.raises(WireError):
        wire.open_envelope(longer)

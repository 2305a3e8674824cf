"""Hostile bytes at the decoders: the only error is `WireError`, and their memory is a small multiple."""

from __future__ import annotations

import asyncio
import math
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from exchange_cast import Swarm, one_group, signed
from fuzz_wire import RULES, Witness, decoders, fuzz, items_of, longer_form
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from identity import Identity, PublicKey
from identity.key import EXPONENT, MODULUS_BYTES
from swarm.digest import Purpose, derive
from swarm.errors import WireError
from swarm.exchange import wire
from swarm.exchange.protocol import StrictSerializer
from swarm.exchange.storage import MAX_RECORDS_PER_KEY, frozen_dictionary
from swarm.exchange.streams import LENGTH_BYTES, receive_message
from swarm.exchange.validator import AnnouncementValidator

DECODERS = decoders()
SERIALIZER = StrictSerializer(AnnouncementValidator(RULES, Witness()))
pack = msgspec.msgpack.encode


def _opens(data: bytes) -> wire.Heard | None:
    with suppress(WireError):
        return wire.open_envelope(data)
    return None


@pytest.fixture(scope="module")
def envelope(identities) -> bytes:
    return signed(identities[0], Swarm(genesis=0).announcement(round=1))


def test_signed_announcement_opens_and_fits(envelope, identities):
    heard = wire.open_envelope(envelope)
    assert heard.peer == identities[0].peer and heard.announcement.expiration == 3 * 3600
    assert len(envelope) <= wire.MAX_ANNOUNCEMENT_BYTES


# Round trips

DIGEST = st.binary(min_size=32, max_size=32)
U16, U32, U48 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 48))
RSA_BYTES = st.binary(min_size=MODULUS_BYTES, max_size=MODULUS_BYTES)


def tuples(of: st.SearchStrategy[Any], least: int = 0, most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, min_size=least, max_size=most).map(tuple)


ANNOUNCEMENT = st.builds(
    wire.Announcement,
    version=st.just(1),
    swarm=DIGEST,
    round=U48,
    stage=st.integers(0, 3),
    cell=U32,
    expiration=U48,
    groups=st.integers(1, wire.MAX_GROUPS),
    root=DIGEST,
    blob=DIGEST,
    blob_bytes=st.integers(1, wire.MAX_GROUPS_BLOB_BYTES),
)
COMPLETION = st.builds(wire.Completion.of, st.lists(U32, min_size=1, max_size=9), st.text(max_size=40))
GROUP = st.builds(
    wire.Group,
    index=U32,
    answers=tuples(DIGEST),
    critiques=tuples(DIGEST),
    completions=tuples(COMPLETION, least=1),
)
MESSAGES = {
    wire.Announcement: ANNOUNCEMENT,
    wire.Envelope: st.builds(
        wire.Envelope, modulus=RSA_BYTES, body=st.binary(max_size=1024), signature=RSA_BYTES
    ),
    wire.Completion: COMPLETION,
    wire.Group: GROUP,
    wire.GroupsBlob: st.builds(wire.GroupsBlob, version=st.just(1), groups=tuples(GROUP, least=1)),
    wire.BlobRequest: st.builds(wire.BlobRequest, digest=DIGEST, offset=U48),
    wire.BlobHeader: st.builds(wire.BlobHeader, status=st.integers(0, 3), size_bytes=U48),
    wire.ReachRequest: st.builds(wire.ReachRequest, ports=tuples(U16, least=1)),
    wire.ReachAnswer: st.builds(wire.ReachAnswer, address=st.text(max_size=64), reached=tuples(U16)),
    wire.Hello: st.builds(wire.Hello, addresses=tuples(st.text(max_size=200))),
}
STREAM_MESSAGES = (wire.BlobRequest, wire.BlobHeader, wire.ReachRequest, wire.ReachAnswer, wire.Hello)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(deadline=None)
@given(data=st.data())
def test_message_survives_the_wire(kind, data):
    message = data.draw(MESSAGES[kind])
    assert wire.decode(kind, wire.encode(message), 2**20) == message


@given(groups=tuples(GROUP, least=1))
def test_groups_survive_the_wire(groups):
    blob = wire.encode(wire.GroupsBlob(groups=groups))
    assert wire.decode_groups(blob, len(groups), wire.GroupsLimit()) == groups


@given(tokens=st.lists(U32, min_size=1, max_size=99))
def test_token_ids_survive_packing(tokens):
    completion = wire.Completion.of(tokens, "")
    assert completion.tokens == tuple(tokens) and completion.length == len(tokens)


@settings(max_examples=30, deadline=None)
@given(announcement=ANNOUNCEMENT)
def test_any_announcement_opens_as_its_signer_made_it(identities, announcement):
    data = signed(identities[0], announcement)
    heard = wire.open_envelope(data)
    assert heard == wire.Heard(peer=identities[0].peer, announcement=announcement, envelope=data)
    assert wire.open_envelope(heard.envelope) == heard
    assert len(data) <= wire.MAX_ANNOUNCEMENT_BYTES


@pytest.mark.parametrize("kind", STREAM_MESSAGES, ids=lambda kind: kind.__name__)
@settings(deadline=None)
@given(data=st.data())
def test_stream_message_is_received_or_refused(kind, data):
    message = data.draw(MESSAGES[kind])
    body = wire.encode(message)
    arrived = data.draw(st.binary(max_size=20)) + len(body).to_bytes(LENGTH_BYTES, "big") + body

    async def receive() -> msgspec.Struct:
        reader = asyncio.StreamReader()
        reader.feed_data(arrived)
        reader.feed_eof()
        return await receive_message(reader, kind)

    try:
        received = asyncio.run(receive())
    except (WireError, EOFError):
        assert not arrived.endswith(body) or arrived[LENGTH_BYTES:] != body
    else:
        assert isinstance(received, kind)


@given(records=st.dictionaries(st.binary(), st.tuples(st.binary(), st.floats(allow_nan=False)), max_size=9))
def test_dht_dictionary_survives_the_wire(records):
    sent = frozen_dictionary()
    for subkey, (value, expiration) in records.items():
        sent.store(subkey, value, expiration)
    loaded = SERIALIZER.loads(SERIALIZER.dumps(sent))
    assert {subkey: (value, expiration) for subkey, (value, expiration) in loaded.items()} == records


# Hostile bytes


@given(code=st.integers(-128, 127))
def test_extension_of_another_type_is_no_dht_dictionary(code):
    if code == 0x50:
        return
    with pytest.raises(WireError):
        SERIALIZER.loads(pack(Ext(code, pack([None, 1e9, []]))))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=3000))
def test_random_bytes_raise_only_wire_errors(data):
    assert _opens(data) is None
    for decoder in DECODERS.values():
        with suppress(WireError):
            decoder.decode(data)


def _trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=12)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            | inner.map(lambda tree: Ext(0x50, pack(tree)))
            | inner.map(pack)
        ),
        max_leaves=30,
    )


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()


@settings(max_examples=300, deadline=None)
@given(tree=_trees(LEAVES | DIGEST))
def test_messages_of_any_shape_raise_only_wire_errors(tree):
    for decoder in DECODERS.values():
        with suppress(WireError):
            decoder.decode(pack(tree))


def test_fuzzer_finds_nothing_and_comes_deep():
    """A second or two of what `fuzz_wire.py` does for ten minutes."""
    tally = fuzz(inputs=15_000, seconds=60, seed=0)
    assert tally.failure is None and set(tally.exceptions) == {"WireError"}
    assert tally.inputs == 15_000 and set(tally.meant) == set(DECODERS)
    for name in DECODERS:
        assert tally.accepted[name] > 0, name
        assert tally.deep_share(name) > 0.4, name


@settings(max_examples=300, deadline=None)
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
        wire.decode_groups(bytes(blob), 1, wire.GroupsLimit())


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("level", [b"\x91", b"\x92\x01", b"\x81\x01", b"\xdd\xff\xff\xff\xff"], ids=bytes.hex)
@pytest.mark.parametrize("front", [b"", b"\x92\x01\x91", b"\x94\x00"], ids=bytes.hex)
def test_deeply_nested_message_raises_only_wire_errors(name, level, front):
    with pytest.raises(WireError):
        DECODERS[name].decode(front + level * 100_000)


# One encoding


@given(data=st.data())
def test_envelope_in_another_encoding_of_the_same_content_does_not_open(envelope, data):
    start, end = data.draw(st.sampled_from(items_of(envelope)))
    longer = envelope[:start] + longer_form(envelope[start:end]) + envelope[end:]
    assert msgspec.msgpack.decode(longer) == msgspec.msgpack.decode(envelope)
    assert _opens(longer) is None or longer == envelope
    assert _opens(envelope + b"\xc0") is None


def _sealed_by_hand(identity: Identity, body: bytes) -> bytes:
    """An envelope around any body, with its sender's good signature."""
    message = derive(Purpose.ANNOUNCE, Swarm().swarm_id) + body
    return pack([identity.public_key.modulus, body, identity.sign(message)])


def test_not_even_its_sender_can_sign_another_encoding_of_an_announcement(identities):
    body = wire.encode(Swarm(genesis=0).announcement(round=1))
    assert _opens(_sealed_by_hand(identities[0], body)) is not None
    bodies = {body[:start] + longer_form(body[start:end]) + body[end:] for start, end in items_of(body)}
    assert len(bodies - {body}) >= 10
    for longer in bodies - {body}:
        assert msgspec.msgpack.decode(longer) == msgspec.msgpack.decode(body)
        with pytest.raises(WireError, match="canonical"):
            wire.open_envelope(_sealed_by_hand(identities[0], longer))


def test_signature_plus_its_modulus_is_no_second_signature(identities):
    identity = min(identities, key=lambda one: one.public_key.modulus)
    modulus = int.from_bytes(identity.public_key.modulus, "big")
    found = 0
    for number in range(400):
        envelope = wire.decode(
            wire.Envelope, signed(identity, Swarm(genesis=0).announcement(round=number)), 2048
        )
        other = int.from_bytes(envelope.signature, "big") + modulus
        if other < 2**2048:
            found += 1
            signature = other.to_bytes(MODULUS_BYTES, "big")
            assert _opens(wire.encode(msgspec.structs.replace(envelope, signature=signature))) is None
        if found == 3:
            break
    assert found


# Limits

_VALID = {
    wire.Announcement: [1, bytes(32), 1, 0, 0, 9, 1, bytes(32), bytes(32), 5],
    wire.Envelope: [bytes(256), b"", bytes(256)],
    wire.Completion: [bytes(4), ""],
    wire.Group: [0, [], [], [[bytes(4), ""]]],
    wire.GroupsBlob: [1, [[0, [], [], [[bytes(4), ""]]]]],
    wire.BlobRequest: [bytes(32), 0],
    wire.BlobHeader: [0, 0],
    wire.ReachRequest: [[80]],
    wire.ReachAnswer: ["", []],
    wire.Hello: [[]],
}


def _same(value: Any) -> Any:
    return value


def _many(item: Any) -> Callable[[int], list[Any]]:
    return lambda count: [item] * count


def _text(count: int) -> str:
    return "𝄞" * count  # limits of text count characters, not bytes


#: Struct, field, how a value of a size is made, and the least and most that is allowed.
LIMITS: list[tuple[type[msgspec.Struct], int, Callable[[int], Any], int, int]] = [
    (wire.Announcement, 0, _same, 1, 1),
    (wire.Announcement, 1, bytes, 32, 32),
    (wire.Announcement, 2, _same, 0, 2**48 - 1),
    (wire.Announcement, 3, _same, 0, 3),
    (wire.Announcement, 4, _same, 0, 2**32 - 1),
    (wire.Announcement, 5, _same, 0, 2**48 - 1),
    (wire.Announcement, 6, _same, 1, wire.MAX_GROUPS),
    (wire.Announcement, 7, bytes, 32, 32),
    (wire.Announcement, 8, bytes, 32, 32),
    (wire.Announcement, 9, _same, 1, wire.MAX_GROUPS_BLOB_BYTES),
    (wire.Envelope, 0, bytes, 256, 256),
    (wire.Envelope, 1, bytes, 0, 1024),
    (wire.Envelope, 2, bytes, 256, 256),
    (wire.Completion, 0, lambda tokens: bytes(4 * tokens), 1, wire.MAX_TOKENS),
    (wire.Completion, 1, _text, 0, wire.MAX_TEXT_CHARS),
    (wire.Group, 0, _same, 0, 2**32 - 1),
    (wire.Group, 1, _many(bytes(32)), 0, wire.MAX_SHOWN),
    (wire.Group, 1, lambda size: [bytes(size)], 32, 32),
    (wire.Group, 2, _many(bytes(32)), 0, wire.MAX_SHOWN),
    (wire.Group, 2, lambda size: [bytes(size)], 32, 32),
    (wire.Group, 3, _many([bytes(4), ""]), 1, wire.MAX_COMPLETIONS),
    (wire.GroupsBlob, 0, _same, 1, 1),
    (wire.GroupsBlob, 1, _many(_VALID[wire.Group]), 1, wire.MAX_GROUPS),
    (wire.BlobRequest, 0, bytes, 32, 32),
    (wire.BlobRequest, 1, _same, 0, 2**48 - 1),
    (wire.BlobHeader, 0, _same, 0, 3),
    (wire.BlobHeader, 1, _same, 0, 2**48 - 1),
    (wire.ReachRequest, 0, _many(80), 1, 4),
    (wire.ReachRequest, 0, lambda port: [port], 0, 2**16 - 1),
    (wire.ReachAnswer, 0, _text, 0, 64),
    (wire.ReachAnswer, 1, _many(80), 0, 4),
    (wire.ReachAnswer, 1, lambda port: [port], 0, 2**16 - 1),
    (wire.Hello, 0, _many("/ip4"), 0, 4),
    (wire.Hello, 0, lambda count: [_text(count)], 0, 200),
]


def test_every_field_of_every_struct_has_limits():
    fields = {(kind, place) for kind in MESSAGES for place in range(len(kind.__struct_fields__))}
    assert fields == {(kind, place) for kind, place, *_ in LIMITS}


@pytest.mark.parametrize(
    ("kind", "place", "of_size", "least", "most"),
    LIMITS,
    ids=[f"{kind.__name__}.{kind.__struct_fields__[place]}" for kind, place, *_ in LIMITS],
)
def test_a_limit_itself_passes_and_one_more_is_refused(kind, place, of_size, least, most):
    def decoded(size: int) -> Any:
        value = of_size(size)
        parts = [*_VALID[kind][:place], value, *_VALID[kind][place + 1 :]]
        message = wire.decode(kind, pack(parts), wire.MAX_GROUPS_BLOB_BYTES)
        return pack(message) == pack(parts)

    assert decoded(least) and decoded(most)
    for size in (least - 1, most + 1):
        if size >= 0 or of_size is _same:
            with pytest.raises(WireError):
                decoded(size)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_field_too_many_and_size_limit_are_refused(kind):
    data = pack(_VALID[kind])
    wire.decode(kind, data, len(data))
    with pytest.raises(WireError, match="size limit"):
        wire.decode(kind, data, len(data) - 1)
    with pytest.raises(WireError):
        wire.decode(kind, pack([*_VALID[kind], 0]), 2048)
    with pytest.raises(WireError):
        wire.decode(kind, data + b"\xc0", 2048)


@pytest.mark.parametrize("version", [0, 2, 255, "1", None])
@pytest.mark.parametrize("kind", [wire.Announcement, wire.GroupsBlob])
def test_another_version_is_refused_by_name(kind, version):
    with pytest.raises(WireError, match=kind.__name__):
        wire.decode(kind, pack([version, *_VALID[kind][1:]]), 2048)


@pytest.mark.parametrize("size", range(1, 12))
def test_packed_ids_are_four_bytes_each(size):
    data = pack([bytes(size), ""])
    if size % 4:
        with pytest.raises(WireError):
            wire.decode(wire.Completion, data, 2048)
    else:
        assert wire.decode(wire.Completion, data, 2048).length == size // 4


@pytest.mark.parametrize(("announced", "completions", "passes"), [(3, 2, True), (2, 2, False), (3, 1, False)])
def test_groups_are_as_many_as_announced_and_as_large_as_the_swarm_says(announced, completions, passes):
    group = [0, [], [], [[bytes(4), ""]] * 2]
    blob = pack([1, [group] * 3])
    limit = wire.GroupsLimit(max_bytes=len(blob), completions=completions)
    if passes:
        assert len(wire.decode_groups(blob, announced, limit)) == 3
    else:
        with pytest.raises(WireError):
            wire.decode_groups(blob, announced, limit)
    with pytest.raises(WireError, match="size limit"):
        wire.decode_groups(blob, announced, wire.GroupsLimit(max_bytes=len(blob) - 1))


# Memory

#: Peak of what Python allocates while decoding, per byte of input. Measured with CPython 3.11, msgspec 0.22:
#: 15.3 for completions of one token and one letter such as "Ā" (10 bytes become a struct of 32, a tuple's 8,
#: 37 for the id and 76 for the letter), 5.0 for ASCII text with one character outside the BMP (4 bytes for
#: each character, besides the first try), 2.3 for digests, 2.2 for large DHT records.
PEAK_MULTIPLE = 16
#: And once, for what is bounded in number: 4096 groups of one completion (321 bytes for 15 of input), 512 DHT
#: records (340 for 8); and 256 KiB, the buffer of msgpack's packer, which the validator uses for a subkey.
PEAK_BYTES = 512 * 1024


def _blob(*groups: Any) -> bytes:
    return pack([1, list(groups)])


def _of_completions(completion: Any, count: int = 256, groups: int = 64) -> bytes:
    return _blob(*[[0, [], [], [completion] * count]] * groups)


def _dht_dictionary(*records: Any) -> bytes:
    return pack(Ext(0x50, pack([None, 1e9, list(records)])))


WORST_SHAPES = {
    "smallest completions": _of_completions([bytes(4), ""]),
    "completions of one wide letter": _of_completions([bytes(4), "Ā"]),
    "completions of one character outside the BMP": _of_completions([bytes(4), "𝄞"]),
    "completions without tokens": _of_completions([b"", "Ā"]),
    "groups of one completion": _of_completions([bytes(4), "Ā"], count=1, groups=4096),
    "groups of eight completions": _of_completions([bytes(4), "Ā"], count=8, groups=1024),
    "groups of one byte": _blob(*[0] * 4096),
    "groups with digests only": _blob(
        *[[2**20, [bytes(32)] * 26, [bytes(32)] * 26, [[bytes(4), ""]]]] * 4096
    ),
    "long text widened at its end": _of_completions([bytes(4), "a" * 32767 + "𝄞"], count=8, groups=2),
    "one text over its limit, widened at its end": _blob([0, [], [], [[bytes(4), "a" * 2**20 + "𝄞"]]]),
    "many empty arrays": b"\x92\x01\xdc\x10\x00" + b"\x94\x00\x90\x90\xdc\x01\x00" + b"\x90" * 10**5,
    "arrays that claim to be long": b"\x92\x01\xdc\x10\x00" + b"\xdd\xff\xff\xff\xff" * 10**5,
    "an array of as many as allowed, and nothing": b"\x92\x01\xdc\x10\x00",
    "text that claims to be long": b"\x92\x01\x91\x94\x00\x90\x90\x91\x92\xc4\x04toks\xdb\xff\xff\xff\xff",
    "bytes that claim to be long": b"\x93\xc6\xff\xff\xff\xff",
    "an extension that claims to be long": b"\xc9\xff\xff\xff\xff\x50",
    "nested arrays": b"\x91" * 10**6,
    "nested arrays where a group belongs": b"\x92\x01\x91" + b"\x91" * 10**6,
    "nested maps where a group belongs": b"\x92\x01\x91" + b"\x81\x01" * 10**6,
    "smallest records": _dht_dictionary(
        *[[n.to_bytes(2, "big"), b"", 0] for n in range(MAX_RECORDS_PER_KEY)]
    ),
    "records of one byte": _dht_dictionary(*[0] * MAX_RECORDS_PER_KEY),
    "records over their number": _dht_dictionary(*[0] * 10**6),
    "large records": _dht_dictionary(*[[n.to_bytes(2, "big"), bytes(4000), 0] for n in range(256)]),
    "nested extensions": pack(Ext(0x50, pack(Ext(0x50, pack(Ext(0x50, bytes(10**6))))))),
    "one value of bytes": pack(bytes(10**6)),
}


@pytest.mark.parametrize("shape", WORST_SHAPES)
def test_decoding_allocates_a_small_multiple_of_its_input(shape):
    data = WORST_SHAPES[shape]
    decode = {
        "groups": lambda data: wire.decode_groups(
            data, int.from_bytes(data[3:5], "big") if data[2:3] == b"\xdc" else 1, wire.GroupsLimit()
        ),
        **{name: DECODERS[name].decode for name in DECODERS if name != "groups"},
        "GroupsBlob": lambda data: wire.decode(wire.GroupsBlob, data, wire.MAX_GROUPS_BLOB_BYTES),
    }
    for name, work in decode.items():
        with suppress(WireError):
            work(b"")  # msgspec learns a type once
        peak = _peak_bytes(work, data)
        assert peak <= PEAK_MULTIPLE * len(data) + PEAK_BYTES, (
            f"{name}: {peak / len(data):.1f} times the input"
        )


def _peak_bytes(work: Callable[[bytes], object], data: bytes) -> int:
    tracemalloc.start()
    try:
        with suppress(WireError):
            work(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Keys


def _moduli() -> dict[str, int]:
    root = math.isqrt(2**2048 - 1)
    root -= root % 2 == 0
    top = 2**2048
    return {
        "all ones": top - 1,
        "least": top // 2 + 1,
        "even": top - 2,
        "zero": 0,
        "one": 1,
        "small": EXPONENT,
        "a bit short": top // 2 - 1,
        "square": root**2,
        "power of three": 3**1292,
        "multiple of the exponent": EXPONENT * ((top - 1) // EXPONENT - ((top - 1) // EXPONENT % 2 == 0)),
        "multiple of small primes": 15015 * ((top - 1) // 15015 - ((top - 1) // 15015 % 2 == 0)),
    }


@pytest.mark.parametrize("name", _moduli())
def test_odd_modulus_costs_no_more_than_a_good_one_and_opens_nothing(identities, name):
    modulus = _moduli()[name]
    envelope = wire.decode(wire.Envelope, signed(identities[0], Swarm(genesis=0).announcement()), 2048)
    signatures = [0, 1, 2, modulus - 1, modulus, modulus + 1, 2**2048 - 1]
    forged = [
        wire.encode(
            wire.Envelope(
                modulus=modulus.to_bytes(MODULUS_BYTES, "big"),
                body=envelope.body,
                signature=signature.to_bytes(MODULUS_BYTES, "big"),
            )
        )
        for signature in signatures
        if 0 <= signature < 2**2048
    ]
    assert all(_opens(data) is None for data in forged)
    good = _seconds(lambda: wire.open_envelope(wire.encode(envelope)))
    assert max(_seconds(lambda data=data: _opens(data)) for data in forged) < 20 * good  # measured: 1.1


def _seconds(work: Callable[[], object]) -> float:
    """The least of several measurements: what it costs when nothing else runs."""
    taken = []
    for _ in range(20):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


@settings(max_examples=300, deadline=None)
@given(modulus=RSA_BYTES, signature=RSA_BYTES, message=st.binary(max_size=99))
def test_any_modulus_is_refused_or_verifies_nothing(modulus, signature, message):
    modulus = bytes([modulus[0] | 0x80]) + modulus[1:-1] + bytes([modulus[-1] | 1])
    assert PublicKey(modulus).verify(message, signature) is False

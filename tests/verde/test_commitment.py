import hashlib

import msgspec
import pytest
from simulation import AFTER, BEFORE, BUILD

from swarm.errors import WireError
from swarm.exchange.wire import Completion, Group
from swarm.verde import merkle
from swarm.verde.commitment import (
    HEAD_BYTES,
    Commitment,
    Published,
    Skip,
    decode,
    group_digest,
    groups_root,
    rollout_leaf,
    whereabouts,
)
from swarm.verde.verdicts import AuditClass

PEER = b"p" * 32


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def test_merkle_root_promotes_an_odd_node():
    a, b, c = (merkle.leaf(text) for text in (b"a", b"b", b"c"))
    assert a == hashlib.sha256(b"\x00a").digest()
    assert merkle.root([a]) == a
    assert merkle.root([a, b]) == node(a, b)
    assert merkle.root([a, b, c]) == node(node(a, b), c)
    assert merkle.root([]) == merkle.leaf(b"")


def a_group(text: str = "46") -> Group:
    return Group(index=3, completions=tuple(Completion.of((1, 2), text) for _ in range(3)))


def test_leaf_tells_apart_who_where_and_what():
    base = (PEER, 1, 0, 3, 0, Completion.of((1,), "46"))
    changed = [(b"q" * 32,), (PEER, 2), (PEER, 1, 1), (PEER, 1, 0, 4), (PEER, 1, 0, 3, 1)]
    leaves = {rollout_leaf(*base)} | {rollout_leaf(*change, *base[len(change) :]) for change in changed}
    leaves.add(rollout_leaf(*base[:5], Completion.of((1,), "47")))
    leaves.add(rollout_leaf(*base[:5], Completion.of((2,), "46")))
    assert len(leaves) == 8


def test_group_digest_covers_what_was_shown():
    group = a_group()
    shown = msgspec.structs.replace(group, answers=(b"l" * 32,))
    assert group_digest(PEER, 1, 1, group) != group_digest(PEER, 1, 1, shown)
    assert groups_root(PEER, 1, 0, [group]) == group_digest(PEER, 1, 0, group)


def a_commitment() -> Commitment:
    return Commitment(
        swarm=b"s" * 32,
        round=7,
        peer=PEER,
        beacon=b"z" * 32,
        active=4,
        previous=b"v" * 32,
        base=b"b" * 32,
        audit_class=AuditClass.SAME_BUILD,
        build=BUILD,
        sampled_with=BEFORE,
        state_before=BEFORE,
        state_after=AFTER,
        published=(Published(b"3" * 32, 1, b"9" * 32, 100),),
        heard=((b"envelope",),),
        batch=(b"4" * 32,),
        skips=(Skip(b"5" * 32, "no advantage"),),
        reward_micros=5,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"round": 8},
        {"peer": b"q" * 32},
        {"beacon": b"x" * 32},
        {"previous": b"x" * 32},
        {"base": b"x" * 32},
        {"audit_class": AuditClass.TOLERANT},
        {"build": msgspec.structs.replace(BUILD, threads=2)},
        {"sampled_with": AFTER},
        {"state_before": AFTER},
        {"state_after": BEFORE},
        {"published": ()},
        {"heard": ((),)},
        {"passed_over": (b"x" * 32,)},
        {"unread": (b"x" * 32,)},
        {"batch": ()},
        {"skips": ()},
        {"reward_micros": 6},
    ],
)
def test_root_depends_on_every_field(change):
    commitment = a_commitment()
    assert msgspec.structs.replace(commitment, **change).root() != commitment.root()
    assert decode(commitment.encode(), commitment.root()) == commitment


def test_head_tells_where_the_blob_is():
    commitment = a_commitment()
    head, blob = commitment.head(), commitment.encode()
    assert len(head) == HEAD_BYTES
    assert hashlib.sha256(head).digest() == commitment.root()
    assert whereabouts(head) == (hashlib.sha256(blob).digest(), len(blob))


@pytest.mark.parametrize("head", [b"", bytes(HEAD_BYTES - 1), b"\xff" * HEAD_BYTES])
def test_what_is_no_head_is_refused(head):
    with pytest.raises(WireError, match="not the head of a commitment"):
        whereabouts(head)


@pytest.mark.parametrize("blob", [b"", b"\xc1", msgspec.msgpack.encode(list(range(19)))])
def test_what_is_no_commitment_is_refused(blob):
    with pytest.raises(WireError):
        decode(blob, bytes(32))


def test_commitment_of_another_root_is_refused():
    with pytest.raises(WireError, match="another root"):
        decode(a_commitment().encode(), bytes(32))

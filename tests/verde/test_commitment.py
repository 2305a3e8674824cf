import hashlib

import msgspec
import pytest

from swarm.exchange.wire import Completion, Group
from swarm.verde import merkle
from swarm.verde.commitment import Commitment, Skip, group_digest, groups_root, rollout_leaf

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


@pytest.mark.parametrize(
    "change",
    [
        {"round": 8},
        {"peer": b"q" * 32},
        {"base": b"x" * 32},
        {"sampled_with": b"x" * 32},
        {"state_before": b"x" * 32},
        {"state_after": b"x" * 32},
        {"rollouts": ()},
        {"batch": ()},
        {"skips": ()},
        {"reward_micros": 6},
    ],
)
def test_root_depends_on_every_field(change):
    commitment = Commitment(
        swarm=b"s" * 32,
        round=7,
        peer=PEER,
        base=b"b" * 32,
        sampled_with=b"0" * 32,
        state_before=b"1" * 32,
        state_after=b"2" * 32,
        rollouts=(b"3" * 32,),
        batch=(b"4" * 32,),
        skips=(Skip(b"5" * 32, "no advantage"),),
        reward_micros=5,
    )
    assert msgspec.structs.replace(commitment, **change).root() != commitment.root()
    assert msgspec.msgpack.decode(commitment.encode(), type=Commitment).root() == commitment.root()

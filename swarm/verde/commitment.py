"""What a peer claims for a round, as a digest tree whose root is on the ledger."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from swarm.digest import Purpose, derive
from swarm.exchange import wire
from swarm.verde import merkle


def rollout_leaf(
    peer: bytes, round_number: int, stage: int, index: int, g: int, rollout: wire.Completion
) -> bytes:
    """The leaf of one completion: who sampled it, where, and what it is."""
    return merkle.leaf(msgspec.msgpack.encode((peer, round_number, stage, index, g, rollout)))


def group_digest(peer: bytes, round_number: int, stage: int, group: wire.Group) -> bytes:
    """The root over a group: first what its prompt showed, then each rollout's leaf."""
    shown = merkle.leaf(
        msgspec.msgpack.encode((peer, round_number, stage, group.index, group.answers, group.critiques))
    )
    rollouts = [
        rollout_leaf(peer, round_number, stage, group.index, g, completion)
        for g, completion in enumerate(group.completions)
    ]
    return merkle.root([shown, *rollouts])


def groups_root(peer: bytes, round_number: int, stage: int, groups: Sequence[wire.Group]) -> bytes:
    """The root that an announcement carries: over its groups' digests."""
    return merkle.root([group_digest(peer, round_number, stage, group) for group in groups])


class Skip(Struct, frozen=True, array_like=True):
    """What of another peer was eligible but not learned from, and why."""

    leaf: bytes  # a group's digest, or the leaf of one completion of a group that was used otherwise
    reason: str


class Commitment(Struct, frozen=True, array_like=True, kw_only=True):
    """All that a peer claims for one round; kept as a blob, so that its holders can recompute the root."""

    version: int = 1
    swarm: bytes
    round: int
    peer: bytes
    base: bytes  # digest of the public model that the states belong to
    sampled_with: bytes  # the three states' digests
    state_before: bytes
    state_after: bytes
    rollouts: tuple[bytes, ...]  # groups_root of each stage, in the manifest's order
    batch: tuple[bytes, ...]  # digests of the groups learned from, in order; some without skipped completions
    skips: tuple[Skip, ...]
    judges: tuple[bytes, ...] = ()  # digests of the others' answer groups that own proposals are rewarded by
    reward_micros: int

    def encode(self) -> bytes:
        """The blob's bytes."""
        return msgspec.msgpack.encode(self)

    def root(self) -> bytes:
        """The 32 bytes that go on the ledger: the fields are leaves, so each can be opened alone."""
        fields = [merkle.leaf(msgspec.msgpack.encode(field)) for field in msgspec.structs.astuple(self)]
        return derive(Purpose.COMMIT, self.swarm, self.round, self.peer, merkle.root(fields))

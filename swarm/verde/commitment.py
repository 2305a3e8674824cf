"""What a peer claims for a round, as a digest tree whose root is on the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from swarm.digest import Purpose, preimage
from swarm.errors import WireError
from swarm.exchange import wire
from swarm.exchange.wire import MAX_ANNOUNCEMENT_BYTES, MAX_GROUPS, U48, Digest
from swarm.verde import merkle
from swarm.verde.build import Build
from swarm.verde.state_files import StateFiles
from swarm.verde.verdicts import AuditClass

HEAD_BYTES = len(preimage(Purpose.COMMIT, bytes(32), 0, bytes(32), bytes(32), bytes(32), 0))
MAX_COMMITMENT_BYTES = 8 * 2**20  # in a crowded cell of 256 some 2 MB of announcements, and the skips
MAX_HEARD = 512  # twice the largest cell
MAX_UNREAD = 2**16

Envelope = Annotated[bytes, Meta(max_length=MAX_ANNOUNCEMENT_BYTES)]


def rollout_leaf(
    peer: bytes, round_number: int, stage: int, index: int, g: int, rollout: wire.Completion
) -> bytes:
    """The leaf of one completion: who sampled it, where, and what it is."""
    return merkle.leaf(msgspec.msgpack.encode((peer, round_number, stage, index, g, rollout)))


def rollout_leaves(peer: bytes, round_number: int, stage: int, group: wire.Group) -> tuple[bytes, ...]:
    """The leaves of a group's completions."""
    return tuple(
        rollout_leaf(peer, round_number, stage, group.index, g, completion)
        for g, completion in enumerate(group.completions)
    )


def group_digest(peer: bytes, round_number: int, stage: int, group: wire.Group) -> bytes:
    """The root over a group: first what its prompt showed, then each rollout's leaf."""
    shown = merkle.leaf(
        msgspec.msgpack.encode((peer, round_number, stage, group.index, group.answers, group.critiques))
    )
    return merkle.root([shown, *rollout_leaves(peer, round_number, stage, group)])


def groups_root(peer: bytes, round_number: int, stage: int, groups: Sequence[wire.Group]) -> bytes:
    """The root that an announcement carries: over its groups' digests."""
    return merkle.root([group_digest(peer, round_number, stage, group) for group in groups])


class Skip(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What of another peer was eligible but not learned from, and why."""

    leaf: Digest  # a group's digest, or the leaf of one completion of a group that was used otherwise
    reason: Annotated[str, Meta(max_length=120)]


class Published(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer made in one stage, and the blob in which it serves it."""

    root: Digest  # `groups_root`, as announced
    groups: Annotated[int, Meta(ge=0, le=MAX_GROUPS)]  # 0: none, and so nothing was announced
    blob: Digest = bytes(32)  # SHA-256 of the encoded `GroupsBlob`
    blob_bytes: U48 = 0


class Commitment(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """All that a peer claims for one round; kept as a blob, so that its holders can recompute the root.

    With the blobs that it names, the round can be played again: `swarm.verde.replay`.
    """

    version: Literal[1] = 1
    swarm: Digest
    round: U48
    peer: Digest
    # What the round was drawn from; without the ledger not its own.
    beacon: Digest
    active: U48
    previous: Digest  # root of the peer's commitment before this one; zeros: there is none
    base: Digest  # of the public model that the states belong to
    audit_class: AuditClass
    build: Build
    sampled_with: StateFiles  # the three states
    state_before: StateFiles
    state_after: StateFiles
    published: Annotated[tuple[Published, ...], Meta(max_length=4)]  # by stage, in the manifest's order
    # By stage the announcements whose groups came, signed by their senders, in the order of the common draw.
    heard: Annotated[
        tuple[Annotated[tuple[Envelope, ...], Meta(max_length=MAX_HEARD)], ...], Meta(max_length=4)
    ]
    # Peers that were heard and not used, since their score was under the floor.
    passed_over: Annotated[tuple[Digest, ...], Meta(max_length=4 * MAX_HEARD)] = ()
    # Digests of groups and leaves of completions that there was no time to read or to score.
    unread: Annotated[tuple[Digest, ...], Meta(max_length=MAX_UNREAD)] = ()
    # Digests of the groups learned from, in order; some without skipped completions.
    batch: Annotated[tuple[Digest, ...], Meta(max_length=4 * MAX_GROUPS)]
    skips: tuple[Skip, ...]
    # Digests of the others' answer groups that own proposals are rewarded by.
    judges: tuple[Digest, ...] = ()
    reward_micros: U48

    @property
    def is_kept(self) -> bool:
        """Whether the states are there to be served; a full disk may have kept them from that."""
        states = (self.sampled_with, self.state_before, self.state_after)
        return all(bytes(32) not in (files.weights.blob, files.optimizer.blob) for files in states)

    def encode(self) -> bytes:
        """The blob's bytes."""
        return msgspec.msgpack.encode(self)

    def head(self) -> bytes:
        """`HEAD_BYTES` bytes whose SHA-256 is the root: so whoever knows the root can ask for the rest."""
        fields = [merkle.leaf(msgspec.msgpack.encode(field)) for field in msgspec.structs.astuple(self)]
        blob = self.encode()
        return preimage(
            Purpose.COMMIT,
            self.swarm,
            self.round,
            self.peer,
            merkle.root(fields),
            hashlib.sha256(blob).digest(),
            len(blob),
        )

    def root(self) -> bytes:
        """The 32 bytes that go on the ledger: the fields are leaves, so each can be opened alone."""
        return hashlib.sha256(self.head()).digest()


class Whereabouts(NamedTuple):
    """Where a commitment's blob is, by its head."""

    blob: bytes
    blob_bytes: int


def whereabouts(head: bytes) -> Whereabouts:
    """What a head says, whose SHA-256 is known to be a root; `WireError` if it is none."""
    blob, size = head[-40:-8], int.from_bytes(head[-8:], "big")
    if len(head) != HEAD_BYTES or size > MAX_COMMITMENT_BYTES:
        raise WireError("not the head of a commitment")
    return Whereabouts(blob, size)


def decode(blob: bytes, root: bytes) -> Commitment:
    """The commitment in a blob, which has this root; `WireError` if it has not."""
    commitment = wire.decode(Commitment, blob, MAX_COMMITMENT_BYTES)
    if commitment.encode() != blob or commitment.root() != root:
        raise WireError("commitment has another root than the one on the ledger")
    return commitment

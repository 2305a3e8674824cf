"""One round of a few peers in this process: the real tasks, model and learner; no network, ledger or clock.

`swarm task check` plays it before a swarm exists. All peers share one model, and the last of them learns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from msgspec import Struct

from swarm import round
from swarm.cellmates import PROPOSED
from swarm.draw import Draw
from swarm.effects import Commit, Effect, Gather, Learn, Learned, Played, Publish, Received, Sample, Screen
from swarm.exchange import wire
from swarm.learner.trainer import Learner, TrainingGroup
from swarm.manifest import STAGE_NUMBER, Manifest
from swarm.policy.model import Policy
from swarm.tasks import Tasks
from swarm.verde.build import Build
from swarm.verde.state_files import StateFile, StateFiles
from swarm.verde.verdicts import AuditClass

PEERS = 3
GROUPS = 2  # of a peer in a stage
# Nothing is committed to.
_NO_FILE = StateFile(bytes(32), bytes(32), 0)
_NO_STATE = StateFiles(_NO_FILE, _NO_FILE)
_NO_BUILD = Build(
    model="tiny",
    revision=None,
    lora=False,
    four_bit=False,
    precision="fp32",
    gradient_checkpointing=False,
    device="none",
    software="none",
    threads=1,
    learning_tokens_at_once=1,
    sampling_tokens_at_once=1,
)


class Rehearsed(Struct, frozen=True):
    """What came of it."""

    groups: dict[str, int]  # by stage, of all peers
    rewards: dict[str, float]  # by stage: the mean of the peers' means
    too_long: dict[str, int]  # by stage: prompts that the model cannot read
    dropped: dict[str, int]  # what peers refused of each other, by reason
    asked_proposals: int
    steps: int  # of the optimizer


@dataclass
class _Peer:
    digest: bytes
    published: dict[int, tuple[wire.Announcement, bytes]] = field(default_factory=dict)


def rehearse(manifest: Manifest, tasks: Tasks, policy: Policy, work_dir: Path, beacon: bytes) -> Rehearsed:
    """Play one round; `beacon` (32 bytes) decides the questions. `ModelError` if the model cannot do it."""
    return _Rehearsal(manifest, tasks, policy, work_dir, beacon).play()


class _Rehearsal:
    def __init__(
        self, manifest: Manifest, tasks: Tasks, policy: Policy, work_dir: Path, beacon: bytes
    ) -> None:
        self._manifest = manifest
        self._tasks = tasks
        self._policy = policy
        self._learner = Learner(
            policy,
            manifest.learn,
            manifest.group_size,
            manifest.sampling.temperature,
            max(stage.max_tokens for stage in manifest.stages),
            work_dir,
        )
        self._draw = Draw(manifest.swarm_id, beacon, active=PEERS, cell_size=max(PEERS, manifest.cell_size))
        self._peers = [_Peer(hashlib.sha256(b"rehearsal" + bytes([n])).digest()) for n in range(PEERS)]
        self._groups: dict[str, int] = {}
        self._too_long: dict[str, int] = {}
        self._steps = 0

    def play(self) -> Rehearsed:
        """In lockstep: nobody gathers a stage before everybody has published it."""
        plays = {peer.digest: round.play(self._rules(peer)) for peer in self._peers}
        outcomes: dict[bytes, object] = dict.fromkeys(plays)
        played: list[Played] = []
        while plays:
            for peer in self._peers:
                if peer.digest not in plays:
                    continue
                try:
                    effect = plays[peer.digest].send(outcomes[peer.digest])
                    while not isinstance(effect, Gather):
                        effect = plays[peer.digest].send(self._perform(peer, effect))
                    outcomes[peer.digest] = effect
                except StopIteration as end:
                    played.append(end.value)
                    del plays[peer.digest]
            for digest in plays:
                outcomes[digest] = self._gather(outcomes[digest])  # type: ignore[arg-type]
        return self._summary(played)

    def _rules(self, peer: _Peer) -> round.RoundRules:
        return round.RoundRules(
            manifest=self._manifest,
            tasks=self._tasks,
            peer=peer.digest,
            round=0,
            starts_at=0.0,
            expiration=0,
            draw=self._draw,
        )

    def _perform(self, peer: _Peer, effect: Effect[object]) -> object:
        match effect:
            case Sample():
                return self._sample(effect)
            case Publish():
                peer.published[effect.announcement.stage] = (effect.announcement, effect.blob)
                return None
            case Screen():
                return [(True,) * len(group.completions) for group in effect.groups]
            case Learn():
                return self._learn(peer, effect)
            case Commit():
                return None
        raise TypeError(f"no such effect: {effect!r}")

    def _sample(self, effect: Sample) -> list[tuple[wire.Completion, ...]]:
        stage = effect.stage
        encoded = [self._policy.encode_prompt(prompt) for prompt in effect.prompts]
        limit = self._policy.context_length - stage.max_tokens
        self._too_long[stage.name] = self._too_long.get(stage.name, 0) + sum(len(p) > limit for p in encoded)
        # Both kinds of questions, where the cell is asked proposed ones too: they come by turns.
        short = list(takewhile(lambda prompt: len(prompt) <= limit, encoded[:GROUPS]))
        groups = self._policy.sample(
            short, effect.seeds[: len(short)], max_tokens=stage.max_tokens, sampling=self._manifest.sampling
        )
        self._groups[stage.name] = self._groups.get(stage.name, 0) + len(groups)
        return [
            tuple(wire.Completion.of(tokens, self._policy.decode(tokens)) for tokens in group)
            for group in groups
        ]

    def _learn(self, peer: _Peer, effect: Learn) -> Learned:
        if peer is self._peers[-1]:
            groups = [
                TrainingGroup(
                    prompt=self._policy.encode_prompt(group.prompt),
                    completions=[list(completion.tokens) for completion in group.completions],
                    rewards=list(group.rewards),
                )
                for group in effect.batch
            ]
            self._steps = self._learner.update(groups).steps
        return Learned(
            taken=len(effect.batch),
            base=bytes(32),
            audit_class=AuditClass.TOLERANT,
            build=_NO_BUILD,
            sampled_with=_NO_STATE,
            state_before=_NO_STATE,
            state_after=_NO_STATE,
        )

    def _gather(self, effect: Gather) -> list[Received]:
        return [
            Received(
                peer.digest,
                b"",  # nobody signs here
                announcement.root,
                wire.decode_groups(blob, announcement.groups, effect.limit),
            )
            for peer in self._peers
            for announcement, blob in [peer.published.get(effect.stage, (None, b""))]
            if announcement is not None
        ]

    def _summary(self, played: Sequence[Played]) -> Rehearsed:
        names = [stage.name for stage in self._manifest.stages]
        dropped: dict[str, int] = {}
        for one in played:
            for reason, count in one.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
        rewards: dict[str, float] = {
            name: sum(one.rewards.get(name, 0.0) for one in played) / max(1, len(played)) for name in names
        }
        answer = STAGE_NUMBER["answer"]
        proposed = {
            group.index
            for peer in self._peers
            for announcement, blob in [peer.published.get(answer, (None, b""))]
            if announcement is not None
            for group in wire.decode_groups(blob, announcement.groups, wire.GroupsLimit())
            if group.index >= PROPOSED
        }
        return Rehearsed(self._groups, rewards, self._too_long, dropped, len(proposed), self._steps)

"""A round played again by somebody else: everything but the model's part, from what its player committed to.

A round is a coroutine without I/O, so whoever holds a commitment and the blobs that it names can play the
very same code: completions and announcements come from the blobs, and all that follows from them (which
questions, which answers were shown, rewards, the batch, what was skipped) is found anew and compared.

Time is the one thing that does not come out the same. What the player says that it had no time for is not
read here either. Every other text it scored within `score_seconds`; here it may take a multiple of that
(`PATIENCE`). One that is too slow even then should have been listed, and counts as if it were: it excuses
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from swarm import effects, round
from swarm.cellmates import Cellmates
from swarm.effects import (
    Commit,
    Effect,
    Gather,
    Learn,
    Learned,
    Publish,
    Received,
    Sample,
    Screen,
    TrainingGroup,
)
from swarm.exchange.wire import Completion, Group
from swarm.manifest import MICROS, STAGE_NUMBER, Manifest, Stage
from swarm.mixing import FOREIGN, NOT_SCREENED
from swarm.reading import PATIENCE
from swarm.tasks import Tasks
from swarm.verde.commitment import Commitment, groups_root

# The most of a round that one text may take here: a whole audit has one and a half (`auditing.AUDIT_ROUNDS`).
# The player gave others' texts at most `cellmates.SENDER_SHARE`, so these have sixteen times as long or more.
MOST_TEXT_SHARE = 0.5
# A count of 1 is a planted reward's alone: whoever planted one is excused for it (`verdicts.Plant`).
MORE_THAN_PLANTED = 2


@dataclass(frozen=True)
class Evidence:
    """What a commitment names; decoded, its digests not checked."""

    commitment: Commitment
    own: tuple[tuple[Group, ...], ...]  # by stage: what the player published
    heard: tuple[tuple[Received, ...], ...]  # by stage: what it heard, in its order


@dataclass(frozen=True)
class Sampled:
    """One group that the player sampled: what was asked, and what it says the model answered."""

    stage: Stage
    number: int  # the question's
    prompt: str
    seeds: tuple[bytes, ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Screened:
    """Groups of others that the player's model was asked about, and which completions it let pass."""

    groups: tuple[TrainingGroup, ...]
    admitted: tuple[tuple[bool, ...], ...]


@dataclass(frozen=True)
class Wrong:
    """One thing that is not as the rules have it.

    Of a false reward `count` is the difference in micro-units; of anything else how many items differ, but at
    least `MORE_THAN_PLANTED`.
    """

    words: str
    count: int


@dataclass
class Replay:
    """What came of it."""

    faults: list[Wrong] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)
    screened: list[Screened] = field(default_factory=list)
    batch: tuple[TrainingGroup, ...] = ()
    too_slow_here: int = 0  # texts that the player says it scored and that could not be scored here


def replay(rules: round.RoundRules, evidence: Evidence) -> Replay:
    """Play the evidence's round again. `rules` are the player's; what it claims in them is taken from it.

    The peers that were passed over are believed here: whether they deserved it is the ledger's to say.
    """
    claimed = evidence.commitment
    rules = round.RoundRules(
        manifest=rules.manifest,
        tasks=rules.tasks,
        peer=claimed.peer,
        round=claimed.round,
        starts_at=rules.starts_at,
        expiration=rules.expiration,
        draw=rules.draw,
        previous=claimed.previous,
        ineligible=lambda: frozenset(claimed.passed_over),
        replayed=claimed.unread,
    )
    player = _Player(rules, evidence)
    player.check_own()
    with _patient(rules.tasks, rules.manifest):
        effects.run(round.play(rules), player.perform)
    return player.replay


@contextmanager
def _patient(tasks: Tasks, manifest: Manifest) -> Iterator[None]:
    most = MOST_TEXT_SHARE * manifest.round_seconds / manifest.score_seconds
    tasks.patience = max(1.0, min(PATIENCE, most))
    try:
        yield
    finally:
        tasks.patience = 1.0


class _Player:
    """Performs a round's effects with what was committed to."""

    def __init__(self, rules: round.RoundRules, evidence: Evidence) -> None:
        self._rules = rules
        self._claimed = evidence.commitment
        self._stages = {STAGE_NUMBER[stage.name]: index for index, stage in enumerate(rules.manifest.stages)}
        self._own = evidence.own
        self._heard = evidence.heard
        self._skipped = {skip.leaf: skip.reason for skip in self._claimed.skips}
        self.replay = Replay()

    def check_own(self) -> None:
        """What every reader checks at once, for those that nobody read."""
        mates = Cellmates(
            self._rules.manifest,
            self._rules.tasks,
            self._rules.draw,
            self._rules.round,
            self._rules.draw.cell(self._rules.peer),
        )
        for stage, groups, published in zip(
            self._rules.manifest.stages, self._own, self._claimed.published, strict=True
        ):
            sent = Received(self._rules.peer, b"", published.root, groups)
            if groups and (fault := mates.fault(stage, sent)):
                self._fault(f"{stage.name}: {fault}")

    def perform(self, effect: Effect[object]) -> object:
        match effect:
            case Sample():
                return self._sample(effect)
            case Publish():
                return None  # compared with the commitment
            case Gather():
                return self._gather(effect)
            case Screen():
                return self._screen(effect)
            case Learn():
                return self._learn(effect)
            case Commit():
                self._commit(effect)
                return None
        raise TypeError(f"no such effect: {effect!r}")

    def _fault(self, words: str, count: int = MORE_THAN_PLANTED) -> None:
        self.replay.faults.append(Wrong(words, count))

    def _sample(self, effect: Sample) -> list[tuple[Completion, ...]]:
        made = {group.index: group for group in self._own[self._stages[STAGE_NUMBER[effect.stage.name]]]}
        first = effect.numbers[: len(made)]
        if set(first) != set(made):
            self._fault(f"{effect.stage.name}: its groups are not of the first {len(made)} questions")
        sampled = []
        for number, prompt, seeds in zip(effect.numbers, effect.prompts, effect.seeds, strict=True):
            group = made.get(number)
            if group is None or len(group.completions) != len(seeds):
                break
            sampled.append(Sampled(effect.stage, number, prompt, seeds, group.completions))
        self.replay.sampled += sampled
        return [one.completions for one in sampled]

    def _gather(self, effect: Gather) -> list[Received]:
        heard = list(self._heard[self._stages[effect.stage]])
        if heard != sorted(heard, key=lambda sent: effect.order(sent.root)):
            self._fault("heard others in another order than the common one")
        if len(heard) > effect.max_peers or len({sent.peer for sent in heard}) < len(heard):
            self._fault("heard more than one announcement of a peer, or of more peers than a reader takes")
        return heard

    def _screen(self, effect: Screen) -> list[tuple[bool, ...]]:
        """The player's own flags; whether its model says so is another check."""
        if all(self._skipped.get(group.digest) == NOT_SCREENED for group in effect.groups):
            return []
        admitted = [
            tuple(self._skipped.get(leaf) != FOREIGN for leaf in group.leaves) for group in effect.groups
        ]
        self.replay.screened.append(Screened(effect.groups, tuple(admitted)))
        return admitted

    def _learn(self, effect: Learn) -> Learned:
        claimed = self._claimed
        taken = min(len(claimed.batch), len(effect.batch))
        self.replay.batch = effect.batch[:taken]
        if effect.batch and not claimed.batch:
            self._fault("learned from nothing, though there was something")
        return Learned(
            taken=taken,
            base=claimed.base,
            audit_class=claimed.audit_class,
            build=claimed.build,
            sampled_with=claimed.sampled_with,
            state_before=claimed.state_before,
            state_after=claimed.state_after,
        )

    def _commit(self, effect: Commit) -> None:
        self.replay.too_slow_here = effect.played.too_slow_here
        found = msgspec.msgpack.decode(effect.blob, type=Commitment)
        claimed = self._claimed
        for stage, was, is_now in zip(
            self._rules.manifest.stages, claimed.published, found.published, strict=True
        ):
            if was.root != is_now.root:
                self._fault(f"{stage.name}: the prompts show others' work that the common draw does not give")
        if found.batch != claimed.batch:
            count = _difference(claimed.batch, found.batch)
            self._fault(f"batch: {count} groups are not those of the draw", max(MORE_THAN_PLANTED, count))
        if set(found.skips) != set(claimed.skips):
            count = len(set(found.skips) ^ set(claimed.skips))
            self._fault(
                f"skips: {count} of others' groups or completions were passed over without a reason",
                max(MORE_THAN_PLANTED, count),
            )
        if found.judges != claimed.judges:
            self._fault("judges: rewards of proposals come from other groups than were heard")
        if found.reward_micros != claimed.reward_micros:
            self._fault(
                f"reward: claims {claimed.reward_micros / MICROS:.6f}, "
                f"its work earns {found.reward_micros / MICROS:.6f}",
                abs(found.reward_micros - claimed.reward_micros),
            )


def _difference(some: Sequence[bytes], others: Sequence[bytes]) -> int:
    same = sum(one == other for one, other in zip(some, others, strict=False))
    return max(len(some), len(others)) - same


def own_groups_are(commitment: Commitment, stage: Stage, index: int, groups: Sequence[Group]) -> bool:
    """Whether these are the groups that a commitment claims for a stage, the `index`-th of the manifest."""
    number = STAGE_NUMBER[stage.name]
    root = groups_root(commitment.peer, commitment.round, number, groups)
    return root == commitment.published[index].root and len(groups) == commitment.published[index].groups

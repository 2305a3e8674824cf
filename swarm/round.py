"""One round of one peer, from the beacon to the report.

    answer    own completions to the cell's questions                       → published
    critique  which of the cell's answers is right, and why                 → published
    revise    a final answer after answers and critiques                    → published
    learn     GRPO on own groups of all stages + other peers' answer groups (mixing)
    report    the commitment's root, on the ledger before the round ends

No I/O, no clock, no randomness of its own: `play` is a coroutine over the effects in `effects`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

from swarm import tasks
from swarm.cellmates import Answer, Cellmates, Critique, groups_limit
from swarm.draw import Draw
from swarm.effects import Commit, Gather, Learn, Played, Publish, Sample, TrainingGroup
from swarm.exchange import wire
from swarm.manifest import MICROS, STAGE_NUMBER, Manifest, Stage
from swarm.mixing import FOREIGN, mix
from swarm.tasks import stages
from swarm.tasks.stages import Named
from swarm.verde.commitment import Commitment, Skip, group_digest, groups_root, rollout_leaf

# The end of each stage that is left for publishing: a group sampled in it would come too late.
PUBLISH_SHARE = 0.15
# The beginning of the learn stage in which others' groups may be screened.
SCREEN_SHARE = 0.25
# Hashing spreads cells: one of twice the usual size is rare enough that a reader need not take more.
CROWDED = 2


@dataclass(frozen=True)
class RoundRules:
    """What is fixed once the beacon is known."""

    manifest: Manifest
    task: tasks.Task
    peer: bytes  # our 32-byte digest
    round: int
    starts_at: float  # Unix seconds
    expiration: int  # of this round's announcements, Unix seconds
    draw: Draw

    def at(self, fraction: float) -> float:
        """The time at which a fraction of the round has passed."""
        return self.starts_at + fraction * self.manifest.round_seconds


@dataclass(frozen=True)
class Ask:
    """One prompt of a stage and what it shows."""

    index: int  # the question's j
    prompt: str
    answers: tuple[Answer, ...] = ()
    critiques: tuple[tuple[Critique, Named], ...] = ()  # each with whom it names in this prompt


@dataclass(frozen=True)
class OwnGroup:
    """A group that we sampled, with its rewards."""

    stage: Stage
    prompt: str
    group: wire.Group
    rewards: tuple[float, ...]


async def play(rules: RoundRules) -> Played:
    """Play one round; the driver performs what is awaited. Others' faults are counted, never raised."""
    cell = rules.draw.cell(rules.peer)
    mates = Cellmates(rules.manifest, rules.task, rules.draw, rules.round, cell)
    own: list[OwnGroup] = []
    rollouts: list[bytes] = []
    begins = 0.0
    for stage in rules.manifest.stages:
        groups = await _sample(rules, stage, _asks(rules, stage, mates), mates, begins)
        own += groups
        rollouts.append(await _publish(rules, stage, cell, groups))
        heard = await Gather(
            STAGE_NUMBER[stage.name],
            cell,
            rules.at(stage.ends_at),
            max_peers=CROWDED * rules.manifest.cell_size,
            order=partial(rules.draw.order, rules.peer),
            limit=groups_limit(rules.manifest, stage),
        )
        mates.hear(stage, heard)
        begins = stage.ends_at

    learn = rules.manifest.learn
    mixed = await mix(
        rules.draw,
        rules.peer,
        learn,
        _own_groups(rules, own),
        _offered(rules, mates),
        until=rules.at(begins + SCREEN_SHARE * (learn.ends_at - begins)),
    )
    if mixed.foreign:
        mates.dropped[FOREIGN] += mixed.foreign
    learned = await Learn(mixed.batch, until=rules.at(learn.ends_at))
    used, left = mixed.batch[: learned.taken], mixed.batch[learned.taken :]
    skips = (*mixed.skips, *(Skip(group.digest, "no time") for group in left if not group.own))

    reward_micros = sum(_group_reward_micros(group.rewards) for group in own)
    commitment = Commitment(
        swarm=rules.draw.swarm_id,
        round=rules.round,
        peer=rules.peer,
        base=learned.base,
        sampled_with=learned.sampled_with,
        state_before=learned.state_before,
        state_after=learned.state_after,
        rollouts=tuple(rollouts),
        batch=tuple(group.digest for group in used),
        skips=skips,
        reward_micros=reward_micros,
    )
    played = Played(
        round=rules.round,
        rewards=_mean_rewards(rules.manifest, own),
        groups=len(own),
        external_groups=sum(not group.own for group in used),
        reward_micros=reward_micros,
        commitment=commitment.root(),
        dropped=dict(mates.dropped),
    )
    await Commit(commitment.encode(), learned, played)
    return played


def _asks(rules: RoundRules, stage: Stage, mates: Cellmates) -> list[Ask]:
    """The prompts of a stage, in question order, up to its cap."""
    if stage.name == "answer":
        return [Ask(j, stages.answer_prompt(mates.question(j))) for j in range(stage.max_groups)]
    asks = []
    for j in sorted(mates.answers)[: stage.max_groups]:
        answers = rules.draw.pick(
            rules.peer,
            mates.answers[j],
            rules.manifest.shown_answers,
            leaf=lambda answer: answer.leaf,
            sender=lambda answer: answer.peer,
        )
        texts = [answer.text for answer in answers]
        if stage.name == "critique":
            asks.append(Ask(j, stages.critique_prompt(mates.question(j), texts), tuple(answers)))
            continue
        critiques = _shown_critiques(rules, mates.critiques[j], texts)
        prompt = stages.revise_prompt(mates.question(j), texts, [named for _, named in critiques])
        asks.append(Ask(j, prompt, tuple(answers), tuple(critiques)))
    return asks


def _shown_critiques(
    rules: RoundRules, critiques: list[Critique], texts: list[str]
) -> list[tuple[Critique, Named]]:
    """The critiques that a revise prompt shows: those of the answers that stand in the same prompt."""
    relevant = [critique for critique in critiques if critique.named is None or critique.named in texts]
    picked = rules.draw.pick(
        rules.peer,
        relevant,
        rules.manifest.shown_critiques,
        leaf=lambda critique: critique.leaf,
        sender=lambda critique: critique.peer,
    )
    return [(c, Named(None if c.named is None else texts.index(c.named))) for c in picked]


async def _sample(
    rules: RoundRules, stage: Stage, asks: list[Ask], mates: Cellmates, begins: float
) -> list[OwnGroup]:
    """Sample as many of the asked groups as the time allows, and score them."""
    if not asks:
        return []
    number = STAGE_NUMBER[stage.name]
    seeds = tuple(
        tuple(
            rules.draw.sample_seed(rules.peer, number, ask.index, g) for g in range(rules.manifest.group_size)
        )
        for ask in asks
    )
    until = rules.at(stage.ends_at - PUBLISH_SHARE * (stage.ends_at - begins))
    sampled = await Sample(stage, tuple(ask.prompt for ask in asks), seeds, until)
    return [
        OwnGroup(
            stage,
            ask.prompt,
            wire.Group(
                index=ask.index,
                answers=tuple(answer.leaf for answer in ask.answers),
                critiques=tuple(critique.leaf for critique, _ in ask.critiques),
                completions=completions,
            ),
            tuple(_reward(rules, stage, ask, mates, completion.text) for completion in completions),
        )
        for ask, completions in zip(asks, sampled, strict=False)
    ]


def _reward(rules: RoundRules, stage: Stage, ask: Ask, mates: Cellmates, text: str) -> float:
    question = mates.question(ask.index)
    if stage.name == "answer":
        return rules.task.score(question, text)
    if stage.name == "critique":
        named = stages.read_critique(text, len(ask.answers))
        return stages.critique_reward(named, [answer.score for answer in ask.answers])
    texts = [answer.text for answer in ask.answers]
    return stages.revise_reward(rules.task, question, text, texts, [named for _, named in ask.critiques])


async def _publish(rules: RoundRules, stage: Stage, cell: int, groups: list[OwnGroup]) -> bytes:
    """Publish a stage's groups, if there are any; returns the root over them."""
    made = tuple(group.group for group in groups)
    number = STAGE_NUMBER[stage.name]
    root = groups_root(rules.peer, rules.round, number, made)
    if made:
        blob = wire.encode(wire.GroupsBlob(groups=made))
        announcement = wire.Announcement(
            swarm=rules.draw.swarm_id,
            round=rules.round,
            stage=number,
            cell=cell,
            expiration=rules.expiration,
            groups=len(made),
            root=root,
            blob=hashlib.sha256(blob).digest(),
            blob_bytes=len(blob),
        )
        await Publish(announcement, blob)
    return root


def _own_groups(rules: RoundRules, own: list[OwnGroup]) -> list[TrainingGroup]:
    groups = []
    for made in own:
        stage, group = STAGE_NUMBER[made.stage.name], made.group
        leaves = tuple(
            rollout_leaf(rules.peer, rules.round, stage, group.index, g, completion)
            for g, completion in enumerate(group.completions)
        )
        groups.append(
            TrainingGroup(
                digest=group_digest(rules.peer, rules.round, stage, group),
                sender=rules.peer,
                prompt=made.prompt,
                leaves=leaves,
                completions=group.completions,
                rewards=made.rewards,
                own=True,
            )
        )
    return groups


def _offered(rules: RoundRules, mates: Cellmates) -> list[TrainingGroup]:
    """The other peers' answer groups."""
    return [
        TrainingGroup(
            digest=answered.digest,
            sender=answered.peer,
            prompt=stages.answer_prompt(mates.question(answered.group.index)),
            leaves=answered.leaves,
            completions=answered.group.completions,
            rewards=answered.rewards,
            own=False,
        )
        for answered in mates.answer_groups
        if answered.peer != rules.peer
    ]


def _group_reward_micros(rewards: tuple[float, ...]) -> int:
    """A group's mean reward in integer micro-units; the round's reward is the sum over its groups."""
    return sum(round(reward * MICROS) for reward in rewards) // len(rewards)


def _mean_rewards(manifest: Manifest, own: list[OwnGroup]) -> dict[str, float]:
    means: dict[str, float] = {}
    for stage in manifest.stages:
        rewards = [reward for group in own if group.stage is stage for reward in group.rewards]
        if rewards:
            means[stage.name] = round(sum(rewards) / len(rewards), 6)
    return means

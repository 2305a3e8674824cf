"""One round of one peer, from the beacon to the report.

    propose   questions of one's own, in swarms that have this stage        → published
    answer    own completions to the cell's questions                       → published
    critique  which of the cell's answers is right, and why                 → published
    revise    a final answer after answers and critiques                    → published
    learn     GRPO on own groups of all stages + other peers' answer groups (mixing)
    report    the commitment's root, on the ledger before the round ends

No I/O, no clock, no randomness of its own: `play` is a coroutine over the effects in `effects`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest

import msgspec

from swarm.cellmates import PROPOSED, Answer, Cellmates, Critique, groups_limit, proposed_number
from swarm.draw import Draw
from swarm.effects import Commit, Gather, Learn, Played, Publish, Sample, TrainingGroup
from swarm.exchange import wire
from swarm.manifest import MICROS, STAGE_NUMBER, Manifest, Stage
from swarm.mixing import FOREIGN, mix
from swarm.tasks import Tasks, prompts, stages
from swarm.tasks.prompts import Named, shown_text
from swarm.verde.commitment import (
    Commitment,
    Published,
    Skip,
    group_digest,
    groups_root,
    rollout_leaves,
)
from swarm.verde.verdicts import Plant, PlantKind

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
    tasks: Tasks
    peer: bytes  # our 32-byte digest
    round: int
    starts_at: float  # Unix seconds
    expiration: int  # of this round's announcements, Unix seconds
    draw: Draw
    previous: bytes = bytes(32)  # root of our commitment before this one; zeros: there is none
    ineligible: Callable[[], Collection[bytes]] = (
        frozenset  # whose score is under the floor; may wait a moment
    )
    plant: Plant | None = None  # a fault to make on purpose, if that is possible
    replayed: Collection[bytes] | None = None  # see `Cellmates`: of a round that is played again

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
    ask: Ask
    group: wire.Group
    rewards: tuple[float, ...] = ()  # once they are known; of proposals when the others have answered


async def play(rules: RoundRules) -> Played:
    """Play one round; the driver performs what is awaited. Others' faults are counted, never raised."""
    cell = rules.draw.cell(rules.peer)
    mates = Cellmates(
        rules.manifest, rules.tasks, rules.draw, rules.round, cell, rules.ineligible, rules.replayed
    )
    own: list[OwnGroup] = []
    published: list[Published] = []
    all_heard: list[tuple[bytes, ...]] = []
    planted = False
    begins = 0.0
    for stage in rules.manifest.stages:
        groups = await _sample(rules, stage, _asks(rules, stage, mates), begins)
        if stage.name == "answer" and rules.plant and rules.plant.kind is PlantKind.TOKEN:
            planted = await _plant(rules, stage, groups, mates, begins)
        published.append(await _publish(rules, stage, cell, groups))
        own += [replace(made, rewards=_rewards(rules, made, mates)) for made in groups]
        heard = await Gather(
            STAGE_NUMBER[stage.name],
            cell,
            rules.at(stage.ends_at),
            max_peers=CROWDED * rules.manifest.cell_size,
            order=partial(rules.draw.order, rules.peer),
            limit=groups_limit(rules.manifest, stage),
        )
        all_heard.append(tuple(sent.envelope for sent in heard))
        mates.hear(stage, heard)
        begins = stage.ends_at

    own, judges = _with_proposals_rewarded(rules, own, mates)
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
    kind = rules.plant.kind if rules.plant else None
    learned = await Learn(mixed.batch, until=rules.at(learn.ends_at), nudge=kind is PlantKind.WEIGHT)
    used, left = mixed.batch[: learned.taken], mixed.batch[learned.taken :]
    skips = (*mixed.skips, *(Skip(group.digest, "no time") for group in left if not group.own))

    reward_micros = sum(_group_reward_micros(group.rewards) for group in own)
    if kind is PlantKind.REWARD and reward_micros:
        reward_micros -= 1  # not more than was earned, even if it is never opened
        planted = True
    commitment = Commitment(
        swarm=rules.draw.swarm_id,
        round=rules.round,
        peer=rules.peer,
        beacon=rules.draw.beacon,
        active=rules.draw.active,
        previous=rules.previous,
        base=learned.base,
        audit_class=learned.audit_class,
        build=learned.build,
        sampled_with=learned.sampled_with,
        state_before=learned.state_before,
        state_after=learned.state_after,
        published=tuple(published),
        heard=tuple(all_heard),
        passed_over=tuple(sorted(mates.passed_over)),
        unread=tuple(mates.reading.unread),
        batch=tuple(group.digest for group in used),
        skips=skips,
        judges=judges,
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
        planted=planted or kind is PlantKind.WEIGHT,
        too_slow_here=mates.reading.too_slow_here,
    )
    await Commit(commitment.head(), commitment.encode(), learned, played)
    return played


def _asks(rules: RoundRules, stage: Stage, mates: Cellmates) -> list[Ask]:
    """The prompts of a stage, in the order in which they are sampled, up to its cap."""
    if stage.name == "propose":
        seeds = [rules.draw.proposal_seed(rules.peer, k) for k in range(stage.max_groups)]
        return [Ask(k, rules.tasks.propose_prompt(seed)) for k, seed in enumerate(seeds)]
    if stage.name == "answer":
        numbers = _by_turns(rules, mates, {*range(stage.max_groups), *mates.asked})
        return [Ask(j, mates.answer_prompt(j)) for j in numbers]
    asks = []
    for j in _by_turns(rules, mates, set(mates.answers))[: stage.max_groups]:
        question = mates.question(j)
        answers = rules.draw.pick(
            rules.peer,
            mates.answers[j],
            rules.manifest.shown_answers,
            leaf=lambda answer: answer.leaf,
            sender=lambda answer: answer.peer,
        )
        texts = [shown_text(answer.text, rules.manifest.shown_chars) for answer in answers]
        if stage.name == "critique":
            write = partial(rules.tasks.critique_prompt, question, texts)
            ours = prompts.critique_prompt(question.text, texts)
            asks.append(Ask(j, _written(rules, stage, j, mates, write, ours), tuple(answers)))
            continue
        critiques = _shown_critiques(rules, mates.critiques[j], answers)
        names = [named for _, named in critiques]
        write = partial(rules.tasks.revise_prompt, question, texts, names)
        ours = prompts.revise_prompt(question.text, texts, names, prompts.INSTRUCTION)
        asks.append(Ask(j, _written(rules, stage, j, mates, write, ours), tuple(answers), tuple(critiques)))
    return asks


def _written(
    rules: RoundRules, stage: Stage, number: int, mates: Cellmates, write: Callable[[], str], ours: str
) -> str:
    """The prompt in the task's words; in ours, and listed as unread, if it fails on what is shown."""
    # The prompt has no digest yet; its first seed is as good a name.
    name = rules.draw.sample_seed(rules.peer, STAGE_NUMBER[stage.name], number, 0)
    return mates.reading.read(name, write, ours)


def _by_turns(rules: RoundRules, mates: Cellmates, numbers: set[int]) -> list[int]:
    """Drawn and proposed questions by turns, so that a slow peer takes both; none of our own."""
    drawn = sorted(number for number in numbers if number < PROPOSED)
    proposed = [
        number
        for number, proposal in mates.asked.items()
        if number in numbers and proposal.peer != rules.peer
    ]
    return [number for pair in zip_longest(drawn, proposed) for number in pair if number is not None]


def _shown_critiques(
    rules: RoundRules, critiques: list[Critique], answers: list[Answer]
) -> list[tuple[Critique, Named]]:
    """The critiques that a revise prompt shows: those of the answers that stand in the same prompt."""
    gists = [answer.gist for answer in answers]
    relevant = [critique for critique in critiques if critique.named is None or critique.named in gists]
    picked = rules.draw.pick(
        rules.peer,
        relevant,
        rules.manifest.shown_critiques,
        leaf=lambda critique: critique.leaf,
        sender=lambda critique: critique.peer,
    )
    return [(c, Named(None if c.named is None else gists.index(c.named))) for c in picked]


async def _sample(rules: RoundRules, stage: Stage, asks: list[Ask], begins: float) -> list[OwnGroup]:
    """Sample as many of the asked groups as the time allows."""
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
    numbers, prompts = tuple(ask.index for ask in asks), tuple(ask.prompt for ask in asks)
    sampled = await Sample(stage, numbers, prompts, seeds, until)
    made = [
        OwnGroup(
            stage,
            ask,
            wire.Group(
                index=ask.index,
                answers=tuple(answer.leaf for answer in ask.answers),
                critiques=tuple(critique.leaf for critique, _ in ask.critiques),
                completions=completions,
            ),
        )
        for ask, completions in zip(asks, sampled, strict=False)
    ]
    return sorted(made, key=lambda own: own.group.index)


def _rewards(rules: RoundRules, made: OwnGroup, mates: Cellmates) -> tuple[float, ...]:
    """What each completion of a group earns; of proposals nothing yet."""
    stage, ask = made.stage, made.ask
    texts = [completion.text for completion in made.group.completions]
    if stage.name == "propose":
        return (0.0,) * len(texts)
    pays, question = rules.manifest.rewards, mates.question(ask.index)
    leaves = _leaves(rules, made)
    if stage.name == "answer":
        return tuple(pays.answer * (one.score or 0.0) for one in mates.reading.judge(question, leaves, texts))
    shown = [(answer.score, answer.gist) for answer in ask.answers]
    if stage.name == "critique":
        names = [
            mates.reading.critique(question, leaf, text, len(shown))
            for leaf, text in zip(leaves, texts, strict=True)
        ]
        scores = [score for score, _ in shown]
        return tuple(pays.critique * stages.critique_reward(named, scores) for named in names)
    critiques = [named for _, named in ask.critiques]
    return tuple(
        stages.revise_reward(pays, score, named, shown, critiques)
        for score, named in mates.reading.revisions(question, leaves, texts, len(shown))
    )


def _with_proposals_rewarded(
    rules: RoundRules, own: list[OwnGroup], mates: Cellmates
) -> tuple[list[OwnGroup], tuple[bytes, ...]]:
    """Own groups with the rewards of proposals, and the digests of the others' groups that they come from."""
    theirs = [answered for answered in mates.answer_groups if answered.peer != rules.peer]
    rewarded, judges = [], []
    for made in own:
        if made.stage.name == "propose":
            # None for what is not asked; another's leaf may have been given the same number.
            asked = [(leaf, proposed_number(leaf)) for leaf in _leaves(rules, made)]
            numbers = [
                number if number in mates.asked and mates.asked[number].leaf == leaf else None
                for leaf, number in asked
            ]
            judges += [answered.digest for answered in theirs if answered.group.index in numbers]
            rewards = [
                stages.propose_reward(
                    [
                        score
                        for answered in theirs
                        if answered.group.index == number
                        for score in answered.scores
                    ]
                )
                for number in numbers
            ]
            made = replace(made, rewards=tuple(rules.manifest.rewards.propose * reward for reward in rewards))
        rewarded.append(made)
    return rewarded, tuple(judges)


async def _plant(
    rules: RoundRules, stage: Stage, groups: list[OwnGroup], mates: Cellmates, begins: float
) -> bool:
    """Plant a fault: one completion that was sampled with another seed than it should be.

    Only in a group that nobody learns from, before and after, because all its rewards are equal.
    """
    for place, made in enumerate(groups):
        if len(set(_rewards(rules, made, mates))) > 1:
            continue
        wrong = rules.draw.planted_seed(rules.peer, made.ask.index)
        until = rules.at(stage.ends_at - PUBLISH_SHARE * (stage.ends_at - begins))
        sampled = await Sample(stage, (made.ask.index,), (made.ask.prompt,), ((wrong,),), until)
        completions = (*sampled[0], *made.group.completions[1:])
        other = replace(made, group=msgspec.structs.replace(made.group, completions=completions))
        is_other = completions[0] != made.group.completions[0]
        if is_other and len(set(_rewards(rules, other, mates))) == 1:
            groups[place] = other
            return True
    return False


async def _publish(rules: RoundRules, stage: Stage, cell: int, groups: list[OwnGroup]) -> Published:
    """Publish a stage's groups, if there are any."""
    made = tuple(group.group for group in groups)
    number = STAGE_NUMBER[stage.name]
    root = groups_root(rules.peer, rules.round, number, made)
    published = Published(root, len(made))
    if made:
        blob = wire.encode(wire.GroupsBlob(groups=made))
        published = Published(root, len(made), hashlib.sha256(blob).digest(), len(blob))
        announcement = wire.Announcement(
            swarm=rules.draw.swarm_id,
            round=rules.round,
            stage=number,
            cell=cell,
            expiration=rules.expiration,
            groups=len(made),
            root=root,
            blob=published.blob,
            blob_bytes=published.blob_bytes,
        )
        await Publish(announcement, blob)
    return published


def _own_groups(rules: RoundRules, own: list[OwnGroup]) -> list[TrainingGroup]:
    return [
        TrainingGroup(
            digest=group_digest(rules.peer, rules.round, STAGE_NUMBER[made.stage.name], made.group),
            sender=rules.peer,
            prompt=made.ask.prompt,
            leaves=_leaves(rules, made),
            completions=made.group.completions,
            rewards=made.rewards,
            own=True,
        )
        for made in own
    ]


def _leaves(rules: RoundRules, made: OwnGroup) -> tuple[bytes, ...]:
    return rollout_leaves(rules.peer, rules.round, STAGE_NUMBER[made.stage.name], made.group)


def _offered(rules: RoundRules, mates: Cellmates) -> list[TrainingGroup]:
    """The other peers' answer groups."""
    return [
        TrainingGroup(
            digest=answered.digest,
            sender=answered.peer,
            prompt=mates.answer_prompt(answered.group.index),
            leaves=answered.leaves,
            completions=answered.group.completions,
            rewards=tuple(rules.manifest.rewards.answer * score for score in answered.scores),
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

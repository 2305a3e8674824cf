"""Rounds of many peers in one process on simulated time: `round.play` driven without network or model.

The "model" answers right with a given chance, from the seed that the round hands out, so that a whole
simulation is a pure function of its beacon.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from swarm import round
from swarm.draw import Draw
from swarm.effects import Commit, Effect, Gather, Learn, Learned, Played, Publish, Received, Sample, Screen
from swarm.exchange.wire import Completion, Group, GroupsBlob, decode
from swarm.manifest import Manifest, parse
from swarm.replay import Sampled
from swarm.tasks import Tasks, load_tasks
from swarm.verde.build import Build
from swarm.verde.state_files import StateFile, StateFiles
from swarm.verde.verdicts import AuditClass, Plant

MANIFEST = parse(
    b"""
    name: simulated
    tasks: [{name: arithmetic}]
    models: [simulated/none]
    round_seconds: 100
    group_size: 4
    cell_size: 8
    stages:
      - {name: answer, ends_at: 0.3, max_groups: 6, max_tokens: 8}
      - {name: critique, ends_at: 0.5, max_groups: 3, max_tokens: 8}
      - {name: revise, ends_at: 0.7, max_groups: 2, max_tokens: 8}
    learn: {ends_at: 0.9, external_groups: 5, learning_rate: 0.1}
    """,
    "simulation",
)


BUILD = Build(
    model="simulated/none",
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


def state_files(name: bytes) -> StateFiles:
    """A state with this name in its digests."""
    part = StateFile(name * 32, name * 32, 1)
    return StateFiles(part, part)


BEFORE, AFTER = state_files(b"0"), state_files(b"1")


def peer_id(number: int) -> bytes:
    return hashlib.sha256(b"peer" + number.to_bytes(4, "big")).digest()


@dataclass
class SimulatedPeer:
    """One peer: how good it is, how many groups it manages per stage, and what happened to it."""

    peer: bytes
    skill: float = 0.5
    groups_in_time: int = 1000
    screens_in_time: int = 1000
    foreign: Callable[[str], bool] = lambda text: False  # what its model would not have said itself
    forge: Callable[[Publish], list[Publish]] = lambda publish: [publish]  # what a dishonest one publishes
    published: dict[int, Publish] = field(default_factory=dict)
    batch: tuple = ()
    screened: int = 0  # groups
    commit: Commit | None = None
    plant: Plant | None = None
    ineligible: frozenset[bytes] = frozenset()
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    deadlines: list[float] = field(default_factory=list)

    def honest(self, asked: Sampled) -> list[Completion]:
        """What the peer's model answers."""
        return [_completion(self, asked.prompt, seed) for seed in asked.seeds]


def play_round(
    peers: list[SimulatedPeer],
    *,
    manifest: Manifest = MANIFEST,
    beacon: bytes = b"b" * 32,
    number: int = 5,
    tasks: Tasks | None = None,
) -> dict[bytes, Played]:
    """One round of all peers in lockstep: nobody gathers before everyone has published."""
    draw = Draw(manifest.swarm_id, beacon, active=len(peers), cell_size=manifest.cell_size)
    tasks = tasks or load_tasks(manifest)
    plays = {}
    for peer in peers:
        rules = round.RoundRules(
            manifest=manifest,
            tasks=tasks,
            peer=peer.peer,
            round=number,
            starts_at=1000.0,
            expiration=1200,
            draw=draw,
            plant=peer.plant,
            ineligible=lambda peer=peer: peer.ineligible,
        )
        plays[peer.peer] = (round.play(rules), None)
    by_id = {peer.peer: peer for peer in peers}
    finished: dict[bytes, Played] = {}
    while plays:
        waiting = {}
        for identifier, (play, outcome) in plays.items():
            try:
                effect = play.send(outcome)
                while not isinstance(effect, Gather):
                    effect = play.send(_perform(by_id[identifier], effect))
                waiting[identifier] = (play, effect)
            except StopIteration as end:
                finished[identifier] = end.value
        plays = {i: (play, _gather(effect, peers)) for i, (play, effect) in waiting.items()}
    return finished


def _perform(peer: SimulatedPeer, effect: Effect) -> object:
    match effect:
        case Sample():
            peer.prompts[effect.stage.name] = effect.prompts
            peer.deadlines.append(effect.until)
            made = max(1, min(peer.groups_in_time, len(effect.prompts)))
            return [
                tuple(_completion(peer, prompt, seed) for seed in seeds)
                for prompt, seeds in zip(effect.prompts[:made], effect.seeds, strict=False)
            ]
        case Publish():
            for publish in peer.forge(effect):
                peer.published[publish.announcement.stage] = publish
            return None
        case Screen():
            if peer.screened >= peer.screens_in_time:
                return []
            peer.screened += len(effect.groups)
            return [
                tuple(
                    effect.top_k == 0 or not peer.foreign(completion.text) for completion in group.completions
                )
                for group in effect.groups
            ]
        case Learn():
            peer.batch = effect.batch
            return Learned(
                taken=len(effect.batch),
                base=b"b" * 32,
                audit_class=AuditClass.SAME_BUILD,
                build=BUILD,
                sampled_with=BEFORE,
                state_before=BEFORE,
                state_after=AFTER,
            )
        case Commit():
            peer.commit = effect
            return None
    raise TypeError(effect)


def _completion(peer: SimulatedPeer, prompt: str, seed: bytes) -> Completion:
    """A right answer with the peer's skill; critiques name a random student or none, revisions too."""
    dice = random.Random(seed)
    if re.match(r"A\) .*\nright\?$", prompt):  # asked to propose: right half of the time
        a, b = dice.randrange(100), dice.randrange(100)
        return Completion.of((1, 2), f"A: {a}+{b}={a + b + dice.randrange(2)}")
    question = prompt.split("\n")[0]
    left, operator, right = re.fullmatch(r"(\d+)([+-])(\d+)=", question).groups()
    value = int(left) + int(right) if operator == "+" else int(left) - int(right)
    answer = str(value if dice.random() < peer.skill else value + 1)
    shown = prompt.count(") ")
    name = dice.choice([*"ABCDEFGH"[:shown], "none"])
    text = answer
    if prompt.endswith("right?"):
        text = f"{name}: because"
    elif prompt.endswith("final?"):
        text = f"{answer} {name}"
    return Completion.of((dice.randrange(1000), 2), text)


def _gather(effect: Gather, peers: list[SimulatedPeer]) -> list[Received]:
    sent = [
        (peer.peer, peer.published[effect.stage])
        for peer in peers
        if effect.stage in peer.published and peer.published[effect.stage].announcement.cell == effect.cell
    ]
    sent.sort(key=lambda item: effect.order(item[1].announcement.root))
    return [
        Received(sender, b"envelope of " + sender, publish.announcement.root, _groups(publish.blob))
        for sender, publish in sent[: effect.max_peers]
    ]


def _groups(blob: bytes) -> tuple[Group, ...]:
    return decode(GroupsBlob, blob, len(blob)).groups

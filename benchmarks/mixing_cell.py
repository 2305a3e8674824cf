"""A cell that learns from own and others' answer groups in a fixed mixture: one run of `mixing.py`.

Every peer, in every round:

1. It samples 32 groups of 8 answers to questions of its own, *whatever* the mixture is, and the mean reward
   of all these answers is what counts: mixtures are compared on equal numbers of answers. (Sampling only what
   is used would save a peer of 8/24 three quarters of this, and leave the others less to choose from.)
2. It trains on at most I informative groups of its own and J informative ones of the others, both drawn
   uniformly. As in SAPO (arXiv 2509.08721), groups without advantage are dropped before others' are drawn.

Departures from DESIGN.md section 4: answers only; the cell has no common questions; nobody cheats, so others'
tokens are not filtered by the reader's own top k.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from learning_curve import GROUP_SIZE, Asked, Peer, Sampled
from msgspec import Struct

from swarm.learner.trainer import TrainingGroup
from swarm.manifest import Learn
from swarm.tasks import Question

Tasks = Literal["own", "all"]

GROUPS = 32  # that a peer samples in a round, and at most trains on
HELD_OUT_EVERY = 20  # rounds
HELD_OUT_QUESTIONS = 16  # of each speciality, GROUP_SIZE answers each: 1,024 answers of a peer
_OPERANDS = range(100)  # those of the demo's task; the tiny model knows no others


class Setting(Struct, frozen=True):
    """What one run is about; equal settings give equal results on one machine."""

    tasks: Tasks  # own: each peer asks questions of its own speciality; all: of all, equally often
    own: int  # SAPO's I, at most
    external: int  # SAPO's J
    seed: int
    rounds: int
    peers: int
    learning_rate: float


class Seconds(Struct):
    """Where the time of a run went, all peers together: of the CPU, so that other programs do not count."""

    sampling: float = 0.0
    learning: float = 0.0
    held_out: float = 0.0


class Result(Struct, frozen=True):
    """What came out of one run; means are over all peers."""

    setting: Setting
    rewards: list[float]  # of each round's own answers, mean
    groups_used: list[float]  # in a peer's batch of each round, mean
    held_out: list[tuple[int, float]]  # after how many rounds, and the mean reward on held-out questions
    seconds: Seconds

    @property
    def cumulative_reward(self) -> float:
        """Of all own answers of all peers over all rounds."""
        return sum(self.rewards) * self.setting.peers * GROUPS * GROUP_SIZE

    @property
    def last_held_out(self) -> float:
        """The mean reward on held-out questions after the last round."""
        return self.held_out[-1][1]


def speciality(left: int, operator: str, other: int) -> str:
    """The kind of a question: eight that share out all of the demo's task between them.

    The untrained tiny model gets 23% (sum-short) to 36% (sum-hundred) of them right.
    """
    name = "sum" if operator == "+" else "difference"
    if min(left, other) < 10:
        return f"{name}-short"
    if operator == "+":
        if left + other >= 100:
            return "sum-hundred"
        return "sum-carry" if left % 10 + other % 10 >= 10 else "sum-plain"
    if left < other:
        return "difference-negative"
    return "difference-borrow" if left % 10 < other % 10 else "difference-plain"


def questions() -> tuple[dict[str, list[Question]], list[Question]]:
    """Questions to train on by speciality, sorted by its name; and those held out, of all equally many."""
    by_speciality: dict[str, list[Question]] = {}
    for left in _OPERANDS:
        for other in _OPERANDS:
            for operator, answer in (("+", left + other), ("-", left - other)):
                kind = by_speciality.setdefault(speciality(left, operator, other), [])
                kind.append(Question(f"{left}{operator}{other}=", str(answer)))
    rng = random.Random("held out")  # the same in every run
    training, held_out = {}, []
    for name, kind in sorted(by_speciality.items()):
        rng.shuffle(kind)
        held_out += kind[:HELD_OUT_QUESTIONS]
        training[name] = kind[HELD_OUT_QUESTIONS:]
    return training, held_out


def run(setting: Setting, learn: Learn, round_done: Callable[[], None]) -> Result:
    """All rounds of one setting; `round_done` is called after each."""
    result = Result(setting, [], [], [], Seconds())
    with tempfile.TemporaryDirectory() as folder:
        cell = _Cell(
            setting, msgspec.structs.replace(learn, learning_rate=setting.learning_rate), Path(folder)
        )
        # A full collection looks through all of torch and transformers, and TRL has asked for two in every
        # update: as long as the learning took. What exists by now is no garbage before the process ends.
        gc.collect()
        gc.freeze()
        cell.evaluate(0, result)
        for number in range(1, setting.rounds + 1):
            sampled = cell.sample(number, result)
            cell.learn(number, sampled, result)
            if number % HELD_OUT_EVERY == 0 or number == setting.rounds:
                cell.evaluate(number, result)
            round_done()
    return result


class _Cell:
    """The peers of one run. Its methods write down in the result what came out and the time they took."""

    def __init__(self, setting: Setting, learn: Learn, folder: Path) -> None:
        self.setting = setting
        self.peers = [
            Peer("tiny", learn, 1000 * setting.seed + index, folder) for index in range(setting.peers)
        ]
        self.training, self.held_out = questions()

    def sample(self, number: int, result: Result) -> list[list[Sampled]]:
        """Every peer's groups of a round."""
        began = time.process_time()
        sampled = [
            peer.sample("answer", number, _draw(self.setting, number, index, self.training))
            for index, peer in enumerate(self.peers)
        ]
        result.rewards.append(_mean_reward([group for groups in sampled for group in groups]))
        result.seconds.sampling += time.process_time() - began
        return sampled

    def learn(self, number: int, sampled: list[list[Sampled]], result: Result) -> None:
        """Every peer's update."""
        began = time.process_time()
        rng = random.Random(repr(("batches", self.setting.seed, number)))
        used = 0
        for index, peer in enumerate(self.peers):
            mine, theirs = pick(sampled, index, self.setting.own, self.setting.external, rng)
            batch = [group.group for group in mine] + [_reencoded(peer, group) for group in theirs]
            used += peer.learner.update(batch).groups_used
        result.groups_used.append(used / len(self.peers))
        result.seconds.learning += time.process_time() - began

    def evaluate(self, number: int, result: Result) -> None:
        """Every peer's answers to the held-out questions, after round `number`; 0: before the first."""
        began = time.process_time()
        asked = [_asked(question) for question in self.held_out]
        # The noise of round 0, which is never played, every time: so only the policies differ.
        answers = [group for peer in self.peers for group in peer.sample("answer", 0, asked)]
        result.held_out.append((number, _mean_reward(answers)))
        result.seconds.held_out += time.process_time() - began


def pick(
    sampled: Sequence[Sequence[Sampled]], reader: int, own: int, external: int, rng: random.Random
) -> tuple[list[Sampled], list[Sampled]]:
    """The batch of peer `reader`: informative groups of its own and of the others, at most so many."""
    mine = [group for group in sampled[reader] if group.group.is_informative]
    theirs = [
        group
        for index, groups in enumerate(sampled)
        if index != reader
        for group in groups
        if group.group.is_informative
    ]
    return rng.sample(mine, min(own, len(mine))), rng.sample(theirs, min(external, len(theirs)))


def _draw(setting: Setting, number: int, index: int, training: dict[str, list[Question]]) -> list[Asked]:
    """A peer's questions of a round; the same whatever the mixture is."""
    rng = random.Random(repr(("questions", setting.seed, number, index)))
    names = list(training)
    if setting.tasks == "own":
        names = [names[index % len(names)]]
    return [_asked(rng.choice(training[names[j % len(names)]])) for j in range(GROUPS)]


def _asked(question: Question) -> Asked:
    return Asked(question, question.text)


def _reencoded(peer: Peer, sampled: Sampled) -> TrainingGroup:
    """Another peer's group, in the reader's tokens, as it comes over the wire: as text."""
    return TrainingGroup(
        sampled.group.prompt,
        [peer.policy.encode_completion(text) for text in sampled.texts],
        sampled.group.rewards,
    )


def _mean_reward(groups: Sequence[Sampled]) -> float:
    rewards = [reward for sampled in groups for reward in sampled.group.rewards]
    return sum(rewards) / len(rewards)

"""How fast peers learn the demo task: a whole cell in one process, without network, ledger or clock.

Every peer samples the three stages as in DESIGN.md section 4, trains on its own groups and on answer groups
of the others; the table shows each round's mean answer reward per peer and the seconds that one peer needed.

    python benchmarks/learning_curve.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from swarm.learner.trainer import Learner, TrainingGroup, Update
from swarm.manifest import Learn, Rewards, Sampling, StageName
from swarm.policy.model import Policy
from swarm.tasks import Question, stages
from swarm.tasks.arithmetic import Arithmetic
from swarm.tasks.prompts import Named

GROUP_SIZE = 8
SHOWN = 4  # students in a critique or revise prompt, and critiques in a revise prompt
MAX_TOKENS: dict[StageName, int] = {"answer": 8, "critique": 20, "revise": 12}
TASK = Arithmetic(digits=2)


@dataclass(frozen=True)
class Asked:
    """A prompt of any stage, and what its reward is computed from."""

    question: Question
    text: str
    students: tuple[str, ...] = ()
    critiques: tuple[Named, ...] = ()


@dataclass(frozen=True)
class Sampled:
    """One group: what was asked and what came out."""

    asked: Asked
    texts: list[str]
    group: TrainingGroup


class Peer:
    """A policy with its learner."""

    def __init__(self, model: str, learn: Learn, seed: int, folder: Path) -> None:
        self.policy = Policy.load(model, threads=1)
        self.learner = Learner(self.policy, learn, GROUP_SIZE, 1.0, max(MAX_TOKENS.values()), work_dir=folder)
        self.seed = seed

    def sample(self, stage: StageName, round_number: int, prompts: list[Asked]) -> list[Sampled]:
        """One group for each prompt."""
        encoded = [self.policy.encode_prompt(asked.text) for asked in prompts]
        seeds = [
            [_digest(self.seed, round_number, stage, j, g) for g in range(GROUP_SIZE)]
            for j in range(len(prompts))
        ]
        outputs = self.policy.sample(encoded, seeds, max_tokens=MAX_TOKENS[stage], sampling=Sampling())
        groups = []
        for asked, prompt, output in zip(prompts, encoded, outputs, strict=True):
            texts = [self.policy.decode(completion) for completion in output]
            rewards = [score(stage, asked, text) for text in texts]
            groups.append(Sampled(asked, texts, TrainingGroup(prompt, output, rewards)))
        return groups


def score(stage: StageName, asked: Asked, text: str) -> float:
    """The reward of a completion."""
    if stage == "answer":
        return TASK.score(asked.question, text)
    if stage == "critique":
        scores = [TASK.score(asked.question, student) for student in asked.students]
        return stages.critique_reward(TASK.read_critique(text, len(scores)), scores)
    final, named = TASK.read_revision(text, len(asked.students))
    shown = [(TASK.score(asked.question, student), TASK.gist(student)) for student in asked.students]
    return stages.revise_reward(Rewards(), TASK.score(asked.question, final), named, shown, asked.critiques)


def _digest(*fields: object) -> bytes:
    return hashlib.sha256(repr(fields).encode()).digest()


def run_round(
    peers: list[Peer], seed: int, number: int, answers: int, others: int
) -> tuple[list[list[list[Sampled]]], list[Update], list[float]]:
    """One round of all peers: their groups by stage, their updates, and the seconds that each needed."""
    rng = random.Random(repr((seed, number)))
    seconds = [0.0] * len(peers)
    questions = [TASK.draw(_digest(seed, number, j)) for j in range(answers)]
    groups: list[list[list[Sampled]]] = [[] for _ in peers]

    def perform(stage: StageName, prompts: list[list[Asked]]) -> None:
        for index, peer in enumerate(peers):
            began = time.perf_counter()
            groups[index].append(peer.sample(stage, number, prompts[index]))
            seconds[index] += time.perf_counter() - began

    perform(
        "answer", [[Asked(question, TASK.answer_prompt(question)) for question in questions]] * len(peers)
    )
    critiques, revisions = [], []
    for _ in peers:
        for prompts, ask in ((critiques, TASK.critique_prompt), (revisions, None)):
            shown = [
                tuple(rng.choice(rng.choice(groups)[0][j].texts) for _ in range(rng.randint(1, SHOWN)))
                for j in range(others)
            ]
            prompts.append(
                [Asked(q, ask(q, s) if ask else "", s) for q, s in zip(questions, shown, strict=False)]
            )
    perform("critique", critiques)
    for index, prompts in enumerate(revisions):
        for j, asked in enumerate(prompts):
            # Critiques are shown in the letters of this prompt, as if they had been about its students.
            texts = [rng.choice(groups[index][1][j].texts) for _ in range(rng.randint(0, SHOWN))]
            named = tuple(TASK.read_critique(text, len(asked.students)) for text in texts)
            text = TASK.revise_prompt(asked.question, asked.students, named)
            prompts[j] = Asked(asked.question, text, asked.students, named)
    perform("revise", revisions)
    updates = []
    for index, peer in enumerate(peers):
        began = time.perf_counter()
        own = [sampled.group for kind in groups[index] for sampled in kind]
        updates.append(peer.learner.update(own + _external(peer, groups, index, rng)))
        seconds[index] += time.perf_counter() - began
    return groups, updates, seconds


def _external(
    peer: Peer, groups: list[list[list[Sampled]]], own: int, rng: random.Random
) -> list[TrainingGroup]:
    """Answer groups of the other peers, re-encoded; as many as `Learn.external_groups` says, if there are."""
    offered = [sampled for index, kinds in enumerate(groups) if index != own for sampled in kinds[0]]
    picked = rng.sample(offered, min(peer.learner.learn.external_groups, len(offered)))
    return [
        TrainingGroup(
            sampled.group.prompt,
            [peer.policy.encode_completion(text) for text in sampled.texts],
            sampled.group.rewards,
        )
        for sampled in picked
    ]


def simulate(arguments: argparse.Namespace, learn: Learn, seed: int) -> list[float]:
    """All rounds of one seed; prints a row per round and returns each peer's improvement."""
    with tempfile.TemporaryDirectory() as folder:
        peers = [
            Peer(arguments.model, learn, 1000 * seed + index, Path(folder))
            for index in range(arguments.peers)
        ]
        curves: list[list[float]] = [[] for _ in peers]
        print(f"seed {seed}")
        print(
            "round  answer reward of each peer         critique  revise  steps  used  dropped  s/peer (max)"
        )
        for number in range(1, arguments.rounds + 1):
            groups, updates, seconds = run_round(peers, seed, number, arguments.answers, arguments.others)
            for curve, kinds in zip(curves, groups, strict=True):
                curve.append(_mean_reward(kinds[0]))
            rewards = "  ".join(f"{curve[-1]:.3f}" for curve in curves)
            later = [
                _mean([_mean_reward(kinds[index]) for kinds in groups if kinds[index]]) for index in (1, 2)
            ]
            print(
                f"{number:5}  {rewards:34} {later[0]:8.3f} {later[1]:7.3f}  {updates[0].steps:5} "
                f"{updates[0].groups_used:5} {updates[0].groups_dropped:8}  "
                f"{_mean(seconds):.2f} ({max(seconds):.2f})",
                flush=True,
            )
    ratios = [_mean(curve[-3:]) / max(_mean(curve[:3]), 1e-9) for curve in curves]
    print("last three rounds over first three:", "  ".join(f"{ratio:.2f}" for ratio in ratios), flush=True)
    return ratios


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _mean_reward(groups: list[Sampled]) -> float:
    return _mean([reward for sampled in groups for reward in sampled.group.rewards])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Simulate the demo's learning without a network.")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--answers", type=int, default=32, help="answer groups of a peer in a round")
    parser.add_argument("--others", type=int, default=4, help="critique groups, and as many revise groups")
    parser.add_argument("--external", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1.5e-4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--groups-per-step", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    learn = Learn(
        ends_at=0.9,
        external_groups=arguments.external,
        learning_rate=arguments.learning_rate,
        epochs=arguments.epochs,
        groups_per_step=arguments.groups_per_step,
    )
    ratios = [ratio for seed in arguments.seeds for ratio in simulate(arguments, learn, seed)]
    print(f"worst {min(ratios):.2f}, mean {_mean(ratios):.2f} over {len(ratios)} peers")


if __name__ == "__main__":
    main()

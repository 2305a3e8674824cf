"""A peer's training without the peer: rounds of the tiny model on fixed groups, each state kept.

Run by tests as `training_process.py FOLDER ROUNDS`; started again, it goes on from the newest state.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from swarm.errors import ModelError
from swarm.learner.checkpoints import Checkpoints
from swarm.learner.trainer import Learner, TrainingGroup
from swarm.manifest import Learn
from swarm.policy.model import Policy


def groups_of(policy: Policy, number: int) -> list[TrainingGroup]:
    rng = random.Random(number)
    return [
        TrainingGroup(
            policy.encode_prompt(f"{rng.randrange(100)}+{rng.randrange(100)}="),
            [policy.encode_completion(str(rng.randrange(200))) for _ in range(4)],
            [1.0, 0.0, rng.random(), 0.5],
        )
        for _ in range(4)
    ]


def main(folder: Path, rounds: int) -> None:
    policy = Policy.load("tiny", threads=1)
    learn = Learn(ends_at=0.9, external_groups=0, learning_rate=1e-3, epochs=2, groups_per_step=2)
    learner = Learner(policy, learn, 4, 1.0, 8, folder)
    checkpoints = Checkpoints(folder / "checkpoints")
    done = -1
    for number in checkpoints.rounds():
        try:
            learner.restore(checkpoints.load(number))
        except ModelError:
            continue
        done = number
        break
    for number in range(done + 1, rounds):
        print(f"round {number}", flush=True)
        learner.update(groups_of(policy, number))
        checkpoints.save(learner.state(), number)
    print(f"digest {learner.state().digest.hex()}", flush=True)


main(Path(sys.argv[1]), int(sys.argv[2]))

"""GRPO updates with the real tiny model and TRL's real trainer."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from swarm.errors import ModelError
from swarm.learner.trainer import Learner, TrainingGroup
from swarm.manifest import Learn
from swarm.policy.model import Policy

LEARN = Learn(ends_at=0.9, external_groups=4, learning_rate=1e-3, epochs=2, groups_per_step=4)
GROUP_SIZE = 4


def make_learner(folder: Path, seed: int = 5, learn: Learn = LEARN) -> Learner:
    return Learner(Policy.load("tiny", threads=1), learn, GROUP_SIZE, 1.0, 8, seed, folder)


@pytest.fixture
def learner(tmp_path) -> Learner:
    return make_learner(tmp_path / "work")


def make_groups(policy: Policy, seed: int, count: int = 6) -> list[TrainingGroup]:
    """Groups of short and long prompts with random rewards, the first of them without any advantage."""
    rng = random.Random(seed)
    groups = []
    for index in range(count):
        question = f"{rng.randrange(100)}+{rng.randrange(100)}="
        text = question if index % 2 else f"{question}\nA) 12\nB) 13\nright?"
        prompt = policy.encode_prompt(text)
        completions = [policy.encode_completion(str(rng.randrange(200))) for _ in range(GROUP_SIZE)]
        rewards = [1.0] * GROUP_SIZE if index == 0 else [1.0, 0.0, rng.random(), 0.5]
        groups.append(TrainingGroup(prompt, completions, rewards))
    return groups


def test_probability_moves_towards_rewarded_completions(learner):
    policy = learner.policy
    groups = []
    for left in range(10, 18):
        prompt = policy.encode_prompt(f"{left}+20=")
        completions = [policy.encode_completion(text) for text in (str(left + 20), "7", str(left + 21), "88")]
        groups.append(TrainingGroup(prompt, completions, [1.0, 0.0, 0.0, 0.0]))

    @torch.no_grad()
    def probability(index: int) -> float:
        logps = []
        for group in groups:
            completion = torch.tensor(group.completions[index])
            ids = torch.tensor([group.prompt + group.completions[index]])
            logits = policy.model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1]
            logps.append(torch.log_softmax(logits, -1).gather(1, completion.unsqueeze(1)).sum().item())
        return float(np.exp(logps).sum())

    right, wrong = probability(0), probability(2)
    for _ in range(3):
        learner.update(groups)
    assert probability(0) > right
    assert probability(2) < wrong


def test_groups_without_advantage_are_dropped(learner):
    update = learner.update(make_groups(learner.policy, 0))
    assert (update.groups_used, update.groups_dropped) == (5, 1)
    assert update.steps == 2 * LEARN.epochs  # five groups in steps of at most four: two steps
    assert np.isfinite([update.loss, update.grad_norm]).all()
    assert update.grad_norm > 0


def test_update_without_an_informative_group_changes_nothing(learner):
    before = learner.state_digest()
    update = learner.update(make_groups(learner.policy, 0)[:1])
    assert (update.steps, update.groups_used, update.groups_dropped) == (0, 0, 1)
    assert learner.update([]).steps == 0
    assert learner.state_digest() == before


def test_same_state_and_groups_give_the_same_next_state(tmp_path):
    learners = [make_learner(tmp_path / "work") for _ in range(2)]
    digests: list[list[bytes]] = [[], []]
    for learner, seen in zip(learners, digests, strict=True):
        for round_number in range(3):
            learner.update(make_groups(learner.policy, round_number))
            seen.append(learner.state_digest())
            torch.rand(round_number + 1)  # what else the process draws must not matter
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3


def test_update_leaves_the_process_generators_alone(learner):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    learner.update(make_groups(learner.policy, 0))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_loaded_state_continues_as_if_never_stopped(tmp_path):
    steady, first = make_learner(tmp_path / "work"), make_learner(tmp_path / "work")
    for learner in (steady, first):
        learner.update(make_groups(learner.policy, 0))
    first.save(tmp_path / "state.safetensors")
    resumed = make_learner(tmp_path / "work", seed=99)  # the state brings its own seed
    resumed.update(make_groups(resumed.policy, 9))
    resumed.load(tmp_path / "state.safetensors")
    assert resumed.state_digest() == steady.state_digest()
    for learner in (steady, resumed):
        learner.update(make_groups(learner.policy, 1))
    assert resumed.state_digest() == steady.state_digest()


def test_state_file_has_the_same_bytes_for_the_same_state(tmp_path, learner):
    learner.update(make_groups(learner.policy, 0))
    for name in ("a", "b"):
        learner.save(tmp_path / name)
    assert len({hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("a", "b")}) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a", "b"]


def test_digest_sees_weights_moments_and_counters(tmp_path, learner):
    learner.update(make_groups(learner.policy, 0))
    digest = learner.state_digest()
    for name, tensor in learner._state().items():
        if name.endswith("norm.weight"):
            with torch.no_grad():
                tensor.view(-1)[0] += 1.0
                assert learner.state_digest() != digest, name
                tensor.view(-1)[0] -= 1.0


@pytest.mark.parametrize("content", [b"", b"not a state", None])
def test_an_unreadable_state_is_a_one_line_error(tmp_path, learner, content):
    path = tmp_path / "broken"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError):
        learner.load(path)


def test_a_malformed_group_is_refused(learner):
    group = make_groups(learner.policy, 0)[1]
    with pytest.raises(ValueError, match="groups have 4"):
        learner.update([TrainingGroup(group.prompt, group.completions[:3], group.rewards[:3])])
    with pytest.raises(ValueError, match="without tokens"):
        learner.update([TrainingGroup(group.prompt, [*group.completions[:3], []], group.rewards)])
    with pytest.raises(ValueError, match="finite"):
        learner.update([TrainingGroup(group.prompt, group.completions, [float("nan")] * 4)])


def test_learning_writes_no_files_and_no_output(tmp_path, capfd, recwarn):
    learner = make_learner(tmp_path / "work")
    learner.update(make_groups(learner.policy, 0))
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")
    assert [str(warning.message) for warning in recwarn.list] == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

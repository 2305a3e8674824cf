"""Several real processes that sample and train as one, against one process that does it alone."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
from small_swarm import small_manifest

from swarm.errors import UsageError
from swarm.learner import parallel, parallel_learner
from swarm.learner.channel import Recipe
from swarm.learner.checkpoints import LearnerState
from swarm.learner.grpo import Sums
from swarm.learner.parallel import Team
from swarm.learner.parallel_learner import ParallelLearner, Step, share_of
from swarm.learner.shared_memory import CHUNK_BYTES, SharedMemory
from swarm.learner.trainer import Learner, TrainingGroup
from swarm.manifest import Learn, Sampling
from swarm.policy.model import Policy
from swarm.policy.plan import Wishes, make_plan

LEARN = Learn(ends_at=0.9, external_groups=4, learning_rate=1e-3, epochs=2, groups_per_step=4, beta=0.1)
GROUP_SIZE = 4
MAX_TOKENS = 8


def recipe(folder: Path, **learn: object) -> Recipe:
    return Recipe(
        plan=make_plan(small_manifest("parallel"), Wishes(device="cpu")),
        learn=msgspec.structs.replace(LEARN, **learn),
        group_size=GROUP_SIZE,
        temperature=1.0,
        max_completion_tokens=MAX_TOKENS,
        work_dir=str(folder),
        threads=1,
    )


def options(recipe: Recipe) -> tuple:
    return (
        Policy.of(recipe.plan, threads=1),
        recipe.learn,
        GROUP_SIZE,
        recipe.temperature,
        MAX_TOKENS,
        Path(recipe.work_dir),
    )


def started(recipe: Recipe, processes: int = 2) -> tuple[Team, ParallelLearner]:
    team = Team(recipe, processes)
    learner = ParallelLearner(team, *options(recipe))
    team.wait_until_ready()
    assert team.processes == processes
    return team, learner


def make_groups(policy: Policy, seed: int, count: int = 6) -> list[TrainingGroup]:
    rng = random.Random(seed)
    groups = []
    for index in range(count):
        question = f"{rng.randrange(100)}+{rng.randrange(100)}="
        text = question if index % 2 else f"{question}\nA) 12\nB) 13\nright?"
        prompt = policy.encode_prompt(text)
        completions = [policy.encode_completion(str(rng.randrange(200))) for _ in range(GROUP_SIZE)]
        groups.append(TrainingGroup(prompt, completions, [1.0, 0.0, rng.random(), 0.5]))
    return groups


def assert_close(learner: Learner, other: Learner, relative: float, of_weights: float | None = None) -> None:
    """Weights and moments, each tensor within a relative error in norm."""
    for mine, its, bound in (
        (learner.optimizer_state(), other.optimizer_state(), relative),
        (learner.weights(), other.weights(), of_weights or relative),
    ):
        for name, tensor in mine.items():
            distance = (tensor.detach().double() - its[name].detach().double()).norm()
            assert distance <= bound * its[name].detach().double().norm(), name


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A team of two, its learner, and the state that it began with; starting one takes seconds."""
    team, learner = started(recipe(tmp_path_factory.mktemp("shared")))
    initial = [
        {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for tensors in (learner.weights(), learner.optimizer_state())
    ]
    with team:
        yield team, learner, initial


@pytest.fixture
def pair(shared):
    """The team and its learner, at the beginning again."""
    team, learner, initial = shared
    assert team.processes == 2
    learner.restore(LearnerState(*initial))
    return team, learner


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def asked(tmp_path):
    """Prompts and seeds, and what one process samples."""
    policy = Policy.load("tiny", threads=1)
    prompts = [policy.encode_prompt(f"{left}+{left * 7 % 50}=") for left in range(10, 21)]
    seeds = [[bytes([group, row]) * 16 for row in range(GROUP_SIZE)] for group in range(len(prompts))]
    alone = policy.sample(prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling())
    return prompts, seeds, alone


class Threads:
    """Ranks of this process: the sums are real, the rest is not needed where all begin alike."""

    def __init__(self, rank: int, barrier: threading.Barrier, memory: SharedMemory, said: dict) -> None:
        self.rank = rank
        self.processes = barrier.parties
        self.barrier, self.memory, self.said = barrier, memory, said

    def begin_update(self, learner: Learner, groups: list[TrainingGroup]) -> None:
        pass

    def end_update(self, learner: Learner, seconds: float) -> None:
        pass

    def close(self) -> None:
        self.barrier.abort()

    def meet(self) -> None:
        self.barrier.wait(timeout=60)

    def add_up(self, step: Step, seconds: float) -> bool:
        self.said[self.rank] = step.sums, step.present
        self.meet()
        step.sums = Sums()
        for sums, _ in self.said.values():
            step.sums += sums
        present = [any(column) for column in zip(*(its for _, its in self.said.values()), strict=True)]
        self.memory.sum(self.rank, step.tensors(present), self.meet)
        return True


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "bnpo", "dapo", "cispo"])
@pytest.mark.parametrize("ranks", [2, 12])
def test_the_shares_gradients_add_up_to_that_of_the_step(tmp_path, loss_type, ranks):
    """One step, so that AdamW's moments are the gradient and its square; 12 ranks are more than rows."""
    chosen = recipe(tmp_path, epochs=1, groups_per_step=16, loss_type=loss_type)
    alone = Learner(*options(chosen))
    groups = make_groups(alone.policy, 0, 2 if ranks > 2 else 6)
    expected = alone.update(groups)
    descriptor = SharedMemory.create(ranks)
    memory, barrier, said = SharedMemory(descriptor, ranks), threading.Barrier(ranks), {}
    os.close(descriptor)
    learners = [ParallelLearner(Threads(r, barrier, memory, said), *options(chosen)) for r in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:
        updates = list(pool.map(lambda learner: learner.update(groups), learners))
    for learner, update in zip(learners, updates, strict=True):
        # AdamW's first step is g / (|g| + 1e-8): where g is a rounding error, so is the weight's change.
        assert_close(learner, alone, 1e-5, of_weights=1e-5 if ranks == 2 else 1e-4)
        assert learner.state_digest() == learners[0].state_digest()
        assert (update.tokens, update.completions) == (expected.tokens, expected.completions)
        assert update.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-6)
        assert update.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert update.entropy == pytest.approx(expected.entropy, rel=1e-5)


def test_two_processes_learn_what_one_learns(pair, tmp_path, caplog):
    alone = Learner(*options(recipe(tmp_path)))
    team, learner = pair
    for seed in range(2):
        groups = make_groups(alone.policy, seed)
        expected, update = alone.update(groups), learner.update(groups)
        assert update.kl == pytest.approx(expected.kl, rel=1e-3)
    assert team.processes == 2
    # After eight steps AdamW has made rounding larger: one process with other micro-batches is as far from
    # itself (measured: 1.5e-5).
    assert_close(learner, alone, 1e-4)
    # Had the helper come to other bits, the team would have said so.
    assert not warnings_in(caplog)


def test_a_loaded_state_reaches_the_helpers(pair, tmp_path, caplog):
    alone = Learner(*options(recipe(tmp_path)))
    alone.update(make_groups(alone.policy, 0))
    team, learner = pair
    learner.update(make_groups(alone.policy, 5))
    learner.restore(alone.state())
    for seed in (1, 2):
        alone.update(make_groups(alone.policy, seed))
        learner.update(make_groups(alone.policy, seed))
    assert team.processes == 2
    assert_close(learner, alone, 1e-4)
    assert not warnings_in(caplog)


def test_groups_come_in_order_whoever_sampled_them(pair, asked):
    prompts, seeds, alone = asked
    team, learner = pair
    sampled = team.sample(learner, prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling())
    assert sampled == alone
    few = team.sample(learner, prompts[:1], seeds[:1], max_tokens=MAX_TOKENS, sampling=Sampling())
    assert few == alone[:1]
    assert team.sample(learner, [], [], max_tokens=MAX_TOKENS, sampling=Sampling()) == []
    assert team.processes == 2


def test_helpers_sample_with_the_weights_that_the_node_has_now(pair, asked):
    prompts, seeds, _ = asked
    team, learner = pair
    learner.update(make_groups(learner.policy, 0))
    with torch.no_grad():
        for weight in learner.weights().values():
            weight.mul_(0.9)
    sampled = team.sample(learner, prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling())
    assert sampled == learner.policy.sample(prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling())


def test_at_the_deadline_there_are_groups_without_gaps(pair, asked):
    prompts, seeds, alone = asked
    many = 40
    team, learner = pair
    for calls in (0, 1, 3):
        left = calls

        def until() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        sampled = team.sample(
            learner,
            prompts * many,
            seeds * many,
            max_tokens=MAX_TOKENS,
            sampling=Sampling(),
            until=until,
        )
        assert 1 <= len(sampled) < len(prompts) * many
        assert sampled == (alone * many)[: len(sampled)]
    # Nothing is left over of what was cut off.
    assert team.sample(learner, prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling()) == alone
    assert team.processes == 2


def test_a_helper_that_died_costs_neither_the_answers_nor_the_update(tmp_path, asked, caplog):
    prompts, seeds, alone = asked
    chosen = recipe(tmp_path)
    lone = Learner(*options(chosen))
    team, learner = started(chosen)
    with team:
        os.kill(team.pids[0], signal.SIGKILL)
        assert team.sample(learner, prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling()) == alone
        assert team.processes == 1
        assert len(warnings_in(caplog)) == 1
        assert "helper lost rank=1" in warnings_in(caplog)[0]
        for seed in range(2):
            lone.update(make_groups(lone.policy, seed))
            learner.update(make_groups(lone.policy, seed))
    assert learner.state_digest() == lone.state_digest()
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("step", [1, 2])
def test_a_helper_that_dies_in_an_update_costs_only_time(tmp_path, caplog, step, monkeypatch):
    chosen = recipe(tmp_path)
    lone = Learner(*options(chosen))
    groups = make_groups(lone.policy, 0)
    lone.update(groups)
    team, learner = started(chosen, 3)
    add_up, steps = team.add_up, 0

    def add_up_then_kill(*arguments) -> bool:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(team.pids[-1], signal.SIGKILL)
        return add_up(*arguments)

    monkeypatch.setattr(team, "add_up", add_up_then_kill)
    with team:
        pids = team.pids
        update = learner.update(groups)
        assert update.steps == 2 * LEARN.epochs
        assert team.processes == 1
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert_close(learner, lone, 1e-4)
    assert len(warnings_in(caplog)) == 1


def test_a_helper_that_hangs_is_ended(tmp_path, asked, caplog, monkeypatch):
    prompts, seeds, alone = asked
    monkeypatch.setattr(parallel_learner, "LEAST_PATIENCE_SECONDS", 1.0)
    team, learner = started(recipe(tmp_path))
    with team:
        (pid,) = team.pids
        team.sample(learner, prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling())
        os.kill(pid, signal.SIGSTOP)
        assert team.sample(learner, prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling()) == alone
        assert not psutil.pid_exists(pid)
    (warning,) = warnings_in(caplog)
    assert "has not answered" in warning


def test_a_helper_that_does_not_even_read_is_ended(tmp_path, asked, caplog, monkeypatch):
    """What is said to it is larger than the socket's buffer, so the saying would never end."""
    prompts, seeds, alone = asked
    monkeypatch.setattr(parallel, "LEAST_PATIENCE_SECONDS", 1.0)
    team, learner = started(recipe(tmp_path))
    with team:
        (pid,) = team.pids
        team.sample(learner, prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling())
        os.kill(pid, signal.SIGSTOP)
        many = 2_000
        groups = team.sample(
            learner,
            prompts * many,
            seeds * many,
            max_tokens=MAX_TOKENS,
            sampling=Sampling(),
            until=lambda: True,
        )
        assert groups[: len(alone)] == alone[: len(groups)]
        assert not psutil.pid_exists(pid)
    assert len(warnings_in(caplog)) == 1


def test_more_processes_than_gpus_is_a_usage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = recipe(tmp_path)
    on_gpu = msgspec.structs.replace(chosen, plan=msgspec.structs.replace(chosen.plan, device="cuda:0"))
    with pytest.raises(UsageError, match="3 processes need as many GPUs; torch sees 2: use --processes 2"):
        Team(on_gpu, 3)


def test_a_helper_that_cannot_load_is_one_line(tmp_path, caplog):
    chosen = recipe(tmp_path)
    missing = msgspec.structs.replace(chosen.plan, model=str(tmp_path / "missing" / "model"))
    chosen = msgspec.structs.replace(chosen, plan=missing)
    with Team(chosen, 2) as team:
        team.wait_until_ready()
        assert team.processes == 1
    (warning,) = warnings_in(caplog)
    assert "missing/model" in warning
    assert "\n" not in warning


def test_a_malformed_group_is_refused_and_the_helpers_stay(pair):
    team, learner = pair
    group = make_groups(learner.policy, 0)[0]
    with pytest.raises(ValueError, match="finite"):
        learner.update([TrainingGroup(group.prompt, group.completions, [float("nan")] * GROUP_SIZE)])
    assert learner.update([group]).steps == LEARN.epochs
    assert team.processes == 2


NODE = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_parallel import recipe
from swarm.learner.grpo import Sums
from swarm.learner.parallel import Team
team = Team(recipe(Path(sys.argv[1])), 3)
print(*team.pids, flush=True)
sys.stdin.read()
"""


def test_a_helper_with_another_state_is_given_the_nodes(pair, caplog, monkeypatch):
    team, learner = pair
    end_update = team.end_update

    def end_update_of_another_state(learner: Learner, seconds: float) -> None:
        with torch.no_grad():
            next(iter(learner.weights().values())).view(-1)[0] += 1e-3
        end_update(learner, seconds)

    monkeypatch.setattr(team, "end_update", end_update_of_another_state)
    learner.update(make_groups(learner.policy, 0))
    assert warnings_in(caplog) == ["helper has another state rank=1: it gets the node's"]
    monkeypatch.setattr(team, "end_update", end_update)
    learner.update(make_groups(learner.policy, 1))
    assert len(warnings_in(caplog)) == 1
    assert team.processes == 2


def test_helpers_end_when_the_node_is_killed(tmp_path):
    command = [sys.executable, "-c", NODE, str(tmp_path), *sys.path]
    node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    helpers = [psutil.Process(int(pid)) for pid in node.stdout.readline().split()]
    assert len(helpers) == 2
    node.kill()
    node.communicate()
    for helper in helpers:
        helper.wait(timeout=60)  # it first finishes its imports


def test_a_share_is_a_run_of_rows_and_all_shares_are_all_rows(tmp_path):
    policy = Policy.load("tiny", threads=1)
    groups = make_groups(policy, 0, 5)
    rows = [completion for group in groups for completion in group.completions]
    for ranks in (1, 2, 3, 7, 40):
        shares = [share_of(groups, rank, ranks) for rank in range(ranks)]
        assert shares[0][1]
        assert [row for place, _ in shares for row in rows[place]] == rows
        for place, its_groups in shares:
            assert [completion for group in its_groups for completion in group.completions] == rows[place]
            assert all(len(group.completions) == len(group.rewards) for group in its_groups)


def test_a_sum_through_memory_is_the_same_bits_on_every_rank():
    ranks = 3
    descriptor = SharedMemory.create(ranks)
    barrier = threading.Barrier(ranks)
    shapes = [(3,), (), (CHUNK_BYTES // 8, 3), (1000, 7), (0,)]
    own = [[torch.randn(shape) for shape in shapes] for _ in range(ranks)]
    expected = [own[0][index] + own[1][index] + own[2][index] for index in range(len(shapes))]

    def add(rank: int) -> None:
        SharedMemory(descriptor, ranks).sum(rank, own[rank], lambda: barrier.wait(timeout=30) and None)

    threads = [threading.Thread(target=add, args=[rank]) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    for tensors in own:
        assert all(torch.equal(one, other) for one, other in zip(tensors, expected, strict=True))

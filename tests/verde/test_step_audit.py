"""Updates made again by an auditor, with the real tiny model and TRL's real trainer."""

import math
import random
from collections.abc import Callable

import pytest
import torch
from msgspec.structs import replace

from swarm.learner.checkpoints import LearnerState
from swarm.learner.trainer import Learner, TrainingGroup
from swarm.manifest import Learn
from swarm.policy.model import Policy
from swarm.verde.build import Build
from swarm.verde.step import StepCheck, repeat_step
from swarm.verde.thresholds import step_limits
from swarm.verde.verdicts import AuditClass

LEARN = Learn(ends_at=0.9, external_groups=4, learning_rate=1.5e-4, epochs=2, groups_per_step=4)
SAME_BUILD, TOLERANT = (step_limits(one, "fp32") for one in (AuditClass.SAME_BUILD, AuditClass.TOLERANT))
BUILD = Build(
    model="tiny",
    revision=None,
    lora=False,
    four_bit=False,
    precision="fp32",
    gradient_checkpointing=False,
    device="any",
    software="any",
    threads=1,
    learning_tokens_at_once=16_384,
    sampling_tokens_at_once=32_768,
)


class Case:
    """One audited update: a learner, what it began from, learned from and came to."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        learner.update(self.groups(0))
        self.before = copied(learner.state())
        self.batch = self.groups(1)
        self.after = self.played(self.batch)

    def groups(self, seed: int) -> list[TrainingGroup]:
        policy, rng = self.learner.policy, random.Random(seed)
        made = []
        for _ in range(8):
            left, right = rng.randrange(100), rng.randrange(100)
            said = [str(left + right), "7", str(rng.randrange(200)), str(rng.randrange(200))]
            made.append(
                TrainingGroup(
                    policy.encode_prompt(f"{left}+{right}="),
                    [policy.encode_completion(text) for text in said],
                    [1.0, 0.0, 0.0, 0.0],
                )
            )
        return made

    def played(self, batch: list[TrainingGroup], start: LearnerState | None = None) -> LearnerState:
        self.learner.restore(start or self.before)
        self.learner.update(batch)
        return copied(self.learner.state())

    def check(self, **change: object) -> StepCheck:
        given = {"build": BUILD, "before": self.before, "batch": self.batch, "after": self.after, **change}
        return repeat_step(self.learner, **given)


def copied(state: LearnerState) -> LearnerState:
    return LearnerState(
        *({k: v.detach().clone() for k, v in part.items()} for part in (state.weights, state.optimizer))
    )


def changed(
    state: LearnerState, change: Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None]
) -> LearnerState:
    new = copied(state)
    change(new.weights, new.optimizer)
    return new


def first(tensors: dict[str, torch.Tensor], prefix: str = "") -> str:
    return next(name for name in tensors if name.startswith(prefix) and tensors[name].dim() == 2)


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    policy = Policy.load("tiny", threads=1)
    return Case(Learner(policy, LEARN, 4, 1.0, 8, tmp_path_factory.mktemp("work")))


def test_an_honest_update_is_repeated_bit_for_bit(case):
    found = case.check()
    assert (found.differing, found.relative, found.worst, found.moments) == (0, 0, 0, 0)
    assert found.elements > 300_000
    assert found.passes(SAME_BUILD) and found.passes(TOLERANT)
    assert case.learner.state_digest() == case.after.digest


def test_an_honest_update_in_other_pieces_passes_as_tolerant(case):
    build = replace(BUILD, threads=2, learning_tokens_at_once=300)
    found = case.check(build=build)
    assert found.differing > 0
    assert not found.passes(SAME_BUILD)
    assert found.passes(TOLERANT)
    assert torch.get_num_threads() == 1
    assert case.learner.max_tokens_at_once == 16_384


def nudged(by: float) -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        row = weights[first(weights)][5]
        row[int(row.abs().argmax())] *= 1 + by

    return change


def test_one_weight_off_by_its_last_bit_fails_bit_for_bit(case):
    found = case.check(after=changed(case.after, nudged(2**-23)))
    assert found.differing == 1
    assert not found.passes(SAME_BUILD)


def test_one_weight_off_by_a_hundredth_fails(case):
    found = case.check(after=changed(case.after, nudged(0.01)))
    assert found.differing == 1
    assert not found.passes(SAME_BUILD) and not found.passes(TOLERANT)


def test_another_learning_rate_fails(case):
    def change(weights: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            weight.add_(weight - case.before.weights[name], alpha=0.1)

    found = case.check(after=changed(case.after, change))
    assert found.scale == pytest.approx(0.1, rel=1e-3)
    for precision in ("fp32", "bf16"):
        assert not found.passes(step_limits(AuditClass.TOLERANT, precision))


def test_a_skipped_update_fails(case):
    def keep_weights(weights: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            weight.copy_(case.before.weights[name])

    def keep_moments(weights: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        for name, tensor in optimizer.items():
            if name.startswith("exp_avg"):
                tensor.copy_(case.before.optimizer[name])

    for precision in ("fp32", "bf16"):
        limits = step_limits(AuditClass.TOLERANT, precision)
        assert not case.check(after=case.before).passes(limits)
        for change in (keep_weights, keep_moments):
            assert not case.check(after=changed(case.after, change)).passes(limits)


def test_moments_of_another_state_fail(case):
    def begin_anew(weights: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        for name, tensor in optimizer.items():
            if name.startswith("exp_avg"):
                tensor.zero_()

    stale = case.played(case.batch, changed(case.before, begin_anew))
    for precision in ("fp32", "bf16"):
        assert not case.check(after=stale).passes(step_limits(AuditClass.TOLERANT, precision))


def test_another_batch_fails(case):
    left_out = case.played(case.batch[1:])
    assert not case.check(after=left_out).passes(TOLERANT)
    better = replace(case.batch[0], rewards=[0.0, 1.0, 0.0, 0.0])
    assert not case.check(after=case.played([better, *case.batch[1:]])).passes(TOLERANT)


def test_other_counters_fail(case):
    def one_update_more(weights: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        optimizer["counters"] += 1

    found = case.check(after=changed(case.after, one_update_more))
    assert not found.passes(TOLERANT)
    assert found.detail == "counters differ"


def test_without_anything_to_learn_the_state_stays(case):
    dull = [replace(group, rewards=[1.0] * 4) for group in case.batch]
    found = case.check(batch=dull, after=case.before)
    assert found.passes(SAME_BUILD) and found.passes(TOLERANT)
    assert not case.check(batch=dull, after=changed(case.before, nudged(1e-6))).passes(TOLERANT)


HOSTILE = {
    "is of another model": [
        lambda w, o: w.pop(first(w)),
        lambda w, o: w.update(more=torch.zeros(3)),
        lambda w, o: w.update({first(w): torch.zeros(3)}),
        lambda w, o: w.update({first(w): w[first(w)].double()}),
        lambda w, o: o.update(counters=torch.zeros(2)),
        lambda w, o: o.pop("counters"),
        lambda w, o: (w.clear(), o.clear()),
    ],
    "holds what is not a number": [
        lambda w, o: w[first(w)][0].fill_(math.nan),
        lambda w, o: w[first(w)][0].fill_(math.inf),
        lambda w, o: o[first(o, "exp_avg.")][0].fill_(-math.inf),
    ],
    "is none that an optimizer comes to": [
        lambda w, o: o[first(o, "exp_avg_sq.")][0].fill_(-1.0),
        lambda w, o: o["step." + first(w)].fill_(-1.0),
        lambda w, o: o["step." + first(w)].fill_(0.5),
        lambda w, o: o["step." + first(w)].fill_(1e30),
        lambda w, o: o["counters"].fill_(-5),
    ],
}


@pytest.mark.parametrize("which", ["before", "after"])
@pytest.mark.parametrize(
    ("fault", "number"), [(f, n) for f, changes in HOSTILE.items() for n in range(len(changes))]
)
def test_hostile_states_fail_without_an_exception(case, which, fault, number):
    hostile = changed(getattr(case, which), HOSTILE[fault][number])
    found = case.check(**{which: hostile})
    assert found.fault == f"the state {which} {fault}"
    assert found.detail == found.fault
    assert not found.passes(SAME_BUILD) and not found.passes(TOLERANT)


@pytest.mark.parametrize("size", [1e-38, 1e18, 3e38])
def test_states_at_the_edge_of_numbers_fail_without_an_exception(case, size):
    def blow_up(weights: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        for tensors in (weights, optimizer):
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not name.startswith("step."):
                    tensor.fill_(size)

    found = case.check(before=changed(case.before, blow_up))
    assert not found.passes(SAME_BUILD) and not found.passes(TOLERANT)


def test_batches_that_nobody_can_learn_from_fail_without_an_exception(case):
    group = case.batch[0]
    for hostile in (
        replace(group, completions=[[101], *group.completions[1:]]),
        replace(group, completions=[[2**70], *group.completions[1:]]),
        replace(group, completions=[[-1], *group.completions[1:]]),
        replace(group, completions=[[], *group.completions[1:]]),
        replace(group, completions=[[5] * 9, *group.completions[1:]]),
        replace(group, prompt=group.prompt * 2000),
        replace(group, completions=group.completions[:1], rewards=[1.0]),
        replace(group, rewards=[1.0, 0.0]),
        replace(group, rewards=[math.inf, 0.0, 0.0, 0.0]),
    ):
        found = case.check(batch=[hostile, *case.batch[1:]])
        assert found.fault.startswith("the batch ")
        assert len(found.detail) <= 80 and found.detail.isascii()
        assert not found.passes(TOLERANT)


def test_what_there_is_no_room_for_is_cut_smaller_and_not_bit_for_bit(case):
    try:
        case.learner.max_tokens_at_once = 60
        found = case.check()
    finally:
        case.learner.max_tokens_at_once = 16_384
    assert not found.repeated
    assert found.differing > 0
    assert found.passes(SAME_BUILD)  # no bits are asked for
    # Where nothing is cut, more room makes no difference.
    found = case.check(build=replace(BUILD, learning_tokens_at_once=2**47))
    assert found.repeated and found.differing == 0


def test_a_stranger_cannot_have_thousands_of_threads_started(case, monkeypatch):
    started = []
    monkeypatch.setattr(torch, "set_num_threads", started.append)
    found = case.check(build=replace(BUILD, threads=4096))
    assert set(started) == {1}
    assert not found.repeated and found.passes(TOLERANT)

"""Which of others' completions were left out, checked with the real tiny model."""

import random

import pytest
import torch

from swarm.policy.model import Policy
from swarm.verde.screening import WrongFlag, wrong_flags

K = 12
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load("tiny", threads=1)


@pytest.fixture(scope="module")
def groups(policy) -> list:
    rng = random.Random(1)
    made = []
    for _ in range(6):
        left, right = rng.randrange(100), rng.randrange(100)
        said = [str(left + right), str(rng.randrange(200)), "no idea", "", str(rng.randrange(9))]
        completions = [policy.encode_completion(text) for text in said]
        made.append((policy.encode_prompt(f"{left}+{right}="), completions))
    return [*made, (made[0][0], [])]


def test_honest_flags_are_right(policy, groups):
    for k in (0, 1, K, 10**6):
        assert wrong_flags(policy, groups, policy.within_top_k(groups, k), k, TOLERANCE) == ()


@pytest.mark.parametrize("place", [(0, 0), (2, 2), (4, 3)])
def test_a_flag_turned_round_is_wrong(policy, groups, place):
    flags = policy.within_top_k(groups, K)
    assert {flag for part in flags for flag in part} == {True, False}
    group, row = place
    flags[group][row] = not flags[group][row]
    (wrong,) = wrong_flags(policy, groups, flags, K, TOLERANCE)
    assert (wrong.group, wrong.completion, wrong.admitted) == (group, row, flags[group][row])
    assert wrong.margin > TOLERANCE


def test_either_flag_is_right_where_rounding_decides(policy, groups):
    flags = [[not flag for flag in part] for part in policy.within_top_k(groups, K)]
    every = wrong_flags(policy, groups, flags, K, TOLERANCE)
    margins = sorted(wrong.margin for wrong in every)
    middle = margins[len(margins) // 2]
    fewer = wrong_flags(policy, groups, flags, K, middle)
    assert set(fewer) < set(every)
    assert all(wrong.margin > middle for wrong in fewer)


def test_without_screening_everything_readable_is_admitted(policy, groups):
    flags = [[True] * len(completions) for _, completions in groups]
    flags[1][1] = False
    assert wrong_flags(policy, groups, flags, 0, TOLERANCE) == (WrongFlag(1, 1, False, float("inf")),)


def test_what_the_model_cannot_read_is_left_out(policy, groups):
    prompt, completions = groups[0]
    long = [*completions[:2], [5] * policy.context_length]
    flags = policy.within_top_k([(prompt, completions[:2])], K)[0]
    assert wrong_flags(policy, [(prompt, long)], [[*flags, False]], K, TOLERANCE) == ()
    for k in (0, K):
        (wrong,) = [
            one
            for one in wrong_flags(policy, [(prompt, long)], [[*flags, True]], k, TOLERANCE)
            if one.completion == 2
        ]
        assert wrong.margin == float("inf")


def test_there_must_be_a_flag_for_each_completion(policy, groups):
    with pytest.raises(ValueError, match="a flag for each"):
        wrong_flags(policy, groups, [], K, TOLERANCE)


def test_batches_of_any_size_give_the_same(policy, groups, monkeypatch):
    flags = [[not flag for flag in part] for part in policy.within_top_k(groups, K)]
    whole = wrong_flags(policy, groups, flags, K, TOLERANCE)
    monkeypatch.setattr(policy._generator, "max_tokens_at_once", 30)
    parts = wrong_flags(policy, groups, flags, K, TOLERANCE)
    assert [(w.group, w.completion) for w in parts] == [(w.group, w.completion) for w in whole]
    torch.testing.assert_close(
        torch.tensor([w.margin for w in parts]), torch.tensor([w.margin for w in whole]), rtol=0, atol=1e-4
    )

"""Prefill over given completions, and the screening of others' completions with it."""

from __future__ import annotations

import random

import pytest
import torch

from swarm.manifest import Sampling
from swarm.policy.model import Policy
from swarm.policy.prefill import prefill, within_top_k
from swarm.policy.sampling import choose
from tests.policy.test_generation import generator_of, prompts_of, seeds_for
from tests.policy.tiny_models import VOCABULARY, make


def groups_of(counts: list[int]) -> list[tuple[list[int], list[list[int]]]]:
    rng = random.Random(5)
    return [
        (prompt, [[rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 7))] for _ in range(count)])
        for prompt, count in zip(prompts_of(*range(4, 4 + len(counts))), counts, strict=True)
    ]


def whole_logits(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()


@pytest.mark.parametrize("limits", [{}, {"max_tokens_at_once": 30}, {"max_logits": 3 * VOCABULARY}])
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "mamba"])
def test_every_position_has_the_logits_of_a_plain_forward(name, limits):
    model = make(name)
    groups = groups_of([3, 0, 5, 1, 4])
    completions = [(prompt, completion) for prompt, group in groups for completion in group]
    seen = set()
    for part in prefill(model, groups, **limits):
        if "max_logits" in limits:
            assert len(part.rows) <= 3
        fields = (part.rows.tolist(), part.positions.tolist(), part.tokens.tolist())
        for row, position, token, logits in zip(*fields, part.logits, strict=True):
            prompt, completion = completions[row]
            assert token == completion[position]
            expected = whole_logits(model, prompt, completion)[position]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-5)
            assert (row, position) not in seen
            seen.add((row, position))
    assert len(seen) == sum(len(completion) for _, completion in completions)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama3-rope"])
def test_prefill_rederives_every_sampled_token(name):
    model = make(name)
    prompts, seeds = prompts_of(7, 12, 3, 9), seeds_for(4, 8)
    sampling = Sampling(temperature=1.2, top_k=70, top_p=0.97)
    groups = generator_of(model).sample(prompts, seeds, max_tokens=20, sampling=sampling)
    row_seeds = [seed for group in seeds for seed in group]
    checked = 0
    for part in prefill(model, list(zip(prompts, groups, strict=True))):
        expected = choose(
            part.logits, [row_seeds[row] for row in part.rows], part.positions.tolist(), sampling
        )
        assert torch.equal(expected, part.tokens)
        checked += len(expected)
    assert checked == sum(len(completion) for group in groups for completion in group)


@pytest.mark.parametrize("k", [1, 10, 40])
def test_within_top_k_is_what_ranks_say(k):
    model = make("qwen3")
    prompts = prompts_of(7, 12, 3)
    sampling = Sampling(temperature=0.7, top_k=20)
    groups = generator_of(model).sample(prompts, seeds_for(3), max_tokens=6, sampling=sampling)
    asked = list(zip(prompts, groups, strict=True))
    verdicts = within_top_k(model, asked, k)
    for (prompt, completions), group in zip(asked, verdicts, strict=True):
        for completion, verdict in zip(completions, group, strict=True):
            logits = whole_logits(model, prompt, completion)
            own = logits[range(len(completion)), completion]
            assert verdict == bool(((logits > own[:, None]).sum(-1) < k).all())
    if k == 40:
        assert all(all(group) for group in verdicts)  # all were sampled from the 20 likeliest
    assert within_top_k(model, asked, k, max_tokens_at_once=1, max_logits=1) == verdicts


def test_the_policy_screens_the_end_of_a_completion_too():
    policy = Policy.load("tiny", threads=1)
    prompt = policy.encode_prompt("12+34=")
    right = policy.encode_completion("46")
    unlikely = [*right[:-1], policy.encode_completion("A")[0], right[-1]]
    assert policy.within_top_k([(prompt, [right, unlikely, right[:-1]]), (prompt, [])], 12) == [
        [True, False, True],
        [],
    ]
    early = right[:1] * 9 + right[-1:]  # its digits and its end are each likely only elsewhere
    assert policy.within_top_k([(prompt, [early])], 2) == [[False]]
    assert policy.within_top_k([(prompt, [early])], 0) == [[True]]
    assert policy.within_top_k([(prompt, [early])], 10**6) == [[True]]
    assert policy.within_top_k([], 5) == []


def test_equals_count_as_within():
    model = make("qwen3")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert within_top_k(model, [([7, 8], [[90, 91]])], 1) == [[True]]

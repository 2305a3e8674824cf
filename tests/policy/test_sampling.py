"""Seeded sampling on its own, and through the real tiny model."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from transformers.generation import LogitsProcessorList

from swarm.manifest import Sampling
from swarm.policy.model import Policy
from swarm.policy.sampling import SeededSampling, choose, gumbel_noise

EULER = 0.5772156649


def seed_of(*fields: object) -> bytes:
    return hashlib.sha256(repr(fields).encode()).digest()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load("tiny", threads=1)


def sample(policy: Policy, texts: list[str], per_group: int = 4, **options) -> list[list[list[int]]]:
    seeds = [[seed_of(text, g) for g in range(per_group)] for text in texts]
    prompts = [policy.encode_prompt(text) for text in texts]
    return policy.sample(prompts, seeds, **{"max_tokens": 8, "sampling": Sampling(), **options})


def test_noise_has_the_moments_of_a_gumbel_distribution():
    noise = gumbel_noise([seed_of(i) for i in range(200)], list(range(200)), 1000).double()
    assert noise.mean().item() == pytest.approx(EULER, abs=0.015)  # standard error 0.003
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)
    assert torch.isfinite(noise).all()


@pytest.mark.parametrize("along", ["tokens", "positions", "seeds"])
def test_noise_is_uniform_and_uncorrelated_along(along):
    seeds, positions, vocabulary = [seed_of(0)], [0], 20_000
    if along == "positions":
        seeds, positions, vocabulary = seeds * 20_000, list(range(20_000)), 2
    elif along == "seeds":
        seeds, positions, vocabulary = [seed_of(i) for i in range(20_000)], [0] * 20_000, 2
    noise = gumbel_noise(seeds, positions, vocabulary).double()
    uniform = torch.exp(-torch.exp(-(noise[0] if along == "tokens" else noise[:, 1])))
    counts = torch.histc(uniform, bins=100, min=0, max=1)
    chi_square = ((counts - 200) ** 2 / 200).sum().item()
    assert chi_square < 150  # 99 degrees of freedom: p < 0.001 above 148
    correlation = torch.corrcoef(torch.stack([uniform[:-1], uniform[1:]]))[0, 1].item()
    assert abs(correlation) < 0.03


def test_choices_follow_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, -1)
    choices = choose(logits, [seed_of(i) for i in range(20_000)], [3] * 20_000, 0.8).argmax(-1)
    expected = torch.softmax(logits[0] / 0.8, -1)
    observed = torch.bincount(choices, minlength=4) / 20_000
    assert torch.allclose(observed, expected, atol=0.012)


def test_noise_is_pinned():
    """Auditors of every version must derive the same noise."""
    noise = gumbel_noise([bytes(32), bytes(range(32))], [0, 7], 3)
    expected = torch.tensor([[0.3887861, 1.8409965, -0.6220834], [1.1531295, -0.5911689, 1.9483691]])
    assert torch.allclose(noise, expected, atol=1e-6)


def test_a_seed_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        SeededSampling([b"short"], 3, 1.0)


def test_same_tokens_alone_and_in_a_batch(policy):
    texts = ["1+2=", "12+34=", "99-98=\nA) 1\nB) 2\nright?", "5-50=", "77+88="]
    together = sample(policy, texts)
    alone = [sample(policy, [text])[0] for text in texts]
    backwards = sample(policy, texts[::-1])[::-1]
    assert together == alone == backwards


def test_padding_does_not_change_tokens(policy):
    short, long = policy.encode_prompt("1+2="), policy.encode_prompt("12+34=\nA) 46\nB) 45\nright?")
    seeds = [[seed_of(g) for g in range(4)]]
    padded = policy.sample([short, long], seeds * 2, max_tokens=8, sampling=Sampling())
    assert padded == [
        policy.sample([prompt], seeds, max_tokens=8, sampling=Sampling())[0] for prompt in (short, long)
    ]


def test_completions_end_in_eos_or_at_the_limit(policy):
    groups = sample(policy, ["12+34=", "3-44=\nA) -41\nright?"], max_tokens=5)
    eos = policy.encoding.eos
    for completion in [completion for group in groups for completion in group]:
        assert eos not in completion[:-1]
        assert completion[-1] == eos or len(completion) == 5


def test_one_prefill_rederives_every_choice(policy):
    prompt = policy.encode_prompt("12+34=")
    seeds = [seed_of("audit", g) for g in range(8)]
    completions = policy.sample([prompt], [seeds], max_tokens=8, sampling=Sampling(temperature=0.9))[0]
    for seed, completion in zip(seeds, completions, strict=True):
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt + completion])).logits[0]
        steps = range(len(completion))
        wanted = choose(logits[len(prompt) - 1 : -1], [seed] * len(completion), list(steps), 0.9).argmax(-1)
        assert wanted.tolist() == completion


def test_sampling_stops_between_chunks_when_the_deadline_comes(policy):
    texts = [f"{i}+{i}=" for i in range(40)]
    asked = []
    done = sample(policy, texts, until=lambda: asked.append(1) is None and len(asked) > 1)
    assert 0 < len(done) < len(texts)
    assert done == sample(policy, texts)[: len(done)]


def test_one_group_is_done_even_after_the_deadline(policy):
    assert len(sample(policy, ["1+1=", "2+2="], until=lambda: True)) >= 1


def test_processor_counts_positions_from_the_end_of_the_padded_prompt():
    processors = LogitsProcessorList([SeededSampling([seed_of(1)], 5, 1.0)])
    scores = torch.zeros(1, 10)
    at_start = processors(torch.zeros(1, 5, dtype=torch.long), scores)
    assert torch.equal(at_start, gumbel_noise([seed_of(1)], [0], 10))

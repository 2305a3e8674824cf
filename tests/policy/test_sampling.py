"""Seeded sampling on its own, and through the real tiny model."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from transformers.generation import LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from swarm.manifest import Sampling
from swarm.policy.model import Policy
from swarm.policy.sampling import choose, gumbel_noise, perturbed

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
    choices = choose(logits, [seed_of(i) for i in range(20_000)], [3] * 20_000, Sampling(temperature=0.8))
    expected = torch.softmax(logits[0] / 0.8, -1)
    observed = torch.bincount(choices, minlength=4) / 20_000
    assert torch.allclose(observed, expected, atol=0.012)


def test_noise_is_pinned():
    """Auditors of every version must derive the same noise."""
    noise = gumbel_noise([bytes(32), bytes(range(32))], [0, 7], 3)
    expected = torch.tensor([[0.1840885, -0.5453030, 0.8866580], [0.1373973, -0.4035585, 0.9597582]])
    assert torch.allclose(noise, expected, atol=1e-6)


def test_a_seed_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        choose(torch.zeros(1, 3), [b"short"], [0], Sampling())


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
        settings = Sampling(temperature=0.9)
        wanted = choose(logits[len(prompt) - 1 : -1], [seed] * len(completion), list(steps), settings)
        assert wanted.tolist() == completion


def test_sampling_stops_between_chunks_when_the_deadline_comes(policy):
    texts = [f"{i}+{i}=" for i in range(40)]
    asked = []
    done = sample(policy, texts, until=lambda: asked.append(1) is None and len(asked) > 1)
    assert 0 < len(done) < len(texts)
    assert done == sample(policy, texts)[: len(done)]


def test_one_group_is_done_even_after_the_deadline(policy):
    assert len(sample(policy, ["1+1=", "2+2="], until=lambda: True)) >= 1


WARPED = [
    Sampling(top_k=5),
    Sampling(top_p=0.6),
    Sampling(temperature=0.7, top_k=20, top_p=0.8),
    Sampling(temperature=2.0, top_p=0.999),
    Sampling(top_k=1),
    Sampling(temperature=1.7, top_k=10_000, top_p=0.01),
]


def warp(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What transformers' own `generate` would sample from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits)


@pytest.mark.parametrize("sampling", WARPED)
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_filters_are_those_of_transformers(sampling, spread):
    torch.manual_seed(0)
    logits = torch.randn(60, 1500) * spread
    seeds, positions = [seed_of(row) for row in range(60)], list(range(60))
    warped = warp(logits, sampling)
    ours = perturbed(logits, seeds, positions, sampling)
    assert torch.equal(ours.isfinite(), warped.isfinite())
    noise = gumbel_noise(seeds, positions, 1500)
    wanted = (warped + noise).argmax(-1)
    assert torch.equal(choose(logits, seeds, positions, sampling), wanted)
    assert torch.equal(ours.argmax(-1), wanted)


def test_tokens_as_likely_as_the_last_of_the_top_k_stay():
    logits = torch.zeros(1, 3000)
    logits[0, 7] = 1.0
    for sampling in (Sampling(top_k=2), Sampling(top_k=2, top_p=0.9999)):
        assert perturbed(logits, [seed_of(0)], [0], sampling).isfinite().all()
    chosen = {int(choose(logits, [seed_of(i)], [0], Sampling(top_k=2))) for i in range(300)}
    assert len(chosen) > 100


def test_choices_follow_the_filtered_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]]).expand(20_000, -1)
    sampling = Sampling(temperature=0.8, top_k=4, top_p=0.9)
    choices = choose(logits, [seed_of(i) for i in range(20_000)], [3] * 20_000, sampling)
    expected = torch.softmax(warp(logits[:1], sampling)[0], -1)
    observed = torch.bincount(choices, minlength=5) / 20_000
    assert torch.allclose(observed, expected, atol=0.012)
    assert torch.equal(observed == 0, expected == 0)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=40, top_p=0.9), Sampling(top_p=0.7)])
def test_a_row_is_chosen_alone_as_in_a_batch(sampling):
    """Bit for bit, whatever the other rows need: blocks, spare candidates, sums."""
    torch.manual_seed(0)
    logits = torch.randn(40, 40_000) * torch.linspace(0.1, 4, 40)[:, None]
    seeds, positions = [seed_of(row) for row in range(40)], list(range(40))
    together = choose(logits, seeds, positions, sampling).tolist()
    alone = [int(choose(logits[r : r + 1], seeds[r : r + 1], [r], sampling)) for r in range(40)]
    assert together == alone
    backwards = choose(logits.flip(0), seeds[::-1], positions[::-1], sampling).flip(0).tolist()
    assert together == backwards


def test_the_tail_of_the_noise_is_fine():
    """Large noise decides choices: its logarithm of survival must fit far beyond fp32's 24 bits near 1."""
    noise = gumbel_noise([seed_of("tail", i) for i in range(40)], [0] * 40, 150_000).double().flatten()
    for level in (2.0, 6.0, 10.0, 13.0):
        expected = noise.numel() * -math.expm1(-math.exp(-level))
        assert (noise > level).sum().item() == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert noise.min() > -3.5
    assert noise.unique().numel() > 0.3 * noise.numel()  # not a few steps


def test_noise_does_not_collide_between_seeds_and_positions():
    rows = gumbel_noise([seed_of(i // 50) for i in range(2_500)], [i % 50 for i in range(2_500)], 8)
    assert len({tuple(row) for row in rows.tolist()}) == 2_500

"""Tokens chosen again by the committed model, with the real tiny model."""

import copy
import hashlib
import math
import random

import pytest
import torch
from msgspec.structs import replace

from swarm.manifest import Sampling
from swarm.policy.model import Policy
from swarm.policy.sampling import choose
from swarm.verde.gaps import gaps_of
from swarm.verde.provenance import Claim, Malformed, Mismatch, Provenance, rederive
from swarm.verde.thresholds import token_limits
from swarm.verde.verdicts import AuditClass

MAX_TOKENS = 8
CLASSES = (AuditClass.TOLERANT, AuditClass.SAME_BUILD)
FILTERED = Sampling(temperature=0.9, top_k=40, top_p=0.98)


def seed_of(*fields: object) -> bytes:
    return hashlib.sha256(repr(fields).encode()).digest()


def sampled(policy: Policy, count: int = 8, sampling: Sampling = Sampling(), salt: str = "") -> list[Claim]:  # noqa: B008
    rng = random.Random(0)
    texts = [f"{rng.randrange(100)}+{rng.randrange(100)}=" for _ in range(count)]
    texts[1] += "\nA) 12\nB) 13\nright?"
    prompts = [policy.encode_prompt(text) for text in texts]
    seeds = [[seed_of(index, row) for row in range(4)] for index in range(count)]
    used = [[hashlib.sha256(seed + salt.encode()).digest() if salt else seed for seed in s] for s in seeds]
    groups = policy.sample(prompts, used, max_tokens=MAX_TOKENS, sampling=sampling)
    return [
        Claim(prompt, group, [policy.decode(tokens) for tokens in group], group_seeds)
        for prompt, group, group_seeds in zip(prompts, groups, seeds, strict=True)
    ]


def with_completion(
    policy: Policy, claims: list[Claim], place: tuple[int, int], tokens: list[int]
) -> list[Claim]:
    group, row = place
    claim = claims[group]
    completions, texts = list(claim.completions), list(claim.texts)
    completions[row], texts[row] = tokens, policy.decode([t for t in tokens if 0 <= t < 101])
    return [*claims[:group], replace(claim, completions=completions, texts=texts), *claims[group + 1 :]]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load("tiny", threads=1)


@pytest.fixture(scope="module")
def claims(policy) -> list[Claim]:
    return sampled(policy)


@pytest.mark.parametrize("sampling", [Sampling(), FILTERED, Sampling(temperature=0.3)])
def test_honest_completions_pass(policy, sampling):
    found = rederive(policy, sampled(policy, 24, sampling), sampling, MAX_TOKENS)
    assert found.tokens > 200
    assert found.matching >= found.tokens - 1  # rounding swaps about one in a million
    assert not found.malformed
    for audit_class in CLASSES:
        assert not found.faulty(token_limits(audit_class, "fp32"))
        assert found.detail(token_limits(audit_class, "fp32")) == ""


def test_honest_completions_in_low_precision_pass():
    policy = Policy.load("tiny", threads=1, precision="bf16")
    found = rederive(policy, sampled(policy, 24), Sampling(), MAX_TOKENS)
    for audit_class in CLASSES:
        assert not found.faulty(token_limits(audit_class, "bf16"))


def test_one_edited_digit_fails_in_every_class(policy, claims):
    digits = [policy.encode_completion(str(digit))[0] for digit in range(10)]
    edits = 0
    for group, claim in enumerate(claims[:4]):
        for row, completion in enumerate(claim.completions):
            if completion[0] not in digits:
                continue
            edits += 1
            other = digits[(digits.index(completion[0]) + 1) % 10]
            edited = with_completion(policy, claims, (group, row), [other, *completion[1:]])
            found = rederive(policy, edited, Sampling(), MAX_TOKENS)
            for audit_class in CLASSES:
                for precision in ("fp32", "fp16", "bf16"):
                    limits = token_limits(audit_class, precision)
                    assert found.faulty(limits) == ((group, row),)
                    assert found.detail(limits).startswith(f"group {group} completion {row} token 0: gap ")
    assert edits >= 8


def test_an_edited_text_fails(policy, claims):
    texts = [*claims[2].texts[:3], claims[2].texts[3] + "0"]
    found = rederive(policy, [*claims[:2], replace(claims[2], texts=texts)], Sampling(), MAX_TOKENS)
    assert found.matching == found.tokens
    assert found.malformed == (Malformed(2, 3, "its text is not its tokens'"),)
    assert found.faulty(token_limits(AuditClass.TOLERANT, "bf16")) == ((2, 3),)


def test_what_no_sampler_makes_fails_without_an_exception(policy, claims):
    end, digit = policy.encoding.eos, policy.encode_completion("1")[0]
    cases = {
        (): "no tokens",
        (digit,) * 9: "9 tokens, at most 8 are allowed",
        (digit, 101): "a token outside of the vocabulary",
        (digit, 2**32 - 1): "a token outside of the vocabulary",
        (2**70, digit): "a token outside of the vocabulary",
        (-1, end): "a token outside of the vocabulary",
        (digit, end, digit, end): "it goes on after its end",
        (digit, digit): "it stops without an end",
    }
    for tokens, reason in cases.items():
        found = rederive(
            policy, with_completion(policy, claims[:2], (1, 0), list(tokens)), Sampling(), MAX_TOKENS
        )
        assert [one.reason for one in found.malformed] == [reason]
        for audit_class in CLASSES:
            limits = token_limits(audit_class, "fp32")
            assert found.faulty(limits) == ((1, 0),)
            assert found.detail(limits) == f"group 1 completion 0: {reason}"


def test_missing_and_surplus_completions_fail(policy, claims):
    short = replace(claims[0], completions=claims[0].completions[:3])
    found = rederive(policy, [short, claims[1]], Sampling(), MAX_TOKENS)
    assert found.faulty(token_limits(AuditClass.TOLERANT, "fp32")) == ((0, 3),)
    surplus = replace(claims[0], seeds=claims[0].seeds[:2])
    found = rederive(policy, [surplus, claims[1]], Sampling(), MAX_TOKENS)
    assert found.faulty(token_limits(AuditClass.TOLERANT, "fp32")) == ((0, 2), (0, 3))


def test_a_prompt_beyond_the_context_fails(policy, claims):
    long = replace(claims[0], prompt=claims[0].prompt * (policy.context_length // len(claims[0].prompt)))
    found = rederive(policy, [claims[1], long], Sampling(), MAX_TOKENS)
    assert len(found.malformed) == 4
    assert found.matching == found.tokens > 0


@pytest.mark.parametrize(
    ("sampling", "salt"),
    [(Sampling(temperature=1e-3), ""), (Sampling(temperature=0.8), ""), (Sampling(), "another seed")],
)
def test_other_sampling_fails(policy, sampling, salt):
    found = rederive(policy, sampled(policy, 8, sampling, salt), Sampling(), MAX_TOKENS)
    assert found.worst_gap > 0.5
    for audit_class in CLASSES:
        for precision in ("fp32", "bf16"):
            assert found.faulty(token_limits(audit_class, precision))


def test_another_state_fails(policy, claims):
    other = copy.copy(policy)
    other.model = copy.deepcopy(policy.model)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.01)
    found = rederive(other, claims, Sampling(), MAX_TOKENS)
    assert found.faulty(token_limits(AuditClass.TOLERANT, "fp32"))


def test_a_model_of_no_numbers_fails_without_an_exception(policy, claims):
    for value in (math.nan, math.inf):
        other = copy.copy(policy)
        other.model = copy.deepcopy(policy.model)
        with torch.no_grad():
            other.model.get_input_embeddings().weight.fill_(value)
        for sampling in (Sampling(), FILTERED):
            found = rederive(other, claims, sampling, MAX_TOKENS)
            assert found.worst_gap == math.inf
            assert found.faulty(token_limits(AuditClass.TOLERANT, "bf16"))


def test_batches_of_any_size_give_the_same(policy, claims, monkeypatch):
    edited = with_completion(policy, claims, (3, 1), [policy.encoding.eos])
    whole = rederive(policy, edited, Sampling(), MAX_TOKENS)
    monkeypatch.setattr(policy._generator, "max_tokens_at_once", 30)
    parts = rederive(policy, edited, Sampling(), MAX_TOKENS)
    assert [(m.group, m.completion, m.position) for m in whole.mismatches] == [(3, 1, 0)]
    assert parts.mismatches[0].gap == pytest.approx(whole.mismatches[0].gap, abs=1e-4)
    assert replace(parts, mismatches=(), worst_gap=0.0) == replace(whole, mismatches=(), worst_gap=0.0)


def test_many_small_differences_are_not_honest():
    limits = token_limits(AuditClass.TOLERANT, "fp32")
    allowed = limits.near_allowed(1000)
    for count, passes in ((allowed, True), (allowed + 1, False)):
        near = tuple(Mismatch(0, row, 0, limits.gap / 2) for row in range(count))
        found = Provenance(1000, 1000 - count, limits.gap / 2, near, ())
        assert (not found.faulty(limits)) == passes


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.3),
        Sampling(top_k=5),
        Sampling(top_k=1),
        Sampling(top_p=0.8),
        Sampling(top_k=7, top_p=0.8, temperature=1.5),
    ],
)
def test_rounding_of_logits_makes_gaps_of_at_most_twice_its_size(sampling):
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(2000, 97, generator=generator) * 3
    rounding = 0.02
    rounded = exact + (torch.rand(exact.shape, generator=generator) * 2 - 1) * rounding
    seeds = [seed_of(row) for row in range(len(exact))]
    positions = [0] * len(seeds)
    theirs, ours = (choose(logits, seeds, positions, sampling) for logits in (exact, rounded))
    differ = (theirs != ours).nonzero().flatten()
    assert len(differ) > 5
    gaps = gaps_of(
        rounded[differ], theirs[differ], [seeds[row] for row in differ], positions[: len(differ)], sampling
    )
    assert float(gaps.max()) <= 2 * rounding + 1e-5
    # And another token than the one that was chosen is nearly always farther off.
    edited = torch.where(ours == 5, 6, 5)
    gaps = gaps_of(rounded, edited, seeds, positions, sampling)
    assert float((gaps <= 2 * rounding).float().mean()) < 0.01

"""Provenance: are these completions what the committed model samples with these seeds?

Each group's prompt and its completions are read in one prefill, and every token is chosen again with the
noise of its seed (`swarm.policy.sampling`). Where another token stands, the gap (`swarm.verde.gaps`) says how
near it came. Prefill and generation round differently, on one machine too, so a token out of many may differ
by a small gap (`swarm.verde.thresholds`). What was edited, or sampled by another model or with another seed,
differs by gaps of the size of the noise, about 1.

Completions are a stranger's: whatever they hold, the outcome is a finding and no exception.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch
from msgspec import Struct

from swarm.errors import ModelError
from swarm.manifest import Sampling
from swarm.policy.devices import DTYPES, free_memory, is_out_of_memory
from swarm.policy.model import Policy
from swarm.policy.prefill import Group, Positions, prefill
from swarm.policy.sampling import choose_by_keys, position_keys, seed_words
from swarm.verde.gaps import gaps_of, measured_at_once
from swarm.verde.thresholds import TokenLimits

log = logging.getLogger("swarm.verde")

_LEAST_MEASURED = 64  # of the tokens that differ


class Claim(Struct, frozen=True):
    """A group as its peer published it, beside what the auditor knows of it: prompt and seeds.

    Attributes:
        prompt: in the model's tokens, redrawn by the auditor.
        completions: token ids, of any values and lengths.
        texts: of each completion.
        seeds: of each completion, 32 bytes.
    """

    prompt: list[int]
    completions: Sequence[Sequence[int]]
    texts: Sequence[str]
    seeds: Sequence[bytes]


class Mismatch(Struct, frozen=True):
    """A token where the model with the seed says another."""

    group: int
    completion: int
    position: int
    gap: float  # in logits; inf if the model gives no number, or if too much differs to measure all of it


class Malformed(Struct, frozen=True):
    """A completion that no sampler makes, whatever the model."""

    group: int
    completion: int
    reason: str


class Provenance(Struct, frozen=True):
    """What came out of re-deriving some groups.

    Attributes:
        tokens: that were chosen again.
        matching: how many of them stand where they should.
        worst_gap: of the mismatches, in logits; 0 without any.
        mismatches: in order of group, completion and position.
        malformed: in order; those with impossible lengths or tokens were not read by the model.
    """

    tokens: int
    matching: int
    worst_gap: float
    mismatches: tuple[Mismatch, ...]
    malformed: tuple[Malformed, ...]

    def faulty(self, limits: TokenLimits) -> tuple[tuple[int, int], ...]:
        """The completions `(group, completion)` that are not the model's, in order; none: the check passes.

        Those that are malformed or hold a token whose gap is over the limit; and if more tokens than honest
        ones differ by small gaps, all that hold such.
        """
        near = [mismatch for mismatch in self.mismatches if mismatch.gap <= limits.gap]
        bad = [mismatch for mismatch in self.mismatches if not mismatch.gap <= limits.gap]
        if len(near) > limits.near_allowed(self.tokens):
            bad += near
        malformed = {(one.group, one.completion) for one in self.malformed}
        return tuple(sorted(malformed | {(one.group, one.completion) for one in bad}))

    def detail(self, limits: TokenLimits) -> str:
        """The first thing that is wrong, in at most 80 characters; empty if the check passes."""
        faulty = self.faulty(limits)
        if not faulty:
            return ""
        place = f"group {faulty[0][0]} completion {faulty[0][1]}"
        for malformed in self.malformed:
            if (malformed.group, malformed.completion) == faulty[0]:
                return f"{place}: {malformed.reason}"[:80]
        here = [one for one in self.mismatches if (one.group, one.completion) == faulty[0]]
        first = next((one for one in here if not one.gap <= limits.gap), here[0])
        return f"{place} token {first.position}: gap {first.gap:.2g}"[:80]


def rederive(policy: Policy, claims: Sequence[Claim], sampling: Sampling, max_tokens: int) -> Provenance:
    """Choose every token of the claims again.

    Args:
        policy: its model holds the weights that were committed to, and computes as the peer's build says.
        claims: the groups; many are read in one batch.
        sampling: the manifest's.
        max_tokens: the stage's.

    Raises:
        ModelError: if there is not even memory here for one completion.
        ValueError: if a seed is not 32 bytes.
    """
    model = policy.model
    # What the sampler chose from, and what the model can read.
    vocabulary = min(
        model.get_output_embeddings().weight.shape[0], model.get_input_embeddings().weight.shape[0]
    )
    malformed: list[Malformed] = []
    rows: list[_Row] = []
    groups: list[Group] = []
    for index, claim in enumerate(claims):
        readable = len(claim.prompt) + max_tokens <= policy.context_length
        tokens_of: list[list[int]] = []
        parts = zip_longest(claim.completions, claim.texts, claim.seeds)
        for number, (completion, text, seed) in enumerate(parts):
            if completion is None or text is None or seed is None:
                malformed.append(Malformed(index, number, "one too few or too many"))
                continue
            tokens = list(completion)
            reason = "" if readable else "its prompt is longer than the model reads"
            reason = reason or _impossible(tokens, vocabulary, max_tokens)
            if not reason:
                rows.append(_Row(index, number, seed))
                tokens_of.append(tokens)
                reason = _misplaced_end(tokens, policy.encoding.ends, max_tokens)
                reason = reason or ("" if policy.decode(tokens) == text else "its text is not its tokens'")
            if reason:
                malformed.append(Malformed(index, number, reason))
        groups.append((claim.prompt, tokens_of))
    mismatches = _within_memory(policy, groups, rows, sampling)
    count = sum(len(completion) for _, completions in groups for completion in completions)
    return Provenance(
        tokens=count,
        matching=count - len(mismatches),
        worst_gap=max((mismatch.gap for mismatch in mismatches), default=0.0),
        mismatches=mismatches,
        malformed=tuple(malformed),
    )


class _Row(Struct, frozen=True):
    """A completion that the model reads; in the order in which prefill counts them."""

    group: int
    completion: int
    seed: bytes


def _impossible(tokens: Sequence[int], vocabulary: int, max_tokens: int) -> str:
    """Why the model cannot have said this and perhaps cannot even read it; empty if it can."""
    if not tokens:
        return "no tokens"
    if len(tokens) > max_tokens:
        return f"{len(tokens)} tokens, at most {max_tokens} are allowed"
    if not all(0 <= token < vocabulary for token in tokens):
        return "a token outside of the vocabulary"
    return ""


def _misplaced_end(tokens: Sequence[int], ends: frozenset[int], max_tokens: int) -> str:
    """Why no sampler stops here; empty if one does."""
    if any(token in ends for token in tokens[:-1]):
        return "it goes on after its end"
    if len(tokens) < max_tokens and tokens[-1] not in ends:
        return "it stops without an end"
    return ""


def _within_memory(
    policy: Policy, groups: Sequence[Group], rows: Sequence[_Row], sampling: Sampling
) -> tuple[Mismatch, ...]:
    """The mismatches in order, from smaller batches where memory runs out."""
    lower = policy.precision != "fp32"
    bound = policy.max_tokens_at_once
    while rows:
        try:
            # As the policy samples.
            with torch.autocast(
                policy.device.type, DTYPES[policy.precision] if lower else None, enabled=lower
            ):
                found = [*_mismatches(policy, groups, rows, sampling, bound)]
            return tuple(sorted(found, key=lambda one: (one.group, one.completion, one.position)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if bound == 1:
                raise ModelError("not enough memory to read one audited completion") from error
        free_memory()
        bound = max(1, bound // 2)
        log.warning("out of memory in an audit: now tokens_at_once=%d", bound)
    return ()


@torch.no_grad()
def _mismatches(
    policy: Policy, groups: Sequence[Group], rows: Sequence[_Row], sampling: Sampling, bound: int
) -> Iterator[Mismatch]:
    words = seed_words([row.seed for row in rows], policy.device)
    for part in prefill(policy.model, groups, max_tokens_at_once=bound):
        keys = position_keys(words[part.rows], part.positions.to(torch.int32))
        differ = choose_by_keys(part.logits, keys, sampling) != part.tokens
        if bool(differ.any()):
            yield from _gaps(part, differ, rows, sampling)


def _gaps(
    part: Positions, differ: torch.Tensor, rows: Sequence[_Row], sampling: Sampling
) -> Iterator[Mismatch]:
    """How far each of the tokens that differ is from being chosen."""
    wrong = differ.nonzero().flatten()
    # Of completions of another model nearly all differ: measuring each would take longer than reading them.
    measured = wrong[: max(_LEAST_MEASURED, len(differ) // 16)]
    gaps: list[float] = []
    for places in measured.split(measured_at_once(part.logits.shape[-1], sampling)):
        seeds = [rows[number].seed for number in part.rows[places].tolist()]
        positions = part.positions[places].tolist()
        gaps += gaps_of(part.logits[places], part.tokens[places], seeds, positions, sampling).tolist()
    gaps += [math.inf] * (len(wrong) - len(gaps))
    places = zip(part.rows[wrong].tolist(), part.positions[wrong].tolist(), gaps, strict=True)
    for number, position, gap in places:
        row = rows[number]
        yield Mismatch(row.group, row.completion, position, gap)

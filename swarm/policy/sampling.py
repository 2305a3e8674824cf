"""Seeded sampling: Gumbel-max with counter-based noise, the same for who samples and who audits.

The token at completion position t is `argmax_v(logits[v] / temperature + noise(seed, t, v))` among the tokens
that top-k and top-p leave, which is an exact sample of the filtered softmax (Gumbel 1954; Maddison et al.
2014, arXiv 1411.0030). The noise depends on the seed, the position and the token id only: not on the batch,
its order, its padding, the device (but for the rounding of its logarithms) or any generator's state. So
whoever has the prompt, the completion and the seed re-derives every choice in one prefill (DESIGN.md,
section 7).

**The noise.** SHA-256 of the seed gives four 32-bit words; these and the position give two keys of a row of
logits; the keys and the token id give 32 bits, in wrapping int32 arithmetic that every device has (torch has
no logical shift: an arithmetic one is masked). With w = (bits + 0.5) / 2**32, the noise is
`-log(-log1p(-w))`. What decides a choice is large noise, and that is where w is near 0: there fp32 holds w
with its full relative precision, `log1p` keeps it, and no fp64 is needed (MPS has none). Near 1, where w has
steps of 2**-24, the noise is at its least (-2.8) and its coarseness moves no probability by more than 2**-25.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Sequence

import torch

from swarm.manifest import Sampling

SEED_BYTES = 32
# Of C. Wellons' hash-prospector (lowbias32, bias 0.17); the second is 0x846CA68B as int32.
_FIRST_FACTOR, _SECOND_FACTOR = 0x7FEB352D, 0x846CA68B - 2**32
_BELOW_ONE = 1 - 2.0**-24  # the largest fp32 number under 1, where `log1p(-w)` is still finite
# Taken beside the k likeliest, for tokens that are as likely as the k-th (common in bf16).
_SPARE_CANDIDATES = 16
_TOP_P_CANDIDATES = 512  # hold the mass of most top-p filters
# Noise is made in blocks that fit the caches: 32 rows of 151,936 take 18 ms, in one piece 120 (2 cores).
_BLOCK_ELEMENTS = 2**19


def choose(
    logits: torch.Tensor, seeds: Sequence[bytes], positions: Sequence[int], sampling: Sampling
) -> torch.Tensor:
    """The tokens `[B]` that a seeded sampler chooses from `logits` `[B, V]`, on their device.

    Row b is for the 32 bytes `seeds[b]` at completion position `positions[b]`. Samplers and auditors share
    this.
    """
    return choose_by_keys(logits, row_keys(seeds, positions, logits.device), sampling)


def choose_by_keys(logits: torch.Tensor, keys: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """`choose` where the keys `[B, 2]` of the rows (see `position_keys`) are at hand."""
    # In blocks of rows: noise for a batch and a large vocabulary would go through memory a dozen times.
    rows = max(1, _BLOCK_ELEMENTS // logits.shape[-1])
    blocks = zip(logits.split(rows), keys.split(rows), strict=True)
    return torch.cat([_choose_block(block, block_keys, sampling) for block, block_keys in blocks])


def _choose_block(logits: torch.Tensor, keys: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    scores = _scores(logits, sampling)
    if not _filters(sampling, scores.shape[-1]):
        return _noise(keys, _mixed_tokens(scores.shape[-1], scores.device)).add_(scores).argmax(-1)
    # Noise only for tokens that can still win.
    values, tokens, floor = _candidates(scores, sampling)
    noise = _noise(keys, _mix(tokens.to(torch.int32)))
    best = noise.add_(values).masked_fill_(values < floor, float("-inf")).argmax(-1, keepdim=True)
    return tokens.gather(-1, best).squeeze(-1)


def perturbed(
    logits: torch.Tensor, seeds: Sequence[bytes], positions: Sequence[int], sampling: Sampling
) -> torch.Tensor:
    """What `choose` takes the argmax of, `[B, V]` fp32, -inf where filtered: how near a choice was."""
    scores = _scores(logits, sampling)
    noise = _noise(row_keys(seeds, positions, logits.device), _mixed_tokens(scores.shape[-1], scores.device))
    if _filters(sampling, scores.shape[-1]):
        _, _, floor = _candidates(scores, sampling)
        noise.masked_fill_(scores < floor, float("-inf"))
    return noise.add_(scores)


def gumbel_noise(seeds: Sequence[bytes], positions: Sequence[int], vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise `[B, V]`, fp32, on the CPU; row b is for `seeds[b]` at token `positions[b]`."""
    device = torch.device("cpu")
    return _noise(row_keys(seeds, positions, device), _mixed_tokens(vocabulary, device))


def row_keys(seeds: Sequence[bytes], positions: Sequence[int], device: torch.device) -> torch.Tensor:
    """The keys `[B, 2]` of one position per seed."""
    if len(seeds) != len(positions):
        raise ValueError(f"{len(seeds)} seeds but {len(positions)} positions")
    return position_keys(seed_words(seeds, device), torch.tensor(positions, dtype=torch.int32, device=device))


def seed_words(seeds: Sequence[bytes], device: torch.device) -> torch.Tensor:
    """Four words of each seed's SHA-256, `[B, 4]` int32. A seed is 32 bytes, anything else a `ValueError`."""
    if any(len(seed) != SEED_BYTES for seed in seeds):
        raise ValueError(f"a sampling seed is {SEED_BYTES} bytes")
    words = [struct.unpack(">4i", hashlib.sha256(seed).digest()[:16]) for seed in seeds]
    return torch.tensor(words, dtype=torch.int32, device=device).reshape(-1, 4)


def position_keys(words: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The keys `[..., 2]` int32 of positions `[...]` (int32) under seeds' words `[..., 4]`, broadcast.

    The second key is odd: it is multiplied by, which only odd numbers do without loss.
    """
    first = _mix(_mix(positions ^ words[..., 0]) + words[..., 1])
    second = _mix(_mix(positions ^ words[..., 2]) + words[..., 3]) | 1
    return torch.stack([first, second], dim=-1)


def _scores(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    scores = logits.to(torch.float32)
    return scores if sampling.temperature == 1 else scores / sampling.temperature


def _filters(sampling: Sampling, vocabulary: int) -> bool:
    return 0 < sampling.top_k < vocabulary or sampling.top_p < 1


def _candidates(scores: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The likeliest tokens, likeliest first, and the least score that survives.

    `scores` `[B, V]` → scores `[B, C]`, token ids `[B, C]`, floor `[B, 1]`. Every survivor is among the C;
    those under the floor are to be left out. Tokens as likely as the last survivor survive: an order among
    equals would differ between machines.
    """
    vocabulary = scores.shape[-1]
    top_k = sampling.top_k if 0 < sampling.top_k < vocabulary else 0
    width = top_k + _SPARE_CANDIDATES if top_k else _TOP_P_CANDIDATES
    while True:
        values, tokens = scores.topk(min(width, vocabulary), dim=-1)
        floor = _floor(scores, values, tokens, top_k, sampling.top_p)
        if width >= vocabulary or not bool((values[:, -1:] >= floor).any()):
            return values, tokens, floor
        width *= 16  # tokens that were not taken may survive too


def _floor(
    scores: torch.Tensor, values: torch.Tensor, tokens: torch.Tensor, top_k: int, top_p: float
) -> torch.Tensor:
    """The least surviving score `[B, 1]`; at most the last of the `values` where more than these may survive.

    With top-p, a token survives while the mass above it is under p. The sums must not depend on how many rows
    or candidates there are: softmax goes row by row and cumsum from the front, whatever the shape.
    """
    if top_k:
        floor = values[:, top_k - 1 : top_k]
        if top_p == 1:
            return floor
        masses = (values - values[:, :1]).exp_().masked_fill_(values < floor, 0)
    else:
        masses = scores.softmax(-1).gather(-1, tokens)
    upto = masses.cumsum(-1)
    survives = (upto - masses < top_p * (upto[:, -1:] if top_k else 1)) & (masses > 0)
    return values.masked_fill(~survives, float("inf")).amin(-1, keepdim=True)


@functools.lru_cache(maxsize=8)
def _mixed_tokens(vocabulary: int, device: torch.device) -> torch.Tensor:
    """The mixed ids `[1, V]` of a vocabulary, which every step needs again."""
    return _mix(torch.arange(vocabulary, dtype=torch.int32, device=device)).unsqueeze(0)


def _noise(keys: torch.Tensor, mixed_tokens: torch.Tensor) -> torch.Tensor:
    """Gumbel noise `[B, C]` for the keys `[B, 2]` and the mixed ids `[1 or B, C]` of tokens; a new tensor."""
    bits = (mixed_tokens ^ keys[:, :1]).mul_(keys[:, 1:])
    _mix_in_place(bits)
    uniform = bits.to(torch.float32).mul_(2.0**-32)
    uniform.add_(bits < 0)  # int32 is signed: the upper half of the 32-bit numbers came out as [-0.5, 0)
    uniform.add_(2.0**-33).clamp_(max=_BELOW_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit integers held in int32."""
    bits = bits.clone()
    _mix_in_place(bits)
    return bits


def _mix_in_place(bits: torch.Tensor) -> None:
    scratch = torch.empty_like(bits)
    for shift, factor in ((16, _FIRST_FACTOR), (15, _SECOND_FACTOR), (16, None)):
        torch.bitwise_right_shift(bits, shift, out=scratch)
        bits.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))
        if factor is not None:
            bits.mul_(factor)

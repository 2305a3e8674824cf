"""Seeded sampling: Gumbel-max with counter-based noise, as a transformers logits processor.

The token at completion position t is `argmax_v(logits[v] / temperature + noise(seed, t, v))`, which is an
exact sample of the softmax (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030). The noise depends on the
seed, the position and the token id only: not on the batch, its order, its padding or any generator's state.
So whoever has the prompt, the completion and the seed re-derives every choice in one prefill (DESIGN.md,
section 7).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

SEED_BYTES = 32
_MASK = 0xFFFFFFFF


def gumbel_noise(seeds: Sequence[bytes], positions: Sequence[int], vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise `[B, V]`, fp32, on the CPU; row b is for `seeds[b]` at token `positions[b]`.

    32 hashed bits make a uniform in (0, 1); the logarithms are taken in fp64, where it can reach neither end.
    """
    keys = [_row_key(seed, position) for seed, position in zip(seeds, positions, strict=True)]
    first = torch.tensor([key[0] for key in keys], dtype=torch.int64).unsqueeze(1)
    second = torch.tensor([key[1] for key in keys], dtype=torch.int64).unsqueeze(1)
    tokens = torch.arange(vocabulary, dtype=torch.int64).unsqueeze(0)
    bits = _mix(_mix(tokens ^ first) ^ second)
    uniform = (bits.to(torch.float64) + 0.5) * 2.0**-32
    return -torch.log(-torch.log(uniform)).to(torch.float32)


def choose(
    logits: torch.Tensor, seeds: Sequence[bytes], positions: Sequence[int], temperature: float
) -> torch.Tensor:
    """`logits / temperature + noise`, `[B, V]` fp32; the argmax of a row is what a seeded sampler chooses."""
    noise = gumbel_noise(seeds, positions, logits.shape[-1]).to(logits.device)
    return logits.to(torch.float32) / temperature + noise


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding of `model.generate` into seeded sampling; one seed for each row of the batch."""

    def __init__(self, seeds: Sequence[bytes], prompt_length: int, temperature: float) -> None:
        """`prompt_length` counts the padding: generated tokens begin there in every row."""
        if any(len(seed) != SEED_BYTES for seed in seeds):
            raise ValueError(f"a sampling seed is {SEED_BYTES} bytes")
        if temperature <= 0:
            raise ValueError(f"temperature must be over 0, got {temperature}")
        self._seeds = list(seeds)
        self._prompt_length = prompt_length
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` `[B, T]`, `scores` `[B, V]` → noisy scores `[B, V]`."""
        position = input_ids.shape[1] - self._prompt_length
        return choose(scores, self._seeds, [position] * len(self._seeds), self._temperature)


def _row_key(seed: bytes, position: int) -> tuple[int, int]:
    digest = hashlib.sha256(seed + position.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit integers held in int64 (lowbias32 of C. Wellons' hash-prospector, bias 0.17).

    Products stay below 2**63, so nothing overflows on any device.
    """
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x7FEB352D) & _MASK
    bits = bits ^ (bits >> 15)
    bits = _multiply(bits, 0x846CA68B)
    return bits ^ (bits >> 16)


def _multiply(bits: torch.Tensor, factor: int) -> torch.Tensor:
    """The low 32 bits of a product whose full width could pass 2**63."""
    high = ((bits >> 16) * factor & 0xFFFF) << 16
    return (high + (bits & 0xFFFF) * factor) & _MASK

"""How many bytes a model takes to sample and to learn, item by item. What fits is for `swarm.policy.plan`.

A peer samples and learns one after the other, so the larger of the two counts, beside what is always there.
`benchmarks/memory_plan.py` holds the sums against what a process really takes.
"""

from __future__ import annotations

import math

from msgspec import Struct

from swarm.policy.devices import Device, Precision
from swarm.policy.shape import Forward, Lengths, Shape

MIB = 2**20
GIB = 2**30
# nf4 with double quantization (QLoRA, arXiv 2305.14314): 4 bits, and 8 for the scale of 64 of them.
_FOUR_BIT_BYTES = 0.5 + 1 / 64 + 1 / 4096
_MOMENT_BYTES = 2 * 4  # AdamW's two, fp32
# The sampler's fp32 logits of a step: the model's, perturbed, and sorted or masked.
_LOGIT_COPIES = 3
# The learner's head makes logits in chunks: 32 MiB and copies for the gradient; on CUDA TRL's has tiles.
_HEAD_BYTES = {"cuda": 256 * MIB, "mps": 128 * MIB, "cpu": 128 * MIB}
# The hand-written decoder copies the weights of small models side by side (`swarm.policy.llama`).
_COPIED_WEIGHTS_BYTES = 256 * MIB
# Code, kernels and workspaces that the device holds once it is used.
_OVERHEAD_BYTES = {"cuda": 512 * MIB, "mps": 256 * MIB, "cpu": 128 * MIB}
# Of what is allocated and freed all the time; the CPU's from `benchmarks/memory_plan.py`.
_FRAGMENTATION = {"cuda": 1.05, "mps": 1.05, "cpu": 1.15}
# Where prompts cannot be shared, TRL's head makes logits of all tokens, a part of the words at a time, in
# so many fp32 copies (measured there too) but for CUDA's fused kernel.
_TRL_VOCABULARY_CHUNK = 32_768
_TRL_HEAD_COPIES = 8


class Choice(Struct, frozen=True):
    """How a model is loaded and trained."""

    precision: Precision
    lora: bool
    four_bit: bool
    gradient_checkpointing: bool


class Estimate(Struct, frozen=True):
    """Bytes per item. Of sampling and learning only the larger needs room; gradients are learning's."""

    weights: int
    adapter: int
    optimizer: int
    reference: int
    kv_cache: int
    sampling_logits: int
    gradients: int
    activations: int
    head: int
    overhead: int

    @property
    def sampling(self) -> int:
        """What sampling takes beside what is always there."""
        return self.kv_cache + self.sampling_logits

    @property
    def learning(self) -> int:
        """What learning takes beside what is always there."""
        return self.gradients + self.activations + self.head

    @property
    def total(self) -> int:
        """The most that is needed at any time."""
        always = self.weights + self.adapter + self.optimizer + self.reference + self.overhead
        return always + max(self.sampling, self.learning)


class Costs(Struct, frozen=True):
    """A model's bytes under one choice, as straight lines over the tokens at once."""

    estimate_of_nothing: Estimate  # without a token at once
    kv_cache_per_token: float
    logits_per_token: float
    activations_per_token: float
    least_learning: int  # optimizer's scratch space, needed when the activations are gone

    def estimate(self, sampling_tokens: int, learning_tokens: int) -> Estimate:
        """With so many tokens at once."""
        nothing = self.estimate_of_nothing
        return Estimate(
            weights=nothing.weights,
            adapter=nothing.adapter,
            optimizer=nothing.optimizer,
            reference=nothing.reference,
            kv_cache=math.ceil(self.kv_cache_per_token * sampling_tokens),
            sampling_logits=nothing.sampling_logits + math.ceil(self.logits_per_token * sampling_tokens),
            gradients=nothing.gradients,
            activations=max(self.least_learning, math.ceil(self.activations_per_token * learning_tokens)),
            head=nothing.head,
            overhead=nothing.overhead,
        )

    def sampling_tokens(self, free: int) -> int:
        """The most tokens at once that sampling has room for."""
        left = free - self._always - self.estimate_of_nothing.sampling_logits - 2  # two roundings up
        return max(0, math.floor(left / (self.kv_cache_per_token + self.logits_per_token)))

    def learning_tokens(self, free: int) -> int:
        """The most tokens at once that learning has room for."""
        nothing = self.estimate_of_nothing
        left = free - self._always - nothing.gradients - nothing.head - 1
        return max(0, math.floor(left / self.activations_per_token)) if left >= self.least_learning else 0

    @property
    def _always(self) -> int:
        nothing = self.estimate_of_nothing
        return nothing.weights + nothing.adapter + nothing.optimizer + nothing.reference + nothing.overhead


def costs(
    shape: Shape, forward: Forward, choice: Choice, lengths: Lengths, device: Device, has_reference: bool
) -> Costs:
    """What the model costs; `has_reference` if the swarm's loss has a KL term (`beta` over 0)."""
    low = 4 if choice.precision == "fp32" else 2
    base_bytes = low if choice.lora else 4
    weights = shape.buffer_bytes
    if choice.four_bit:
        weights += math.ceil(shape.adapted * _FOUR_BIT_BYTES) + (shape.parameters - shape.adapted) * low
    else:
        weights += shape.parameters * base_bytes
        if not choice.lora and low == 2:
            weights += shape.parameters * 2  # autocast keeps 16-bit copies
    trained = shape.adapter if choice.lora else shape.parameters
    copied = 0
    if not choice.lora and shape.parameters * base_bytes <= _COPIED_WEIGHTS_BYTES:
        copied = (shape.parameters - shape.head) * base_bytes
    # A layer's cache is copied when it grows by a token.
    kept_in_cache = shape.cached * base_bytes * (1 + 1 / shape.layers)
    fragmentation = _FRAGMENTATION[device.kind]
    nothing = Estimate(
        weights=weights,
        adapter=shape.adapter * 4 if choice.lora else 0,
        optimizer=trained * _MOMENT_BYTES,
        reference=shape.parameters * 4 if has_reference and not choice.lora else 0,
        kv_cache=0,
        sampling_logits=copied,
        gradients=trained * 4,
        activations=0,
        head=_HEAD_BYTES[device.kind],
        overhead=_OVERHEAD_BYTES[device.kind],
    )
    return Costs(
        estimate_of_nothing=nothing,
        kv_cache_per_token=kept_in_cache * fragmentation,
        logits_per_token=_LOGIT_COPIES * 4 * shape.vocabulary / lengths.row * fragmentation,
        activations_per_token=_activations(shape, forward, choice, lengths, device) * fragmentation,
        # CUDA's AdamW works on all weights in one go, in a copy.
        least_learning=trained * 4 if device.kind == "cuda" else 0,
    )


def _activations(shape: Shape, forward: Forward, choice: Choice, lengths: Lengths, device: Device) -> float:
    """Bytes per token of a micro-batch, counted as the learner does: a group's prompt once.

    The dearer of two kinds of micro-batch: whole groups, and one row with its prompt.
    """
    if choice.gradient_checkpointing:
        # Prompts cannot be shared then (no cache): each row is forwarded whole, and one layer computed again.
        row = forward.checkpointed_row + 2 * forward.row / shape.layers
        if device.kind != "cuda":
            row += lengths.row * _TRL_HEAD_COPIES * 4 * min(shape.vocabulary, _TRL_VOCABULARY_CHUNK)
        return max(row * lengths.group_size / lengths.group, row / lengths.row)
    group = forward.prompt + lengths.group_size * forward.completion
    single = forward.prompt + forward.completion
    # On the way back one layer's gradients are there beside what it kept.
    return max(group / lengths.group, single / lengths.row) * (1 + 1 / shape.layers)

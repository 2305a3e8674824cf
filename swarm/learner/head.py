"""Log-probabilities of tokens out of hidden states, a chunk at a time: all logits `[rows, T, V]` never exist.

TRL's `ChunkedLogProbFunction` does so by computing every logit twice, again in the backward pass. Where a
chunk's loss is known before the next chunk is begun, its gradient can be taken at once and nothing is
computed twice (Liger's way, arXiv 2410.10989); `swarm.learner.grpo` works like that. What each costs:
`benchmarks/update.py head`.
"""

from __future__ import annotations

from typing import Any

import torch
from trl.kernels import ChunkedLogProbFunction

# Logits of a chunk, fp32. Smaller chunks read and write the head's gradient more often; larger ones use more
# memory, and from 32 MiB on glibc asks the system for them anew each time (benchmarks/update.py head).
CHUNK_BYTES = 16 * 2**20
_TRL_VOCABULARY_CHUNK = 32_768  # TRL's own choice


def chunk_tokens(weight: torch.Tensor) -> int:
    """How many tokens' logits fit into a chunk of the head `[V, H]`; at least one."""
    if uses_triton(weight.device):
        return 2**62  # TRL's kernel makes its own chunks
    return max(1, CHUNK_BYTES // (4 * weight.shape[0]))


def uses_triton(device: torch.device) -> bool:
    """Whether TRL's kernel is fused there: then computing logits twice is cheaper than many small chunks."""
    return bool(device.type == "cuda")


def token_log_probs(
    states: torch.Tensor, weight: torch.nn.Parameter, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Log-probability of each target `[N]`, fp32, from its hidden state `[N, H]` and the head `[V, H]`.

    The head's gradient is added to `weight.grad` directly in the backward pass: through autograd each chunk
    would make another `[V, H]`.
    """
    if uses_triton(states.device) or len(states) > chunk_tokens(weight):
        return recomputed_log_probs(states, weight, targets, temperature)
    if weight.requires_grad and weight.grad is None and torch.is_grad_enabled():
        weight.grad = torch.zeros_like(weight)
    log_probs: torch.Tensor = _TokenLogProbs.apply(states, weight, targets, temperature)
    return log_probs


def recomputed_log_probs(
    states: torch.Tensor, weight: torch.nn.Parameter, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The same by TRL's kernel, for any N: logits are computed in tiles, and again in the backward pass."""
    log_probs: torch.Tensor = ChunkedLogProbFunction.apply(
        states, weight, None, targets, temperature, _TRL_VOCABULARY_CHUNK, None, 1.0, ("log_probs",)
    )[0]
    return log_probs


class _TokenLogProbs(torch.autograd.Function):
    """`log_softmax(states @ weight.T / temperature)` at the targets, with one `[N, V]` kept for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.nn.Parameter,
        targets: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        scaled = states.to(dtype) / temperature
        everything = torch.log_softmax(scaled @ weight.to(dtype).t(), -1, dtype=torch.float32)
        ctx.kept = everything, scaled, targets, weight
        ctx.temperature, ctx.states_dtype = temperature, states.dtype
        return everything.gather(1, targets.unsqueeze(1)).squeeze(1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        everything, scaled, targets, weight = ctx.kept
        del ctx.kept
        # d log p(target) / d logit_v = [v is the target] - p(v); made in place of the log-probabilities.
        logits_gradient = everything.exp_().mul_(-gradient.unsqueeze(1))
        logits_gradient.scatter_add_(1, targets.unsqueeze(1), gradient.unsqueeze(1))
        if weight.requires_grad:
            weight.grad.addmm_(logits_gradient.t().to(weight.grad.dtype), scaled.to(weight.grad.dtype))
        back = logits_gradient.to(scaled.dtype) @ weight.to(scaled.dtype)
        return (back / ctx.temperature).to(ctx.states_dtype), None, None, None

"""The gap: how near a token came to being chosen, where the sampler's rule says another.

In logits: the perturbed maximum less the perturbed value of the token that stands there, times the
temperature. With top-k and top-p it counts too what would bring that token in or a rival out. If no logit is
off by more than e, no gap is over 2 e (but where equal logits straddle the edge of top-k, and top-p then
shares out what they have).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from swarm.manifest import Sampling
from swarm.policy.sampling import perturbed

_RIVALS = 32  # tokens that are compared where filters are on: the one that stands there, and the best others
_BLOCK_ELEMENTS = 2**22  # of the largest tensor that is made


def measured_at_once(vocabulary: int, sampling: Sampling) -> int:
    """How many rows to give to `gaps_of` at a time."""
    return max(1, _BLOCK_ELEMENTS // (vocabulary * (_RIVALS if sampling.top_p < 1 else 1)))


def gaps_of(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    seeds: Sequence[bytes],
    positions: Sequence[int],
    sampling: Sampling,
) -> torch.Tensor:
    """How far tokens are from being chosen, `[B]`, in logits; see the module's docstring.

    Args:
        logits: `[B, V]`, of which `choose` takes other tokens.
        tokens: `[B]`, those that stand there.
        seeds: of the B rows.
        positions: of the B rows in their completions.
        sampling: the manifest's.
    """
    plain = Sampling(temperature=sampling.temperature)
    own = tokens[:, None]
    own_values = perturbed(logits, seeds, positions, plain).gather(-1, own)
    values = perturbed(logits, seeds, positions, sampling)
    if not 0 < sampling.top_k < logits.shape[-1] and sampling.top_p == 1:
        gaps = (values.amax(-1) - own_values.squeeze(-1)) * sampling.temperature
        return gaps.nan_to_num(math.inf, math.inf, math.inf)
    # A rival is either outdone or filtered out; the token itself must be in.
    best, rivals = values.topk(min(_RIVALS - 1, logits.shape[-1]))
    enter, leave = _filter_costs(logits.to(torch.float32), torch.cat([own, rivals], 1), sampling)
    behind = ((best - own_values) * sampling.temperature).clamp_min(0)
    gaps = torch.maximum(enter[:, 0], torch.minimum(behind, leave[:, 1:]).amax(-1))
    return gaps.nan_to_num(math.inf, math.inf, math.inf)


def _filter_costs(
    logits: torch.Tensor, tokens: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """What it takes to bring tokens `[B, C]` into top-k and top-p, and what to bring them out, `[B, C]` each.

    In differences of logits. Top-p asks whether what is likelier has a mass under p. That follows who is
    likelier: others change places with the token at the cost of their distance. And it follows the masses: if
    no logit is off by more than e, odds are off by at most a factor of exp(2 e / temperature).
    """
    temperature, vocabulary = sampling.temperature, logits.shape[-1]
    ordered, order = logits.sort(dim=-1, descending=True)
    own = logits.gather(-1, tokens)
    enter, leave = torch.zeros_like(own), torch.full_like(own, math.inf)
    scores = ordered / temperature
    if 0 < sampling.top_k < vocabulary:
        last, first_out = ordered[:, sampling.top_k - 1, None], ordered[:, sampling.top_k, None]
        enter, leave = (last - own).clamp_min(0), (own - first_out).clamp_min(0)
        scores = scores.masked_fill(ordered < last, -math.inf)
    if sampling.top_p < 1:
        odds = math.log(sampling.top_p / (1 - sampling.top_p))
        masses = scores.softmax(-1)
        upto = masses.cumsum(-1)
        ranks = torch.empty_like(order).scatter_(
            -1, order, torch.arange(vocabulary).to(order).expand_as(order)
        )
        rank = ranks.gather(-1, tokens)[..., None]
        places = torch.arange(vocabulary, device=logits.device)
        above = ordered[:, None] - own[..., None]  # [B, C, V]: how far over the token each other is
        too_much = (torch.logit((upto - masses).clamp(0, 1)) - odds) * temperature
        cost = torch.maximum(above, too_much[:, None]).masked_fill_(places > rank, math.inf)
        enter = torch.maximum(enter, cost.amin(-1).clamp_min(0))
        others = (upto[:, None] - masses.gather(-1, rank.squeeze(-1))[..., None]).clamp_(0, 1)
        too_little = (odds - torch.logit(others)) * temperature
        cost = torch.maximum(-above, too_little).masked_fill_(places < rank, math.inf)
        leave = torch.minimum(leave, cost.amin(-1).clamp_min(0))
    return enter, leave

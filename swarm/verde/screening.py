"""Screening: did the learn stage leave out of others' completions what the committed model finds unlikely?

And nothing else. A completion is admitted if each of its tokens is among the model's k likeliest and the
model can read it (`Training.admits`). Where the token and the k-th likeliest are nearly equal, rounding
decides, so a flag is wrong only if the logits lie clearly on the other side.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from msgspec import Struct

from swarm.errors import ModelError
from swarm.policy.devices import DTYPES, free_memory, is_out_of_memory
from swarm.policy.model import Policy
from swarm.policy.prefill import Group, prefill

log = logging.getLogger("swarm.verde")


class WrongFlag(Struct, frozen=True):
    """A completion that was clearly to be judged otherwise."""

    group: int
    completion: int
    admitted: bool  # what was claimed
    margin: float  # in logits, how far it is on the other side; inf if no logits decide


def wrong_flags(
    policy: Policy, groups: Sequence[Group], flags: Sequence[Sequence[bool]], k: int, tolerance: float
) -> tuple[WrongFlag, ...]:
    """The flags that are clearly wrong, in order.

    Args:
        policy: its model holds the weights of the state before the update.
        groups: prompts and completions in the model's tokens, as screened.
        flags: of each completion, whether it was admitted. `ValueError` if not one for each.
        k: the manifest's `external_top_k`; 0: whatever can be read is admitted.
        tolerance: how near to the k-th likeliest's logit either flag may be right.

    Raises:
        ModelError: if there is not even memory here for one completion.
    """
    counts = [len(completions) for _, completions in groups]
    if counts != [len(part) for part in flags]:
        raise ValueError("there must be a flag for each completion")
    excess = _within_memory(policy, groups, k)
    return tuple(
        WrongFlag(group, completion, admitted, abs(over))
        for group, (row, claimed) in enumerate(zip(excess, flags, strict=True))
        for completion, (over, admitted) in enumerate(zip(row, claimed, strict=True))
        if (over > tolerance if admitted else over < -tolerance)
    )


def _within_memory(policy: Policy, groups: Sequence[Group], k: int) -> list[list[float]]:
    """See `_excess`; from smaller batches where memory runs out."""
    lower = policy.precision != "fp32"
    bound = policy.max_tokens_at_once
    while True:
        try:
            # As the learn stage screens.
            with torch.autocast(
                policy.device.type, DTYPES[policy.precision] if lower else None, enabled=lower
            ):
                return _excess(policy, groups, k, bound)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if bound == 1:
                raise ModelError("not enough memory to read one screened completion") from error
        free_memory()
        bound = max(1, bound // 2)
        log.warning("out of memory in an audit: now tokens_at_once=%d", bound)


def _excess(policy: Policy, groups: Sequence[Group], k: int, bound: int) -> list[list[float]]:
    """For each completion the most by which the k-th likeliest logit exceeds that of a token of it.

    Over 0: to be left out. -inf where every token is admitted; inf where the model cannot read it.
    """
    fits = [
        [len(prompt) + len(completion) <= policy.context_length for completion in completions]
        for prompt, completions in groups
    ]
    vocabulary = policy.model.get_output_embeddings().weight.shape[0]
    worst = torch.tensor([-math.inf if is_short else math.inf for short in fits for is_short in short])
    worst = worst.to(policy.device)
    if 0 < k < vocabulary:
        readable = [
            (prompt, [c if is_short else [] for c, is_short in zip(completions, short, strict=True)])
            for (prompt, completions), short in zip(groups, fits, strict=True)
        ]
        for part in prefill(policy.model, readable, max_tokens_at_once=bound):
            own = part.logits.gather(-1, part.tokens[:, None])
            over = (part.logits.topk(k, dim=-1).values[:, -1:] - own).squeeze(-1)
            # Weights that are no numbers admit everything, as in `within_top_k`; the step's check fails them.
            over = over.nan_to_num(-math.inf, math.inf, -math.inf)
            worst.scatter_reduce_(0, part.rows, over, "amax")
    return [part.tolist() for part in worst.split([len(short) for short in fits])] if fits else []

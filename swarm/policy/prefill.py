"""Prefill for checks: the model's logits at every position of given completions, in bounded memory.

The prompt of a group is read once, its completions then in a batch, segment by segment, so that never more
than `MAX_LOGITS` logits exist at a time. Auditors re-derive each token from these with
`swarm.policy.sampling.choose`; the learner screens others' completions with them (`within_top_k`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from swarm.policy.decoder import ModelRows

Group = tuple[list[int], Sequence[list[int]]]
"""A prompt and completions of it."""

MAX_TOKENS_AT_ONCE = 32_768
MAX_LOGITS = 2**24  # of one batch's segment: 64 MiB in fp32, and as much again in the model's own dtype


@dataclass(frozen=True)
class Positions:
    """Some positions of some completions, with what the model says there. All on the model's device."""

    rows: torch.Tensor  # [N]: which completion, counted through all groups in order
    positions: torch.Tensor  # [N]: at which of its tokens
    tokens: torch.Tensor  # [N]: which token stands there
    logits: torch.Tensor  # [N, V] fp32: what the model would have there


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    groups: Sequence[Group],
    *,
    max_tokens_at_once: int = MAX_TOKENS_AT_ONCE,
    max_logits: int = MAX_LOGITS,
) -> Iterator[Positions]:
    """Every position of every completion exactly once, in no particular order.

    `max_tokens_at_once` bounds rows × (prompt + completion) of a batch, as in `Generator.sample`, and
    `max_logits` the N × V of what is yielded. A batch is at least one row, and a yield at least
    one position of each row.
    """
    model.eval()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    for batch in _batches(groups, max_tokens_at_once, max(1, max_logits // vocabulary)):
        yield from _read(model, groups, batch, max_logits // vocabulary)


def within_top_k(
    model: PreTrainedModel,
    groups: Sequence[Group],
    k: int,
    *,
    max_tokens_at_once: int = MAX_TOKENS_AT_ONCE,
    max_logits: int = MAX_LOGITS,
) -> list[list[bool]]:
    """For each completion whether all its tokens, EOS too, are among the model's k likeliest at their places.

    A token as likely as the k-th is within. With k 0, or not under the vocabulary's size, all are.
    """
    counts = [len(completions) for _, completions in groups]
    if k <= 0 or k >= model.get_output_embeddings().weight.shape[0]:
        return [[True] * count for count in counts]
    within = torch.ones(sum(counts), dtype=torch.bool, device=model.device)
    for part in prefill(model, groups, max_tokens_at_once=max_tokens_at_once, max_logits=max_logits):
        own = part.logits.gather(-1, part.tokens[:, None])
        likelier = (part.logits > own).sum(-1)
        within[part.rows[likelier >= k]] = False
    return [part.tolist() for part in within.split(counts)] if counts else []


@dataclass(frozen=True)
class _Row:
    """A completion that is not empty."""

    number: int  # counted through all groups
    group: int
    tokens: list[int]


def _batches(groups: Sequence[Group], max_tokens_at_once: int, max_rows: int) -> Iterator[list[_Row]]:
    """Rows to read together: of similar prompts, since these are padded to one length."""
    rows: list[_Row] = []
    number = 0
    for group, (_, completions) in enumerate(groups):
        for tokens in completions:
            if tokens:
                rows.append(_Row(number, group, tokens))
            number += 1
    rows.sort(key=lambda row: (len(groups[row.group][0]), row.group))
    batch: list[_Row] = []
    longest = 0
    for row in rows:
        length = max(longest, len(row.tokens))
        size = (len(batch) + 1) * (len(groups[row.group][0]) + length)
        if batch and (size > max_tokens_at_once or len(batch) == max_rows):
            yield batch
            batch, length = [], len(row.tokens)
        batch.append(row)
        longest = length
    if batch:
        yield batch


def _read(
    model: PreTrainedModel, groups: Sequence[Group], batch: list[_Row], max_positions: int
) -> Iterator[Positions]:
    owners = sorted({row.group for row in batch}, key=[row.group for row in batch].index)
    counts = [sum(row.group == owner for row in batch) for owner in owners]
    rows = ModelRows(model, [groups[owner][0] for owner in owners], counts)
    lengths = torch.tensor([len(row.tokens) for row in batch], device=model.device)
    numbers = torch.tensor([row.number for row in batch], device=model.device)
    width = max(len(row.tokens) for row in batch)
    # Padded on the right: what comes later changes nothing before it.
    tokens = torch.tensor(
        [row.tokens + [0] * (width - len(row.tokens)) for row in batch], device=model.device
    )
    segment = max(1, max_positions // len(batch))
    logits = rows.logits[:, None]
    start = 0
    while True:
        stop = start + logits.shape[1]
        positions = torch.arange(start, stop, device=model.device).expand(len(batch), -1)
        present = positions < lengths[:, None]
        yield Positions(
            numbers[:, None].expand_as(positions)[present],
            positions[present],
            tokens[:, start:stop][present],
            logits[present],
        )
        if stop == width:
            return
        # The token at position j is foretold by what the model says after the one at j - 1.
        logits = rows.extend(tokens[:, stop - 1 : min(stop + segment, width) - 1])
        start = stop

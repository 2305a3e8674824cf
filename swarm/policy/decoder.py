"""Rows of tokens under any causal language model of transformers: prompts once, then what follows them.

The model's own forward and cache do the work, so this takes whatever transformers runs: sliding windows,
adapters, quantised weights. Prompts are read once and their cache is copied for the rows that continue them;
where a model keeps no cache of keys and values (or none at all), the prompt is read for every row (or all of
the row at every step). `swarm.policy.llama` is faster for the models it knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

COMPACTION_PAYS = 0.75  # rows are copied out of a batch when at most this share of it goes on


class Rows(Protocol):
    """A batch that generation goes on with; equally many rows for each prompt, one after the other."""

    logits: torch.Tensor
    """What may follow the prompts, `[rows, V]` fp32."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """The rows' next tokens `[rows]` → the logits `[rows, V]` (fp32) of what may follow these."""

    def compact(self, alive: Sequence[bool]) -> list[int] | None:
        """Let rows leave that need not go on: which rows are left (all that are alive, perhaps more).

        None if nothing was done, since it would not pay.
        """


@dataclass
class Prompts:
    """Prompts `[B, P]` as the model has read them, padded on the left."""

    tokens: torch.Tensor
    lengths: torch.Tensor  # [B]
    mask: torch.Tensor | None  # [B, P], 0 where padded; None: nothing is
    logits: torch.Tensor  # [B, V] fp32, of what may follow
    cache: Any  # what the model gave; None if it gives none


def read_prompts(model: PreTrainedModel, prompts: Sequence[list[int]]) -> Prompts:
    """Prefill of prompts of any lengths."""
    width = max(map(len, prompts))
    # The padding is masked, so which token it is does not matter.
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    mask = None
    if any(len(prompt) < width for prompt in prompts):
        mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).to(torch.long)
    logits, cache = _forward(model, tokens, mask, None, 1)
    return Prompts(tokens, lengths, mask, logits[:, -1], cache)


class ModelRows:
    """Rows that continue prompts (see `Rows`), in the model's own cache where it can be copied."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]], counts: Sequence[int]) -> None:
        """Row after row, `counts[i]` of them for `prompts[i]`; put no row twice where that is avoidable."""
        self._model = model
        owners = [owner for owner, count in enumerate(counts) for _ in range(count)]
        read = read_prompts(model, prompts)
        self._selectable = _selectable(read.cache)
        if not self._selectable and len(owners) > len(prompts):
            read = read_prompts(model, [prompts[owner] for owner in owners])
            owners = list(range(len(owners)))
        index = torch.tensor(owners, device=model.device)
        self._cache = read.cache
        if self._selectable and owners != list(range(len(prompts))):
            self._cache.batch_select_indices(index)
        self._tokens = read.tokens[index]  # all so far; grown only where there is no cache
        self._mask = None if read.mask is None else read.mask[index]
        self.logits = read.logits[index]

    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        """The rows' next tokens `[rows, S]` → the logits `[rows, S, V]` (fp32) of what may follow each."""
        added = tokens.shape[1]
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(tokens.shape)], dim=1)
        if self._cache is None:
            self._tokens = torch.cat([self._tokens, tokens], dim=1)
            tokens = self._tokens
        logits, self._cache = _forward(self._model, tokens, self._mask, self._cache, added)
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Rows`."""
        return self.extend(tokens[:, None])[:, -1]

    def compact(self, alive: Sequence[bool]) -> list[int] | None:
        """See `Rows`."""
        kept = [row for row, living in enumerate(alive) if living]
        if len(kept) > len(alive) * COMPACTION_PAYS or not (self._selectable or self._cache is None):
            return None
        index = torch.tensor(kept, device=self._tokens.device)
        if self._cache is not None:
            self._cache.batch_select_indices(index)
        self._tokens = self._tokens[index]
        self._mask = None if self._mask is None else self._mask[index]
        return kept


def _forward(
    model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor | None, cache: Any, last: int
) -> tuple[torch.Tensor, Any]:
    """The logits `[B, last, V]` (fp32) after the last tokens of `[B, S]`, and the cache with these tokens."""
    known = _parameters(model)
    options: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if mask is not None:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp_(min=0)[:, -tokens.shape[1] :]
    options["logits_to_keep"] = last
    output = model(input_ids=tokens, **{name: value for name, value in options.items() if name in known})
    return output.logits[:, -last:].to(torch.float32), getattr(output, "past_key_values", None)


def _parameters(model: PreTrainedModel) -> frozenset[str]:
    """What the model's forward takes; an adapter passes everything on."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)


def _selectable(cache: Any) -> bool:
    """Whether rows of the cache can be repeated and dropped: it holds keys and values alone."""
    return isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )

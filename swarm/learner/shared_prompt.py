"""Hidden states of completions, with each group's prompt forwarded once.

A group's G rows begin with the same prompt. Instead of G times, it goes through the model once, with
gradients; its keys and values are repeated for the group's rows, and only the completions' tokens go through
the model as rows. The repetition is part of the graph: its gradients add up over the group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from swarm.errors import ModelError

# The probe's largest difference of a log-probability. fp32's rounding gives some 1e-6; a wrong position or
# mask, or something between the last hidden state and the logits, gives far more.
_TOLERANCE = 1e-3
_TOLERANCE_HALF = 0.1  # for weights of 16 bits


def causal_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its head, without peft's wrapping (adapters stay in)."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def completion_states(
    model: PreTrainedModel | PeftModel,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
) -> torch.Tensor:
    """The hidden state that predicts each completion token, `[B, T, H]`.

    Args:
        model: one for which `can_share_prompts` is true.
        prompt_ids: `[B, P]`, padded on the left; rows of one group follow on one another.
        prompt_mask: `[B, P]`, 0 at padding.
        completion_ids: `[B, T]`, padded on the right.
        completion_mask: `[B, T]`, 0 at padding.
    """
    backbone = causal_model(model).base_model
    # -1 at padding, so that a padding token is never taken for one of the prompt's.
    told_apart = prompt_ids.masked_fill(prompt_mask == 0, -1)
    prompts, counted = torch.unique_consecutive(told_apart, dim=0, return_counts=True)
    counts: list[int] = counted.tolist()
    mask = (prompts >= 0).to(prompt_mask.dtype)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    forwarded = backbone(
        input_ids=prompts.clamp(min=0), attention_mask=mask, position_ids=positions, use_cache=True
    )
    first = _repeat(forwarded.last_hidden_state[:, -1:], counts)
    if completion_ids.shape[1] == 1:
        return first
    lengths = torch.repeat_interleave(mask.sum(1), counted)
    steps = torch.arange(completion_ids.shape[1] - 1, device=completion_ids.device)
    rest = backbone(
        input_ids=completion_ids[:, :-1],  # the last token predicts nothing
        attention_mask=torch.cat([prompt_mask, completion_mask[:, :-1]], dim=1),
        position_ids=lengths.unsqueeze(1) + steps,
        past_key_values=_repeated(forwarded.past_key_values, counts),
        use_cache=True,
    ).last_hidden_state
    return torch.cat([first, rest], dim=1)


@torch.no_grad()
def can_share_prompts(model: PreTrainedModel | PeftModel) -> bool:
    """Whether `completion_states` and the plain head give this model's own log-probabilities.

    False for caches that are not plain keys and values (sliding windows, state-space layers), gradient
    checkpointing (it switches caches off), and heads that do more than one product. Tried out on a few
    tokens.
    """
    causal = causal_model(model)
    head = causal.get_output_embeddings()
    config = causal.config.get_text_config()
    if type(head) is not torch.nn.Linear or head.bias is not None or causal.is_activation_checkpointing:
        return False
    if getattr(config, "final_logit_softcapping", None) is not None:  # too flat near 0 for the probe to see
        return False
    training = model.training
    model.eval()
    try:
        return _probe(model, causal, head)
    # Models outside of what was foreseen refuse an argument, a cache or a mask in ways of their own.
    except (
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        IndexError,
        KeyError,
        NotImplementedError,
    ) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise ModelError("not enough memory to forward a dozen tokens") from error
        return False
    finally:
        model.train(training)


def _probe(model: PreTrainedModel | PeftModel, causal: PreTrainedModel, head: torch.nn.Linear) -> bool:
    """Two prompts of 5 and 3 tokens, three completions of 4, 2 and 3 tokens: shared, and each row alone."""
    vocabulary = head.weight.shape[0]
    tokens = (torch.arange(5 + 3 + 4 + 2 + 3) * 7919 % vocabulary).tolist()
    long, short = tokens[:5], tokens[5:8]
    rows = [(long, tokens[8:12]), (long, tokens[12:14]), (short, tokens[14:17])]
    device = head.weight.device
    cache = causal.base_model(input_ids=torch.tensor([long], device=device), use_cache=True).past_key_values
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return False
    prompts = torch.tensor([[0] * (5 - len(prompt)) + prompt for prompt, _ in rows], device=device)
    prompt_mask = torch.tensor(
        [[0] * (5 - len(prompt)) + [1] * len(prompt) for prompt, _ in rows], device=device
    )
    completions = torch.tensor([row + [0] * (4 - len(row)) for _, row in rows], device=device)
    completion_mask = torch.tensor([[1] * len(row) + [0] * (4 - len(row)) for _, row in rows], device=device)
    states = completion_states(model, prompts, prompt_mask, completions, completion_mask)
    shared = torch.log_softmax(head(states).float(), -1)
    difference = 0.0
    for index, (prompt, row) in enumerate(rows):
        logits = model(input_ids=torch.tensor([prompt + row], device=device)).logits[0, len(prompt) - 1 : -1]
        alone = torch.log_softmax(logits.float(), -1)
        difference = max(difference, (shared[index, : len(row)] - alone).abs().max().item())
    return difference < (_TOLERANCE if head.weight.dtype == torch.float32 else _TOLERANCE_HALF)


class _PromptLayer(DynamicLayer):
    """Keys and values of prompts `[groups, heads, P, D]`, handed out for each of the groups' rows."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, counts: Sequence[int]) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._counts = counts

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by a layer with the rows' own `[B, heads, T, D]`; nothing is kept: there is one call."""
        return _joined(self.keys, key_states, self._counts), _joined(self.values, value_states, self._counts)


def _repeated(cache: DynamicCache, counts: Sequence[int]) -> DynamicCache:
    repeated = DynamicCache()
    repeated.layers = [_PromptLayer(layer.keys, layer.values, counts) for layer in cache.layers]
    return repeated


def _repeat(tensor: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """`[groups, ...]` to `[B, ...]`. Unlike an index's, `expand`'s gradient has a fixed order on CUDA."""
    parts = [one.expand(count, *one.shape[1:]) for one, count in zip(tensor.split(1), counts, strict=True)]
    return torch.cat(parts)


def _joined(prompts: torch.Tensor, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Prompts `[groups, heads, P, D]` before their rows `[B, heads, T, D]`: `[B, heads, P + T, D]`."""
    groups, heads, _, size = prompts.shape
    if len(set(counts)) == 1:  # one copy instead of two
        by_group = rows.view(groups, counts[0], heads, -1, size)
        repeated = prompts.unsqueeze(1).expand(-1, counts[0], -1, -1, -1)
        return torch.cat([repeated, by_group], dim=3).flatten(0, 1)
    return torch.cat([_repeat(prompts, counts), rows], dim=2)

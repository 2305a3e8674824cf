"""Decoding for the Llama family, written by hand: few operations a step, and each prompt's cache held once.

A small model's step is mostly the overhead of its operations: this takes about a third of those of
transformers' forward, on weights copied side by side (queries, keys and values; gate and up). Attention is in
two parts, over the one cache of the group's prompt, with all rows of the group as its queries, and over the
rows' own tokens, under one softmax; so a prompt's keys are read once a step and not once a row. Prompts
themselves are read by the model's own forward.

What is not exactly as expected (`supports`) is left to `swarm.policy.decoder`. Equal to it up to rounding:
about 1e-6 in logits in fp32; in fp16 and bf16 rounding happens at other places than in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from swarm.policy.decoder import COMPACTION_PAYS, read_prompts

_FAMILY: dict[type, type] = {
    LlamaForCausalLM: LlamaRMSNorm,
    MistralForCausalLM: MistralRMSNorm,
    Qwen2ForCausalLM: Qwen2RMSNorm,
    Qwen3ForCausalLM: Qwen3RMSNorm,
}
# Tables of these do not depend on how long the text has become ("dynamic" and "longrope" do).
_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
_FUSED_BYTES = (
    256 * 2**20
)  # weights over this are used where they are: the copy would cost more than it saves


def supports(model: PreTrainedModel) -> bool:
    """Whether this module computes exactly this model: its class, layers, weights and attention."""
    norm = _FAMILY.get(type(model))
    if norm is None:
        return False
    config = model.config
    kinds = getattr(config, "layer_types", None) or []
    # Mistral's window has no list of layers beside it.
    windowed = type(model) is MistralForCausalLM and config.sliding_window is not None
    if (
        windowed
        or any(kind != "full_attention" for kind in kinds)
        or config.hidden_act != "silu"
        or config.rope_parameters.get("rope_type", "default") not in _ROPE_TYPES
        or config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0
    ):
        return False
    inner = model.model
    modules = [
        *(
            (layer.self_attn.get_submodule(f"{name}_proj"), nn.Linear)
            for layer in inner.layers
            for name in "qkvo"
        ),
        *(
            (layer.mlp.get_submodule(f"{n}_proj"), nn.Linear)
            for layer in inner.layers
            for n in ("gate", "up", "down")
        ),
        *((layer.input_layernorm, norm) for layer in inner.layers),
        *((layer.post_attention_layernorm, norm) for layer in inner.layers),
        (inner.norm, norm),
        (inner.embed_tokens, nn.Embedding),
        (model.lm_head, nn.Linear),
    ]
    weights = [parameter for parameter in model.parameters()]
    # Hooks and replaced forwards (accelerate's, when weights are spread or offloaded) would be passed by.
    return (
        all(type(module) is kind for module, kind in modules)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        and not any("forward" in vars(module) for module in model.modules())
        and all(weight.device == model.device and weight.dtype == model.dtype for weight in weights)
        and model.dtype in (torch.float32, torch.float16, torch.bfloat16)
    )


@dataclass(frozen=True)
class _Linears:
    """Linear maps of the same input: one matrix if copied side by side, else one after the other."""

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor | None, ...]

    @classmethod
    def of(cls, modules: Sequence[nn.Linear], dtype: torch.dtype, fused: bool = False) -> _Linears:
        weights = tuple(module.weight.to(dtype) for module in modules)
        biases = tuple(None if module.bias is None else module.bias.to(dtype) for module in modules)
        if not fused:
            return cls(weights, biases)
        present = [bias for bias in biases if bias is not None]
        return cls((torch.cat(weights),), (torch.cat(present) if present else None,))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        parts = [functional.linear(inputs, *pair) for pair in zip(self.weights, self.biases, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class _Layer:
    attention_norm: torch.Tensor
    qkv: _Linears
    head_norm: torch.Tensor | None  # [heads + kv heads, head_dim]: Qwen3 normalises queries and keys
    output: _Linears
    mlp_norm: torch.Tensor
    gate_up: _Linears
    down: _Linears


class LlamaDecoder:
    """A model's weights as decoding wants them. Made anew before sampling: weights change between calls."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` is one that `supports` says yes to."""
        self.model = model
        config = model.config
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        first = model.model.layers[0].self_attn
        self.head_dim: int = first.head_dim
        self.scaling: float = first.scaling
        self.epsilon: float = config.rms_norm_eps
        # Under autocast: products in the low precision, what is added up and normalised in the weights' own,
        # as autocast does; but the weights are cast once, not at every step.
        device = model.device.type
        self.dtype: torch.dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
        )
        fused = sum(weight.nbytes for weight in model.parameters()) <= _FUSED_BYTES
        self.layers = [self._layer(layer, fused) for layer in model.model.layers]
        self.head = _Linears.of([model.lm_head], self.dtype)

    def _layer(self, layer: nn.Module, fused: bool) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        head_norm = None
        if isinstance(self.model, Qwen3ForCausalLM):
            queries = attention.q_norm.weight.expand(self.heads, -1)
            keys = attention.k_norm.weight.expand(self.kv_heads, -1)
            head_norm = torch.cat([queries, keys]).to(self.dtype)
        return _Layer(
            layer.input_layernorm.weight,
            _Linears.of([attention.q_proj, attention.k_proj, attention.v_proj], self.dtype, fused),
            head_norm,
            _Linears.of([attention.o_proj], self.dtype),
            layer.post_attention_layernorm.weight,
            _Linears.of([mlp.gate_proj, mlp.up_proj], self.dtype, fused),
            _Linears.of([mlp.down_proj], self.dtype),
        )

    def norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMS norm of `[rows, H]`."""
        return functional.rms_norm(hidden, weight.shape, weight, self.epsilon).to(self.dtype)


class LlamaRows:
    """Rows that continue prompts (see `swarm.policy.decoder.Rows`): groups × width, each group's prompt once.

    The rows' own keys and values are in buffers `[groups, kv heads, width, max_tokens, head_dim]`: with the
    width inside, a group's queries lie together for its prompt, and a row's for its own tokens.
    """

    def __init__(
        self, decoder: LlamaDecoder, prompts: Sequence[list[int]], width: int, max_tokens: int
    ) -> None:
        """`width` rows for each prompt, of up to `max_tokens` tokens."""
        self._decoder = decoder
        self._groups, self._width, self._length = len(prompts), width, 0
        read = read_prompts(decoder.model, prompts)
        self.logits = read.logits.repeat_interleave(width, dim=0)
        layers, dtype = read.cache.layers, decoder.dtype
        self._prompt_keys = [layer.keys.to(dtype) for layer in layers]  # each [groups, kv heads, P, head_dim]
        self._prompt_values = [layer.values.to(dtype) for layer in layers]
        shape = (self._groups, decoder.kv_heads, width, max_tokens, decoder.head_dim)
        like = self._prompt_keys[0]
        self._keys = [like.new_empty(shape) for _ in decoder.layers]
        self._values = [like.new_empty(shape) for _ in decoder.layers]
        self._padding: torch.Tensor | None = None  # [groups, 1, P]: -inf at padding
        if read.mask is not None:
            self._padding = like.new_zeros(read.mask.shape).masked_fill_(read.mask == 0, float("-inf"))[
                :, None
            ]
        positions = read.lengths[:, None] + torch.arange(max_tokens, device=like.device)
        cos, sin = decoder.model.model.rotary_emb(like, positions)  # [groups, max_tokens, head_dim]
        half = decoder.head_dim // 2
        # rotate_half(x) is x rolled by half with its first half negated: the sign goes into the table.
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        self._cos, self._sin = (table.transpose(0, 1)[:, :, None, None].contiguous() for table in (cos, sin))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Rows`."""
        # What autocast would do is done by hand.
        with torch.autocast(tokens.device.type, enabled=False):
            return self._step(tokens)

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        decoder = self._decoder
        model = decoder.model
        hidden = functional.embedding(tokens, model.model.embed_tokens.weight)
        for index, layer in enumerate(decoder.layers):
            heads = layer.qkv(decoder.norm(hidden, layer.attention_norm))
            attended = self._attend(index, heads.view(self._groups, self._width, -1, decoder.head_dim))
            hidden = _add_linear(hidden, attended, layer.output)
            gate, up = layer.gate_up(decoder.norm(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = _add_linear(hidden, functional.silu(gate).mul_(up), layer.down)
        self._length += 1
        normed = decoder.norm(hidden, model.model.norm.weight)
        return decoder.head(normed).to(torch.float32)

    def _attend(self, index: int, heads: torch.Tensor) -> torch.Tensor:
        """One layer's: `[groups, width, heads + 2 × kv heads, head_dim]` → `[rows, heads × head_dim]`."""
        decoder = self._decoder
        groups, width, now = self._groups, self._width, self._length
        kv_heads, dim = decoder.kv_heads, decoder.head_dim
        queries_per_kv = decoder.heads // kv_heads
        rotated, values = heads[:, :, :-kv_heads], heads[:, :, -kv_heads:]
        head_norm = decoder.layers[index].head_norm
        if head_norm is not None:
            rotated = functional.rms_norm(rotated, (dim,), None, decoder.epsilon).mul_(head_norm)
        rolled = rotated.roll(dim // 2, -1)
        rotated = rotated.mul_(self._cos[now]).addcmul_(rolled, self._sin[now])
        self._keys[index][:, :, :, now] = rotated[:, :, decoder.heads :].transpose(1, 2)
        self._values[index][:, :, :, now] = values.transpose(1, 2)

        # The same memory twice: all queries of a group and kv head together, or those of one row.
        queries = heads.new_empty((groups, kv_heads, width, queries_per_kv, dim))
        by_head = rotated[:, :, : decoder.heads].unflatten(2, (kv_heads, queries_per_kv))
        torch.mul(by_head.transpose(1, 2), decoder.scaling, out=queries)
        of_group = queries.view(groups * kv_heads, width * queries_per_kv, dim)
        of_row = queries.view(groups * kv_heads * width, queries_per_kv, dim)

        prompt_keys = self._prompt_keys[index].flatten(0, 1)
        prompt_scores = torch.bmm(of_group, prompt_keys.transpose(1, 2))
        if self._padding is not None:
            prompt_scores.view(groups, -1, prompt_scores.shape[-1]).add_(self._padding)
        own_keys = self._keys[index].flatten(0, 2)[:, : now + 1]
        own_scores = torch.bmm(of_row, own_keys.transpose(1, 2)).view(*of_group.shape[:2], -1)
        scores = torch.cat([prompt_scores, own_scores], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(heads.dtype)

        prompt_length = prompt_keys.shape[1]
        from_prompt = torch.bmm(weights[..., :prompt_length], self._prompt_values[index].flatten(0, 1))
        own_weights = weights.view(*of_row.shape[:2], -1)[..., prompt_length:]
        own_values = self._values[index].flatten(0, 2)[:, : now + 1]
        attended = torch.baddbmm(from_prompt.view(of_row.shape), own_weights, own_values)
        return attended.view(groups, kv_heads, width, -1).transpose(1, 2).reshape(groups * width, -1)

    def compact(self, alive: Sequence[bool]) -> list[int] | None:
        """See `Rows`. The batch stays groups × width, so a group may keep a row that has ended."""
        width = self._width
        living = [sum(alive[start : start + width]) for start in range(0, len(alive), width)]
        groups, new_width = [group for group, count in enumerate(living) if count], max(living)
        if len(groups) * new_width > len(alive) * COMPACTION_PAYS:
            return None
        columns = [
            sorted(range(width), key=lambda column: not alive[group * width + column])[:new_width]
            for group in groups
        ]
        device = self._cos.device
        kept_groups = torch.tensor(groups, device=device)
        kept_columns = torch.tensor(columns, device=device)
        for buffers in (self._keys, self._values):
            for index, buffer in enumerate(buffers):
                # Only what is filled is copied; new tensors one by one, so that old ones are freed as we go.
                shape = (len(groups), buffer.shape[1], new_width, *buffer.shape[3:])
                filled = buffer[kept_groups[:, None], :, kept_columns, : self._length].transpose(1, 2)
                buffers[index] = buffer.new_empty(shape)
                buffers[index][:, :, :, : self._length] = filled
        if len(groups) < self._groups:
            self._prompt_keys = [keys[kept_groups] for keys in self._prompt_keys]
            self._prompt_values = [values[kept_groups] for values in self._prompt_values]
            self._cos, self._sin = self._cos[:, kept_groups], self._sin[:, kept_groups]
            self._padding = None if self._padding is None else self._padding[kept_groups]
        self._groups, self._width = len(groups), new_width
        return [
            group * width + column for group, chosen in zip(groups, columns, strict=True) for column in chosen
        ]


def _add_linear(residual: torch.Tensor, inputs: torch.Tensor, linear: _Linears) -> torch.Tensor:
    """`residual + linear(inputs)`, `[rows, H]`: one operation where there is no bias and one precision."""
    if linear.biases[0] is not None or residual.dtype != inputs.dtype:
        return residual + linear(inputs)
    return torch.addmm(residual, inputs, linear.weights[0].t())

"""Small random models of several families, made on the spot."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 97
END = 5

LAYOUT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # so that the logits are far from even
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


def seed_of(*fields: object) -> bytes:
    return hashlib.sha256(repr(fields).encode()).digest()


def make(name: str) -> PreTrainedModel:
    """A random model; biases and norms are random too, where transformers would start them at 0 and 1."""
    torch.manual_seed(1)
    model = _build(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and "mamba" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def _build(name: str) -> PreTrainedModel:
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**LAYOUT, attention_bias=True, mlp_bias=True))
    if name == "llama3-rope":
        return LlamaForCausalLM(LlamaConfig(**LAYOUT, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True))
    if name == "dynamic-rope":
        rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
        return LlamaForCausalLM(LlamaConfig(**LAYOUT, rope_parameters=rope))
    if name == "yarn-rope":
        return Qwen2ForCausalLM(Qwen2Config(**LAYOUT, rope_parameters=YARN_ROPE))
    if name == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**LAYOUT))
    if name == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**LAYOUT, head_dim=16))
    if name == "mistral":
        return MistralForCausalLM(MistralConfig(**LAYOUT, sliding_window=None))
    if name == "mistral-window":
        return MistralForCausalLM(MistralConfig(**LAYOUT, sliding_window=6))
    if name == "qwen2-window":
        options = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
        return Qwen2ForCausalLM(Qwen2Config(**LAYOUT, **options))
    if name == "gemma3":
        return Gemma3ForCausalLM(
            Gemma3TextConfig(**LAYOUT, head_dim=8, sliding_window=6, sliding_window_pattern=2)
        )
    if name == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, **sizes, bos_token_id=None, eos_token_id=END)
        )
    if name == "mamba":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
        return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, **sizes, eos_token_id=END, pad_token_id=0))
    raise ValueError(name)

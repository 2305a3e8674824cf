"""The model of DESIGN.md, section 10, that generation and updates are measured with: 1.05M parameters."""

from __future__ import annotations

from transformers import Qwen3Config

VOCABULARY = 2_048


def small_config(**change: object) -> Qwen3Config:
    """Qwen3-shaped: hidden 128, 4 layers, tied embeddings."""
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1_024,
        "tie_word_embeddings": True,
        "bos_token_id": None,
    }
    return Qwen3Config(**{**options, **change})

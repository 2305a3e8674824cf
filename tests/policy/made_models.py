"""Models made on the spot: tiny, random, in the layout of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from swarm.manifest import Learn, Manifest, Stage, TaskChoice
from swarm.policy.make_tiny import make_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}


def config(kind: str, **changed: object) -> PreTrainedConfig:
    """A configuration of an architecture ("qwen2", "llama", "gpt2"), of a hundred tokens' vocabulary."""
    common = {"vocab_size": 101, "eos_token_id": 4, "pad_token_id": 0, "bos_token_id": None}
    if kind == "gpt2":
        return GPT2Config(
            **{**common, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, **changed}
        )
    settings = {**common, **SMALL, "hidden_size": 32, "max_position_embeddings": 512, **changed}
    return (Qwen2Config if kind == "qwen2" else LlamaConfig)(**settings)


def save(folder: Path, kind: str = "qwen2", **changed: object) -> Path:
    """A whole model with random weights and the tiny model's tokenizer."""
    classes: dict[str, type[PreTrainedModel]] = {
        "qwen2": Qwen2ForCausalLM,
        "llama": LlamaForCausalLM,
        "gpt2": GPT2LMHeadModel,
    }
    torch.manual_seed(0)
    transformers_logging.disable_progress_bar()
    classes[kind](config(kind, **changed)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def describe(folder: Path, **changed: object) -> str:
    """A model's description without weights: enough for a plan. Qwen2 of any size."""
    folder.mkdir(parents=True, exist_ok=True)
    config("qwen2", **changed).save_pretrained(folder)
    return str(folder)


def change_json(path: Path, **changed: object) -> None:
    """Change some entries of a JSON file."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changed}))


def manifest(*models: str, max_tokens: int = 64, beta: float = 0.0, group_size: int = 8) -> Manifest:
    """A swarm of one stage that allows the models."""
    return Manifest(
        name="made",
        tasks=(TaskChoice(name="arithmetic"),),
        models=models,
        round_seconds=60,
        group_size=group_size,
        stages=(Stage(name="answer", ends_at=0.5, max_groups=8, max_tokens=max_tokens),),
        learn=Learn(ends_at=0.9, external_groups=0, learning_rate=1e-4, beta=beta),
    )


def hub_cache(cache: Path, repository: str, made: Path, commit: str = COMMIT) -> None:
    """The model as the hub's cache holds it: blobs, a snapshot of links to them, and the branch `main`."""
    root = cache / f"models--{repository.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(made.iterdir())):
        blob = root / "blobs" / f"{number:040x}"
        blob.write_bytes(file.read_bytes())
        (root / "snapshots" / commit / file.name).symlink_to(Path("../../blobs") / blob.name)

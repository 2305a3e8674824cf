"""Makes the embedded model `tiny` on a CPU: `python -m swarm.policy.make_tiny --seed 0 --out DIR`.

1. A character-level tokenizer: printable ASCII, newline, five special tokens; anything else is <unk>.
2. A Qwen3-architecture model, small enough that four peers train it on two cores.
3. Supervised phase 1: right texts only, so that the arithmetic and the formats are known.
4. Supervised phase 2: mostly mistakes, so that it is weak on purpose and there is something to reinforce.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from swarm.policy.lessons import LessonKind, draw

PAD, UNK, USER, ASSISTANT, END = "<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"
_SPECIAL = (PAD, UNK, USER, ASSISTANT, END)
_CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# It was taught on prompts of some 60 characters; positions are rotary, so it reads long ones too, badly.
CONTEXT = 4096
_IGNORED = -100  # a label that carries no loss


@dataclass(frozen=True)
class Phase:
    """A stretch of supervised training; `kinds` are the rows of each kind in one step's batch."""

    steps: int
    learning_rate: float
    right: float
    kinds: tuple[tuple[LessonKind, int], ...]


# Small batches at a high rate know the arithmetic soonest. All formats from the beginning: learned after the
# arithmetic, they destroyed it. Three minutes in all on one core.
PHASES = (
    Phase(1600, 8e-3, 1.0, (("answer", 128), ("critique", 20), ("revise", 20))),
    Phase(250, 1e-3, 0.34, (("answer", 160), ("critique", 16), ("revise", 16))),
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The character-level tokenizer: a BPE without merges, whose unknown characters are each one <unk>."""
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *_CHARACTERS])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNK, fuse_unk=False))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """An untrained model; its weights come from the seed."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    phases: Sequence[Phase],
    max_steps: int | None = None,
) -> None:
    """Supervised training in place; `max_steps` cuts every phase short (for tests)."""
    rng = random.Random(seed)
    ids = tokenizer.get_vocab()
    model.train()
    for number, phase in enumerate(phases, 1):
        steps = phase.steps if max_steps is None else min(max_steps, phase.steps)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        warmup = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step, w=warmup, n=steps: min((step + 1) / w, max(0.02, 1 - step / n))
        )
        began = time.monotonic()
        for step in range(steps):
            losses = {kind: _loss(model, ids, rng, kind, rows, phase.right) for kind, rows in phase.kinds}
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0 or step == steps - 1:
                seconds = time.monotonic() - began
                shown = " ".join(f"{kind}={loss.item():.3f}" for kind, loss in losses.items())
                print(f"phase={number} step={step} {shown} seconds={seconds:.0f}", flush=True)
    model.eval()


def weights_digest(model: Qwen3ForCausalLM) -> str:
    """SHA-256 over the parameters in the order of their names; tells whether two runs made the same model."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def make(seed: int, out: Path, max_steps: int | None = None) -> str:
    """Train and write the model folder; returns the digest of its weights.

    Sets torch to one thread: sums that are split over threads differ in their last bits.
    """
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    train(model, tokenizer, seed, PHASES, max_steps)
    out.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return weights_digest(model)


def _loss(
    model: Qwen3ForCausalLM,
    ids: Mapping[str, int],
    rng: random.Random,
    kind: LessonKind,
    rows: int,
    right: float,
) -> torch.Tensor:
    """Mean cross-entropy of the assistants' tokens over `rows` fresh lessons of one kind."""
    inputs, targets = [], []
    for _ in range(rows):
        lesson = draw(rng, kind, right)
        prompt = [ids[USER], *(ids[character] for character in lesson.user), ids[ASSISTANT]]
        completion = [*(ids[character] for character in lesson.assistant), ids[END]]
        inputs.append(prompt + completion)
        targets.append([_IGNORED] * len(prompt) + completion)
    width = max(map(len, inputs))
    input_ids = torch.tensor([row + [ids[PAD]] * (width - len(row)) for row in inputs])
    labels = torch.tensor([row + [_IGNORED] * (width - len(row)) for row in targets])[:, 1:]
    hidden = model.model(input_ids=input_ids).last_hidden_state[:, :-1]
    scored = labels != _IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[scored]), labels[scored])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the embedded model tiny from a seed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=None, help="cut every phase to this many steps")
    arguments = parser.parse_args()
    print(f"weights={make(arguments.seed, arguments.out, arguments.steps)}")


if __name__ == "__main__":
    main()

"""What learning costs, beside TRL's stock `GRPOTrainer`, on two threads in fp32.

    python benchmarks/update.py            # all three tables
    python benchmarks/update.py update     # one update on given completions: time, memory, gradients
    python benchmarks/update.py head       # log-probabilities and gradients out of hidden states
    python benchmarks/update.py step       # a whole GRPO step: generation, scoring, update

The model is Qwen3-shaped (hidden 128, 4 layers, 4 heads, 2 key-value heads of 32, intermediate 384,
vocabulary 2,048; random weights); 4 prompts × 8 completions × 64 tokens. Times are medians of interleaved
repetitions; memory is the peak of the resident set over what it was before, in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import torch
from datasets import Dataset
from small_model import VOCABULARY, small_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

from swarm.learner.batch import make_rows
from swarm.learner.head import chunk_tokens, recomputed_log_probs, token_log_probs
from swarm.learner.trainer import Learner, TrainingGroup
from swarm.manifest import Learn, Sampling
from swarm.policy.model import Policy

THREADS = 2
WORDS = VOCABULARY - 2  # and an end and padding
PROMPTS, COMPLETIONS, TOKENS = 4, 8, 64
PROMPT_LENGTHS = (64, 256)
LEARN = Learn(ends_at=0.9, external_groups=0, learning_rate=1e-5, groups_per_step=PROMPTS)
HEAD_VOCABULARY, HEAD_TOKENS, HEAD_HIDDEN = 32_768, 4_096, (128, 256, 512)


def make_model(folder: Path) -> None:
    """Write a model with random weights, and a tokenizer whose words are `w0`, `w1`, …"""
    torch.manual_seed(0)
    config = small_config(eos_token_id=WORDS, pad_token_id=WORDS + 1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    names = [f"w{index}" for index in range(WORDS)]
    names[:2] = ["1+1=", "2+2="]  # what a template is tried out on
    words = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="w2"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<end>",
        pad_token="<pad>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ).save_pretrained(folder)


def make_prompts(length: int) -> list[list[int]]:
    """Prompts of random tokens."""
    rng = random.Random(length)
    return [[rng.randrange(2, WORDS) for _ in range(length)] for _ in range(PROMPTS)]


def make_groups(length: int) -> list[TrainingGroup]:
    """Groups of random completions with random rewards."""
    rng = random.Random(length + 1)
    return [
        TrainingGroup(
            prompt,
            [[rng.randrange(2, WORDS) for _ in range(TOKENS)] for _ in range(COMPLETIONS)],
            [rng.random() for _ in range(COMPLETIONS)],
        )
        for prompt in make_prompts(length)
    ]


def make_learner(folder: Path) -> Learner:
    """Ours."""
    policy = Policy.load(str(folder), threads=THREADS)
    return Learner(policy, LEARN, COMPLETIONS, 1.0, TOKENS, folder / "work")


def make_stock(folder: Path, prompts: Sequence[list[int]], steps: int = 1) -> GRPOTrainer:
    """TRL's trainer; `train()` makes `steps` steps, each over all prompts."""
    policy = Policy.load(str(folder), threads=THREADS)
    texts = [" ".join(f"w{token}" for token in prompt) for prompt in prompts] or [""]
    config = GRPOConfig(
        output_dir=str(folder / "stock"),
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        per_device_train_batch_size=PROMPTS * COMPLETIONS,
        num_generations=COMPLETIONS,
        max_completion_length=TOKENS,
        learning_rate=LEARN.learning_rate,
        lr_scheduler_type="constant",
        epsilon=LEARN.epsilon,
        epsilon_high=LEARN.epsilon_high,
        max_steps=steps,
    )
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=lambda completion_ids, **_: [score(ids) for ids in completion_ids],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=policy.encoding.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def score(tokens: Sequence[int]) -> float:
    """A reward that costs nothing and differs between completions."""
    return sum(tokens) % 7 / 7


def stock_update(trainer: GRPOTrainer, groups: Sequence[TrainingGroup]) -> Callable[[], None]:
    """TRL's training step on given completions, without its generation, sampler and callbacks."""
    rows = make_rows(groups, "group", torch.device("cpu"))
    batch = rows.for_trl(int(rows.lengths.sum()))
    trainer.create_optimizer()
    trainer.model.train()

    def update() -> None:
        loss = trainer.compute_loss(trainer.model, batch)
        trainer.accelerator.backward(loss)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()

    return update


def our_update(learner: Learner, groups: Sequence[TrainingGroup]) -> Callable[[], None]:
    """All of `Learner.update`, from lists of tokens on."""

    def update() -> None:
        learner.update(groups)

    return update


def medians(contenders: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Seconds of each, taking turns; a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repetitions + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def peak_megabytes(run: Callable[[], None]) -> float:
    """How far the resident set rises; Linux counts its peak, and can be told to start anew."""
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return (peak * 1024 - before) / 2**20


def in_own_process(*arguments: str) -> float:
    """The number that `python benchmarks/update.py memory …` prints."""
    command = [sys.executable, __file__, "memory", *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def gradient_difference(folder: Path, groups: Sequence[TrainingGroup]) -> float:
    """Norm of our gradient less TRL's, over the norm of TRL's."""
    learner, stock = make_learner(folder), make_stock(folder, [])
    rows = make_rows(groups, "group", torch.device("cpu"))
    tokens = int(rows.lengths.sum())
    learner._trainer.backward(rows, len(rows), tokens)
    stock.model.train()
    stock.compute_loss(stock.model, rows.for_trl(tokens)).backward()
    ours, theirs = (
        torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        for model in (learner.policy.model, stock.model)
    )
    return float((ours - theirs).norm() / theirs.norm())


def update_table(folder: Path, repetitions: int) -> None:
    """One update on the same completions."""
    print("| update | TRL, s | ours, s | ratio | TRL, MB | ours, MB | gradients differ by |")
    print("|---|---|---|---|---|---|---|")
    for length in PROMPT_LENGTHS:
        groups = make_groups(length)
        contenders = {
            "stock": stock_update(make_stock(folder, []), groups),
            "ours": our_update(make_learner(folder), groups),
        }
        seconds = medians(contenders, repetitions)
        megabytes = {name: in_own_process(str(folder), name, str(length)) for name in contenders}
        print(
            f"| {length}-token prompts | {seconds['stock']:.3f} | {seconds['ours']:.3f} "
            f"| {seconds['stock'] / seconds['ours']:.2f} "
            f"| {megabytes['stock']:.0f} | {megabytes['ours']:.0f} "
            f"| {gradient_difference(folder, groups):.1e} |"
        )


def head_contenders(hidden: int) -> dict[str, Callable[[], None]]:
    """Three ways from hidden states to their gradient and the head's."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(HEAD_TOKENS, hidden, generator=generator, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(HEAD_VOCABULARY, hidden, generator=generator) / 10)
    targets = torch.randint(HEAD_VOCABULARY, (HEAD_TOKENS,), generator=generator)

    def full() -> None:
        states.grad = weight.grad = None
        log_probs = torch.log_softmax(states @ weight.t(), -1).gather(1, targets.unsqueeze(1))
        log_probs.mean().backward()

    def trl() -> None:
        states.grad = weight.grad = None
        recomputed_log_probs(states, weight, targets, 1.0).mean().backward()

    def ours() -> None:
        states.grad = weight.grad = None
        collected = torch.zeros_like(states)
        size = chunk_tokens(weight)
        for start in range(0, HEAD_TOKENS, size):
            piece = states[start : start + size].detach().requires_grad_()
            log_probs = token_log_probs(piece, weight, targets[start : start + size], 1.0)
            (log_probs.sum() / HEAD_TOKENS).backward()
            collected[start : start + size] = piece.grad
        states.grad = collected

    return {"full": full, "TRL": trl, "ours": ours}


def head_table(folder: Path, repetitions: int) -> None:
    """The language-model head alone."""
    print(
        f"| head of {HEAD_VOCABULARY:,}, {HEAD_TOKENS:,} tokens "
        "| hidden | s | full's s / s | MB | of full's |"
    )
    print("|---|---|---|---|---|---|")
    for hidden in HEAD_HIDDEN:
        contenders = head_contenders(hidden)
        seconds = medians(contenders, repetitions)
        megabytes = {name: in_own_process(str(folder), f"head-{name}", str(hidden)) for name in contenders}
        for name, label in (("full", "full logits"), ("TRL", "TRL's, logits twice"), ("ours", "ours")):
            print(
                f"| {label} | {hidden} | {seconds[name]:.2f} | {seconds['full'] / seconds[name]:.2f} "
                f"| {megabytes[name]:.0f} | {megabytes[name] / megabytes['full']:.2f} |"
            )


def our_steps(
    learner: Learner, prompts: list[list[int]], steps: int, parts: Mapping[str, list[float]]
) -> Callable[[], None]:
    """`steps` steps of ours; what their parts take goes into `parts`."""
    seeds = (hashlib.sha256(str(number).encode()).digest() for number in itertools.count())

    def run() -> None:
        for _ in range(steps):
            began = time.perf_counter()
            outputs = learner.policy.sample(
                prompts,
                [[next(seeds) for _ in range(COMPLETIONS)] for _ in prompts],
                max_tokens=TOKENS,
                sampling=Sampling(),
            )
            sampled = time.perf_counter()
            groups = [
                TrainingGroup(prompt, group, [score(tokens) for tokens in group])
                for prompt, group in zip(prompts, outputs, strict=True)
            ]
            learner.update(groups)
            parts["generation"].append(sampled - began)
            parts["update"].append(time.perf_counter() - sampled)

    return run


def step_table(folder: Path, repetitions: int) -> None:
    """Generation, scoring and update."""
    print("| whole step | TRL, s | ours, s | ratio | of ours: generation, s | update, s |")
    print("|---|---|---|---|---|---|")
    steps = 3  # of one `train()`, so that its beginning and end weigh little
    for length in PROMPT_LENGTHS:
        prompts = make_prompts(length)
        stock, learner = make_stock(folder, prompts, steps), make_learner(folder)
        parts: dict[str, list[float]] = {"generation": [], "update": []}
        seconds = medians(
            {"stock": stock.train, "ours": our_steps(learner, prompts, steps, parts)}, repetitions
        )
        print(
            f"| {length}-token prompts | {seconds['stock'] / steps:.2f} | {seconds['ours'] / steps:.2f} "
            f"| {seconds['stock'] / seconds['ours']:.2f} "
            f"| {statistics.median(parts['generation']):.2f} | {statistics.median(parts['update']):.2f} |"
        )


def print_memory(folder: Path, what: str, size: int) -> None:
    """The peak of one contender, in this process."""
    if what.startswith("head-"):
        run = head_contenders(size)[what.removeprefix("head-")]
    elif what == "stock":
        run = stock_update(make_stock(folder, []), make_groups(size))
    else:
        run = our_update(make_learner(folder), make_groups(size))
    print(peak_megabytes(run))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("all", "update", "head", "step", "memory"), default="all")
    parser.add_argument(
        "memory", nargs="*", help="for the processes that this starts: folder, contender, size"
    )
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    transformers_logging.disable_progress_bar()
    if arguments.what == "memory":
        folder, what, size = arguments.memory
        print_memory(Path(folder), what, int(size))
        return
    tables = {"update": update_table, "head": head_table, "step": step_table}
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        make_model(folder)
        for what, table in tables.items():
            if arguments.what in ("all", what):
                table(folder, arguments.repetitions)
                print()


if __name__ == "__main__":
    main()

"""What an audit costs, beside what it checks, in one run.

    python benchmarks/audits.py              # time: re-deriving tokens, repeating an update
    python benchmarks/audits.py bytes        # what is fetched for a model of the shape of Qwen2.5-0.5B

Times are of the model of DESIGN.md, section 10 (Qwen3-shaped, 1.05M parameters, fp32), 4 prompts × 8
completions × 64 tokens, medians of alternating repetitions. Tokens are checked beside TRL's own generation of
as many (benchmarks/generation.py), an update beside `Learner.update` itself (benchmarks/update.py). On a busy
machine the processor's time says more than the clock's; with OMP_WAIT_POLICY=PASSIVE it leaves out threads
that wait for one another.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import generation
import msgspec
import torch
import update
from small_model import VOCABULARY
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.utils import logging as transformers_logging

from swarm.exchange.wire import Completion, Group, GroupsBlob
from swarm.learner.checkpoints import Checkpoints, LearnerState
from swarm.learner.trainer import Learner
from swarm.manifest import Learn, Sampling
from swarm.policy.model import Policy
from swarm.verde.build import Build
from swarm.verde.provenance import Claim, rederive
from swarm.verde.step import repeat_step

LENGTHS = (64, 256)
MOST_OF_GENERATION, MOST_OF_UPDATE = 0.30, 1.2  # asked for


def provenance_table(folder: Path, repetitions: int) -> None:
    """Re-deriving tokens beside generating them."""
    trl, ours = generation.trl_generation(folder), generation.our_generation(True)
    tokenizer = generation.make_tokenizer()
    encoding = SimpleNamespace(ends=frozenset({generation.END}), decode=tokenizer.decode)
    policy = Policy(generation.make_model(), encoding, "small")  # type: ignore[arg-type]
    print("| provenance | TRL generates, s | ours generates, s | audit, s | of TRL's | CPU | tokens match |")
    print("|---|---|---|---|---|---|---|")
    for length in LENGTHS:
        generator = torch.Generator().manual_seed(length)
        prompts = torch.randint(1, VOCABULARY, (generation.PROMPTS, length), generator=generator).tolist()
        rows = ours(prompts)
        size = generation.GROUP_SIZE
        claims = [
            Claim(prompt, group, [encoding.decode(tokens) for tokens in group], generation.seeds_of(index))
            for index, prompt in enumerate(prompts)
            for group in [rows[index * size : (index + 1) * size]]
        ]

        def audit(claims: list[Claim] = claims) -> None:
            found = rederive(policy, claims, Sampling(), generation.MAX_TOKENS)
            if found.malformed or found.tokens - found.matching > 1:
                raise RuntimeError(f"honest completions are called wrong: {found}")

        contenders: dict[str, Callable[[], object]] = {
            "trl": lambda prompts=prompts: trl(prompts),
            "ours": lambda prompts=prompts: ours(prompts),
            "audit": audit,
        }
        seconds, cpu = medians(contenders, repetitions)
        found = rederive(policy, claims, Sampling(), generation.MAX_TOKENS)
        print(
            f"| {length}-token prompts | {seconds['trl']:.3f} | {seconds['ours']:.3f} "
            f"| {seconds['audit']:.3f} | **{seconds['audit'] / seconds['trl']:.1%}** "
            f"| {cpu['audit'] / cpu['trl']:.1%} | {found.matching:,} of {found.tokens:,} |"
        )
    print(f"\nAsked for: at most {MOST_OF_GENERATION:.0%} of TRL's.\n")


def step_table(folder: Path, repetitions: int) -> None:
    """Repeating an update beside making it."""
    print("| step | update, s | audit, s | ratio | CPU | audit where all differs, s | ratio | CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for length in LENGTHS:
        subject, auditor = update.make_learner(folder), update.make_learner(folder)
        batch = update.make_groups(length)
        build = Build(
            model="small",
            revision=None,
            lora=False,
            four_bit=False,
            precision="fp32",
            gradient_checkpointing=False,
            device="any",
            software="any",
            threads=torch.get_num_threads(),
            learning_tokens_at_once=subject.max_tokens_at_once,
            sampling_tokens_at_once=subject.policy.max_tokens_at_once,
        )
        subject.update(update.make_groups(length + 1))
        before = copied(subject.state())
        subject.update(batch)
        after = copied(subject.state())
        other = LearnerState(
            {name: tensor * 1.001 for name, tensor in after.weights.items()}, after.optimizer
        )
        same = repeat_step(auditor, build, before, batch, after)
        if same.fault or same.differing:
            raise RuntimeError(f"an honest update is called wrong: {same}")
        seconds, cpu = medians(
            {
                "update": lambda subject=subject, batch=batch: subject.update(batch),
                "audit": lambda case=(auditor, build, before, batch, after): repeat_step(*case),
                "other": lambda case=(auditor, build, before, batch, other): repeat_step(*case),
            },
            repetitions,
        )
        print(
            f"| {length}-token prompts | {seconds['update']:.3f} | {seconds['audit']:.3f} "
            f"| **{seconds['audit'] / seconds['update']:.2f}** | {cpu['audit'] / cpu['update']:.2f} "
            f"| {seconds['other']:.3f} | {seconds['other'] / seconds['update']:.2f} "
            f"| {cpu['other'] / cpu['update']:.2f} |"
        )
    print(f"\nAsked for: at most {MOST_OF_UPDATE} times the update.\n")


def medians(
    contenders: Mapping[str, Callable[[], object]], repetitions: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each by the clock, and of the processor, taking turns; a first turn is not counted."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(repetitions + 1):
        for name, run in contenders.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            run()
            if turn:
                taken[name].append((time.perf_counter() - began, time.process_time() - cpu_began))
    columns = (
        {name: statistics.median(one[i] for one in times) for name, times in taken.items()} for i in (0, 1)
    )
    seconds, cpu = columns
    return seconds, cpu


def copied(state: LearnerState) -> LearnerState:
    """A state as an auditor gets it."""
    parts = (state.weights, state.optimizer)
    return LearnerState(*({name: tensor.detach().clone() for name, tensor in part.items()} for part in parts))


def bytes_table(folder: Path) -> None:
    """What is fetched for one audit: files of an adapter, made by the node's own code, and a stage's blob."""
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=update.WORDS,
        pad_token_id=update.WORDS + 1,
    )
    update.make_model(folder)  # for its tokenizer
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    policy = Policy.load(str(folder), lora=True)
    learner = Learner(policy, Learn(ends_at=0.9, external_groups=0, learning_rate=1e-5), 8, 1.0, 256, folder)
    files = Checkpoints(folder / "checkpoints").save(learner.state(), None)
    rng = random.Random(0)
    groups = tuple(
        Group(
            index=index,
            completions=tuple(
                Completion.of([rng.randrange(151_643) for _ in range(256)], "text" * 256) for _ in range(8)
            ),
        )
        for index in range(8)
    )
    blob = len(msgspec.msgpack.encode(GroupsBlob(groups=groups)))
    weights, optimizer = files.weights.size_bytes, files.optimizer.size_bytes
    trained = sum(tensor.numel() for tensor in learner.weights().values())
    print(f"{policy.model.num_parameters() / 1e6:.0f}M parameters, {trained / 1e6:.1f}M of them trained:\n")
    rows = {
        "adapter's weights": weights,
        "optimizer": optimizer,
        "blob of 8 groups × 8 completions × 256 tokens": blob,
        "provenance: weights, one blob": weights + blob,
        "step, bit for bit: weights and optimizer before (the digest after is on the ledger)": weights
        + optimizer,
        "step: weights and optimizer, before and after": 2 * (weights + optimizer),
        "both: the same, and 17 blobs (own and 16 others')": 2 * (weights + optimizer) + 17 * blob,
    }
    print("| fetched | MB |\n|---|---|")
    for name, size in rows.items():
        print(f"| {name} | {size / 1e6:,.1f} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("time", "bytes"), default="time")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=update.THREADS)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    update.THREADS = arguments.threads  # models are loaded with as many
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        if arguments.what == "bytes":
            bytes_table(folder)
            return
        print(f"{arguments.threads} threads; load {os.getloadavg()[0]:.1f} before.\n")
        provenance_table(folder / "trl", arguments.repetitions)
        update.make_model(folder / "model")
        step_table(folder / "model", arguments.repetitions)


if __name__ == "__main__":
    main()

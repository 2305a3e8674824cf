"""The memory plan against what a process takes: `python benchmarks/memory_plan.py [--hidden 512 ...]`.

Makes a random Qwen2-shaped model in a folder, plans for it, and in a process of its own loads it, samples and
learns once with batches as large as planned. Compared is the growth of resident memory since the imports.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import psutil
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from swarm.manifest import Learn, Manifest, Stage, TaskChoice
from swarm.policy.devices import look_at
from swarm.policy.make_tiny import make_tokenizer
from swarm.policy.plan import Plan, Wishes, make_plan

PROMPT, COMPLETION, GROUP_SIZE, GROUPS = 192, 64, 8, 2

CASES = (
    (False, False, 0.0),
    (False, True, 0.0),
    (True, False, 0.0),
    (False, False, 0.1),
)  # LoRA, checkpointing, beta


def make_manifest(model: str, beta: float = 0.0) -> Manifest:
    """A swarm of one stage that allows the model."""
    return Manifest(
        name="memory",
        tasks=(TaskChoice(name="arithmetic"),),
        models=(model,),
        round_seconds=60,
        group_size=GROUP_SIZE,
        stages=(Stage(name="answer", ends_at=0.5, max_groups=GROUPS, max_tokens=COMPLETION),),
        learn=Learn(ends_at=0.9, external_groups=0, learning_rate=1e-5, groups_per_step=GROUPS, beta=beta),
    )


def make_model(folder: Path, hidden: int, layers: int, vocabulary: int) -> None:
    """Random weights; the tokenizer knows the first hundred tokens of the vocabulary."""
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    transformers_logging.disable_progress_bar()
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 2048
    tokenizer.save_pretrained(folder)


def live(plan: Plan) -> dict[str, int]:
    """Load, sample and learn as planned; bytes of resident memory grown, by phase."""
    from swarm.learner.trainer import Learner, TrainingGroup
    from swarm.manifest import Sampling
    from swarm.policy.model import Policy

    process = psutil.Process()
    before = process.memory_info().rss
    grown: dict[str, int] = {}
    policy = Policy.of(plan)
    learner = Learner(
        policy,
        make_manifest(plan.model, beta=1.0 if plan.estimate.reference else 0.0).learn,
        group_size=GROUP_SIZE,
        temperature=1.0,
        max_completion_tokens=COMPLETION,
        work_dir=Path(tempfile.gettempdir()),
    )
    learner.max_tokens_at_once = plan.learning_tokens_at_once
    grown["loaded"] = process.memory_info().rss - before
    rng = random.Random(0)
    prompts = [[rng.randrange(5, 100) for _ in range(PROMPT)] for _ in range(GROUPS)]
    seeds = [[rng.randbytes(32) for _ in range(GROUP_SIZE)] for _ in prompts]
    policy.sample(prompts, seeds, max_tokens=COMPLETION, sampling=Sampling())
    grown["sampled"] = _peak() - before
    completions = [[[rng.randrange(5, 100) for _ in range(COMPLETION)] for _ in group] for group in seeds]
    rewards = [float(index % 2) for index in range(GROUP_SIZE)]
    learner.update([TrainingGroup(p, c, rewards) for p, c in zip(prompts, completions, strict=True)])
    grown["learned"] = _peak() - before
    return grown


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def measure(plan: Plan) -> dict[str, int]:
    """`live` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--live"],
        input=msgspec.json.encode(plan),
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare the memory plan with what a process takes.")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--live", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.live:
        print(json.dumps(live(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), arguments.hidden, arguments.layers, arguments.vocabulary)
        for lora, checkpointing, beta in CASES:
            wishes = Wishes(device="cpu", lora=lora, gradient_checkpointing=checkpointing)
            plan = make_plan(make_manifest(folder, beta), wishes, device=look_at("cpu"), prompt_tokens=PROMPT)
            grown = measure(plan)
            planned = plan.estimate.total
            print(
                f"parameters={plan.parameters / 1e6:.1f}M lora={lora} checkpointing={checkpointing} "
                f"beta={beta} tokens={plan.sampling_tokens_at_once}/{plan.learning_tokens_at_once} "
                f"planned={planned / 2**20:.0f} measured={grown['learned'] / 2**20:.0f} MiB "
                f"({planned / grown['learned'] - 1:+.0%}) "
                f"by phase: {', '.join(f'{name} {size / 2**20:.0f}' for name, size in grown.items())}",
                flush=True,
            )


if __name__ == "__main__":
    main()

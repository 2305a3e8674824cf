"""Group generation beside TRL's own, in one run: 4 prompts × 8 completions × 64 tokens.

The model has 1M parameters, is Qwen3-shaped and made on the spot, with random weights, in fp32. "TRL" is
what `GRPOTrainer` does without vLLM: its own `_generate_single_turn` on prompts repeated G times. No token
that may be sampled ends a completion, for either side. Repetitions of all kinds alternate, so that a busy
machine slows all of them.

    python benchmarks/generation.py            # tokens per second
    python benchmarks/generation.py --noise    # what seeded sampling costs a step
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from small_model import VOCABULARY, small_config
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from swarm.manifest import Sampling
from swarm.policy import sampling
from swarm.policy.generation import Generator

END = VOCABULARY  # beyond what the model can say
PROMPTS, GROUP_SIZE, MAX_TOKENS = 4, 8, 64
ROWS = PROMPTS * GROUP_SIZE


def make_model() -> Qwen3ForCausalLM:
    """The model of DESIGN.md, section 10."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(small_config(eos_token_id=END, pad_token_id=0)).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word per token, and an end that the model cannot say."""
    vocabulary = {f"w{token}": token for token in range(VOCABULARY)} | {"<end>": END}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")),
        eos_token="<end>",
        pad_token="w0",
    )
    return tokenizer


def seeds_of(group: int) -> list[bytes]:
    """One seed per completion of a group."""
    return [hashlib.sha256(f"{group} {row}".encode()).digest() for row in range(GROUP_SIZE)]


def trl_generation(folder: Path) -> Callable[[list[list[int]]], list[list[int]]]:
    """TRL's generation, on a model of its own: prompts in, completions `[row][token]` out."""
    options = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS,
        num_generations=GROUP_SIZE,
        max_completion_length=MAX_TOKENS,
        temperature=1.0,
        top_k=0,
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=make_model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=options,
        train_dataset=Dataset.from_dict({"prompt": ["w1"] * ROWS}),
        processing_class=make_tokenizer(),
    )

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        repeated = [prompt for prompt in prompts for _ in range(GROUP_SIZE)]
        completions, _ = trainer._generate_single_turn(repeated, None, {}, GROUP_SIZE)
        return list(completions)

    return generate


def our_generation(by_hand: bool) -> Callable[[list[list[int]]], list[list[int]]]:
    """Ours, by hand or through the model's own forward."""
    generator = Generator(make_model(), SimpleNamespace(ends=frozenset({END})), by_hand=by_hand)
    seeds = [seeds_of(group) for group in range(PROMPTS)]

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        groups = generator.sample(prompts, seeds, max_tokens=MAX_TOKENS, sampling=Sampling())
        return [completion for group in groups for completion in group]

    return generate


def measure_generation(repetitions: int) -> None:
    """Print tokens per second: medians of alternating repetitions."""
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "TRL, prompts repeated": trl_generation(Path(folder)),
            "ours, through the model's forward": our_generation(False),
            "ours, by hand": our_generation(True),
        }
        rates: dict[tuple[str, int], list[float]] = {}
        lengths = (64, 256)
        for repetition in range(repetitions + 1):  # the first warms up
            for length in lengths:
                generator = torch.Generator().manual_seed(repetition)
                prompts = torch.randint(1, VOCABULARY, (PROMPTS, length), generator=generator).tolist()
                for name, generate in kinds.items():
                    began = time.perf_counter()
                    completions = generate(prompts)
                    seconds = time.perf_counter() - began
                    if [len(completion) for completion in completions] != [MAX_TOKENS] * ROWS:
                        raise RuntimeError(f"{name}: completions of another size")
                    if repetition:
                        rates.setdefault((name, length), []).append(ROWS * MAX_TOKENS / seconds)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    base = next(iter(kinds))
    print(f"Tokens per second, medians of {repetitions} ({torch.get_num_threads()} threads, fp32):\n")
    print("| | " + " | ".join(f"{length}-token prompts | × TRL" for length in lengths) + " |")
    print("|---|" + "---:|" * 2 * len(lengths))
    for name in kinds:
        cells = [f"{medians[name, n]:,.0f} | {medians[name, n] / medians[base, n]:.2f}" for n in lengths]
        print(f"| {name} | " + " | ".join(cells) + " |")


def measure_noise(repetitions: int) -> None:
    """Print milliseconds per step of choosing a token in each of 32 rows."""
    keys = sampling.row_keys([seed for group in range(PROMPTS) for seed in seeds_of(group)], [3] * ROWS, CPU)
    settings = {
        "plain": Sampling(),
        "top-k 50": Sampling(top_k=50),
        "top-k 50, top-p 0.9": Sampling(top_k=50, top_p=0.9),
        "top-p 0.9": Sampling(top_p=0.9),
    }
    vocabularies = (VOCABULARY, 151_936)
    print(f"Choosing {ROWS} tokens, milliseconds, medians of {repetitions}:\n")
    print("| | " + " | ".join(f"V = {vocabulary:,}" for vocabulary in vocabularies) + " |")
    print("|---|" + "---:|" * len(vocabularies))
    torch.manual_seed(0)
    # Peaked as a trained model's: a few tokens hold most of the mass.
    logits = {v: torch.randn(ROWS, v) * 2 + 12 * (torch.rand(ROWS, v) < 20 / v) for v in vocabularies}
    rows: dict[str, Callable[[int], object]] = {
        "argmax alone (greedy)": lambda v: logits[v].argmax(-1),
        "torch.multinomial of the softmax": lambda v: torch.multinomial(logits[v].softmax(-1), 1),
        "noise alone": lambda v: [
            sampling._noise(part, sampling._mixed_tokens(v, CPU))
            for part in keys.split(max(1, sampling._BLOCK_ELEMENTS // v))
        ],
    }
    for name, setting in settings.items():
        rows[f"choose: {name}"] = lambda v, chosen=setting: sampling.choose_by_keys(logits[v], keys, chosen)
    for name, run in rows.items():
        cells = []
        for vocabulary in vocabularies:
            seconds = []
            for _ in range(repetitions + 1):
                began = time.perf_counter()
                run(vocabulary)
                seconds.append(time.perf_counter() - began)
            cells.append(f"{statistics.median(seconds[1:]) * 1000:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


CPU = torch.device("cpu")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--noise", action="store_true", help="what seeded sampling costs a step")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    (measure_noise if arguments.noise else measure_generation)(arguments.repetitions)


if __name__ == "__main__":
    main()

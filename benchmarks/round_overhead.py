"""What a round costs besides generation and updates, in a real swarm of a 14M-parameter model.

    python benchmarks/round_overhead.py

Makes the model on the spot (the tiny model's tokenizer, taught the demo's task for a minute so that some
answers are right), then runs `swarm demo` with it and reads from the peers' records where the time went.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml
from rich.console import Console
from transformers import Qwen3Config, Qwen3ForCausalLM

from swarm.demo import Options, run_demo
from swarm.policy import make_tiny
from swarm.records import Records, RoundRecord

PHASE = make_tiny.Phase(70, 1e-3, 0.6, (("answer", 24), ("critique", 8), ("revise", 8)))
KINDS = ("beacon", "sample", "learn", "wait", "other")


def make_model(folder: Path, seed: int = 0) -> int:
    """A Qwen3-shaped model of some 14 million parameters that answers short sums badly; its parameters."""
    torch.manual_seed(seed)
    random.seed(seed)
    tokenizer = make_tiny.make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    make_tiny.train(model, tokenizer, seed, [PHASE])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def manifest(model: Path, round_seconds: int) -> str:
    """The demo's rules for this model, with operands of one digit."""
    rules = yaml.safe_load((Path(__file__).parent.parent / "configs" / "demo.yaml").read_text())
    rules |= {"name": "overhead", "models": [str(model)], "round_seconds": round_seconds}
    rules["task"]["parameters"] = {"digits": 1}
    return yaml.safe_dump(rules)


def table(rounds: list[RoundRecord], round_seconds: int) -> str:
    """Markdown: seconds by kind, and the overhead as a share of the round and of the work."""
    median = {kind: statistics.median(record.seconds[kind] for record in rounds) for kind in KINDS}
    overhead = median["beacon"] + median["other"]
    work = median["sample"] + median["learn"]
    lines = [
        "| " + " | ".join(KINDS) + " | overhead of the round | overhead beside the work |",
        "|" + "---|" * (len(KINDS) + 2),
        "| "
        + " | ".join(f"{median[kind]:.2f} s" for kind in KINDS)
        + f" | {overhead / round_seconds:.1%} | {overhead / work:.1%} |",
    ]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--round-seconds", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, home = Path(folder, "model"), Path(folder, "home")
        began = time.monotonic()
        parameters = make_model(model)
        print(f"made a model of {parameters:,} parameters in {time.monotonic() - began:.0f} s", flush=True)
        rules = Path(folder, "rules.yaml")
        rules.write_text(manifest(model, arguments.round_seconds))
        options = Options(arguments.peers, arguments.rounds, 1, Path(folder, "report.json"), rules, home)
        if run_demo(options, Console()):
            raise SystemExit("the demo failed")
        rounds = []
        for path in sorted(home.glob("demo/*/peer*/swarms/*/state.sqlite")):
            records = Records(path, read_only=True)
            rounds += records.rounds()[1:]  # the first one warms up
            records.close()
    print(f"\n{len(rounds)} rounds of {arguments.round_seconds} s, {arguments.peers} peers; medians\n")
    print(table(rounds, arguments.round_seconds))
    groups = statistics.median(record.groups for record in rounds)
    print(f"\ngroups sampled {groups:.0f}, tokens {statistics.median(r.tokens for r in rounds):.0f} a round")


if __name__ == "__main__":
    main()

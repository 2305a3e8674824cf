"""Completions scored a second as a node does it, through the process that can only compute.

    python benchmarks/scoring.py [configs/math.yaml ...]

One sender after the other, each with a group of completions for every question: half of them the reference
and half a wrong answer. Beside it what a new worker for each sender costs.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

from swarm.manifest import load
from swarm.task_process import TaskProcess

CONFIGS = Path(__file__).parent.parent / "configs"
DEFAULT = ("reasoning", "math", "code", "demo")
QUESTIONS, SENDERS = 16, 8


def main() -> None:
    """One line for each manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", nargs="*", type=Path)
    for path in parser.parse_args().manifests or [CONFIGS / f"{name}.yaml" for name in DEFAULT]:
        measure(path)


def measure(path: Path) -> None:
    """Prints figures of one manifest."""
    manifest = load(path)
    began = time.perf_counter()
    with TaskProcess(manifest) as tasks:
        ready = time.perf_counter() - began
        seeds = [hashlib.sha256(b"scoring" + bytes([n])).digest() for n in range(QUESTIONS)]
        began = time.perf_counter()
        questions = [tasks.draw(seed) for seed in seeds]
        drawn = time.perf_counter() - began
        half = manifest.group_size // 2
        groups = [
            (q, [f"{n}: {text}" for n in range(half) for text in (q.answer, tasks.wrong_answer(q))])
            for q in questions
        ]
        scored = refreshed = 0.0
        for _ in range(SENDERS):
            began = time.perf_counter()
            tasks.allow(None)
            refreshed += time.perf_counter() - began
            began = time.perf_counter()
            for question, completions in groups:
                tasks.judge(question, completions)
            scored += time.perf_counter() - began
    count = SENDERS * QUESTIONS * 2 * half
    print(
        f"{manifest.name:10} ready in {ready:4.1f} s, {QUESTIONS / drawn:8,.0f} draws/s, "
        f"{count / scored:9,.0f} completions/s, a new worker {refreshed / SENDERS * 1e3:.1f} ms",
        flush=True,
    )


if __name__ == "__main__":
    main()

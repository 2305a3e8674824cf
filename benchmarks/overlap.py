"""Whether learning beside the next round's sampling is quicker than one after the other.

    python benchmarks/overlap.py

The same work on two cores: sampling and then an update, each with two threads; and both at once in a process
each, with one thread each, on models of their own, as a node that overlaps them would need.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import torch
from round_overhead import make_model

from swarm.learner.trainer import Learner, TrainingGroup
from swarm.manifest import EMBEDDED_MODEL, Learn, Sampling
from swarm.policy.model import Policy

GROUP_SIZE, GROUPS, MAX_TOKENS = 8, 32, 8
LEARN = Learn(ends_at=0.9, external_groups=0, learning_rate=1e-5, epochs=2, groups_per_step=16)


class Worker:
    """A policy with its learner, and one round's work of each."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.policy = Policy.load(model, threads=threads)
        with tempfile.TemporaryDirectory() as folder:
            self.learner = Learner(self.policy, LEARN, GROUP_SIZE, 1.0, MAX_TOKENS, Path(folder))
        self.prompts = [self.policy.encode_prompt(f"{j}+{2 * j}=") for j in range(GROUPS)]
        self.seeds = [
            [hashlib.sha256(f"{j}-{g}".encode()).digest() for g in range(GROUP_SIZE)] for j in range(GROUPS)
        ]
        self.groups = [
            TrainingGroup(prompt, completions, [float(g % 2) for g in range(GROUP_SIZE)])
            for prompt, completions in zip(self.prompts, self.sample(), strict=True)
        ]

    def sample(self) -> list[list[list[int]]]:
        """One answer stage."""
        return self.policy.sample(self.prompts, self.seeds, max_tokens=MAX_TOKENS, sampling=Sampling())

    def update(self) -> None:
        """One update."""
        self.learner.update(self.groups)


def _serve(model: str, task: str, start: multiprocessing.Barrier, end: multiprocessing.Barrier) -> None:
    worker = Worker(model, 1)
    while True:
        start.wait()
        getattr(worker, task)()
        end.wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=8)
    repetitions = parser.parse_args().repetitions
    context = multiprocessing.get_context("spawn")
    print("| model | sampling, then update | both at once | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for name, model in (("tiny", EMBEDDED_MODEL), ("14M", folder)):
            start, end = context.Barrier(3), context.Barrier(3)
            processes = [
                context.Process(target=_serve, args=(model, task, start, end), daemon=True)
                for task in ("sample", "update")
            ]
            for process in processes:
                process.start()
            worker = Worker(model, 2)
            one_by_one, at_once = [], []
            for _ in range(repetitions):
                began = time.perf_counter()
                worker.sample()
                worker.update()
                one_by_one.append(time.perf_counter() - began)
                start.wait()
                began = time.perf_counter()
                end.wait()
                at_once.append(time.perf_counter() - began)
            for process in processes:
                process.kill()
            first, second = statistics.median(one_by_one[1:]), statistics.median(at_once[1:])
            print(f"| {name} | {first:.2f} s | {second:.2f} s | {first / second:.2f} |", flush=True)


if __name__ == "__main__":
    main()

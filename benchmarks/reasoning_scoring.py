"""How fast reasoning-gym's questions are drawn and answers scored, by the task and by the package alone.

    .venv/bin/python benchmarks/reasoning_scoring.py [--entries 20]

One core; all datasets that a manifest may name, equally often; entries are drawn before. Half of the answers
are the reference, and half are it with its last character changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import resource
import time

import msgspec

from swarm.tasks.base import Question
from swarm.tasks.prompts import answered, final_answer
from swarm.tasks.reasoning_gym import ReasoningGym, dataset_names


def wrong(question: Question) -> str:
    """The right answer with another last character."""
    right = final_answer(question.answer)
    return answered(right[:-1] + ("7" if right[-1] != "7" else "3"))


def main() -> None:
    """Prints one figure a line, and the slowest datasets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=20, help="of each dataset")
    entries = parser.parse_args().entries

    printed, quiet = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # some of the datasets print
    began = time.perf_counter()
    names = dataset_names()
    tasks = {name: msgspec.convert({"datasets": [{"name": name}]}, ReasoningGym) for name in names}
    for task in tasks.values():
        task.prepare()
    prepared = time.perf_counter() - began

    seeds = [hashlib.sha256(b"%d" % number).digest() for number in range(entries)]
    drawing, scoring, package = {}, {}, {}
    for name, task in tasks.items():
        began = time.perf_counter()
        questions = [task.draw(seed) for seed in seeds]
        drawing[name] = time.perf_counter() - began

        work = [(question, text) for question in questions for text in (question.answer, wrong(question))]
        began = time.perf_counter()
        right = sum(task.score(question, text) for question, text in work)
        scoring[name] = time.perf_counter() - began
        assert right >= entries

        direct = [
            (question.data.source.dataset, question.data.entry, final_answer(t)) for question, t in work
        ]
        began = time.perf_counter()
        for dataset, entry, answer in direct:
            with contextlib.suppress(Exception):  # some scorers raise on a wrong answer
                dataset.score_answer(answer=answer, entry=entry)
        package[name] = time.perf_counter() - began

    lines = [
        f"datasets {len(names)}, all prepared in {prepared:.1f} s, "
        f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB",
        f"draws {entries * len(names) / sum(drawing.values()):.0f}/s",
        f"scores {2 * entries * len(names) / sum(scoring.values()):.0f}/s",
        f"score_answer alone {2 * entries * len(names) / sum(package.values()):.0f}/s",
    ]
    for what, seconds, each in (("draw", drawing, entries), ("score", scoring, 2 * entries)):
        slowest = sorted(names, key=lambda name: -seconds[name])[:6]
        lines.append(
            f"slowest to {what}: " + ", ".join(f"{n} {seconds[n] / each * 1e3:.1f} ms" for n in slowest)
        )
    os.write(printed, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()

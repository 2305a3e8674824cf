"""Programs scored a second by the task `code`, on one core. `python benchmarks/code_scoring.py`

Beside it the same programs and tests by `subprocess.run([python, "-c", ...])`, which protects nothing, and
how long an endless loop and a crash take.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from swarm.errors import SandboxDied
from swarm.sandbox import Confined
from swarm.tasks.code import Code
from swarm.tasks.code.problems import Problem, fenced, program_of
from swarm.tasks.code.task import _question

GOAL = 20.0  # programs a second
SECONDS = 60.0
ENDLESS = "def f():\n    while True:\n        pass"
CRASH = b"crash"


def prepare(_argument: bytes) -> Callable[[bytes], bytes]:
    """What the confined process does: score the reference of a problem of the sample, by its number."""
    task = Code()
    task.prepare()
    endless = _question(Problem("", ENDLESS, ("f()",)))
    questions = [*map(_question, task._problems), endless]

    def handle(request: bytes) -> bytes:
        if request == CRASH:
            os._exit(1)
        question = questions[int(request)]
        return str(task.score(question, question.answer)).encode()

    return handle


def in_sandbox(confined: Confined, number: int) -> float:
    """The score of a reference."""
    return float(confined.call(b"%d" % number, SECONDS))


def bare(problem: Problem) -> float:
    """The same without any protection."""
    parts = [problem.beginning, program_of(fenced(problem.reference)), problem.setup, *problem.tests]
    done = subprocess.run([sys.executable, "-c", "\n".join(parts)], capture_output=True, check=False)
    return float(done.returncode == 0)


def timed(score: Callable[[], float], expected: float) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    if score() != expected:
        raise SystemExit("a program was scored wrongly")
    return time.perf_counter() - start


def main() -> None:
    """Print the figures that stand in benchmarks/README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=8, help="of the whole sample")
    repetitions = parser.parse_args().repetitions
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"load before: {os.getloadavg()[0]:.1f}")
    start = time.perf_counter()
    with Confined("code_scoring") as confined:
        print(f"ready, references tried, after {time.perf_counter() - start:.1f} s")
        problems = Code(check_references=False)._problems
        ours, plain = [], []
        for _ in range(repetitions):  # interleaved: the machine may be shared
            for number, problem in enumerate(problems):
                ours.append(timed(lambda number=number: in_sandbox(confined, number), 1.0))  # type: ignore[misc]
                plain.append(timed(lambda problem=problem: bare(problem), 1.0))  # type: ignore[misc]
        endless = timed(lambda: in_sandbox(confined, len(problems)), 0.0)
        start = time.perf_counter()
        try:
            confined.call(CRASH, SECONDS)
        except SandboxDied:
            again = time.perf_counter() - start
    for name, seconds in (("confined, in WebAssembly", ours), ("bare subprocess", plain)):
        each = sum(seconds) / len(seconds)
        print(
            f"{name}: {1 / each:.0f} programs/s (mean {1000 * each:.1f} ms, "
            f"median {1000 * statistics.median(seconds):.1f} ms, slowest {1000 * max(seconds):.1f} ms)"
        )
    print(f"asked for: {GOAL:.0f} programs/s")
    print(
        f"an endless loop ends after {endless:.2f} s; a crashed worker is replaced in {1000 * again:.0f} ms"
    )


if __name__ == "__main__":
    main()

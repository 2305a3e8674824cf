"""Answers scored a second, one process and one core. `python benchmarks/math_scoring.py`

The shipped sample's questions, with completions as a group has them: some repeat, three of four
end in a number, the rest in LaTeX. `math-verify` is the library's `parse` and `verify` on the same pairs,
with the reference parsed once; every answer is also scored once only, without what either side remembers
between calls.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from statistics import median

from swarm.tasks.base import Question
from swarm.tasks.math_equal import forget
from swarm.tasks.math_word import MathWord, completion_answer

QUESTIONS = 400
COMPLETIONS = 8
LATEX_SHARE = 0.25
REPEATS = 5
# What a model writes in place of a LaTeX answer when it is wrong.
_WRONG = (
    r"\frac{{\sqrt{{{0}}}}}{{{1}}}",
    r"{0}\sqrt{{{1}}}",
    r"({0}, {1}]",
    r"\frac{{{0}\pi}}{{{1}}}",
    "x = {0}x + {1}",
)


def main() -> None:
    """Scores of completions with numbers and with LaTeX."""
    task = MathWord()
    task.prepare()
    pairs = _math_pairs(task)
    latex = sum("\\" in answer or "(" in answer for _, _, answer in pairs) / len(pairs)
    distinct = len({(question.answer, answer) for question, _, answer in pairs})
    print(f"math: {len(pairs):,} answers, {distinct:,} different, {latex:.0%} LaTeX")

    def ours() -> float:
        return sum(task.score(question, completion) for question, completion, _ in pairs)

    _show("ours", ours, forget, len(pairs))
    _show("ours, remembered", ours, lambda: None, len(pairs))
    _show("math-verify", *_math_verify(pairs), len(pairs))


def _math_pairs(task: MathWord) -> list[tuple[Question, str, str]]:
    """Question, completion, and the answer in it."""
    chance = random.Random(0)
    seeds = (hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(10**6))
    sorted_out: dict[bool, list[Question]] = {True: [], False: []}
    for question in (task.draw(seed) for seed in seeds):
        of_kind = sorted_out["\\" in question.answer or "(" in question.answer]
        if len(of_kind) < QUESTIONS:
            of_kind.append(question)
        if min(map(len, sorted_out.values())) == QUESTIONS:
            break
    pairs = []
    for index in range(QUESTIONS):
        latex = index < QUESTIONS * LATEX_SHARE
        question = sorted_out[latex][index]
        right = completion_answer(question.answer)
        for _ in range(COMPLETIONS):
            kind = chance.random()
            if kind < 0.4:
                answer = right if kind < 0.2 else right.replace("\\frac", "\\dfrac").replace(" ", "")
            elif latex:
                answer = chance.choice(_WRONG).format(chance.randint(2, 99), chance.randint(2, 9))
            else:
                answer = str(chance.randint(0, 200))
            completion = f"First, there are 12 of them, so we need 3 more.\nThus it is \\boxed{{{answer}}}."
            pairs.append((question, completion, answer))
    return pairs


def _math_verify(pairs: list[tuple[Question, str, str]]) -> tuple[Callable[[], float], Callable[[], None]]:
    from math_verify import parse, verify
    from math_verify.parser import extract_latex, parse_expr_cached, parse_latex_cached

    references = {
        question.answer: parse(f"${completion_answer(question.answer)}$", parsing_timeout=None)
        for question, _, _ in pairs
    }

    def theirs() -> float:
        return sum(
            verify(references[question.answer], parse(completion, parsing_timeout=None), timeout_seconds=None)
            for question, completion, _ in pairs
        )

    def forget() -> None:
        for cached in (extract_latex, parse_expr_cached, parse_latex_cached):
            cached.cache_clear()

    return theirs, forget


def _show(name: str, score: Callable[[], float], forget: Callable[[], None], answers: int) -> None:
    """Print the median of some repetitions, after one that does not count."""
    right, seconds = score(), []
    for _ in range(REPEATS):
        forget()
        start = time.process_time()
        score()
        seconds.append(time.process_time() - start)
    print(f"  {name:18} {answers / median(seconds):10,.0f} answers/s, {right:.0f} right")


if __name__ == "__main__":
    main()

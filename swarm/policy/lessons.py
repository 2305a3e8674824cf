"""Synthetic texts that teach the tiny model its three formats, and to be wrong in a few systematic ways.

The demo task is sums and differences of two non-negative integers of up to two digits. Mistakes are a
pupil's: the carry forgotten, off by one or ten, the wrong operator. They are shared by all questions, so
reinforcement learning can unlearn them quickly.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

LessonKind = Literal["answer", "critique", "revise"]

# Weights of what a wrong answer looks like.
_MISTAKES = {"off-by-one": 4, "off-by-ten": 4, "carry": 3, "operator": 2}
_GARBAGE = "abcdefghijklmnopqrstuvwxyz 0123456789+-=?!.,:<>|/#"
_MAX_GARBAGE_CHARS = 24
_LETTERS = "ABCD"


@dataclass(frozen=True)
class Lesson:
    """What the user says, and what the assistant should say."""

    user: str
    assistant: str


def draw(rng: random.Random, kind: LessonKind, right: float) -> Lesson:
    """One lesson; `right` is the chance that what the assistant computes is right rather than a mistake."""
    if kind == "answer":
        left, operator, other = _question(rng)
        return Lesson(f"{left}{operator}{other}=", str(_attempt(rng, left, operator, other, right)))
    return _critique(rng, right) if kind == "critique" else _revise(rng, right)


def truth(left: int, operator: str, other: int) -> int:
    """The right answer."""
    return left + other if operator == "+" else left - other


def mistake(rng: random.Random, left: int, operator: str, other: int) -> int:
    """A systematically wrong answer."""
    answer = truth(left, operator, other)
    kind = rng.choices(list(_MISTAKES), list(_MISTAKES.values()))[0]
    if kind == "carry":
        forgotten = _without_carry(left, operator, other)
        return forgotten if forgotten != answer else answer + rng.choice((-1, 1))
    if kind == "operator":
        return truth(left, "-" if operator == "+" else "+", other)
    return answer + rng.choice((-1, 1)) * (1 if kind == "off-by-one" else 10)


def _question(rng: random.Random) -> tuple[int, str, int]:
    # Differences come in three kinds (no borrow, borrow, negative), sums in two.
    return rng.randrange(100), rng.choice("+--"), rng.randrange(100)


def _attempt(rng: random.Random, left: int, operator: str, other: int, right: float) -> int:
    if rng.random() < right:
        return truth(left, operator, other)
    return mistake(rng, left, operator, other)


def _without_carry(left: int, operator: str, other: int) -> int:
    if operator == "+":
        return 10 * (left // 10 + other // 10) + (left + other) % 10
    return 10 * (left // 10 - other // 10) + abs(left % 10 - other % 10)


def _students(rng: random.Random, left: int, operator: str, other: int) -> list[str]:
    share = rng.choice((0.1, 0.3, 0.5, 0.7))  # of right answers: cells get better over the rounds
    return [_student(rng, left, operator, other, share) for _ in range(rng.randint(1, len(_LETTERS)))]


def _student(rng: random.Random, left: int, operator: str, other: int, share: float) -> str:
    if rng.random() < 0.05:
        length = rng.randint(0, _MAX_GARBAGE_CHARS if rng.random() < 0.3 else 6)
        return "".join(rng.choice(_GARBAGE) for _ in range(length))
    return str(_attempt(rng, left, operator, other, share))


def _named(rng: random.Random, students: list[str], answer: str, right: float) -> str:
    """The letter of a student that is right or "none"; with chance 1 - `right`, any student or none."""
    matching = [letter for letter, text in zip(_LETTERS, students, strict=False) if text == answer]
    if rng.random() < right:
        return rng.choice(matching or ["none"])
    return rng.choice([*_LETTERS[: len(students)], "none"])


def _shown(question: str, students: list[str]) -> str:
    lines = [f"{letter}) {text}" for letter, text in zip(_LETTERS, students, strict=False)]
    return "\n".join([question, *lines])


def _critique(rng: random.Random, right: float) -> Lesson:
    left, operator, other = _question(rng)
    students = _students(rng, left, operator, other)
    question = f"{left}{operator}{other}="
    named = _named(rng, students, str(truth(left, operator, other)), right)
    redone = _attempt(rng, left, operator, other, right)
    return Lesson(f"{_shown(question, students)}\nright?", f"{named}: {question}{redone}")


def _revise(rng: random.Random, right: float) -> Lesson:
    left, operator, other = _question(rng)
    students = _students(rng, left, operator, other)
    question = f"{left}{operator}{other}="
    answer = str(truth(left, operator, other))
    critiques = [_named(rng, students, answer, 0.5) for _ in range(rng.randint(0, 4))]
    lines = "".join(f"\n> {critique}" for critique in critiques)
    final = _attempt(rng, left, operator, other, right)
    named = _named(rng, students, answer, right)
    return Lesson(f"{_shown(question, students)}{lines}\nfinal?", f"{final} {named}")

"""What every task is: a way to draw questions and to score answers."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class Question(Struct, frozen=True):
    """One question: the text that models see and the answer that they do not."""

    text: str
    answer: str


class Task(Protocol):
    """Both methods are pure and deterministic, so every peer redraws and rescores what others did."""

    def draw(self, seed: bytes) -> Question:
        """The question of a 32-byte seed."""
        ...

    def score(self, question: Question, answer: str) -> float:
        """How right an answer is, in [0, 1]; any text is allowed and must not raise."""
        ...

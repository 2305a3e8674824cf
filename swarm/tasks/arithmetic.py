"""Two-operand sums and differences: `12+34=`. The offline default, easy enough for a tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from swarm.errors import UsageError
from swarm.tasks.base import Question


class Arithmetic(Struct, frozen=True, forbid_unknown_fields=True):
    """Operands have up to `digits` decimal digits; a difference may be negative."""

    digits: Annotated[int, Meta(ge=1, le=9)] = 2

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, object]) -> Arithmetic:
        """From the manifest's parameters; `UsageError` names the wrong one."""
        try:
            return msgspec.convert(dict(parameters), cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"task arithmetic: {error}") from error

    def draw(self, seed: bytes) -> Question:
        """Operands uniform below 10^digits (64 bits each: bias under 10⁻¹⁰), plus and minus equally often."""
        size = 10**self.digits
        a = int.from_bytes(seed[0:8], "big") % size
        b = int.from_bytes(seed[8:16], "big") % size
        plus = seed[16] & 1 == 0
        return Question(f"{a}{'+' if plus else '-'}{b}=", str(a + b if plus else a - b))

    def score(self, question: Question, answer: str) -> float:
        """1.0 for exactly the answer's digits (spaces around them are fine), else 0.0."""
        return 1.0 if answer.strip() == question.answer else 0.0

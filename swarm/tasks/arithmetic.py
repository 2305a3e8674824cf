"""Two-operand sums and differences: `12+34=`. The offline default, easy enough for a tiny model.

    answer     12+34=                                    →  46
    critique   12+34=  A) 46  B) 45  right?              →  A: 12+34=46      (or none: …)
    revise     12+34=  A) 46  B) 45  > A  > none  final? →  46 A             (or 46 none)
    propose    A) 46  right?                             →  A: 40+6=46       (a question that has it)

These few characters are what the embedded model was taught (`swarm.policy.lessons`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from swarm.tasks import prompts
from swarm.tasks.base import ProposingTask, Question
from swarm.tasks.prompts import Named, name, one_line, read_name

MAX_SHOWN_CHARS = 24  # of one student's answer; long enough for any right one
_CLAIM = re.compile(r"(?<!\d)(\d{1,9})([+-])(\d{1,9})=(-?\d{1,10})(?!\d)")


class Arithmetic(ProposingTask, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Operands have up to `digits` decimal digits; a difference may be negative."""

    summary = "sums and differences; what the embedded model can do"

    digits: Annotated[int, Meta(ge=1, le=9, description="Decimal digits of an operand, at most.")] = 2

    def draw(self, seed: bytes) -> Question:
        """Operands uniform below 10^digits (64 bits each: bias under 10⁻¹⁰), plus and minus equally often."""
        size = 10**self.digits
        a = int.from_bytes(seed[0:8], "big") % size
        b = int.from_bytes(seed[8:16], "big") % size
        return _question(a, "+" if seed[16] & 1 == 0 else "-", b)

    def score(self, question: Question, completion: str) -> float:
        """1.0 for exactly the answer's digits (spaces around them are fine), else 0.0."""
        return 1.0 if completion.strip() == question.answer else 0.0

    def gist(self, completion: str) -> str:
        """The digits."""
        return completion.strip()

    def wrong_answer(self, question: Question) -> str:
        """One off."""
        return str(int(question.answer) + 1)

    def answer_prompt(self, question: Question) -> str:
        """The question as it is."""
        return question.text

    def critique_prompt(self, question: Question, answers: Sequence[str]) -> str:
        """The question and the anonymous students' answers: which is right?"""
        return "\n".join([question.text, *_students(answers), "right?"])

    def read_critique(self, completion: str, shown: int) -> Named:
        """Whom a critique (`B: why`) names among `shown` students."""
        named, colon, _why = completion.partition(":")
        return read_name(named, shown) if colon else prompts.UNREADABLE

    def revise_prompt(self, question: Question, answers: Sequence[str], critiques: Sequence[Named]) -> str:
        """The question, the answers, and whom each critique named."""
        verdicts = [f"> {name(critique)}" for critique in critiques if critique.readable]
        return "\n".join([question.text, *_students(answers), *verdicts, "final?"])

    def read_revision(self, completion: str, shown: int) -> tuple[str, Named]:
        """The final answer and the named student of a revision (`46 A`)."""
        answer, _space, named = completion.strip().rpartition(" ")
        if not answer:
            return completion.strip(), prompts.UNREADABLE
        return answer, read_name(named, shown)

    def propose_prompt(self, example: Question) -> str:
        """An answer without its question."""
        return f"A) {example.answer}\nright?"

    def read_proposal(self, completion: str) -> Question | None:
        """The last sum or difference in it, if its operands are short enough and its result is right."""
        claims = _CLAIM.findall(completion)
        if not claims:
            return None
        a, operator, b, result = claims[-1]
        if max(len(a), len(b)) > self.digits:
            return None
        question = _question(int(a), operator, int(b))  # 040 is 40
        return question if question.answer == result else None


def _question(a: int, operator: str, b: int) -> Question:
    return Question(f"{a}{operator}{b}=", str(a + b if operator == "+" else a - b))


def _students(answers: Sequence[str]) -> list[str]:
    shown = zip(prompts.LETTERS, answers, strict=False)
    return [f"{letter}) {one_line(answer, MAX_SHOWN_CHARS)}" for letter, answer in shown]

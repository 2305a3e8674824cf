"""Questions with one answer in mathematics: rows like GSM8K's or MATH's, compared by `math_equal`."""

from __future__ import annotations

import math
import re
from functools import cached_property
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from swarm.console import say
from swarm.errors import UsageError
from swarm.tasks import prompts
from swarm.tasks.base import Question, Task
from swarm.tasks.math_equal import MAX_CHARS, Reference, equal, read_reference, warm_up
from swarm.tasks.math_number import squeezed
from swarm.tasks.rows import Digest, Revision, Split, load_rows

_TAIL_CHARS = 2_000  # where an answer without any mark is looked for
_NUMBER = re.compile(r"(?<![\w.,])[+-]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?:\s?\\?%)?")


class MathRow(Struct, frozen=True):
    """GSM8K has `question` and `answer`, MATH has `problem` and `solution`, and often `answer`."""

    question: str | None = None
    problem: str | None = None
    answer: str | int | float | None = None
    solution: str | None = None


class MathWord(Task, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """Word problems and competition mathematics; an answer scores 1 if it equals the row's reference, else 0.

    What equal means is said in `math_equal`, what of an answer gets evaluated in `math_expression`. Not
    harmless: that rests on sympy, which can also be kept busy. sympy promises no scores that are the same
    under each hash seed, so workers have a fixed one (`PYTHONHASHSEED`).
    """

    summary: ClassVar[str] = "mathematics: numbers and LaTeX answers, from rows like GSM8K's or MATH's"
    packages: ClassVar[tuple[str, ...]] = (
        "math-verify",
        "latex2sympy2_extended",
        "antlr4-python3-runtime",
        "sympy",
        "mpmath",
    )

    data: Annotated[
        str, Meta(description="Where the rows are: sample:math, a file, a folder, or a hub's OWNER/NAME.")
    ] = "sample:math"
    split: Split = None
    revision: Revision = None
    digest: Digest = None
    question_column: Annotated[
        str | None, Meta(description="The column with the question, if not question or problem.")
    ] = None
    answer_column: Annotated[
        str | None, Meta(description="The column with the answer, if not answer or solution.")
    ] = None

    def prepare(self) -> None:
        """Read the rows, understand each reference once, and let sympy load all that it loads lazily."""
        warm_up()
        _ = self._problems

    def draw(self, seed: bytes) -> Question:
        """A row that the seed picks (128 bits: no bias to speak of)."""
        index = int.from_bytes(seed[:16], "big") % len(self._problems)
        text, reference, _ = self._problems[index]
        return Question(text, prompts.answered(reference.text), index)

    def score(self, question: Question, completion: str) -> float:
        """1.0 if the completion's answer equals the row's, else 0.0."""
        if not isinstance(question.data, int):
            raise TypeError("a question that this task did not draw")
        _, reference, form = self._problems[question.data]
        return 1.0 if equal(reference, completion_answer(completion), form) else 0.0

    def wrong_answer(self, question: Question) -> str:
        """The next whole number, or one that is nobody's answer."""
        assert isinstance(question.data, int)
        number = self._problems[question.data][1].number
        wrong = -987_654_321 if number is None else math.floor(max(number.value, number.hundredths)) + 1
        return prompts.answered(str(wrong))

    @cached_property
    def _problems(self) -> list[tuple[str, Reference, str]]:
        """Question, reference, and the question squeezed."""
        columns = {"question": self.question_column, "answer": self.answer_column}
        rows, _ = load_rows(
            self.data,
            MathRow,
            split=self.split,
            revision=self.revision,
            digest=self.digest,
            columns={field: column for field, column in columns.items() if column is not None},
        )
        problems = []
        for row in rows:
            text = (row.question or row.problem or "").strip()
            found = reference_text(row)
            reference = None if found is None else read_reference(found)
            if text and reference is not None:
                problems.append((text, reference, squeezed(text)))
        if not problems:
            raise UsageError(
                f"none of the {len(rows)} rows of {self.data} has a question and a readable answer"
            )
        if left_out := len(rows) - len(problems):
            say(
                f"{left_out} of {len(rows)} rows of {self.data} have no answer that can be compared: left out"
            )
        return problems


def reference_text(row: MathRow) -> str | None:
    """The row's final answer: after the last `####`, in the last `\\boxed{}`, or a short answer itself."""
    for given in (row.answer, row.solution):
        if given is None:
            continue
        text = str(given).strip()
        if "####" in text:
            return text.rpartition("####")[2].strip()
        if (boxed := last_boxed(text)) is not None:
            return boxed
        if (
            given is row.answer
            and text
            and len(text) <= MAX_CHARS
            and "\n" not in text
            and "<" not in text[:1]
        ):
            return text
    return None


def completion_answer(completion: str) -> str:
    """What a completion gives as its answer.

    The last `<answer>…</answer>`, else the last `\\boxed{…}`, else what follows the last `####`, else the
    last number. Only one of them counts, so that several answers in several places are no better than one.
    """
    if "<answer>" in completion.lower():
        inside = prompts.final_answer(completion)
        boxed = last_boxed(inside)
        return inside if boxed is None else boxed
    if (boxed := last_boxed(completion)) is not None:
        return boxed
    if "####" in completion:
        return completion.rpartition("####")[2].strip().partition("\n")[0]
    numbers = _NUMBER.findall(completion[-_TAIL_CHARS:])
    return numbers[-1].rstrip(",") if numbers else ""


def last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{…}` or `\\fbox{…}`, up to its closing brace; None without one."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        return None
    opening = text.find("{", start)
    if opening < 0 or text[start:opening].strip() not in (r"\boxed", r"\fbox"):
        return None
    depth = 0
    for end in range(opening, min(len(text), opening + 2 * MAX_CHARS)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[opening + 1 : end].strip()
    return None

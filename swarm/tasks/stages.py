"""The three stages' prompts, how a completion is read, and what it earns.

    answer     12+34=                                    →  46
    critique   12+34=  A) 46  B) 45  right?              →  A: 12+34=46      (or none: …)
    revise     12+34=  A) 46  B) 45  > A  > none  final? →  46 A             (or 46 none)

Other peers' text is hostile: it is cut, stripped of line breaks and control characters (so it cannot
imitate our lines), and shown without its author.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from swarm.tasks.base import Question, Task

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NONE = "none"
MAX_SHOWN_CHARS = 24  # of one student's answer; long enough for any answer of the built-in task
# Beginning of chat-template tags in the model families we know: <|…|>, <s>, [INST].
_TAGS = re.compile(r"<\|?|\|?>|\[/?INST\]")


class Named(Struct, frozen=True):
    """Which shown student a completion names: a position, None for "none is right", -1 for neither."""

    position: int | None

    @property
    def readable(self) -> bool:
        """Whether the completion named anything at all."""
        return self.position != -1


UNREADABLE = Named(-1)


def answer_prompt(question: Question) -> str:
    """The question as it is."""
    return question.text


def critique_prompt(question: Question, answers: Sequence[str]) -> str:
    """The question and the anonymous students' answers: which is right?"""
    return "\n".join([question.text, *_students(answers), "right?"])


def revise_prompt(question: Question, answers: Sequence[str], critiques: Sequence[Named]) -> str:
    """The question, the students' answers, and whom each critique named, in the letters of this prompt."""
    verdicts = [f"> {NONE if c.position is None else LETTERS[c.position]}" for c in critiques if c.readable]
    return "\n".join([question.text, *_students(answers), *verdicts, "final?"])


def read_critique(completion: str, shown: int) -> Named:
    """Whom a critique (`B: why`) names among `shown` students."""
    name, colon, _why = completion.partition(":")
    return _read_name(name, shown) if colon else UNREADABLE


def read_revision(completion: str, shown: int) -> tuple[str, Named]:
    """The final answer and the named student of a revision (`46 A`)."""
    answer, _space, name = completion.strip().rpartition(" ")
    if not answer:
        return completion.strip(), UNREADABLE
    return answer, _read_name(name, shown)


def critique_reward(named: Named, scores: Sequence[float]) -> float:
    """The named answer's true score; "none" earns 1 only when none is right; nothing shown earns nothing.

    Args:
        scores: true scores in [0, 1] of the shown answers, in order.
    """
    if not scores or not named.readable:
        return 0.0
    if named.position is None:
        return 1.0 if all(score < 1.0 for score in scores) else 0.0
    return scores[named.position]


def revise_reward(
    task: Task, question: Question, completion: str, answers: Sequence[str], critiques: Sequence[Named]
) -> float:
    """The final answer's score, plus agreement in [0, 1] only if the named answer is right.

    Agreement is the share of the shown critiques that named an answer of the same text. Without the
    condition a cell would learn to agree on anything.
    """
    final, named = read_revision(completion, len(answers))
    reward = task.score(question, final)
    if named.position is None or not named.readable or not critiques:
        return reward
    choice = answers[named.position]
    if task.score(question, choice) < 1.0:
        return reward
    agreeing = sum(
        1 for c in critiques if c.readable and c.position is not None and answers[c.position] == choice
    )
    return reward + agreeing / len(critiques)


def shown_text(text: str) -> str:
    """A peer's text as it may stand in our prompt: one line, no tags or control characters, cut short."""
    plain = "".join(char if char.isprintable() else " " for char in text[: 4 * MAX_SHOWN_CHARS])
    while (stripped := _TAGS.sub("", plain)) != plain:  # again, for a tag inside a tag
        plain = stripped
    return " ".join(plain.split())[:MAX_SHOWN_CHARS]


def _students(answers: Sequence[str]) -> list[str]:
    return [f"{letter}) {shown_text(answer)}" for letter, answer in zip(LETTERS, answers, strict=False)]


def _read_name(name: str, shown: int) -> Named:
    name = name.strip()
    if name == NONE:
        return Named(None)
    position = LETTERS.find(name) if len(name) == 1 else -1
    return Named(position) if 0 <= position < shown else UNREADABLE

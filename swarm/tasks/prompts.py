"""The default words around a question in each stage, and how completions of them are read.

    answer     … put the final answer between <answer> and </answer>
    critique   … <student A>46</student A> … end with "Right: A" or "Right: none"
    revise     … "Critics say: A, none." … <answer>…</answer> and "Agree: A" or "Agree: none"

Others' text is hostile: before a task sees it, it is cut, and control characters and whatever looks like one
of our tags or a chat template's lose their meaning (`shown_text`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NONE = "none"
INSTRUCTION = "Think, then put the final answer between <answer> and </answer>."

_TAGS = re.compile(r"<\|?|\|?>|\[/?INST\]")
# What opens a tag: <|…|>, <s>, <<SYS>>, [INST] of the model families that we know, and our own. A bare < or >
# stays, for programs have them. Every part is bounded, so that no text takes long to search.
_OPENS_TAG = re.compile(
    r"<[\s/_<]{0,8}(?:\||(?:student|answer|s|think|sys|system|user|assistant|start|end|im|bos|eos|turn)(?![a-z0-9]))"
    r"|\|[\s]{0,8}>|\[[\s/]{0,8}/?(?:INST|SYSTEM|AVAILABLE_TOOLS)",
    re.I,
)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.S | re.I)
_SPACE = r"[\s*]{0,8}"  # and what makes text bold
_RIGHT = re.compile(rf"\bright{_SPACE}:{_SPACE}(?:student\s{{1,8}})?([A-Z]|{NONE})\b", re.I)
_AGREE = re.compile(rf"\bagree{_SPACE}:{_SPACE}(?:student\s{{1,8}})?([A-Z]|{NONE})\b", re.I)
_NO_BRACKETS = str.maketrans("<>|[", "‹›¦⟦")
_TAIL_CHARS = 2000  # of a completion, where it names a student


class Named(Struct, frozen=True):
    """Which shown student a completion names: a position, None for "none is right", -1 for neither."""

    position: int | None

    @property
    def readable(self) -> bool:
        """Whether the completion named anything at all."""
        return self.position != -1


UNREADABLE = Named(-1)


def answered(text: str) -> str:
    """A completion that gives this final answer."""
    return f"<answer>{text}</answer>"


def final_answer(completion: str) -> str:
    """What stands in the last pair of answer tags, without spaces around it; without tags, all of it."""
    found = _ANSWER.findall(completion)
    return (found[-1] if found else completion).strip()


def answer_prompt(question: str, instruction: str) -> str:
    """The question, and how to answer it."""
    return f"{question}\n\n{instruction}"


def critique_prompt(question: str, answers: Sequence[str]) -> str:
    """The question and the students' answers: which is right?"""
    return (
        f"{question}\n\n{_students(answers)}\nWhich student is right? Say briefly why, and end with "
        f'"Right: A" or another letter, or with "Right: {NONE}" if no answer is right.'
    )


def read_critique(completion: str, shown: int) -> Named:
    """Whom the last `Right: …` names among `shown` students."""
    return _last_named(_RIGHT, completion, shown)


def revise_prompt(question: str, answers: Sequence[str], critiques: Sequence[Named], instruction: str) -> str:
    """The question, the students' answers, and whom each critic named."""
    said = ", ".join(name(critique) for critique in critiques if critique.readable)
    critics = f"Critics say that right is: {said}.\n" if said else ""
    return (
        f"{question}\n\n{_students(answers)}\n{critics}{instruction} Then end with "
        f'"Agree: A" or another letter for the student that all will find right, or with "Agree: {NONE}".'
    )


def read_revision(completion: str, shown: int) -> tuple[str, Named]:
    """The text before the last `Agree: …`, and whom that names."""
    tail = max(0, len(completion) - _TAIL_CHARS)
    found = list(_AGREE.finditer(completion, tail))
    text = completion[: found[-1].start()] if found else completion
    return text, _last_named(_AGREE, completion, shown)


def name(named: Named) -> str:
    """A readable name in the letters of a prompt."""
    return NONE if named.position is None else LETTERS[named.position]


def read_name(text: str, shown: int) -> Named:
    """A letter of `shown` students or none; anything else is unreadable."""
    text = text.strip()
    if text == NONE:
        return Named(None)
    position = LETTERS.find(text) if len(text) == 1 else -1
    return Named(position) if 0 <= position < shown else UNREADABLE


def shown_text(text: str, limit: int) -> str:
    """A peer's text as it may stand in our prompt: nothing that opens a tag, no control characters, and cut.

    Its last `limit` characters, because that is where answers are.
    """
    plain = "".join(char if char.isprintable() or char in "\n\t" else " " for char in text[-2 * limit :])
    # A bracket that looks like one and is none: what is left cannot come together to another tag.
    neutral = _OPENS_TAG.sub(lambda found: found[0].translate(_NO_BRACKETS), plain)
    return neutral.strip()[-limit:].strip()


def one_line(text: str, limit: int) -> str:
    """The first `limit` characters of a shown text, on one line, without anything that could be a tag."""
    return " ".join(_TAGS.sub(" ", text[: 4 * limit]).split())[:limit]


def _students(answers: Sequence[str]) -> str:
    shown = zip(LETTERS, answers, strict=False)
    return "".join(f"<student {letter}>\n{answer}\n</student {letter}>\n" for letter, answer in shown)


def _last_named(pattern: re.Pattern[str], completion: str, shown: int) -> Named:
    found = pattern.findall(completion, max(0, len(completion) - _TAIL_CHARS))
    if not found:
        return UNREADABLE
    last: str = found[-1]
    return read_name(last.upper() if len(last) == 1 else last.lower(), shown)

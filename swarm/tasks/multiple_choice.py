"""Questions with options: rows like ARC's or MMLU's, the answer is an option's letter."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from swarm.console import say
from swarm.errors import UsageError
from swarm.tasks import prompts
from swarm.tasks.base import Question, Task
from swarm.tasks.prompts import LETTERS
from swarm.tasks.rows import Digest, Revision, Split, load_rows

_TAIL_CHARS = 2_000  # where an answer without tags is looked for
_LETTER = r"[A-Za-z](?![\w'’])"
_ONLY = re.compile(rf"[\s*(\[\"'`]{{0,8}}({_LETTER})(?:[.):][ \t](.{{0,400}})|[\s*.):,\]\"'`]{{0,8}})", re.S)
_OTHER = re.compile(r"(?<![\w'’])[B-Z](?![\w'’])|\([A-Z]\)")
# A capital letter that stands as an option: (B), B. or B) at a line's start, a line of its own.
_OPTION = re.compile(r"\(([A-Z])\)|(?:^|\n)[ \t*]{0,8}([A-Z])(?:[.):*]|[ \t]{0,8}(?=\n|\Z))")
_SAID = re.compile(rf"\b(?:answer|option|choice)\b(?: is)?[ \t]?[:=]?[ \t*(]{{0,4}}({_LETTER})", re.I)


class Choices(Struct, frozen=True):
    """ARC's options."""

    text: list[str]
    label: list[str]


class ChoiceRow(Struct, frozen=True, rename={"answer_key": "answerKey"}):
    """ARC has `answerKey`, a label; MMLU has `answer`, a position from 0."""

    question: str
    choices: list[str] | Choices
    answer: int | str | None = None
    answer_key: str | None = None


class Item(Struct, frozen=True):
    """A row as it was understood."""

    question: str
    options: tuple[str, ...]
    right: int


class MultipleChoice(Task, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """The answer is the letter of an option; the option's own words count too.

    A letter that stands alone in the last answer tags counts, or, without tags, the last letter given as an
    answer. Where the tags hold more than one option, no option was chosen. All patterns take linear time,
    and nothing of a completion is run: harmless.
    """

    summary: ClassVar[str] = "questions with options A, B, C …, from rows like ARC's or MMLU's"
    instruction: ClassVar[str] = (
        "Think, then put the letter of the right option between <answer> and </answer>."
    )

    data: Annotated[
        str, Meta(description="Where the rows are: sample:choice, a file, a folder, or a hub's OWNER/NAME.")
    ] = "sample:choice"
    split: Split = None
    revision: Revision = None
    digest: Digest = None
    shuffle: Annotated[
        bool, Meta(description="Whether the options are shown in an order that the seed draws.")
    ] = True

    def prepare(self) -> None:
        """Read the rows."""
        _ = self._items

    def draw(self, seed: bytes) -> Question:
        """A row and an order of its options, both from the seed."""
        item = self._items[int.from_bytes(seed[:16], "big") % len(self._items)]
        order = _order(seed, len(item.options)) if self.shuffle else list(range(len(item.options)))
        options = tuple(item.options[index] for index in order)
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        right = order.index(item.right)
        shown = Item(item.question, options, right)
        return Question("\n".join([item.question, *lines]), prompts.answered(LETTERS[right]), shown)

    def score(self, question: Question, completion: str) -> float:
        """1.0 for the right option, else 0.0."""
        if not isinstance(question.data, Item):
            raise TypeError("a question that this task did not draw")
        return 1.0 if read_option(completion, question.data.options) == question.data.right else 0.0

    def wrong_answer(self, question: Question) -> str:
        """The letter after the right one."""
        assert isinstance(question.data, Item)
        return prompts.answered(LETTERS[(question.data.right + 1) % len(question.data.options)])

    @cached_property
    def _items(self) -> list[Item]:
        rows, _ = load_rows(
            self.data, ChoiceRow, split=self.split, revision=self.revision, digest=self.digest
        )
        items = [item for item in map(_item, rows) if item is not None]
        if not items:
            raise UsageError(
                f"none of the {len(rows)} rows of {self.data} has options and an answer among them"
            )
        if left_out := len(rows) - len(items):
            say(f"{left_out} of {len(rows)} rows of {self.data} have no answer among their options: left out")
        return items


def read_option(completion: str, options: Sequence[str]) -> int | None:
    """The position of the option that a completion chooses, None if it is not clear which."""
    if "<answer>" in completion.lower():
        inside = prompts.final_answer(completion)[:_TAIL_CHARS]
        if (position := _of_text(inside, options)) is not None:
            return position
        if (letter := _only_letter(inside)) is not None:
            return _position(letter, len(options))
        said = {letter.upper() for letter in _letters(inside)}
        return _position(said.pop(), len(options)) if len(said) == 1 else None
    tail = completion[-_TAIL_CHARS:]
    if (position := _of_text(tail, options)) is not None:
        return position
    if (letter := _only_letter(tail)) is not None:
        return _position(letter, len(options))
    if letters := _letters(tail):
        return _position(letters[-1], len(options))
    return _of_text(tail.strip().rpartition("\n")[2], options)


def _only_letter(text: str) -> str | None:
    """The letter that the text is, perhaps with the option's words after it."""
    found = _ONLY.fullmatch(text)
    return None if found is None or _OTHER.search(found[2] or "") else found[1]


def _letters(text: str) -> list[str]:
    """The letters given as an answer, in the order of the text."""
    found = [(match.start(), match[1] or match[2]) for match in _OPTION.finditer(text)]
    found += [(match.start(1), match[1]) for match in _SAID.finditer(text)]
    return [letter for _, letter in sorted(found)]


def _position(letter: str, shown: int) -> int | None:
    position = LETTERS.find(letter.upper())
    return position if 0 <= position < shown else None


def _of_text(text: str, options: Sequence[str]) -> int | None:
    """The option that the text is, perhaps after its letter, which must be the same one's."""
    said = _plain(text)
    for position, option in enumerate(options):
        if said == _plain(option):
            return position if len(said) > 1 or said.upper() not in LETTERS[: len(options)] else None
    return None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .*\"'`")


def _order(seed: bytes, count: int) -> list[int]:
    """Fisher and Yates' shuffle with 32 bits of SHA-256 for each step (bias below 10⁻⁸)."""
    order = list(range(count))
    stream = b"".join(hashlib.sha256(b"options" + bytes([block]) + seed).digest() for block in range(4))
    for last in range(count - 1, 0, -1):
        other = int.from_bytes(stream[4 * last : 4 * last + 4], "big") % (last + 1)
        order[last], order[other] = order[other], order[last]
    return order


def _item(row: ChoiceRow) -> Item | None:
    """None if there is not one right option among 2 to 26 different ones."""
    texts = row.choices.text if isinstance(row.choices, Choices) else row.choices
    options = tuple(" ".join(text.split()) for text in texts)
    labels = row.choices.label if isinstance(row.choices, Choices) else list(LETTERS[: len(options)])
    answer = row.answer_key if row.answer_key is not None else row.answer
    right = _index(answer, labels)
    if not 2 <= len(options) <= len(LETTERS) or right is None or not 0 <= right < len(options):
        return None
    if len({_plain(option) for option in options}) < len(options) or not row.question.strip():
        return None
    return Item(row.question.strip(), options, right)


def _index(answer: int | str | None, labels: Sequence[str]) -> int | None:
    if isinstance(answer, int):
        return answer
    if answer in labels:
        return labels.index(answer)
    return LETTERS.find(answer) if answer is not None and len(answer) == 1 and answer in LETTERS else None

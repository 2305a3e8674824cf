"""What every task is: a way to draw questions, to score completions, and the words around both.

A task's fields are its parameters: what a manifest writes under `parameters:` is converted into them, with
types and limits checked. All methods are pure and deterministic, so that every peer redraws and rescores what
others did: no clock, no `random` without the given seed, no file or network after `prepare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct

from swarm.tasks import prompts
from swarm.tasks.prompts import Named


class Question(Struct, frozen=True):
    """One question."""

    text: str  # what models are asked, without a word on how to answer
    answer: str  # a completion that scores 1, of a `graded` task a good one; models never see it
    data: object = None  # whatever else `score` wants; it never leaves the process that drew it


class Task(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base class of all tasks. `draw` and `score` are a task; the rest has good defaults.

    A node (and `swarm task`) makes the task from the manifest's parameters and calls `prepare` once. But for
    a few of this project's own it does so in a process that cannot do anything but compute from then on
    (`swarm.sandbox`), because completions are written by strangers: no file or module can be opened after
    `prepare`, and whatever takes too long is ended and scores 0.
    """

    summary: ClassVar[str] = ""  # one line for `swarm task list`
    # The distributions whose code decides what is drawn and scored; a manifest pins their versions.
    packages: ClassVar[tuple[str, ...]] = ()
    # Parameters for a first look at a task, where some have no default.
    example: ClassVar[dict[str, object]] = {}
    # True if scores are somebody's opinion: a right answer then only scores more than a wrong one.
    graded: ClassVar[bool] = False
    instruction: ClassVar[str] = prompts.INSTRUCTION  # follows the question in the answer stage

    @classmethod
    def catalogue(cls) -> list[str]:
        """What else whoever writes parameters wants to know, a line each; for `swarm task list TASK`."""
        return []

    def prepare(self) -> None:
        """Load what drawing and scoring need; called once, with files and network still there.

        `UsageError` if a parameter names something that is not there.
        """

    def draw(self, seed: bytes) -> Question:
        """The question of a 32-byte seed."""
        raise NotImplementedError

    def score(self, question: Question, completion: str) -> float:
        """How right a completion is, in [0, 1]; any text is allowed and must not raise."""
        raise NotImplementedError

    def wrong_answer(self, question: Question) -> str:
        """A completion that scores less than the right one; for `swarm task preview` and `check`."""
        return prompts.answered("no idea")

    def gist(self, completion: str) -> str:
        """What two completions share when they give the same answer: who names one agrees with the other."""
        return prompts.final_answer(completion)

    # The stages' prompts, and how their completions are read. Answers come cleaned and cut.

    def answer_prompt(self, question: Question) -> str:
        """What the answer stage shows."""
        return prompts.answer_prompt(question.text, self.instruction)

    def critique_prompt(self, question: Question, answers: Sequence[str]) -> str:
        """The question and the anonymous students' answers: which is right?"""
        return prompts.critique_prompt(question.text, answers)

    def read_critique(self, completion: str, shown: int) -> Named:
        """Whom a critique names among `shown` students."""
        return prompts.read_critique(completion, shown)

    def revise_prompt(self, question: Question, answers: Sequence[str], critiques: Sequence[Named]) -> str:
        """The question, the answers, and whom each critique named, in the letters of this prompt."""
        return prompts.revise_prompt(question.text, answers, critiques, self.instruction)

    def read_revision(self, completion: str, shown: int) -> tuple[str, Named]:
        """The part of a revision that is scored like an answer, and the student that it names."""
        return prompts.read_revision(completion, shown)


class ProposingTask(Task, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A task of which peers may propose questions, where the manifest has a `propose` stage."""

    def propose_prompt(self, example: Question) -> str:
        """Asks for a new question in the manner of `example`, with its answer."""
        raise NotImplementedError

    def read_proposal(self, completion: str) -> Question | None:
        """The question that a completion proposes, if it is one and its answer holds; else None.

        It is built anew from what was understood, so that nothing else of the text gets into prompts.
        """
        raise NotImplementedError

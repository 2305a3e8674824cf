"""All tasks of a swarm as one: which task a question is of, and what a round asks of it."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from msgspec import Struct

from swarm.tasks.base import ProposingTask, Question, Task
from swarm.tasks.prompts import UNREADABLE, Named

log = logging.getLogger("swarm.tasks")

MAX_GIST_CHARS = 256
_CACHED = 4096  # questions; more than a round asks


class Drawn(Struct, frozen=True, array_like=True):
    """One question of a swarm. Task, seed and proposal say it all; the rest follows from them."""

    task: int  # its position in the manifest
    seed: bytes  # 32 bytes: what it was drawn from, or the prompt that asked for it
    proposal: str | None  # the completion that proposed it
    text: str
    answer: str  # models never see it


class Judged(Struct, frozen=True, array_like=True):
    """What a task says of a completion."""

    score: float | None  # in [0, 1]; None if scoring it took too long
    gist: str  # equal for completions that give the same answer, at most `MAX_GIST_CHARS`


class Tasks(Protocol):
    """What a round asks of its tasks: `Mixture` here, `TaskProcess` in a process that can only compute.

    What reads strangers' texts (the `read_…`, and prompts that show them) raises `SandboxTimeout` or
    `SandboxDied` where that takes over `score_seconds` or the process fails: another machine might have done
    it, so it is not the same as a text that says nothing.
    """

    patience: float  # how many times `score_seconds` a text may take: 1, but for who plays a round again

    def draw(self, seed: bytes) -> Drawn:
        """The question of a 32-byte seed."""
        ...

    @property
    def spent(self) -> float:
        """Seconds that reading and scoring strangers' texts took so far."""
        ...

    def allow(self, seconds: float | None) -> None:
        """What comes next reads one sender's texts, for so long in all; None: our own, for any time.

        Whatever an earlier text may have done to the process that reads them ends here.
        """
        ...

    def judge(self, question: Drawn, completions: Sequence[str]) -> list[Judged]:
        """Each completion's score and gist."""
        ...

    def answer_prompt(self, question: Drawn) -> str:
        """As in `Task`."""
        ...

    def critique_prompt(self, question: Drawn, answers: Sequence[str]) -> str:
        """As in `Task`."""
        ...

    def read_critique(self, question: Drawn, completion: str, shown: int) -> Named:
        """As in `Task`."""
        ...

    def revise_prompt(self, question: Drawn, answers: Sequence[str], critiques: Sequence[Named]) -> str:
        """As in `Task`."""
        ...

    def read_revision(self, question: Drawn, completion: str, shown: int) -> tuple[str, Named]:
        """As in `Task`."""
        ...

    def wrong_answer(self, question: Drawn) -> str:
        """A completion that scores less than the right one."""
        ...

    def propose_prompt(self, seed: bytes) -> str:
        """The prompt of a 32-byte seed that asks for a question; of a task that takes proposals."""
        ...

    def read_proposal(self, seed: bytes, completion: str) -> Drawn | None:
        """The question that a completion of the seed's prompt proposes; None if it is none that holds."""
        ...


class NotProposed(Exception):
    """A completion proposes no question."""


class Mixture:
    """`Tasks` in this process. A task's mistake costs the completion that brought it out, and is logged."""

    def __init__(self, tasks: Sequence[tuple[Task, int]]) -> None:
        """Tasks, prepared, with their weights."""
        self.tasks = [task for task, _ in tasks]
        self._weights = [weight for _, weight in tasks]
        self._proposing = [weight if isinstance(task, ProposingTask) else 0 for task, weight in tasks]
        self._question = lru_cache(maxsize=_CACHED)(self._find)
        self.patience = 1.0  # nothing hangs on it here

    @property
    def takes_proposals(self) -> bool:
        """Whether any task does."""
        return any(self._proposing)

    def draw(self, seed: bytes) -> Drawn:
        """Each task gets its weight's share of the seeds."""
        return self._drawn(_choose(self._weights, seed), seed)

    @property
    def spent(self) -> float:
        """Nothing that counts: the tasks that are held like this are harmless."""
        return 0.0

    def allow(self, seconds: float | None) -> None:
        """Nothing to do, for the same reason."""

    def judge(self, question: Drawn, completions: Sequence[str]) -> list[Judged]:
        """Scores outside [0, 1] are cut; an exception of the task scores 0."""
        task, known = self.tasks[question.task], self._known(question)
        return [_judge(task, known, completion) for completion in completions]

    def answer_prompt(self, question: Drawn) -> str:
        """As in `Task`; so are the four below."""
        return self.tasks[question.task].answer_prompt(self._known(question))

    def critique_prompt(self, question: Drawn, answers: Sequence[str]) -> str:
        """Which is right?"""
        known = self._known(question)
        return self.tasks[question.task].critique_prompt(known, answers)

    def read_critique(self, question: Drawn, completion: str, shown: int) -> Named:
        """Whom it names."""
        named = self.tasks[question.task].read_critique(completion, shown)
        return within(named, shown)

    def revise_prompt(self, question: Drawn, answers: Sequence[str], critiques: Sequence[Named]) -> str:
        """What is final?"""
        known = self._known(question)
        return self.tasks[question.task].revise_prompt(known, answers, critiques)

    def read_revision(self, question: Drawn, completion: str, shown: int) -> tuple[str, Named]:
        """What to score, and whom it names."""
        text, named = self.tasks[question.task].read_revision(completion, shown)
        return text, within(named, shown)

    def propose_prompt(self, seed: bytes) -> str:
        """The example is the question that the task draws from the same seed."""
        index, task = self._proposing_task(seed)
        return task.propose_prompt(self._question(index, seed, None))

    def read_proposal(self, seed: bytes, completion: str) -> Drawn | None:
        """Of the task whose prompt it completes; its example is none, nor is what the task fails to read."""
        index, _ = self._proposing_task(seed)
        try:
            drawn = self._drawn(index, seed, completion)
            return None if drawn.text == self._question(index, seed, None).text else drawn
        except NotProposed:
            return None
        except Exception as error:  # noqa: BLE001 - as in `_judge`
            _log_failure(self.tasks[index], "read a proposal", error)
            return None

    def wrong_answer(self, question: Drawn) -> str:
        """A completion that scores less than the right one."""
        return self.tasks[question.task].wrong_answer(self._known(question))

    def _proposing_task(self, seed: bytes) -> tuple[int, ProposingTask]:
        index = _choose(self._proposing, seed)
        task = self.tasks[index]
        assert isinstance(task, ProposingTask)
        return index, task

    def _drawn(self, index: int, seed: bytes, proposal: str | None = None) -> Drawn:
        question = self._question(index, seed, proposal)
        return Drawn(index, seed, proposal, question.text, question.answer)

    def _known(self, question: Drawn) -> Question:
        return self._question(question.task, question.seed, question.proposal)

    def _find(self, index: int, seed: bytes, proposal: str | None) -> Question:
        task = self.tasks[index]
        if proposal is None:
            return task.draw(seed)
        question = task.read_proposal(proposal) if isinstance(task, ProposingTask) else None
        if question is None:
            raise NotProposed
        return question


def _choose(weights: Sequence[int], seed: bytes) -> int:
    """An index by weight; 64 bits of a digest, so that what the task makes of the seed is independent."""
    place = int.from_bytes(hashlib.sha256(b"task" + seed).digest()[:8], "big") % sum(weights)
    for index, weight in enumerate(weights):
        if place < weight:
            return index
        place -= weight
    raise AssertionError("weights do not add up")


def _judge(task: Task, question: Question, completion: str) -> Judged:
    try:
        score, gist = float(task.score(question, completion)), task.gist(completion)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's text makes a task's library raise
        _log_failure(task, "score", error)
        return Judged(0.0, "")
    if len(gist) > MAX_GIST_CHARS:  # a part of it could be everybody's
        gist = hashlib.sha256(gist.encode(errors="replace")).hexdigest()
    return Judged(clamped(score), gist)


def clamped(score: float) -> float:
    """A score as it counts."""
    return 0.0 if math.isnan(score) else min(1.0, max(0.0, score))


def _log_failure(task: Task, what: str, error: Exception) -> None:
    name, reason = type(task).__name__, " ".join(f"{type(error).__name__}: {error}".split())[:300]
    log.warning("task failed to %s task=%s error=%r", what, name, reason)


def within(named: Named, shown: int) -> Named:
    """A task's reading, kept from naming a student that was not shown."""
    if named.position is None or 0 <= named.position < shown:
        return named
    return UNREADABLE

"""A swarm's tasks in a process of their own that can only compute: what strangers wrote is scored there.

The node's side is `TaskProcess`; `prepare` is what `swarm.sandbox` runs in the other process. Between them go
msgpack messages of the types in `_METHODS`; what comes back is decoded like anything hostile.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from swarm.errors import SandboxDied, SandboxError, SandboxTimeout, UsageError
from swarm.manifest import Manifest, parse_canonical
from swarm.manifest_source import Keys
from swarm.sandbox import Confined, check_sandbox, unlimited_memory
from swarm.sandbox.channel import one_line
from swarm.tasks import Complain, Drawn, Judged, Mixture, Tasks, complaint, is_harmless, load_tasks
from swarm.tasks.mixture import MAX_GIST_CHARS, clamped, within
from swarm.tasks.prompts import Named
from swarm.tasks.rubric import Grader, use_grader

log = logging.getLogger("swarm.tasks")
T = TypeVar("T")

# Drawing a question and writing a prompt is the tasks' own work, not a stranger's text: it may take its time.
_OWN_SECONDS = 60.0
# Completions of one group whose scoring took too long; the rest of the group is not tried then.
MAX_TIMEOUTS = 2
MAX_TEXT_CHARS = 2**18  # of a question, an answer or a prompt
_MAX_REASON = 2000  # characters
_JUDGED_BYTES = 16 + 4 * MAX_GIST_CHARS  # of one completion, in msgpack
_ANSWER_BYTES = 16 + 16 * MAX_TEXT_CHARS


class _Failure(Struct, frozen=True, tag=True):
    """The task raised."""

    reason: str


class _Success(Struct, frozen=True, tag=True):
    """What the method returned, still encoded."""

    value: msgspec.Raw


class _Call(Struct, frozen=True, array_like=True):
    """A method of `Tasks` and its arguments, still encoded."""

    method: str
    arguments: msgspec.Raw


# For each method the types of its arguments and of what it returns.
_METHODS: dict[str, tuple[Any, Any]] = {
    "draw": (tuple[bytes], Drawn),
    "judge": (tuple[Drawn, list[str]], list[Judged]),
    "answer_prompt": (tuple[Drawn], str),
    "critique_prompt": (tuple[Drawn, list[str]], str),
    "read_critique": (tuple[Drawn, str, int], Named),
    "revise_prompt": (tuple[Drawn, list[str], list[Named]], str),
    "read_revision": (tuple[Drawn, str, int], tuple[str, Named]),
    "propose_prompt": (tuple[bytes], str),
    "read_proposal": (tuple[bytes, str], Drawn | None),
    "wrong_answer": (tuple[Drawn], str),
}


class _Prepare(Struct, frozen=True, array_like=True):
    """What the other process begins with."""

    manifest: bytes  # canonical
    folder: str  # where relative paths of data begin


class _Refused(Struct, frozen=True, array_like=True):
    """Why it cannot go on: what stands at a place of the manifest, and what is wrong with it."""

    keys: tuple[str | int, ...]
    what: str


@contextmanager
def open_tasks(manifest: Manifest, complain: Complain = complaint) -> Iterator[Tasks]:
    """A manifest's tasks for as long as they are needed: here if they are harmless, else in their process.

    `UsageError`, made by `complain`, if a task cannot be made; `SandboxError` if it needs a sandbox and this
    machine has none.
    """
    if is_harmless(manifest):
        yield load_tasks(manifest, complain)
        return
    try:
        tasks = TaskProcess(manifest, complain=complain)
    except SandboxError as error:
        if problem := check_sandbox():
            names = ", ".join(choice.name for choice in manifest.tasks)
            raise SandboxError(
                f"strangers' answers to {names} can only be scored in a sandbox, and this machine has none: "
                f"{problem}; join a swarm of the task arithmetic, or use another machine"
            ) from error
        raise
    with tasks:
        yield tasks


class TaskProcess:
    """`Tasks` in another process. Use as a context manager: leaving it ends the process.

    A text may have taken the process over that reads it. So whatever comes back is checked as if it came from
    a stranger, and a new process reads the next sender's texts.
    """

    def __init__(self, manifest: Manifest, *, hash_seed: int = 0, complain: Complain = complaint) -> None:
        """Start it and have it load the tasks; errors as in `open_tasks`.

        All peers take the same `hash_seed`, on which the order of sets hangs; another shows what hangs on it.
        """
        self._count = len(manifest.tasks)
        self._score_seconds = manifest.score_seconds
        self.patience = 1.0
        self._left = math.inf  # of what `allow` gave
        self._spent = 0.0
        argument = msgspec.msgpack.encode(_Prepare(manifest.canonical, str(Path.cwd())))
        self._start = partial(_start, argument, hash_seed, complain)
        self._confined = self._start()

    def __enter__(self) -> TaskProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._confined.close()

    @property
    def spent(self) -> float:
        """As in `Tasks`, and so are all below."""
        return self._spent

    def allow(self, seconds: float | None) -> None:
        """A new fork, in milliseconds."""
        began = time.monotonic()
        self._refresh()
        self._spent += time.monotonic() - began
        self._left = math.inf if seconds is None else seconds

    def draw(self, seed: bytes) -> Drawn:
        """The question of a seed."""
        return self._checked(self._own("draw", seed), seed, None)

    def judge(self, question: Drawn, completions: Sequence[str]) -> list[Judged]:
        """All at once; if that takes too long, one by one, to find the culprits."""
        with self._alone(question):
            try:
                self._read_again(question)
            except (SandboxTimeout, SandboxDied) as error:
                log.warning("proposed question cannot be read again error=%r", str(error))
                return [Judged(None, "")] * len(completions)
            try:
                return self._judged(question, list(completions), self._score_seconds)
            except (SandboxTimeout, SandboxDied):
                return self._one_by_one(question, completions)

    def answer_prompt(self, question: Drawn) -> str:
        """What the answer stage shows."""
        if question.proposal is None:
            return str(self._own("answer_prompt", question))
        return self._prompt("answer_prompt", question)

    def critique_prompt(self, question: Drawn, answers: Sequence[str]) -> str:
        """Which is right? Answers are strangers' texts."""
        return self._prompt("critique_prompt", question, list(answers))

    def read_critique(self, question: Drawn, completion: str, shown: int) -> Named:
        """Whom it names."""
        return within(self._theirs("read_critique", question, completion, shown), shown)

    def revise_prompt(self, question: Drawn, answers: Sequence[str], critiques: Sequence[Named]) -> str:
        """What is final?"""
        return self._prompt("revise_prompt", question, list(answers), list(critiques))

    def read_revision(self, question: Drawn, completion: str, shown: int) -> tuple[str, Named]:
        """What to score, and whom it names."""
        text, named = self._theirs("read_revision", question, completion, shown)
        return text[: len(completion)], within(named, shown)

    def propose_prompt(self, seed: bytes) -> str:
        """Asks for a question."""
        return str(self._own("propose_prompt", seed))

    def read_proposal(self, seed: bytes, completion: str) -> Drawn | None:
        """The question that is proposed."""
        proposed = self._theirs("read_proposal", seed, completion)
        return None if proposed is None else self._checked(proposed, seed, completion)

    def wrong_answer(self, question: Drawn) -> str:
        """As in `Mixture`."""
        return str(self._own("wrong_answer", question))

    def _one_by_one(self, question: Drawn, completions: Sequence[str]) -> list[Judged]:
        judged: list[Judged] = []
        timeouts = 0
        for completion in completions:
            if timeouts == MAX_TIMEOUTS:
                judged.append(Judged(None, ""))
                continue
            try:
                judged += self._judged(question, [completion], self._text_seconds)
            except (SandboxTimeout, SandboxDied) as error:
                log.info("completion not scored error=%r", str(error))
                judged.append(Judged(None, ""))
                timeouts += 1
        return judged

    def _judged(self, question: Drawn, completions: list[str], seconds: float) -> list[Judged]:
        judged = self._in_time("judge", seconds, question, completions)
        if len(judged) != len(completions):
            self._refresh()
            raise SandboxDied("the tasks' process answered nonsense")
        return [
            Judged(None if one.score is None else clamped(one.score), one.gist[:MAX_GIST_CHARS])
            for one in judged
        ]

    def _prompt(self, method: str, question: Drawn, *arguments: object) -> str:
        """Of strangers' texts; what they did to the process ends before our own are scored in it."""
        try:
            self._read_again(question)
            return str(self._theirs(method, question, *arguments))
        finally:
            self._refresh()

    def _refresh(self) -> None:
        self._with_process(Confined.refresh)

    def _with_process(self, action: Callable[[Confined], T]) -> T:
        """Do it; with a new process if the one that forks is gone, as for want of memory it may be."""
        try:
            return action(self._confined)
        except (SandboxTimeout, SandboxDied):
            raise
        except SandboxError as error:
            log.warning("the tasks' process is gone, starting another error=%r", str(error))
            self._confined.close()
            try:
                self._confined = self._start()
            except (
                UsageError
            ) as wrong:  # its data may be gone by now; the node waits for them, round by round
                raise SandboxError(f"the tasks cannot be loaded again: {wrong}") from wrong
            return action(self._confined)

    @contextmanager
    def _alone(self, question: Drawn) -> Iterator[None]:
        """A proposed question is a stranger's text too: what it did to the process ends with it."""
        try:
            yield
        finally:
            if question.proposal is not None:
                self._refresh()

    def _read_again(self, question: Drawn) -> None:
        """A proposed question, which this process may not know yet: not in the time of who answers it."""
        if question.proposal is None:
            return
        began = time.monotonic()
        try:
            self._call("answer_prompt", self._text_seconds, question)
        finally:
            self._spent += time.monotonic() - began

    def _checked(self, drawn: Drawn, seed: bytes, proposal: str | None) -> Drawn:
        """The question, if it can be the one that was asked for."""
        is_it = (drawn.seed, drawn.proposal) == (seed, proposal) and 0 <= drawn.task < self._count
        if not is_it or max(len(drawn.text), len(drawn.answer)) > MAX_TEXT_CHARS:
            self._refresh()
            raise SandboxDied("the tasks' process answered with another question, or one that is too long")
        return drawn

    def _own(self, method: str, *arguments: object) -> Any:
        """Of our own work; a process that fails may have died of something else, so it is tried twice."""
        try:
            return self._call(method, _OWN_SECONDS, *arguments)
        except SandboxError:
            return self._call(method, _OWN_SECONDS, *arguments)

    def _theirs(self, method: str, *arguments: object) -> Any:
        """Of what strangers wrote. Who is patient tries twice: a process may have died of something else."""
        try:
            return self._in_time(method, self._text_seconds, *arguments)
        except SandboxDied:
            if self.patience == 1.0:
                raise
            return self._in_time(method, self._text_seconds, *arguments)

    @property
    def _text_seconds(self) -> float:
        return self._score_seconds * self.patience

    def _in_time(self, method: str, seconds: float, *arguments: object) -> Any:
        if self._left <= 0:
            raise SandboxTimeout("this sender's time is over")
        began = time.monotonic()
        try:
            return self._call(method, min(seconds, self._left), *arguments)
        finally:
            elapsed = time.monotonic() - began
            self._left -= elapsed
            self._spent += elapsed

    def _call(self, method: str, seconds: float, *arguments: object) -> Any:
        call = _Call(method, msgspec.Raw(msgspec.msgpack.encode(arguments)))
        request = msgspec.msgpack.encode(call)
        answer = self._with_process(lambda confined: confined.call(request, seconds))
        limit = _ANSWER_BYTES
        if method == "judge":
            limit = 64 + _JUDGED_BYTES * len(arguments[1])  # type: ignore[arg-type]
        try:
            if len(answer) > limit:
                raise ValueError(f"{len(answer)} bytes")
            reply = msgspec.msgpack.decode(answer, type=_Success | _Failure)
            if isinstance(reply, _Failure):
                raise ValueError(reply.reason)
            return msgspec.msgpack.decode(reply.value, type=_METHODS[method][1])
        except (ValueError, RecursionError) as error:  # msgspec's and UnicodeDecodeError are ValueErrors
            self._refresh()
            raise SandboxDied(f"the tasks' {method} failed: {one_line(error)}") from error


def _start(argument: bytes, hash_seed: int, complain: Complain) -> Confined:
    try:
        return Confined("swarm.task_process", argument, hash_seed=hash_seed)
    except UsageError as error:
        try:
            refused = msgspec.json.decode(str(error), type=_Refused)
        except msgspec.MsgspecError:
            raise error from None
        raise complain(refused.keys, refused.what) from error


# The other process


def prepare(argument: bytes) -> Callable[[bytes], bytes]:
    """Called by `swarm.sandbox` in the process that will only compute: load the tasks, return the handler."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no threads can be started later
    begin = msgspec.msgpack.decode(argument, type=_Prepare)
    manifest = parse_canonical(begin.manifest, "of the node")
    if any(choice.name == "rubric" for choice in manifest.tasks):
        use_grader(_load_grader)
    with contextlib.chdir(begin.folder):
        tasks = load_tasks(manifest, _refusal)
    return lambda request: _answer(tasks, request)


def _refusal(keys: Keys, what: str) -> UsageError:
    return UsageError(msgspec.json.encode(_Refused(keys, what[:_MAX_REASON])).decode())


def _load_grader(model: str, digest: str) -> Grader:
    """A model is no stranger's data; how large it may be the machine says."""
    from swarm.policy import grader  # takes seconds to import, and nobody else needs it

    with unlimited_memory():
        return grader.Grader(model, digest)


def _answer(tasks: Mixture, request: bytes) -> bytes:
    call = msgspec.msgpack.decode(request, type=_Call)
    arguments = msgspec.msgpack.decode(call.arguments, type=_METHODS[call.method][0])
    try:
        value = getattr(tasks, call.method)(*arguments)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a task's mistake must not end the process of all of them
        return msgspec.msgpack.encode(_Failure(f"{type(error).__name__}: {one_line(error)}"))
    return msgspec.msgpack.encode(_Success(msgspec.Raw(msgspec.msgpack.encode(value))))

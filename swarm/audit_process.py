"""The process in which a node audits others: at low priority, apart from the node's own model.

It has a model and a learner of its own, so that nothing which a stranger's state does can touch the node's,
and it may be ended at any moment. Run as `python -m swarm.audit_process`; messages are length-prefixed
msgpack on its standard input and output. It ends when its input does, so it does not outlive a killed node.
"""

from __future__ import annotations

import logging
import os
import select
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec
from msgspec import Struct

from swarm.audit import Case, Checker, Undecided
from swarm.audit_models import LoadedModels
from swarm.findings import Findings
from swarm.learner.child import one_line
from swarm.manifest import parse_canonical
from swarm.policy.plan import Plan
from swarm.task_process import open_tasks

log = logging.getLogger("swarm.audit")

# Where the node and others want the processors too, this leaves the process about a quarter of what it wants.
NICE = 5
START_SECONDS = 900.0  # to load a model
_LENGTH = struct.Struct(">Q")
_MAX_ANSWER = 2**20  # bytes
_END_SECONDS = 2.0

Kind = TypeVar("Kind", bound=Struct)


class Start(Struct, frozen=True, kw_only=True):
    """The first message to the process."""

    manifest: bytes  # canonical
    plan: Plan
    work_dir: str
    trusted_code: tuple[str, ...] = ()


class Ready(Struct, frozen=True):
    """Answers the first message, when the node's own model is loaded."""


class Answer(Struct, frozen=True, kw_only=True):
    """What came of a case; without findings it could not be judged, and `undecided` says why."""

    findings: Findings | None = None
    undecided: str = ""


class AuditProcess:
    """The node's side: starts the process when the first case comes. Not for use from two threads at once."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if it runs."""
        return None if self._process is None else self._process.pid

    def check(self, case: Case, seconds: float) -> Findings:
        """Have a case checked; `Undecided` if it cannot be, or takes over `seconds`: that ends the process.

        The time that it takes to start does not count.
        """
        try:
            process = self._running()
            _write(process.stdin, case)
            answer = _read(process.stdout, Answer, time.monotonic() + seconds)
        except (OSError, EOFError, TimeoutError, msgspec.DecodeError) as error:
            self.close()
            raise Undecided(f"the audit process failed: {one_line(error)}") from error
        if answer.findings is None:
            raise Undecided(answer.undecided)
        return answer.findings

    def kill(self) -> None:
        """End what is under way; from any thread, while another one may be waiting in `check`."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # closing writes what it did not read
                pipe.close()  # type: ignore[union-attr]
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            # A session of its own: Ctrl-C in the terminal is for the node, which then ends it.
            with (Path(self._start.work_dir) / "audits.log").open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "swarm.audit_process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    start_new_session=True,
                )
            _write(self._process.stdin, self._start)
            _read(self._process.stdout, Ready, time.monotonic() + START_SECONDS)
        return self._process


def _write(pipe: IO[bytes] | None, message: Struct) -> None:
    assert pipe is not None
    data = msgspec.msgpack.encode(message)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes] | None, kind: type[Kind], deadline: float) -> Kind:
    """One message; `TimeoutError` if it is not there by then, `EOFError` if the other side is gone."""
    assert pipe is not None
    (length,) = _LENGTH.unpack(_read_bytes(pipe, _LENGTH.size, deadline))
    if length > _MAX_ANSWER:
        raise EOFError("it answered nonsense")
    return msgspec.msgpack.decode(_read_bytes(pipe, length, deadline), type=kind)


def _read_bytes(pipe: IO[bytes], count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError("it takes too long")
        some = os.read(pipe.fileno(), count - len(data))
        if not some:
            raise EOFError("it is gone")
        data += some
    return data


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    start = _next(requests, Start)
    if start is None:
        return
    manifest = parse_canonical(start.manifest, "of the node")
    models = LoadedModels(manifest, start.plan, Path(start.work_dir), start.trusted_code)
    models.preload()
    _write(answers, Ready())
    with open_tasks(manifest) as tasks:
        checker = Checker(manifest, tasks, models)
        while (case := _next(requests, Case)) is not None:
            try:
                answer = Answer(findings=checker.check(case))
            except Undecided as error:
                answer = Answer(undecided=str(error))
            except Exception as error:
                # Whatever a stranger's work made a library do: this case is not judged, the next one is.
                log.exception("audit failed peer=%s round=%d", case.facts.peer.hex(), case.facts.round)
                answer = Answer(undecided=f"{type(error).__name__}: {one_line(error)}")
            _write(answers, answer)


def _next(requests: IO[bytes], kind: type[Kind]) -> Kind | None:
    """The next message; None when the node is gone."""
    head = requests.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = requests.read(length)
    return msgspec.msgpack.decode(data, type=kind) if len(data) == length else None


def main() -> None:
    """The process."""
    os.nice(NICE)
    # Libraries print; what they print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    _serve(sys.stdin.buffer, answers)
    os._exit(0)  # without any library's exit hooks


if __name__ == "__main__":
    main()

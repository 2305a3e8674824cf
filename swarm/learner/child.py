"""Child processes that hold somebody else's library for us, because it may print, ask, wait or never return.

The parent writes to the child's standard input, one JSON line per message. The child's standard output holds
one line if it failed: why. It ends when its input does, so it does not outlive a node that was killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import BinaryIO, NoReturn

import msgspec

_MAX_REASON = 300  # characters of a library's error in the log


def one_line(error: BaseException) -> str:
    """A library's error for the log, which has one line per event."""
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__


class ChildError(Exception):
    """The child failed; the message is its reason."""


class Child:
    """The parent's side. Not for use from two threads at once, but for `kill`."""

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        """Start `python -m module`, whose `main` calls `serve`; `environment` is added to our own."""
        # A session of its own: Ctrl-C in the terminal must not reach it before its parent has decided.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )

    def send(self, message: msgspec.Struct) -> None:
        """Hand over one message; waits while the pipe is full. `ChildError` if the child is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._process.wait()
            raise ChildError(self._reason()) from None

    def close_input(self) -> None:
        """Tell the child that nothing more comes."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end; `ChildError` if it failed, or is not done after `timeout` seconds."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ChildError(f"not done after {timeout:.0f} seconds") from None
        if status:
            raise ChildError(self._reason())

    def kill(self) -> None:
        """End it at once; may come from any thread."""
        self._process.kill()

    def _reason(self) -> str:
        assert self._process.stdout is not None
        said = self._process.stdout.read().decode(errors="replace").strip()
        return said or f"its process ended with status {self._process.returncode}"


def serve(work: Callable[[BinaryIO], None]) -> NoReturn:
    """The child's side: do the work on standard input, then end, without any library's exit hooks."""
    # Libraries print; what they print must not be taken for our reason.
    reason = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
    try:
        work(sys.stdin.buffer)
    except Exception as error:  # noqa: BLE001 - whatever the library raises is the reason
        reason.write(one_line(error))
        reason.flush()
        os._exit(1)
    os._exit(0)


def end_after(seconds: float) -> None:
    """In the child: end then, whatever is under way."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()

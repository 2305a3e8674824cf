"""Ends process groups when the process that started them is gone, however it went.

Run as `python -m swarm.guard`: reads one process group id per line from standard input. The word
`done` ends it quietly; the end of the input (its parent died) makes it kill every group it was told of.
Imports nothing heavy: it lives beside every demo.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from types import TracebackType


class Guard:
    """The parent's side. Leaving the context normally lets the guard go quietly."""

    def __enter__(self) -> Guard:
        # A session of its own: Ctrl-C in the terminal must not reach it before its parent has cleaned up.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "swarm.guard"], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        return self

    def watch(self, group: int) -> None:
        """Have a process group killed if we die."""
        assert self._process.stdin is not None
        print(group, file=self._process.stdin, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error something may be left: then the guard is let go as if we had died.
        self._process.communicate("done\n" if error is None else "")


def main() -> None:
    """The guard's own loop."""
    groups = []
    for line in sys.stdin:
        if line.strip() == "done":
            return
        groups.append(int(line))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()

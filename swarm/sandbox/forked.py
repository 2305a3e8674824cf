"""The same for a single process that has its handler already: a confined fork of itself."""

from __future__ import annotations

import contextlib
import socket

from swarm.errors import SandboxDied, SandboxError, SandboxTimeout
from swarm.sandbox import worker
from swarm.sandbox.channel import Channel
from swarm.sandbox.confine import unsupported
from swarm.sandbox.process import GREETING_SECONDS, MEMORY_BYTES


class Forked:
    """Answers calls as `Confined` does, by a fork of this process. For `prepare`s that try what they load."""

    def __init__(self, handler: worker.Handler, *, memory_bytes: int = MEMORY_BYTES) -> None:
        """As for `Confined`; the handler is there already."""
        if reason := unsupported():
            raise SandboxError(reason)
        self._handler, self._memory_bytes = handler, memory_bytes
        self._pid: int | None = None
        self._start()

    def call(self, request: bytes, seconds: float) -> bytes:
        """See `Confined.call`."""
        try:
            return self._channel.ask(request, seconds)
        except (SandboxDied, SandboxTimeout):
            self.close()
            self._start()
            raise

    def close(self) -> None:
        """End the fork; another time changes nothing."""
        if self._pid is not None:
            self._channel.close()
            worker.end(self._pid)
            self._pid = None

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            self._pid = worker.start(theirs, self._handler, self._memory_bytes)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._channel.greeting(GREETING_SECONDS)
            stack.pop_all()

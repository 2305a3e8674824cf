"""What is said between whoever asks and a worker: frames of a length (4 bytes) and that many bytes.

A worker's frames begin with a byte: 0, and the handler's answer; 1, and why there is none. Its first frame
comes unasked: that it is confined, or why it cannot be. To the asker every byte of a worker is hostile.
"""

from __future__ import annotations

import socket
import struct
import time

from swarm.errors import SandboxDied, SandboxError, SandboxTimeout

MOST_ANSWER_BYTES = 16 << 20
DONE, FAILED = 0, 1
LENGTH = struct.Struct(">I")
_PIECE = 1 << 16
_MOST_REASON = 300  # characters


def one_line(error: BaseException) -> str:
    """An error as it may stand in another: one line, not long, nothing that steers a terminal."""
    text = " ".join(str(error).split())[:_MOST_REASON]
    return "".join(char for char in text if char.isprintable()) or type(error).__name__


class Channel:
    """The asker's end. After any error there is nothing left to do with it but `close`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def greeting(self, seconds: float) -> None:
        """Wait until the worker is confined; `SandboxError` says why it cannot be."""
        frame = self._receive(time.monotonic() + seconds)
        if frame[0] != DONE:
            raise SandboxError(_reason(frame))

    def ask(self, request: bytes, seconds: float) -> bytes:
        """The handler's answer; `SandboxTimeout`, or `SandboxDied` if it ended, failed or said too much."""
        deadline = time.monotonic() + seconds
        try:
            self._connection.settimeout(seconds)
            self._connection.sendall(LENGTH.pack(len(request)) + request)
        except TimeoutError:
            raise _late() from None
        except OSError:
            raise SandboxDied("the confined process ended") from None
        frame = self._receive(deadline)
        if frame[0] != DONE:
            raise SandboxDied(f"the confined handler failed: {_reason(frame)}")
        return bytes(frame[1:])

    def close(self) -> None:
        """Give the end back; an idle worker ends then."""
        self._connection.close()

    def _receive(self, deadline: float) -> bytearray:
        size: int = LENGTH.unpack(self._exactly(LENGTH.size, deadline))[0]
        if not 1 <= size <= MOST_ANSWER_BYTES + 1:
            raise SandboxDied(f"the confined process wants to say {size} bytes, more than it may")
        return self._exactly(size, deadline)

    def _exactly(self, size: int, deadline: float) -> bytearray:
        got = bytearray()
        while len(got) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _late()
            self._connection.settimeout(left)
            try:
                piece = self._connection.recv(min(_PIECE, size - len(got)))
            except TimeoutError:
                raise _late() from None
            except OSError:
                piece = b""
            if not piece:
                raise SandboxDied("the confined process ended")
            got += piece
        return got


def _late() -> SandboxTimeout:
    return SandboxTimeout("the confined process took longer than it was given")


def _reason(frame: bytearray) -> str:
    return one_line(Exception(frame[1 : 1 + 4 * _MOST_REASON].decode(errors="replace")))

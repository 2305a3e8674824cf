"""The trusted side of a sandbox: `python -P -s -m swarm.sandbox MODULE MEMORY CONTROL`.

It prepares once, then forks a worker whenever it is asked to, in milliseconds. `process.Confined` starts it,
and it ends, with its worker, when the control channel does, so it never outlives a node that was killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec

from swarm.errors import UsageError
from swarm.sandbox import worker
from swarm.sandbox.channel import LENGTH, one_line
from swarm.sandbox.memory import limited_memory, prepare_bytes

FORK = b"f"  # with the worker's end of a new channel; the worker before is ended


_MOST_USAGE = 4000  # characters of what is wrong with the user's input


class Prepared(msgspec.Struct, frozen=True):
    """What the zygote says when `prepare` is through."""

    reason: str = ""  # why it failed
    usage: bool = False  # whether that is the user's mistake


class Forked(msgspec.Struct, frozen=True):
    """What it says to `FORK`."""

    ended: int | None = None  # how the worker before ended: its exit code, or minus its signal


def main() -> NoReturn:
    """Prepare, then fork on demand until the control channel ends."""
    module, memory_bytes = sys.argv[1], int(sys.argv[2])
    control = socket.socket(fileno=int(sys.argv[3]))
    control.set_inheritable(False)
    argument = receive(control)
    if argument is None:
        _leave()
    _end_before_the_node()
    most_bytes = prepare_bytes()
    try:
        with _leaving_if_alone(control), limited_memory(most_bytes):
            handler: worker.Handler = importlib.import_module(module).prepare(argument)
    except MemoryError:
        reason = f"preparing takes more memory than the {most_bytes >> 20} MiB that it may"
        send(control, msgspec.json.encode(Prepared(reason)))
        _leave()
    except Exception as error:  # noqa: BLE001 - whatever fails there is told to the parent
        usage = isinstance(error, UsageError)
        kind = "" if usage or type(error).__module__ == "swarm.errors" else f"{type(error).__name__}: "
        reason = str(error)[:_MOST_USAGE] if usage else kind + one_line(error)
        send(control, msgspec.json.encode(Prepared(reason, usage)))
        _leave()
    gc.collect()
    gc.freeze()  # else the worker's first collection copies every page
    send(control, msgspec.json.encode(Prepared()))
    _fork_on_demand(control, handler, memory_bytes)


def _fork_on_demand(control: socket.socket, handler: worker.Handler, memory_bytes: int) -> NoReturn:
    pid: int | None = None
    while True:
        asked, descriptors, _flags, _address = socket.recv_fds(control, 1, 1)
        ended = None if pid is None else worker.end(pid)
        if asked != FORK or not descriptors:
            _leave()
        with socket.socket(fileno=descriptors[0]) as channel:
            try:
                pid = worker.start(channel, handler, memory_bytes)
            except OSError:  # no room for one more process; the asker finds its channel closed
                pid = None
        send(control, msgspec.json.encode(Forked(ended)))


def send(control: socket.socket, message: bytes) -> None:
    """One message on a control channel, by either side."""
    control.sendall(LENGTH.pack(len(message)) + message)


def receive(control: socket.socket) -> bytes | None:
    """The next message on a control channel; None if the other side is gone."""
    try:
        head = control.recv(LENGTH.size, socket.MSG_WAITALL)
        if len(head) < LENGTH.size:
            return None
        size: int = LENGTH.unpack(head)[0]
        message = control.recv(size, socket.MSG_WAITALL) if size else b""
        return message if len(message) == size else None
    except ConnectionError:
        return None


@contextlib.contextmanager
def _leaving_if_alone(control: socket.socket) -> Iterator[None]:
    """Preparing may take minutes; if the parent ends meanwhile, so do we. The thread ends with it."""
    stop, stopped = socket.socketpair()

    def watch() -> None:
        readable, _, _ = select.select([control, stopped], [], [])
        if stopped not in readable and not control.recv(1, socket.MSG_PEEK):
            _leave()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.close()
        thread.join()
        stopped.close()


def _end_before_the_node() -> None:
    """If the machine is short of memory, or our container is, it is us whom the kernel shall end."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")  # workers have 1000


def _leave() -> NoReturn:
    """End, and take the working folder along if nobody else has."""
    with contextlib.suppress(OSError):
        os.rmdir(os.getcwd())  # noqa: PTH106, PTH109
    os._exit(0)

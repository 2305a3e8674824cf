"""The worker's side: a fork that gives away all but one channel, confines itself, and answers requests."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from swarm.sandbox.channel import DONE, FAILED, LENGTH, one_line
from swarm.sandbox.confine import confine

with contextlib.suppress(ImportError):  # on Windows, where nothing is started that would need it
    import fcntl

Handler = Callable[[bytes], bytes]

STACK_BYTES = 64 << 20  # deep recursion in C ends as an error, not as a crash
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_F_GET_SEALS, _F_SEAL_WRITE = 1034, 8  # linux/fcntl.h
# What libraries look up while they work: a home without this would be looked for in /etc/passwd.
_ENVIRONMENT = ("HOME", "LANG", "PYTHONHASHSEED", "TOKENIZERS_PARALLELISM")


def start(channel: socket.socket, handler: Handler, memory_bytes: int) -> int:
    """Fork a worker that serves `channel`; its process id. Its memory may grow by `memory_bytes`.

    The caller closes its own copy of `channel`. Not for processes whose threads may hold locks of importance.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _give_away(channel, parent)
            _serve_in_thread(channel.detach(), handler, memory_bytes)
        finally:
            os._exit(1)
    return pid


def end(pid: int) -> int:
    """Kill a worker and reap it; its exit status as `os.waitstatus_to_exitcode` has it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _give_away(channel: socket.socket, parent: int) -> None:
    """Keep the channel, /dev/null as 0 to 2, and nothing else; end with the parent."""
    _forget_environment()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    kept = {0, 1, 2, channel.fileno()}
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - Path would be slower and no clearer
        descriptor = int(name)
        if descriptor not in kept and not _sealed(descriptor):
            with contextlib.suppress(OSError):
                os.close(descriptor)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # If the machine is short of memory, it is us whom the kernel shall end.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:
        os._exit(1)  # it ended before we asked to end with it


def _forget_environment() -> None:
    """Whatever secrets the parent was started with, such as a proxy's password, are not in this process.

    Of copies that a library made we know nothing, so those stay, be they in freed memory: if `prepare` asked
    a hub for something, a worker that is taken over may find the hub's token and the proxy.
    """
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    for value in os.environb.values():
        # CPython has a bytes object's bytes at its end, before a zero, and shares objects of one byte.
        if len(value) > 1:
            ctypes.memset(id(value) + bytes.__basicsize__ - 1, 0, len(value))
    os.environ.clear()
    if sys.platform == "linux":
        # Where the kernel put them when the program began: proc(5), env_start and env_end.
        words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(words[47]), int(words[48])
        ctypes.memset(start, 0, end - start)
    os.environ.update(kept)


def _sealed(descriptor: int) -> bool:
    """Whether it is a piece of memory that nobody can change: wasmtime maps its images from such."""
    try:
        return bool(fcntl.fcntl(descriptor, _F_GET_SEALS) & _F_SEAL_WRITE)
    except OSError:
        return False


def _serve_in_thread(descriptor: int, handler: Handler, memory_bytes: int) -> None:
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(descriptor, handler, memory_bytes))
    thread.start()
    thread.join()


def _serve(descriptor: int, handler: Handler, memory_bytes: int) -> NoReturn:
    try:
        try:
            confine(memory_bytes)
        except Exception as error:  # noqa: BLE001 - the asker shall know, and nothing runs here
            _write(descriptor, FAILED, one_line(error).encode())
            os._exit(1)
        _write(descriptor, DONE, b"")
        while True:
            (size,) = LENGTH.unpack(_read(descriptor, LENGTH.size))
            request = _read(descriptor, size)
            try:
                answer = handler(request)
            except Exception as error:  # noqa: BLE001 - a handler's mistake is the asker's to report
                _write(descriptor, FAILED, one_line(error).encode())
            else:
                _write(descriptor, DONE, answer)
    finally:
        os._exit(0)


def _read(descriptor: int, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        piece = os.read(descriptor, min(1 << 20, size - len(got)))
        if not piece:
            os._exit(0)
        got += piece
    return bytes(got)


def _write(descriptor: int, kind: int, text: bytes) -> None:
    view = memoryview(LENGTH.pack(len(text) + 1) + bytes([kind]) + text)
    while view:
        view = view[os.write(descriptor, view) :]

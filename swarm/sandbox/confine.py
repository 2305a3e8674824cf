"""Making a process one that can only compute, and knowing whether this machine can."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from swarm.errors import SandboxError
from swarm.sandbox import seccomp

with contextlib.suppress(ImportError):  # on Windows; `unsupported` says so before it is needed
    import resource

# wasmtime reserves over 4 GiB of addresses for each memory, of which almost nothing is used; this is room for
# some. There is a limit because even reading all of a reservation costs page tables, 1/512 of it.
ADDRESSES_BYTES = 48 << 30
# Linux's default. The main thread only waits for the one that serves, which has a stack of its own.
MAIN_STACK_BYTES = 8 << 20


def confine(memory_bytes: int) -> None:
    """From now on this process computes, uses what is open already, and ends. Nothing else, for good.

    Its memory may grow by `memory_bytes`. `SandboxError` if this machine cannot do that, or did not.

    Linux: limits, and the filter of `swarm.sandbox.seccomp`. Memory is limited by RLIMIT_DATA, which counts
    private pages that can be written: an RLIMIT_AS small enough to protect the machine leaves no addresses
    for wasmtime. It counts no stacks that grow: the main one has a limit of its own, and the filter refuses
    further ones, as it does memory that is shared.
    macOS: limits, and the Seatbelt profile that denies everything. Written from documentation, never tried;
    macOS does not enforce a limit of memory.
    """
    if reason := unsupported():
        raise SandboxError(reason)
    _limit(memory_bytes)
    if sys.platform == "linux":
        seccomp.install()
    else:
        _deny_all_on_macos()
    _verify()


def check_sandbox() -> str | None:
    """Why this machine cannot sandbox, in one line; None if it can. Tries it in a process of its own."""
    if reason := unsupported() or (seccomp.why_not() if sys.platform == "linux" else None):
        return reason
    from swarm.sandbox.process import Confined

    try:
        with Confined("swarm.sandbox.echo", memory_bytes=256 << 20) as confined:
            confined.call(b"", 60)
    except SandboxError as error:
        return str(error)
    return None


def unsupported() -> str | None:
    """Why no sandbox is written for this system, or None. What makes a confined process asks this first."""
    if sys.platform in ("linux", "darwin"):
        return None
    return f"strangers' text can be scored on Linux and macOS only, not on {sys.platform}"


def _limit(memory_bytes: int) -> None:
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
    ]
    if sys.platform == "linux":
        addresses, data = memory_in_use()
        limits += [
            (resource.RLIMIT_STACK, MAIN_STACK_BYTES),
            (resource.RLIMIT_DATA, data + memory_bytes),
            (resource.RLIMIT_AS, addresses + memory_bytes + ADDRESSES_BYTES),
        ]
    limits.append((resource.RLIMIT_NOFILE, 0))
    for what, most in limits:
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError) as error:
            raise SandboxError(f"cannot limit a process's resources: {error}") from error


def memory_in_use() -> tuple[int, int]:
    """Bytes of this process's addresses, and of its data as RLIMIT_DATA counts it. Linux."""
    pages = [int(word) for word in Path("/proc/self/statm").read_text().split()]
    return pages[0] * resource.getpagesize(), pages[5] * resource.getpagesize()


def _deny_all_on_macos() -> None:
    system = ctypes.CDLL("/usr/lib/libSystem.dylib")
    reason = ctypes.c_char_p()
    if system.sandbox_init(b"(version 1)(deny default)", ctypes.c_uint64(0), ctypes.byref(reason)) != 0:
        raise SandboxError(
            f"macOS refuses the sandbox profile: {(reason.value or b'').decode(errors='replace')}"
        )


def _verify() -> None:
    """Try what must fail; what works in spite of the filter ends it all."""
    must_fail: dict[str, Callable[[], object]] = {
        "open files": lambda: os.open(os.devnull, os.O_RDONLY),
        "open sockets": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "signal others": lambda: os.kill(os.getppid(), 0),
    }
    for what, attempt in must_fail.items():
        with contextlib.suppress(OSError):
            attempt()
            raise SandboxError(f"the sandbox does not hold on this machine: a confined process can {what}")

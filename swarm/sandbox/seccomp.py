"""Linux: a filter in the kernel that lets a process make only the system calls which computing needs.

It needs no root, no namespaces and no library: two calls through ctypes. What is not listed fails with EPERM,
so a program that tries gets an ordinary Python exception; calls of another architecture's numbering kill.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

from swarm.errors import SandboxError

# prctl(2), seccomp(2), linux/seccomp.h, linux/bpf_common.h, linux/audit.h, mman.h
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCH_AT, _FOURTH_ARGUMENT_AT = 0, 4, 40  # in struct seccomp_data; the low half on little endian
_X32_BIT = 0x40000000
# Memory that RLIMIT_DATA does not count.
_MAP_SHARED, _MAP_GROWSDOWN = 0x01, 0x100

# Numbers on x86_64 and aarch64: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h.
# Reading and writing what is open, memory, locks between its own threads, signal handlers, time, randomness,
# ending. Not here, among all others: open*, socket*, clone, fork, exec*, kill, tgkill, ptrace, prctl,
# prlimit64, process_vm_*, sendmsg, ioctl, io_uring_*, memfd_create, shm*.
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "close": (3, 57),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "restart_syscall": (219, 128),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getrusage": (98, 165),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "exit": (60, 93),
    "exit_group": (231, 94),
}


@dataclass(frozen=True)
class _Machine:
    column: int  # of the numbers in _ALLOWED
    arch: int  # AUDIT_ARCH_*
    seccomp: int
    mmap: int


_MACHINES = {
    "x86_64": _Machine(0, 0xC000003E, 317, 9),
    "aarch64": _Machine(1, 0xC00000B7, 277, 222),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def why_not() -> str | None:
    """Why this kernel or machine has no such filter, or None. Changes nothing."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return f"no filter of system calls is written for {platform.machine()} processors"
    libc = ctypes.CDLL(None, use_errno=True)
    # Asks with no program at all: EFAULT says that it would have read one.
    libc.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, _FLAG_TSYNC, None)
    code = ctypes.get_errno()
    if code in (errno.EFAULT, errno.EACCES):
        return None
    return f"the kernel refuses a filter of system calls (seccomp: {os.strerror(code)})"


def install() -> None:
    """Filter this process's threads from now on, for good; `SandboxError` if that is impossible."""
    reason = why_not()
    if reason:
        raise SandboxError(reason)
    machine = _MACHINES[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    code = _code(machine)
    program = _Program(len(code) // 8, code)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or (
        libc.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(program)) != 0
    ):
        raise SandboxError(f"cannot filter system calls (seccomp: {os.strerror(ctypes.get_errno())})")


def _code(machine: _Machine) -> bytes:
    """The filter in classic BPF: (code, jump if true, jump if false, operand), 8 bytes each."""
    refuse, allow = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    lines = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, machine.arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
    ]
    for numbers in _ALLOWED.values():
        lines += [(_EQUAL, 0, 1, numbers[machine.column]), allow]
    lines += [
        (_EQUAL, 1, 0, machine.mmap),
        refuse,
        (_LOAD, 0, 0, _FOURTH_ARGUMENT_AT),
        (_AND, 0, 0, _MAP_SHARED | _MAP_GROWSDOWN),
        (_EQUAL, 0, 1, 0),
        allow,
        refuse,
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)

"""What the tests let a sandbox run: Python that they send, as who broke out of everything else has it."""

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from swarm.errors import UsageError
from swarm.sandbox import unlimited_memory

libc = ctypes.CDLL(None, use_errno=True)
libc.getenv.restype = ctypes.c_char_p
kept = []
NAMES = (ctypes, errno, libc, mmap, os, resource, signal, socket, subprocess, sys, threading)


def checked(status):
    """For calls of libc: what they return, or their error."""
    if status == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return status


def environment_of_the_start():
    """Where the kernel put it."""
    words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(words[47]), int(words[48]) - int(words[47])


def end_of_main_stack():
    """The lowest address that it has."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(int(line.split("-")[0], 16) for line in lines if "[stack]" in line)


if sys.platform == "linux":
    ENVIRONMENT, STACK = environment_of_the_start(), end_of_main_stack()


def prepare(argument):
    if argument == b"usage":
        raise UsageError("there is no such data")
    if argument == b"bug":
        raise KeyError("a\nbug")
    if argument == b"exit":
        os._exit(3)
    if argument == b"hang":
        signal.pause()
    if argument.startswith(b"take "):
        bytes(int(argument.split()[1]))  # zeros from the kernel, which cost nothing until they are read
    if argument.startswith(b"trust "):
        size = int(argument.split()[1])
        with unlimited_memory():
            kept.append(bytes(size))
        kept.append(bytearray(1 << 20))
        bytes(size)
    return run


def run(request):
    space = dict(globals())
    exec(request, space)
    return repr(space.get("result")).encode()

"""What runs inside the WebAssembly component, in its own Python. `build` puts it there; nothing imports it.

The solution's instance runs a stranger's program, the grader's instance runs the tests, and each has an
interpreter and a memory of its own. In the tests the solution's functions are stand-ins: arguments and
results go between the two as JSON that `_decode` turns into plain builtin values and nothing else. So a
program never meets the tests, and whatever it returns is no object of its own making.

    None, bool, int, float, str, list    as in JSON, with NaN and Infinity
    tuple, set, frozenset                {"t": [...]}, {"s": [...]}, {"f": [...]}
    dict                                 {"d": [[key, value], ...]}
    bytes, complex                       {"b": "hex digits"}, {"c": [real, imaginary]}
"""

from __future__ import annotations

# ruff: noqa: F401 - what is imported here can be imported by programs; nothing else can.
import abc
import array
import ast
import base64
import binascii
import bisect
import builtins
import calendar
import cmath
import collections
import collections.abc
import contextlib
import copy
import csv
import dataclasses
import datetime
import decimal
import difflib
import enum
import fractions
import functools
import graphlib
import hashlib
import heapq
import html
import inspect
import io
import itertools
import json
import keyword
import locale
import math
import numbers
import operator
import os
import pprint
import queue
import random
import re
import secrets
import statistics
import string
import struct
import sys
import textwrap
import time
import timeit
import traceback
import types
import typing
import unicodedata
import uuid
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

import wit_world  # type: ignore[import-not-found]

MOST_DEPTH = 64  # of values in values
_CONTAINERS: dict[str, Callable[[Any], Any]] = {"t": tuple, "s": set, "f": frozenset}
# Errors that would end a loop of the tests, or the interpreter, are none that a solution may raise there.
_QUIET = (StopIteration, StopAsyncIteration)


class SolutionError(Exception):
    """The solution raised something that is no builtin error, or returned what is no plain value."""


class WitWorld(wit_world.WitWorld):
    """The functions of program.wit."""

    def load(self, source: str) -> str:
        return _error_of(lambda: exec(compile(source, "<solution>", "exec"), _space))

    def apply(self, request: str) -> str:
        answer: list[Any] = []
        error = _error_of(lambda: answer.append(_apply(request)))
        return json.dumps({"raised": error}) if error else answer[0]

    def begin(self, setup: str, tests: list[str]) -> str:
        return _error_of(lambda: _begin(setup, tests))

    def check(self, test: str) -> str:
        return _error_of(lambda: exec(compile(test, "<test>", "exec"), _space))


_space: dict[str, Any] = {"__name__": "solution", "__builtins__": builtins}


def _apply(request: str) -> str:
    name, arguments, keywords = json.loads(request)
    result = _space[name](*_decode(arguments), **{key: _decode(value) for key, value in keywords.items()})
    return json.dumps({"returned": _encode(result)})


def _begin(setup: str, tests: list[str]) -> None:
    """Every name that the tests use and nobody defines stands for a function of the solution."""
    trees = [ast.parse(text) for text in (setup, *tests)]
    used, called, known = set(), set(), set(dir(builtins))
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.add(node.func.id)
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                known.add(name)
            case ast.alias(name=name, asname=other):
                known.add(other or name.partition(".")[0])
            case ast.ExceptHandler(name=str(name)):
                known.add(name)
    for name in sorted(used - known):
        # Tests written for one namespace rely on modules that the solution imports.
        is_module = name in sys.modules and name not in called
        _space[name] = sys.modules[name] if is_module else _stand_in(name)
    exec(compile(setup, "<setup>", "exec"), _space)


def _stand_in(name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        encoded = {key: _encode(value) for key, value in keywords.items()}
        said = wit_world.call(json.dumps([name, _encode(arguments), encoded]))
        try:
            answer = json.loads(said)
            if "returned" in answer:
                return _decode(answer["returned"])
            raised = str(answer["raised"])
        except Exception:  # noqa: BLE001 - the answer is hostile: whatever is wrong with it is the solution's fault
            raise SolutionError from None
        kind = getattr(builtins, raised, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _QUIET):
            try:
                error = kind()
            except TypeError:  # UnicodeDecodeError wants to know more
                error = ValueError()
            raise error
        raise SolutionError(raised)

    call.__name__ = name
    return call


def _error_of(work: Callable[[], object]) -> str:
    """The name of what it raises, else nothing."""
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - SystemExit is no way out
        return type(error).__name__ or "error"
    return ""


def _encode(value: Any, depth: int = 0) -> Any:
    if depth > MOST_DEPTH:
        raise SolutionError("values too deep in one another")
    if value is None or value is True or value is False:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, list):
        return [_encode(item, depth + 1) for item in value]
    for tag, container in _CONTAINERS.items():
        if isinstance(value, container):  # type: ignore[arg-type]
            return {tag: [_encode(item, depth + 1) for item in value]}
    if isinstance(value, dict):
        return {"d": [[_encode(key, depth + 1), _encode(item, depth + 1)] for key, item in value.items()]}
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    raise SolutionError(f"{type(value).__name__} is no plain value")


def _decode(value: Any, depth: int = 0) -> Any:
    if depth > 2 * MOST_DEPTH:
        raise SolutionError("values too deep in one another")
    if isinstance(value, list):
        return [_decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "d":
        return {_decode(key, depth + 1): _decode(item, depth + 1) for key, item in content}
    if tag == "b":
        return bytes.fromhex(content)
    if tag == "c":
        return complex(*content)
    return _CONTAINERS[tag]([_decode(item, depth + 1) for item in content])


class _Nowhere(io.TextIOBase):
    """Where prints go."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


class _Random(random.Random):
    """Without a seed it would ask for true randomness, and trap."""

    def __new__(cls, seed: Any = 0) -> _Random:
        return super().__new__(cls, seed)  # type: ignore[call-arg]

    def __init__(self, seed: Any = 0) -> None:
        super().__init__(seed)


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(f"there is no {what} here")

    return refuse


def _settle() -> None:
    """Nothing more can be imported; what has no meaning here raises, where it would trap and end all."""
    random.seed(0)
    random.Random = _Random  # type: ignore[misc, assignment]
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "PathFinder"]
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = _Nowhere()  # type: ignore[misc, assignment]
    sys.stdin = sys.__stdin__ = io.StringIO()  # type: ignore[misc, assignment]
    sys.dont_write_bytecode = True
    builtins.open = io.open = os.open = _refuse("file")
    os.listdir = os.scandir = os.stat = os.mkdir = _refuse("file")
    os.getcwd = _refuse("folder")
    for name in ("time", "monotonic", "perf_counter", "process_time"):
        setattr(time, name, _refuse("clock"))
        setattr(time, f"{name}_ns", _refuse("clock"))
    time.sleep = _refuse("clock")
    os.urandom = _refuse("randomness")


_settle()

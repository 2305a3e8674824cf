"""Runs a program against tests: two interpreters, one for each, that exchange plain values.

Both draw on one supply of fuel, and each has its memory. There is no other clock: the same program, tests and
limits give the same outcome on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from wasmtime import Engine, Store, StoreContext
    from wasmtime.component import Component, Func, Instance

WARM_UP_FUEL = 10**9


class Limits(Struct, frozen=True):
    """What a program may use in one run, with the tests."""

    fuel: int = 2 * 10**9  # WebAssembly instructions, by wasmtime's count
    memory_bytes: int = 256 << 20  # of each of the two interpreters
    message_chars: int = 1 << 20  # of one call's arguments, or of its result


class _Refused(Exception):
    """The program did what ends a run."""


class Machine:
    """One per process. Deep recursion needs a stack of 64 MiB, as workers of the sandbox have."""

    def __init__(self, engine: Engine, component: Component) -> None:
        """Run something, so that all that wasmtime makes on first use is there before files are gone."""
        from wasmtime import component as wasm

        self._engine, self._component = engine, component
        self._apply: Func | None = None
        self._limits = Limits()
        self._for_solution, self._for_grader = wasm.Linker(engine), wasm.Linker(engine)
        with self._for_solution.root() as root:
            root.add_func("call", _refuse)
        with self._for_grader.root() as root:
            root.add_func("call", self._call)
        if self.run(["def f(): return 1"], "", ["assert f() == 1"], Limits(WARM_UP_FUEL)) != 1:
            raise RuntimeError("the interpreter for programs does not work here")

    def run(
        self, sources: Sequence[str], setup: str, tests: Sequence[str], limits: Limits, *, every: bool = False
    ) -> int:
        """How many tests pass, up to the first that does not, or of all if `every` is true.

        The last of `sources` is the program. Those before run in its namespace first, and may fail. No test
        after one that ran out of fuel or memory, or trapped, passes.
        """
        from wasmtime import Store, Trap, WasmtimeError

        store = Store(self._engine)
        store.set_fuel(limits.fuel)
        store.set_limits(memory_size=limits.memory_bytes)
        passed = 0
        try:
            solution = self._for_solution.instantiate(store, self._component)
            grader = self._for_grader.instantiate(store, self._component)
            load, begin = _function(store, solution, "load"), _function(store, grader, "begin")
            check = _function(store, grader, "check")
            self._apply, self._limits = _function(store, solution, "apply"), limits
            raised = [load(store, source) for source in sources]
            if raised[-1] or begin(store, setup, list(tests)):
                return 0
            for test in tests:
                if check(store, test) == "":
                    passed += 1
                elif not every:
                    break
        except (WasmtimeError, Trap, _Refused, UnicodeError):
            pass
        finally:
            self._apply = None
            store.close()
        return passed

    def _call(self, store: StoreContext, request: str) -> str:
        """The grader's import."""
        if self._apply is None or len(request) > self._limits.message_chars:
            raise _Refused
        answer: str = self._apply(store, request)
        if len(answer) > self._limits.message_chars:
            raise _Refused
        return answer


def _function(store: Store, instance: Instance, name: str) -> Func:
    found = instance.get_func(store, name)
    if found is None:
        raise RuntimeError(f"the interpreter for programs has no function {name}")
    return found


def _refuse(_store: StoreContext, _request: str) -> str:
    """The solution's import: it may call nobody."""
    raise _Refused


@functools.cache
def machine() -> Machine:
    """This process's, made when it is first asked for."""
    from swarm.tasks.code.component import load_component

    return Machine(*load_component())

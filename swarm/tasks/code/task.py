"""Python programs with unit tests, from rows like MBPP's or HumanEval's.

Programs run in CPython compiled to WebAssembly (`component`, `machine`), which has no files, clock, network
or processes and is metered, so that scores are the same on every machine; that runs in a confined process.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from swarm.console import say
from swarm.errors import SandboxDied, SandboxTimeout, UsageError
from swarm.sandbox.forked import Forked
from swarm.tasks.base import ProposingTask, Question
from swarm.tasks.code import proposals
from swarm.tasks.code.machine import Limits, machine
from swarm.tasks.code.problems import CodeRow, Problem, fenced, problem_of, program_of
from swarm.tasks.rows import Digest, Revision, Split, load_rows

# A proposal's own solution may use one of so many parts of the fuel. The shortest needs 5·10⁶ with its tests:
# with less than 4·10⁷ in the manifest nothing can be proposed.
PROPOSED_FUEL_SHARE = 8
CHECK_SECONDS = 120.0  # for one reference; fuel ends it long before, on any machine
PROGRESS_SECONDS = 2.0


class Code(ProposingTask, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """A program scores 1 if it passes all tests of its problem, else 0."""

    summary: ClassVar[str] = "Python programs with unit tests, from rows like MBPP's or HumanEval's"
    packages: ClassVar[tuple[str, ...]] = ("wasmtime",)
    instruction: ClassVar[str] = "Think, then put the whole program in a ```python block."

    data: Annotated[
        str, Meta(description="Where the rows are: sample:code, a file, a folder, or a hub's OWNER/NAME.")
    ] = "sample:code"
    split: Split = None
    revision: Revision = None
    digest: Digest = None
    fuel: Annotated[
        int,
        Meta(
            ge=10**7,
            le=10**11,
            description="WebAssembly instructions of a program with its tests; 10⁹ take about 0.1 s.",
        ),
    ] = 2 * 10**9
    memory_mib: Annotated[int, Meta(ge=64, le=512, description="Of the program, and of the tests.")] = 256
    program_chars: Annotated[int, Meta(ge=100, le=10**6, description="A longer program scores 0.")] = 20_000
    message_chars: Annotated[
        int, Meta(ge=1000, le=2**24, description="Of one call's arguments, or of its result, as JSON.")
    ] = 2**20
    partial: Annotated[
        bool, Meta(description="The share of tests passed is the score, where a problem has several.")
    ] = False
    check_references: Annotated[
        bool, Meta(description="Leave out rows whose own solution fails its tests; a hundred take a second.")
    ] = True

    def prepare(self) -> None:
        """Compile the interpreter or find it compiled, read the rows, and try their own solutions."""
        machine()
        _ = self._problems

    def draw(self, seed: bytes) -> Question:
        """A row that the seed picks (128 bits: no bias to speak of)."""
        return _question(self._problems[int.from_bytes(seed[:16], "big") % len(self._problems)])

    def score(self, question: Question, completion: str) -> float:
        """1.0 if the program passes all tests, else 0.0; with `partial`, the share of them."""
        if not isinstance(question.data, Problem):
            raise TypeError("a question that this task did not draw")
        return self._score(question.data, program_of(completion))

    def wrong_answer(self, question: Question) -> str:
        """A program without any function."""
        return fenced("pass")

    def gist(self, completion: str) -> str:
        """The program, without spaces at its lines' ends."""
        return "\n".join(line.rstrip() for line in program_of(completion).strip().splitlines())

    def propose_prompt(self, example: Question) -> str:
        """Shows the example with its solution and asks for a statement, a solution and three tests."""
        if not isinstance(example.data, Problem):
            raise TypeError("a question that this task did not draw")
        return proposals.propose_prompt(example.data)

    def read_proposal(self, completion: str) -> Question | None:
        """The problem, if its solution passes its tests and a function that returns None does not.

        With little fuel: all peers of a cell read it, and others' solutions may need more than this one.
        """
        read = proposals.read_problem(completion)
        if read is None:
            return None
        problem, name = read
        fuel = self.fuel // PROPOSED_FUEL_SHARE
        if self._score(problem, problem.reference, fuel) < 1.0:
            return None
        if self._score(problem, proposals.STUB.format(name=name), fuel) >= 1.0:
            return None
        return _question(problem)

    def _score(self, problem: Problem, program: str, fuel: int | None = None) -> float:
        if len(program) > self.program_chars:
            return 0.0
        limits = Limits(fuel or self.fuel, self.memory_mib << 20, self.message_chars)
        sources = [problem.beginning, program] if problem.beginning else [program]
        passed = machine().run(sources, problem.setup, problem.tests, limits, every=self.partial)
        share = passed / len(problem.tests)
        return share if self.partial else float(share == 1.0)

    @cached_property
    def _problems(self) -> list[Problem]:
        rows, _ = load_rows(self.data, CodeRow, split=self.split, revision=self.revision, digest=self.digest)
        problems = [problem for row in rows if (problem := problem_of(row)) is not None]
        if self.check_references:
            problems = self._checked(problems)
        if not problems:
            raise UsageError(f"none of {len(rows)} rows of {self.data} has a solution that passes its tests")
        if left_out := len(rows) - len(problems):
            say(f"{left_out} of {len(rows)} rows of {self.data} have no solution that passes: left out")
        return problems

    def _checked(self, problems: list[Problem]) -> list[Problem]:
        """Those whose reference scores 1, as a confined process finds: rows are strangers' programs, too."""

        def handle(request: bytes) -> bytes:
            problem = problems[int(request)]
            return msgspec.json.encode(self._score(problem, problem.reference))

        good = []
        told = time.monotonic()
        with Forked(handle) as forked:
            for index, problem in enumerate(problems):
                try:
                    answer = forked.call(b"%d" % index, CHECK_SECONDS)
                except (SandboxDied, SandboxTimeout) as error:
                    # Fuel and memory end a program long before: it is this machine, and with a row less we
                    # would draw other questions than everybody else.
                    raise UsageError(
                        f"this machine cannot try the solution of row {index + 1} of {self.data} ({error}); "
                        "make room, or lower `fuel`"
                    ) from error
                if msgspec.json.decode(answer, type=float) == 1.0:
                    good.append(problem)
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    say(f"tried the solutions of {index + 1} of {len(problems)} rows of {self.data}")
        return good


def _question(problem: Problem) -> Question:
    return Question(problem.text, fenced(problem.reference), problem)

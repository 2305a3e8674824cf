"""Problems from rows like MBPP's and HumanEval's, and the program in a completion."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

from swarm.tasks.prompts import final_answer

FENCE = "```"
_PYTHON = {"python", "py", "python3"}
_KIND = re.compile(r"[\w+-]*")  # of a block: what follows the fence
_IMPORT = re.compile(r"^(?:from[ \t]+[\w.]+[ \t]+)?import[ \t]([\w., \t]*)(?:#.*)?$", re.M)


class CodeRow(Struct, frozen=True):
    """The columns of both kinds of data; MBPP's sanitized rows have `prompt` for `text`."""

    task_id: int | str = ""
    text: str = ""
    prompt: str = ""
    # MBPP
    code: str = ""
    test_list: list[str] = []
    challenge_test_list: list[str] = []
    test_imports: list[str] = []
    test_setup_code: str = ""
    # HumanEval
    canonical_solution: str = ""
    test: str = ""
    entry_point: str = ""


class Problem(Struct, frozen=True):
    """What is asked, and how a program is tested."""

    text: str
    reference: str  # a program
    tests: tuple[str, ...]
    setup: str = ""  # runs before the tests, where they run: what it defines is no program's to define
    beginning: str = ""  # what the program goes on from: HumanEval's prompt, with its imports and helpers


def problem_of(row: CodeRow) -> Problem | None:
    """The row's problem; None if something is missing, such as a reference or tests."""
    if row.entry_point.isidentifier() and row.test and row.prompt and row.canonical_solution:
        setup = _before_function(row.prompt, row.entry_point)
        if setup is None:
            return None
        return Problem(
            text=f"Write this Python function.\n```python\n{row.prompt.strip()}\n```",
            reference=row.prompt + row.canonical_solution,
            tests=(f"{row.test}\n\ncheck({row.entry_point})",),
            setup=setup,
            beginning=row.prompt,
        )
    statement = (row.text or row.prompt).strip()
    if not (statement and row.code and row.test_list):
        return None
    reference = row.code.replace("\r\n", "\n")
    tests = (*row.test_list, *row.challenge_test_list)
    return Problem(
        text=with_tests(statement, row.test_list),
        reference=reference,
        tests=tests,
        setup="\n".join([*_imports_for(tests, reference), *row.test_imports, row.test_setup_code]),
    )


def with_tests(statement: str, tests: list[str]) -> str:
    """A problem's text, with the tests that show the function's name and form."""
    return f"{statement}\nThe program must pass these tests:\n" + "\n".join(tests)


def program_of(completion: str) -> str:
    """The last ```python block, else the last block, else what the answer tags hold, else all of it.

    A block without an end is taken too: a completion may have met its limit after the program.
    """
    blocks = list(_blocks(completion))
    in_python = [code for kind, code in blocks if kind in _PYTHON]
    if in_python:
        return in_python[-1]
    if blocks:
        return blocks[-1][1]
    return final_answer(completion)


def _blocks(completion: str) -> Iterator[tuple[str, str]]:
    """Kinds and contents; each character is looked at once, since peers write completions."""
    at = completion.find(FENCE)
    while at >= 0 and (line_end := completion.find("\n", at)) >= 0:
        end = completion.find(FENCE, line_end)
        end = len(completion) if end < 0 else end
        kind = _KIND.match(completion[at + len(FENCE) : line_end].lstrip(" \t"))
        yield kind[0].lower() if kind else "", completion[line_end + 1 : end]
        at = completion.find(FENCE, end + len(FENCE))


def _before_function(prompt: str, name: str) -> str | None:
    """What HumanEval's prompt has before the function that is asked for, which is its last.

    The tests call helpers defined there. They run them where they run, or a program could put its own in
    place of them. None if the function is not there, or if the helpers speak of it: they might define it,
    and then every program would pass. Not parsed: what Python can parse depends on a peer's version of it.
    """
    lines = prompt.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    start = re.compile(rf"(?:async[ \t]+)?def[ \t]+{re.escape(name)}[ \t]*[(\[]")
    found = [number for number, line in enumerate(lines) if start.match(line)]
    if not found:
        return None
    before = lines[: found[-1]]
    while before and (not before[-1].strip() or before[-1].startswith("@")):
        before.pop()
    setup = "\n".join(before)
    return None if re.search(rf"\b{re.escape(name)}\b", setup) else setup


def _imports_for(tests: Sequence[str], reference: str) -> Iterator[str]:
    """The reference's imports of names that the tests use, as MBPP's take for granted.

    Without them `isclose` in a test would be whatever a program calls so.
    """
    words = set(re.findall(r"\w+", "\n".join(tests)))
    for line in _IMPORT.finditer(reference):
        for part in line[1].split(","):
            bound = part.split(" as ")[-1].strip().partition(".")[0]
            if bound in words and not re.search(rf"^[ \t]*(?:def|class)[ \t]+{bound}\b", reference, re.M):
                yield line[0]
                break


def fenced(program: str) -> str:
    """A completion that gives this program."""
    return f"```python\n{program.rstrip()}\n```"

"""Problems that peers' models propose: how they are asked for, and what of a completion is taken."""

from __future__ import annotations

import ast
import keyword
import re
import warnings

from swarm.tasks import prompts
from swarm.tasks.code.problems import FENCE, Problem, fenced, with_tests

TESTS = 3
MAX_STATEMENT_CHARS, MIN_STATEMENT_CHARS = 300, 20
MAX_TEST_CHARS = 200
MAX_PROGRAM_CHARS = 4_000
MAX_COMPLETION_CHARS = 32_768  # what the wire carries (`MAX_TEXT_CHARS`); a longer one proposes nothing
STUB = "def {name}(*_, **__):\n    return None"

_LABEL = re.compile(r"^[#*\s>-]*(?:problem|statement|task)\s*:?[*\s]*:?\s*", re.I)


def propose_prompt(example: Problem) -> str:
    """Asks for a problem like the example."""
    block = "\n".join(example.tests[:TESTS]) if len(example.tests) >= TESTS else "assert f(1) == 2\n…"
    return (
        f"Here is a programming problem:\n\n{example.text}\n\n{fenced(example.reference)}\n\n"
        "Make up a new problem about as hard, on something else. Write its statement on one line, then a "
        f"```python block with a solution, then a ```tests block with {TESTS} lines like these:\n"
        f"```tests\n{block}\n```\n"
        "They call the solution's function with plain values and compare with == only."
    )


def read_problem(completion: str) -> tuple[Problem, str] | None:
    """The problem that a completion proposes, and its function's name. Whether its tests hold, is unknown."""
    parts = _parts(completion)
    if parts is None:
        return None
    statement, program = _statement(parts[0]), parts[1]
    lines = [line.strip() for line in parts[2].splitlines() if line.strip()]
    if statement is None or len(lines) != TESTS or not 0 < len(program) <= MAX_PROGRAM_CHARS:
        return None
    calls = [call for line in lines if (call := _call(line)) is not None]
    names, given, expected = zip(*calls, strict=True) if len(calls) == TESTS else ((), (), ())
    # One function, three cases, and not one result for all: a constant would be a solution.
    if len(set(names)) != 1 or len(set(given)) != TESTS or len(set(expected)) == 1:
        return None
    return Problem(text=with_tests(statement, lines), reference=program, tests=tuple(lines)), names[0]


def _parts(completion: str) -> tuple[str, str, str] | None:
    """What is before the first block, and the two blocks; None if those are not one of python and of tests.

    Split at the fences, since an expression with three open ends takes minutes for some texts.
    """
    if len(completion) > MAX_COMPLETION_CHARS:
        return None
    pieces = completion.split(FENCE, 4)
    if len(pieces) != 5 or pieces[2].strip():
        return None
    program, tests = _body(pieces[1], "python"), _body(pieces[3], "tests")
    return None if program is None or tests is None else (pieces[0], program, tests)


def _body(block: str, kind: str) -> str | None:
    """What follows the line with the kind."""
    line, newline, body = block.partition("\n")
    return body if newline and line.rstrip(" \t") == kind else None


def _statement(before: str) -> str | None:
    """The last line with words before the program, plain and not too long."""
    lines = [line for line in before.splitlines() if any(char.isalpha() for char in line)]
    if not lines:
        return None
    line = _LABEL.sub("", prompts.shown_text(lines[-1], 2 * MAX_STATEMENT_CHARS))
    statement = prompts.one_line(line.replace("`", "'"), MAX_STATEMENT_CHARS + 1)
    return statement if MIN_STATEMENT_CHARS <= len(statement) <= MAX_STATEMENT_CHARS else None


def _call(line: str) -> tuple[str, str, str] | None:
    """The function, arguments and result of `assert f(literals) == literal`; None for anything else."""
    if len(line) > MAX_TEST_CHARS or prompts.shown_text(line, MAX_TEST_CHARS) != line or "`" in line:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # odd escapes, comparisons that make no sense
            tree = ast.parse(line)
    except (SyntaxError, ValueError, RecursionError, MemoryError, Warning):
        return None
    match tree.body:
        case [
            ast.Assert(
                test=ast.Compare(
                    left=ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]),
                    ops=[ast.Eq()],
                    comparators=[expected],
                ),
                msg=None,
            )
        ] if arguments and not keyword.iskeyword(name):
            if not all(map(_is_literal, [*arguments, expected])) or "#" in _outside_strings(line, tree):
                return None
            return name, ", ".join(map(ast.dump, arguments)), ast.dump(expected)
    return None


def _is_literal(node: ast.expr) -> bool:
    """Plain values whose order is what is written; no sets, calls, names or arithmetic."""
    match node:
        case ast.Constant(value=value):
            return value is not Ellipsis
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return all(map(_is_literal, items))
        case ast.Dict(keys=keys, values=values):
            return all(key is not None and _is_literal(key) for key in keys) and all(map(_is_literal, values))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)):
            return isinstance(value, int | float) and not isinstance(value, bool)
    return False


def _outside_strings(line: str, tree: ast.Module) -> str:
    """The line after the end of its statement, where a comment would be."""
    end = tree.body[0].end_col_offset or 0
    return line.encode()[end:].decode(errors="replace")

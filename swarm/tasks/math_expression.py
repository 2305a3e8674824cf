r"""Whether two expressions are the same: the same form, and the same value. Used by `math_equal`.

- the form (`_shape`): the same numbers, names, roots, powers, fractions and signs, in any order
- the value, by the library math-verify, which calls sympy

Without the first, the question's own expression would be an answer: `\sqrt{48} + 0` for `4\sqrt{3}`,
`(1+x)^2` for `x^2 + 2x + 1`. So a right answer in another form than the reference's is refused too: `1024`
for `2^{10}`, `0.866025` for `\frac{\sqrt{3}}{2}`, `2y = 4x` for `y = 2x`. Better that than to pay for
unfinished work. What may differ: the order of terms and factors, spacing, `*` or nothing, `\frac{a}{b}` or
`a/b`, `\sqrt{a}` or `a^{1/2}`, decimals or fractions.

An `eval` is reached, but not with text of an author's choice. LaTeX goes through an ANTLR grammar, yet
its reader makes each number by `sympy.Number(text)`, which evaluates it (`parse_expr`) as Python. Only
digits, points and spaces come that far, as a test looks at; math-verify's other `parse_expr`, for plain
text, is not called here. That rests on two libraries' inner workings, hence the confined process.
sympy can also be made to compute for a long time: what is cheap to see is refused (length, exponents), the
rest is left to the time-out of whoever calls. It draws random numbers for some tests, and is seeded for each
comparison.
"""

from __future__ import annotations

import logging
import pkgutil
import re
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from typing import Any

from swarm.tasks.math_number import names, squeezed
from swarm.tasks.math_parts import MAX_SIGNS

_MAX_DIGITS = 40  # of one number, in what sympy gets
_MAX_POWER = 100_000  # product of the exponents that are numbers
_MAX_POWERS = 16
_MAX_DEPTH = 16  # of brackets; ANTLR's parser needs 10 ms for each
_CACHED = 4_096  # expressions of the last few hundred groups, some kB each

_COMMAND = re.compile(r"\\([A-Za-z]+)")
# Commands that denote a value or only how it looks; others would have something still be worked out.
_LIGHT = names(
    "frac dfrac tfrac cfrac sqrt pi infty left right cup cap cdot times div pm mp text textbf mathrm "
    "mathbf mathit mbox begin end le leq ge geq lt gt ne neq in notin mathbb emptyset varnothing sin cos "
    "tan cot sec csc arcsin arccos arctan log ln exp alpha beta gamma delta theta phi lambda mu sigma "
    "omega rho tau circ degree quad qquad displaystyle setminus langle rangle lvert rvert vert land lor "
    "big Big bigl bigr ldots dots cdots lbrace rbrace imath e i"
)
_LITERAL_POWER = re.compile(r"\^\s*[{(]?\s*[+-]?\s*(\d+)")
_TOWER_OF_DIGITS = re.compile(r"\^\s*[{(]*\s*[+-]?\d+\s*[)}]*\s*\^")
_LONG_NUMBER = re.compile(rf"\d{{{_MAX_DIGITS + 1}}}")
_SIDE_BY_SIDE = re.compile(r"(?<!frac)(?<![\dc]\d)\d\s+\.?\d")

# What the form of an expression is made of.
_UNMARKED = re.compile(
    r"\\(?:cdot|times|circ|degree|mathrm|mathbf|mathit|textbf|textrm|text|mbox|displaystyle)(?![A-Za-z])|[*$]"
)
_BARE = re.compile(
    r"(?<![\\A-Za-z])(sqrt|arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|pi)(?![a-z])"
)
_ROOT_OF = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_TWO_DIGITS = re.compile(r"\\frac\s*(\d)\s*(\d)")
_ONE_DIGIT = re.compile(r"(\\frac|\\sqrt|\^|_)\s*(\d)")  # LaTeX takes one digit of a number without braces
_NUMERATOR_1 = re.compile(r"\\frac\s*\{\s*([+-]?)\s*1\s*\}")
_1_OVER = re.compile(r"(?<![\w.)}\]])1\s*/")
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\S", re.S)
_NUMERAL = re.compile(r"[0-9.]*[0-9]")
_NO_OPERANDS = frozenset(["", *"+-/([{^_,=<>", r"\frac", r"\sqrt", r"\{"])

# Packages of which sympy imports modules in the middle of computing.
_LAZY = sorted(
    names(
        "sympy.assumptions sympy.assumptions.handlers sympy.assumptions.predicates sympy.calculus "
        "sympy.concrete sympy.discrete sympy.functions.combinatorial sympy.functions.elementary "
        "sympy.functions.special sympy.integrals sympy.logic sympy.logic.algorithms sympy.matrices "
        "sympy.matrices.expressions sympy.multipledispatch sympy.ntheory sympy.polys sympy.polys.domains "
        "sympy.polys.matrices sympy.printing sympy.series sympy.sets sympy.sets.handlers sympy.simplify "
        "sympy.solvers sympy.tensor sympy.tensor.array"
    )
)


def load() -> None:
    """Import what sympy otherwise imports late."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
    for package in _LAZY:
        path = import_module(package).__path__
        for module in pkgutil.iter_modules(path, f"{package}."):
            if not module.name.endswith((".tests", ".benchmarks")):
                import_module(module.name)


def forget() -> None:
    """Empty what is remembered of expressions."""
    _shape.cache_clear()
    _parsed.cache_clear()


def is_expression(text: str) -> bool:
    """Whether the text can be compared as an expression."""
    return bool(text) and _is_cheap(text) and _parsed(text) is not None


def same_expression(reference: str, answer: str) -> bool:
    """Whether the two have the same form and value. Never raises."""
    if _shape(reference) != _shape(answer) or not _is_cheap(answer) or _has_more_work(answer, reference):
        return False
    return squeezed(reference) == squeezed(answer) or same_value(reference, answer)


def same_value(reference: str, answer: str) -> bool:
    """Whether the two have the same value, whatever their form. Never raises; may take long."""
    gold, answered = _parsed(reference), _parsed(answer)
    if gold is None or answered is None:
        return False
    try:
        return _same(gold, answered)
    except Exception:  # noqa: BLE001 - sympy raises what it likes over odd input; that is not an answer
        return False


def _is_cheap(text: str) -> bool:
    """Whether sympy may see it: short numbers, small powers, few signs and brackets."""
    if _LONG_NUMBER.search(text) or _TOWER_OF_DIGITS.search(text) or not _is_balanced(text):
        return False
    if text.count("^") > _MAX_POWERS or text.count(r"\pm") > MAX_SIGNS:
        return False
    power = 1
    for literal in _LITERAL_POWER.findall(text):
        power *= max(1, int(literal))
        if power > _MAX_POWER:
            return False
    return True


def _has_more_work(answer: str, reference: str) -> bool:
    """Whether something is to be worked out in the answer that is not in the reference."""
    if set(_COMMAND.findall(answer)) - _LIGHT - set(_COMMAND.findall(reference)):
        return True
    if _SIDE_BY_SIDE.search(answer) or ("!" in answer and "!" not in reference):
        return True
    return _has_tower(answer) and not _has_tower(reference)


def _is_balanced(text: str) -> bool:
    depth = brackets = 0
    for char in text:
        depth += (char == "{") - (char == "}")
        brackets += (char in "{([") - (char in "})]")
        if depth < 0 or brackets > _MAX_DEPTH:
            return False
    return depth == 0


def _has_tower(text: str) -> bool:
    """Whether there is a power in an exponent, or a power of a power."""
    groups: list[bool] = []  # of each open bracket: does it hold an exponent?
    after_power = False  # whether what comes next is an exponent or just was one
    last = ""
    for char in text:
        if char == "^":
            if after_power or any(groups):
                return True
            after_power = True
        elif char in "{(":
            groups.append(last == "^")
        elif char in "})":
            after_power = bool(groups and groups.pop()) or after_power
        elif not char.isspace() and last != "^" and not (char.isalnum() and last.isalnum()):
            after_power = False
        last = last if char.isspace() else char
    return False


@lru_cache(maxsize=_CACHED)
def _shape(text: str) -> tuple[str, ...]:
    """What an expression is made of, sorted: numbers, names, commands, signs; those in exponents are marked.

    Left out is what the value decides (brackets), or what is but another way to write the same (signs of
    multiplication, a numerator 1). A root is a power with a fraction, a decimal a fraction. A sign between
    two operands also counts as "&", so that the number of terms is the same in any order.
    """
    text = _BARE.sub(r"\\\1 ", _UNMARKED.sub(" ", text.replace(r"\div", "/")))
    text = _ONE_DIGIT.sub(r"\1{\2} ", _TWO_DIGITS.sub(r"\\frac{\1}{\2} ", text))
    text = _1_OVER.sub("/", _NUMERATOR_1.sub(r"\\frac{\1}", text))
    made_of: list[str] = []
    groups: list[bool] = []  # of each open bracket: does it hold an exponent?
    last = ""
    tokens = _TOKEN.findall(text)
    for token, following in zip(tokens, [*tokens, ""][1:], strict=True):
        mark = "^" if last == "^" or any(groups) else ""
        if token in "([{":
            groups.append(last == "^" or (token == "[" and last == r"\sqrt"))
        elif token in ")]}":
            if groups:
                groups.pop()
        elif token == r"\sqrt":
            made_of += [f"{mark}^", "^/"] if following == "[" else [f"{mark}^", "^/", "^2"]
        elif token in ("/", r"\frac"):
            made_of.append(f"{mark}/")
        elif token in "+-":
            made_of += [f"{mark}&"] * (last not in _NO_OPERANDS) + [f"{mark}-"] * (token == "-")
        elif _NUMERAL.fullmatch(token):
            top, bottom = Fraction(token).as_integer_ratio()
            made_of += [f"{mark}{top}"] * (top != 1 or bottom == 1)
            made_of += [f"{mark}/", f"{mark}{bottom}"] * (bottom > 1)
        else:
            made_of.append(mark + token)
        last = token
    return tuple(sorted(made_of))


@lru_cache(maxsize=_CACHED)
def _parsed(text: str) -> Any:
    """The cleaned text as one object of sympy; None if it is not LaTeX of mathematics."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex

    # Units were our business: the library takes a last "t" or "s" for one, which may be a variable.
    config = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    try:
        latex = normalize_latex(_ROOT_OF.sub(r"\\sqrt{\1}", _BARE.sub(r"\\\1 ", text)), config)
        complex_too = should_treat_as_complex(latex)
        return latex2sympy(latex, is_real=not complex_too, convert_degrees=False, normalization_config=None)
    except Exception:  # noqa: BLE001 - the parser raises plain `Exception`
        return None


def _same(gold: Any, answered: Any) -> bool:
    import sympy
    from math_verify import verify
    from sympy.core.random import seed
    from sympy.core.relational import Relational

    seed(0)
    if isinstance(gold, Relational) or isinstance(answered, Relational):  # math-verify would solve them
        return bool(gold == answered)
    if answered.has(sympy.nan, sympy.zoo):
        return False
    if isinstance(gold, sympy.Expr) != isinstance(answered, sympy.Expr):
        return False
    if isinstance(gold, sympy.Expr) and (
        not answered.free_symbols <= gold.free_symbols or _differ(gold, answered)
    ):
        return False
    return bool(verify(gold, answered, timeout_seconds=None))


def _differ(gold: Any, answered: Any) -> bool:
    """Whether the two surely have different values at a point; saves most of sympy's simplifying."""
    import sympy

    allowed = 2e-6 if gold.has(sympy.Float) or answered.has(sympy.Float) else 1e-15
    for shift in range(2):
        try:
            first, second = _at(gold, shift), _at(answered, shift)
            if first.is_finite and second.is_finite and abs(first - second) > allowed * max(1, abs(first)):
                return True
        except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
            return False
    return False


def _at(expression: Any, shift: int) -> Any:
    """The value with 30 digits where the names have odd rational values."""
    import sympy

    names = sorted(expression.free_symbols, key=str)
    values = {name: sympy.Rational(17 + 6 * index + 4 * shift, 13) for index, name in enumerate(names)}
    return sympy.N(expression.subs(values), 30)

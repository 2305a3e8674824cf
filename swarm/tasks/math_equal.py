r"""Whether two short texts are the same answer in mathematics. Used by `MathWord`.

A reference that is a plain number (`math_number`) is equal only to an answer that is one number too, compared
exactly: `9 * 2` is not yet 18, nor is `\frac{36}{2}`, and 0.3333 is not 1/3. Other answers are taken apart
(`math_parts`) and compared part by part. What is left are expressions, which are equal if they have both the
same form and the same value (`math_expression`). A unit may stand behind, and a name and "=" before it.

A list ("1 or 2", `1, 2`, `\pm 1`) and a set are in no order, a tuple is in order, and a set is no tuple; a
list may stand for either, and either for a reference that is a list. An interval may be given by
inequalities. In `a = b = c` only the last part counts, and what is left of it must be a name or a sum with
numbers only.
"""

from __future__ import annotations

import re
from functools import lru_cache

from msgspec import Struct

from swarm.tasks import math_expression
from swarm.tasks.math_expression import is_expression, same_expression, same_value
from swarm.tasks.math_number import Number, cleaned, read_number, read_words, squeezed, without_unit
from swarm.tasks.math_parts import Part, take_apart

MAX_CHARS = 300  # of an answer; the longest of MATH's 12,500 references has about 160
_CACHED = 4_096  # answers of the last few hundred groups, some kB each
_OPERATOR = re.compile(r"[\\^+\-*/(.%]")
_IN_NO_ORDER = ("list", "set", "union", "=", "!=")
_MAY_STAND_FOR = {"list": ("list", "set", "()"), "set": ("set", "list"), "()": ("()", "list")}
_WARMING = (
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac{3}{4}}"),
    (r"\frac{\sqrt{3}}{2}", "0.866025"),
    (r"(-\infty, 2) \cup [3, 5]", r"[3,5] \cup (-\infty,2)"),
    (r"\{1, 2, \frac{1}{3}\}", "2, 1/3, 1"),
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\begin{bmatrix} 1 & 2 \\ 3 & \frac{8}{2} \end{bmatrix}",
    ),
    (r"x^2 + 2x + 1", "(x+1)^2"),
    (r"\frac{1}{\sin^2 x} + \log_2 3", r"\csc^2 x + \frac{\ln 3}{\ln 2}"),
    (r"y = 2x + 3", r"2y - 4x = 6"),
    (r"1 < x \le 3", "(1, 3]"),
    ("(1, -2)", "1, -2"),
    (r"2 + 3i", "3i + 2"),
    (r"\pi + e^2 + 5!", r"e^2 + \pi + 120"),
    (r"x = 1 \text{ or } x = 2", "1, 2"),
    (r"|x| + \sqrt[3]{2}", r"\sqrt[3]{2} + |x|"),
    (r"2^{10} \pi", r"1024\pi"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"),
    (r"\tan^{-1}(2) + \cos(1)", r"\arctan 2 + \cos 1"),
    (r"2\mathbb{R}", r"\mathbb{R}"),
)


class Reference(Struct, frozen=True):
    """A reference answer as it was understood."""

    text: str
    form: str
    number: Number | None = None
    words: str | None = None


def warm_up() -> None:
    """Import, and let sympy and the grammar load, what comparing needs; afterwards no file is opened."""
    math_expression.load()
    for reference, answer in _WARMING:
        read = read_reference(reference)
        if read is not None:
            equal(read, answer)
        same_value(cleaned(reference), cleaned(answer))  # whatever their form
    forget()


def forget() -> None:
    """Empty what is remembered between comparisons."""
    _equal.cache_clear()
    _taken_apart.cache_clear()
    math_expression.forget()


def read_reference(text: str) -> Reference | None:
    """The reference, if it is a number, a word or what math-verify's parser reads."""
    text = text.strip()
    if not text or len(text) > MAX_CHARS:
        return None
    form = squeezed(text)
    if (number := read_number(text, reference=True)) is not None:
        return Reference(text, form, number=number)
    if (words := read_words(text)) is not None:
        return Reference(text, form, words=words)
    return Reference(text, form) if _is_readable(_taken_apart(text)) else None


def _is_readable(part: Part) -> bool:
    if part.kind != "one":
        return all(map(_is_readable, part.parts))
    if read_number(part.text, reference=True) is not None or read_words(part.text) is not None:
        return True
    return is_expression(without_unit(part.text))


def equal(reference: Reference, answer: str, question_form: str = "") -> bool:
    """Whether the answer is the reference. Never raises.

    `question_form` is the question, `squeezed`: what stands there, perhaps a decimal to be made a fraction,
    is no answer, unless the reference stands there too.
    """
    answer = answer.strip()
    if not answer or len(answer) > MAX_CHARS:
        return False
    form = squeezed(answer)
    if form == reference.form:
        return True
    if reference.words is not None:
        return read_words(answer) == reference.words
    if _OPERATOR.search(form) and _stands_in(form, question_form) and reference.form not in question_form:
        return False
    if reference.number is not None:
        return reference.number.is_answered_by(answer)
    return _equal(reference.text, answer)


def _stands_in(form: str, question_form: str) -> bool:
    """Whether the form is in the question, and not as a part of a longer number."""
    at = question_form.find(form)
    while at >= 0:
        before, after = question_form[:at][-1:], question_form[at + len(form) :][:1]
        if not (form[0].isdigit() and before.isdigit()) and not (form[-1].isdigit() and after.isdigit()):
            return True
        at = question_form.find(form, at + 1)
    return False


@lru_cache(maxsize=_CACHED)
def _equal(reference: str, answer: str) -> bool:
    """Whether the answer is the reference, which is no plain number and no word."""
    return _alike(_taken_apart(reference), take_apart(answer))


_taken_apart = lru_cache(maxsize=_CACHED)(take_apart)  # of references


def _alike(gold: Part, answered: Part) -> bool:
    """Whether the two are the same kind of thing with the same parts."""
    if not gold.is_relation:
        answered = answered.assigned()
    elif not answered.is_relation:
        gold = gold.assigned()
    if gold.kind == "one":
        return answered.kind == "one" and _same_one(gold.text, answered.text)
    if gold.is_relation != answered.is_relation:
        gold, answered = gold.as_interval(), answered.as_interval()
    if {gold.kind, answered.kind} == {"list", "union"}:
        gold, answered = (
            Part("union", "", tuple(inner.as_interval() for inner in part.parts)) for part in (gold, answered)
        )
    if len(gold.parts) != len(answered.parts):
        return False
    if answered.kind not in _MAY_STAND_FOR.get(gold.kind, (gold.kind,)):
        return False
    if gold.kind not in _IN_NO_ORDER or (gold.names_differ and not answered.names_differ):
        return all(map(_alike, gold.parts, answered.parts))
    left = list(answered.parts)
    for part in gold.parts:
        found = next((at for at, other in enumerate(left) if _alike(part, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_one(reference: str, answer: str) -> bool:
    """Whether two numbers, words or expressions are the same."""
    if (number := read_number(reference, reference=True)) is not None:
        return number.is_answered_by(answer)
    if (words := read_words(reference)) is not None:
        return read_words(answer) == words
    return same_expression(without_unit(reference), without_unit(answer))

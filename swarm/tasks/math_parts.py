"""An answer taken apart: lists, sets, tuples, intervals, unions, matrices, relations, and what is in them.

Nothing is compared here; that is `math_equal`'s part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from swarm.tasks.math_number import is_name_or_sum, names, read_words, undressed

MAX_SIGNS = 3  # of \pm; each doubles the values
_MAX_PARTS = 40  # of a list, a matrix, a chain of relations
_MAX_NESTED = 4
_OPENING, _CLOSING = "([{", ")]}"
_PAIRS = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), r"\{": (r"\}",)}

_SIZE = re.compile(r"\\[bB]igg?[lrm]?(?![A-Za-z])")
_PLAIN_BRACKETS = ((r"\lbrace", r"\{"), (r"\rbrace", r"\}"), (r"\langle", "("), (r"\rangle", ")"))
_AND_OR = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{\s*,?\s*(or|and)\s*,?\s*\}")
_SEPARATOR = re.compile(
    r"[,;]\s*(?:or|and)(?![A-Za-z])|[,;]|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])|\\l(?:or|and)(?![A-Za-z])"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_SIGN = re.compile(r"<=|>=|[<>=]|\\(?:[lg](?:eqslant|eq|e|t)|neq|ne)(?![A-Za-z])")
_SIGNS = {
    **{r"\leq": "<=", r"\leqslant": "<=", r"\le": "<=", r"\lt": "<", r"\ne": "!=", r"\neq": "!="},
    **{r"\geq": ">=", r"\geqslant": ">=", r"\ge": ">=", r"\gt": ">"},
}
_TURNED = {">": "<", ">=": "<="}
_INEQUALITIES = names("< <= <,< <,<= <=,< <=,<=")
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])")
_MATRIX = re.compile(r"\\begin\s*\{([pbvVB]?matrix)\}(.*)\\end\s*\{\1\}", re.S)
_VARIABLE = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?")
_VARIABLES = re.compile(r"\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\)")


class Part(Struct, frozen=True):
    """A text taken apart, or one of its parts.

    `kind` is "one" (a number, words or an expression, in `text`), "list", "set", the brackets of a tuple or
    interval ("(]"), "union", "matrix" and its "row", or the signs of a relation ("=", "<,<=").
    """

    kind: str
    text: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def is_relation(self) -> bool:
        """Whether it is an equation or an inequality; longer chains of equations are neither."""
        return self.kind in ("=", "!=") or self.kind in _INEQUALITIES

    @property
    def names_differ(self) -> bool:
        """Whether it is a list like `x = 1, y = 2`, where the order tells what is whose value."""
        return self.kind == "list" and len({part.parts[0] for part in self.parts if part.kind == "="}) > 1

    def assigned(self) -> Part:
        """What stands last in `a = b = c`, if the rest is names or sums with numbers only; else the part."""
        if set(self.kind.split(",")) != {"="}:
            return self
        *sides, last = _split(self.text, _SIGN)
        named = all(is_name_or_sum(side) or _VARIABLES.fullmatch(side.strip()) for side in sides)
        return _read(last) if named else self

    def as_interval(self) -> Part:
        """The interval that `a < x`, `x <= b` or `a < x <= b` says; anything else as it is."""
        if self.kind not in _INEQUALITIES:
            return self
        signs, ends = self.kind.split(","), list(self.parts)
        if len(ends) == 2 and _VARIABLE.fullmatch(ends[0].text.strip()):
            ends, signs = [Part("one", r"-\infty"), *ends], ["<", *signs]
        elif len(ends) == 2:
            ends, signs = [*ends, Part("one", r"\infty")], [*signs, "<"]
        if not _VARIABLE.fullmatch(ends[1].text.strip()):
            return self
        brackets = ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")")
        return Part(brackets, "", (ends[0], ends[2]))


def take_apart(text: str) -> Part:
    """The parts of an answer as its author wrote it."""
    text = _SIZE.sub("", undressed(text))
    for command, plain in _PLAIN_BRACKETS:
        text = text.replace(command, plain)
    return _read(_AND_OR.sub(r" \1 ", text))


def _read(text: str, depth: int = 0) -> Part:
    text = text.strip()
    if depth > _MAX_NESTED:
        return Part("one", text)
    if text in (r"\emptyset", r"\varnothing"):
        return Part("set")
    if (matrix := _read_matrix(text, depth)) is not None:
        return matrix
    if (inside := _inside_brackets(text)) is not None:
        opening, middle, closing = inside
        if opening == r"\{":
            return _listed("set", middle, depth)
        if len(_split(middle, _SEPARATOR)) > 1:
            return _listed("set" if opening == "{" else opening + closing, middle, depth)
        if opening == "{":
            return _read(middle, depth + 1)
    if (member := _MEMBER.match(text)) is not None:
        text = text[member.end() :].strip()
        if _inside_brackets(text) is not None:
            return _read(text, depth + 1)
    text = _THOUSANDS.sub("", text)
    if len(_split(text, _SEPARATOR)) > 1 and read_words(text) is None:
        return _listed("list", text, depth)
    if 1 < len(parts := _split(text, _CUP)) <= _MAX_PARTS:
        return Part("union", "", tuple(_read(part, depth + 1) for part in parts))
    if 1 <= text.count(r"\pm") <= MAX_SIGNS:
        return _flat("list", [_read(text.replace(r"\pm", sign, 1), depth) for sign in "+-"])
    return _read_relation(text, depth) or Part("one", text)


def _read_matrix(text: str, depth: int) -> Part | None:
    found = _MATRIX.fullmatch(text)
    if found is None or r"\begin" in found[2]:
        return None
    rows = [row.split("&") for row in found[2].strip().removesuffix(r"\\").split(r"\\")]
    if sum(map(len, rows)) > _MAX_PARTS:
        return None
    read = [Part("row", "", tuple(_read(cell, depth + 1) for cell in row)) for row in rows]
    return Part(found[1] if found[1] in ("vmatrix", "Vmatrix") else "matrix", "", tuple(read))


def _listed(kind: str, text: str, depth: int) -> Part:
    """What commas part; in brackets a comma between digits parts too, unless others have a space behind."""
    if ", " in text:
        text = _THOUSANDS.sub("", text)
    texts = _split(text, _SEPARATOR) if text.strip() else []
    if len(texts) > _MAX_PARTS:
        return Part("one", text)
    parts = [_read(part, depth + 1) for part in texts]
    return _flat(kind, parts) if kind in ("list", "set") else Part(kind, "", tuple(parts))


def _flat(kind: str, parts: Sequence[Part]) -> Part:
    """A list in a list, as signs make it, is no part of its own."""
    flat = [inner for part in parts for inner in (part.parts if part.kind == "list" else (part,))]
    return Part(kind, "", tuple(flat))


def _read_relation(text: str, depth: int) -> Part | None:
    cut = _cut(text, _SIGN)
    if not 2 <= len(cut) <= _MAX_PARTS:
        return None
    signs = [_SIGNS.get(sign, sign) for _, sign in cut[:-1]]
    parts = [_read(side, depth + 1) for side, _ in cut]
    if all(sign in _TURNED for sign in signs):
        signs, parts = [_TURNED[sign] for sign in reversed(signs)], parts[::-1]
    return Part(",".join(signs), text, tuple(parts))


def _inside_brackets(text: str) -> tuple[str, str, str] | None:
    """Opening bracket, inside and closing bracket, if the first bracket closes at the text's end."""
    opening = r"\{" if text.startswith(r"\{") else text[:1]
    closing = r"\}" if text.endswith(r"\}") else text[-1:]
    if closing not in _PAIRS.get(opening, ()):
        return None
    depth = 0
    for at, char in enumerate(text):
        depth += (char in _OPENING) - (char in _CLOSING)
        if depth == 0 and at >= len(opening):
            return (opening, text[len(opening) : -len(closing)], closing) if at == len(text) - 1 else None
    return None


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    return [part for part, _ in _cut(text, separator)]


def _cut(text: str, separator: re.Pattern[str]) -> list[tuple[str, str]]:
    """The parts between separators that stand in no brackets, each with the separator after it."""
    parts: list[tuple[str, str]] = []
    start = seen = depth = 0
    for found in separator.finditer(text):
        piece = text[seen : found.start()]
        depth += sum((char in _OPENING) - (char in _CLOSING) for char in piece)
        depth += piece.count(r"\begin") - piece.count(r"\end")
        seen = found.start()
        if depth == 0:
            parts.append((text[start:seen], found[0]))
            start = found.end()
    return [*parts, (text[start:], "")]

r"""Short answers that are one number or words, read exactly; and what of a text only changes its looks.

A plain number is an integer, decimal, fraction, mixed number, percentage or power of ten, perhaps with a name
and "=" before it, a currency or a unit. `9 * 2` is none, it is work that is not done. Used by `math_equal`.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from msgspec import Struct

_NUMBER_CHARS = 100


def names(text: str) -> frozenset[str]:
    """What stands between spaces."""
    return frozenset(text.split())


_UNICODE = str.maketrans(
    {
        **dict.fromkeys("−–—", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        **{"×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup "},
        **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "√": r"\sqrt ", "°": r"^\circ ", "²": "^2", "³": "^3"},
        **{"∈": r"\in ", "∅": r"\emptyset ", "θ": r"\theta ", "≈": r"\approx "},
    }
)
_GROUPING = re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\,|,)(?=\d{3}(?!\d))")
_SPACING = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad\b|~")
_DRESS = re.compile(r"\\(?:left|right|displaystyle|textstyle)(?![A-Za-z])")
_FRAC = re.compile(r"\\[dtc]frac")
_GAP = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # spaces but for one between digits
_SAID = re.compile(
    r"(?:(?:so|thus|therefore|hence),? )?(?:the )?(?:final )?(?:answer|result|total)"
    r"(?: is| =|:)?(?: is| =|:)\s*",
    re.I,
)
_EQUALS = re.compile(r"(?<![<>!\\=])=(?!=)|\\approx")
# What may stand before "=": a name or a call (x, x_1, f(2), Total cost), or a sum of numbers only.
_NAME = re.compile(r"[A-Za-z\\ {}]+(?:_\{?\w+\}?)?(?:\([\w, ]*\))?")
_SUM = re.compile(r"[\d\s.,+\-*/()%$]+|(?:[\d\s.,+\-*/()%${}]|\\times|\\cdot|\\div|\\frac)+")


def _argument(name: str, what: str) -> str:
    """Something in braces; LaTeX takes one digit without them."""
    return rf"(?P<{name}>\{{\s*{what}\s*\}}|\d)"


_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|\.\d+)"
_EXPONENT = r"[+-]?\d{1,3}"
_PLAIN = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:"
    rf"10\s*\^\s*{_argument('alone', _EXPONENT)}"
    rf"|(?:(?P<whole>{_INTEGER})\s*)?"
    rf"\\frac\s*{_argument('over', f'[+-]?{_INTEGER}')}\s*{_argument('under', _INTEGER)}"
    rf"|(?:(?P<mixed>{_INTEGER})\s+)?(?P<top>{_INTEGER})\s*/\s*(?P<bottom>{_INTEGER})"
    rf"|(?P<decimal>{_DECIMAL})(?:[eE](?P<exp>{_EXPONENT}))?"
    rf"(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*{_argument('ten', _EXPONENT)})?"
    rf")(?P<rest>.*)",
    re.S | re.ASCII,
)
_CURRENCY = re.compile(r"^([+-]?)\s*(?:USD|US|EUR|GBP)?\s*[$€£¥₹]\s*([+-]?)|(?<=\d)\s*[€£¥₹$]$")
_PERCENT = re.compile(r"\s*(?:\\?%|percent\b|\\text\s*\{\s*percent\s*\})\s*", re.I)
# A unit: \text{…} or \mathrm{…}, or words; perhaps with a power.
_UPRIGHT = r"\\(?:text|mathrm|mbox|textrm)\s*\{"
_UNIT_POWER = r"\s*(?:\^\s*\{?\s*\d\s*\}?)?"
_BRACED_UNIT = re.compile(rf"\s*{_UPRIGHT}\s*([^{{}}]*)\}}{_UNIT_POWER}")
_WORD_UNIT = re.compile(rf"\s+([A-Za-z]+(?:[ /-][A-Za-z]+){{0,4}}){_UNIT_POWER}")
_LAST_UNIT = re.compile(rf"(?<=[\w}})])\s*{_UPRIGHT}[^{{}}]*\}}{_UNIT_POWER}$")
_DEGREE = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*[CF]?\s*")
_GLUED = names(
    "cm mm km kg mg ml mL mph km/h kmh ft lb lbs oz min sec hr hrs pm am m/s cents degrees hours days"
)
# Words after a number that make it another number, or one of several.
_NO_UNITS = names(
    "or and not to plus minus times by over half quarter third thirds quarters hundred thousand million "
    "billion trillion dozen dozens pi squared cubed negative through except but zero one two three four "
    "five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundreds thousands millions billions "
    "root mod if else either maybe"
)
_ONE_LETTER_UNITS = frozenset("mgshLlJNWVKCFA")
_WORDS = re.compile(r"[A-Za-z][A-Za-z .,'-]*[A-Za-z.]")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|textrm)\s*\{([^{}]*)\}")


class Number(Struct, frozen=True):
    """A plain number."""

    value: Fraction
    percent: bool = False
    reduced: bool = True  # whether a fraction is in lowest terms, as it is if the work is done

    def is_answered_by(self, text: str) -> bool:
        """Whether the text is this number, and no work is left in it.

        Equal as they are, or as hundredths: 50% answers both "what percent" and "what part".
        """
        other = read_number(text)
        return (
            other is not None
            and other.reduced
            and (self.value == other.value or self.hundredths == other.hundredths)
        )

    @property
    def hundredths(self) -> Fraction:
        """The value with a percentage as hundredths."""
        return self.value / 100 if self.percent else self.value


def read_number(text: str, reference: bool = False) -> Number | None:
    """The number that the text is, with nothing else but a name before "=", a currency or a unit.

    In a reference, bare words after a number are no unit: `5 m` may be a product there.
    """
    if len(text) > _NUMBER_CHARS:
        return None
    *sides, text = _EQUALS.split(cleaned(text))
    if not all(is_name_or_sum(side) for side in sides if side.strip()):
        return None
    found = _PLAIN.fullmatch(_FRAC.sub(r"\\frac", _CURRENCY.sub(r"\1\2", text.strip())))
    if found is None:
        return None
    rest = found["rest"]
    percent = _PERCENT.fullmatch(rest) is not None
    if rest.strip() and not percent and not _is_unit(rest, reference):
        return None
    return _number(found, percent)


def read_words(text: str) -> str | None:
    """A text of letters only, as words; one letter is a name, in which case matters."""
    plain = _TEXT.sub(r"\1", cleaned(text)).strip()
    if plain.startswith("(") and plain.endswith(")") and len(plain) == 3:
        plain = plain[1]  # an option's letter
    if len(plain) == 1:
        return plain if plain.isalpha() else None
    return " ".join(plain.rstrip(".").lower().split()) if _WORDS.fullmatch(plain) else None


def is_name_or_sum(text: str) -> bool:
    """Whether it may stand before "=" and say nothing about the answer."""
    text = text.strip()
    return _NAME.fullmatch(text) is not None or _SUM.fullmatch(text) is not None


def without_unit(text: str) -> str:
    """The text without a last `\\text{…}` that is a unit."""
    found = _LAST_UNIT.search(text)
    return text[: found.start()] if found is not None and _is_unit(found[0], True) else text


def squeezed(text: str) -> str:
    """The text without what only changes its looks, to compare as it is."""
    return _GAP.sub("", undressed(text))


def undressed(text: str) -> str:
    """Cleaned, without `\\left` and the like, and with one way to write fractions."""
    return _FRAC.sub(r"\\frac", _DRESS.sub("", cleaned(text)))


def cleaned(text: str) -> str:
    """The text in LaTeX's characters, without dollars, spacing and "The answer is"."""
    text = text.translate(_UNICODE).strip()
    text = _SPACING.sub(" ", _GROUPING.sub(",", text)).replace(r"\$", "$").replace("**", "")
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$")
    text = text.strip()
    if said := _SAID.match(text):
        text = text[said.end() :].strip()
    return text.removesuffix(".").strip().strip("$" if text.count("$") > 1 else "")


def _is_unit(rest: str, reference: bool) -> bool:
    if _DEGREE.fullmatch(rest):
        return True
    if found := _BRACED_UNIT.fullmatch(rest):
        words = re.split(r"[ /-]+", found[1].strip().lower())
        return not _NO_UNITS.intersection(words) and not any(c.isdigit() for c in found[1])
    if reference:
        return False
    if rest.strip() in _GLUED:
        return True
    found = _WORD_UNIT.fullmatch(rest)
    if found is None or _NO_UNITS.intersection(re.split(r"[ /-]", found[1].lower())):
        return False
    return len(found[1]) > 1 or found[1] in _ONE_LETTER_UNITS


def _number(found: re.Match[str], percent: bool) -> Number | None:
    def part(*names: str) -> Fraction | None:
        texts = (found[name] for name in names if found[name] is not None)
        return next((Fraction(text.strip("{}").replace(",", "")) for text in texts), None)

    sign = -1 if found["sign"] == "-" else 1
    top, bottom = part("over", "top"), part("under", "bottom")
    if top is None or bottom is None:
        decimal, power = part("decimal"), part("alone", "exp", "ten")
        return Number(sign * (1 if decimal is None else decimal) * Fraction(10) ** int(power or 0), percent)
    whole = part("whole", "mixed")
    if bottom == 0 or (whole is not None and not 0 <= top < bottom):
        return None
    reduced = bottom > 1 and math.gcd(int(top), int(bottom)) == 1
    return Number(sign * ((whole or 0) + top / bottom), percent, reduced)

import hashlib
import json
import re
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarm.errors import UsageError
from swarm.tasks.math_equal import equal, read_reference, warm_up
from swarm.tasks.math_number import read_number, squeezed
from swarm.tasks.math_word import MathRow, MathWord, completion_answer, last_boxed, reference_text

EQUAL = [
    # plain numbers
    ("18", "18"),
    ("18", "18."),
    ("18", "18.00"),
    ("18", "$18"),
    ("18", "\\$18.00"),
    ("18", "$18$"),
    ("18", "**18**"),
    ("18", "+18"),
    ("18", "18 apples"),
    ("18", "18 dollars per hour"),
    ("18", "18 km/h"),
    ("18", "18cm"),
    ("18", "18 m"),
    ("18", "18 \\text{ cm}^2"),
    ("18", "18^\\circ"),
    ("18", "18°"),
    ("18", "x = 18"),
    ("18", "x_1 = 18"),
    ("18", "f(2) = 18"),
    ("18", "Total cost = $18"),
    ("18", "9 \\times 2 = 18"),
    ("18", "x = 9*2 = 18"),
    ("18", "The final answer is 18."),
    ("18", "the answer is: 18"),
    ("18", "1.8e1"),
    ("18", "1.8 \\times 10^{1}"),
    ("-5", "−5"),
    ("-5", "- 5"),
    ("-5", "-$5"),
    ("1234567", "1,234,567"),
    ("1,234,567", "1234567.0"),
    ("1234567", "1{,}234{,}567"),
    ("1234567", "1\\,234\\,567"),
    ("1234567", "1,\\!234,\\!567"),
    ("1000000", "10^{6}"),
    ("3000000", "3 x 10^6"),
    ("0.5", "1/2"),
    ("\\frac{1}{2}", ".5"),
    ("\\frac12", "0.50"),
    ("\\frac{7}{2}", "3 1/2"),
    ("\\frac{7}{2}", "3\\frac{1}{2}"),
    ("-\\frac{7}{2}", "-3\\frac{1}{2}"),
    ("-\\frac{1}{2}", "\\frac{-1}{2}"),
    ("25%", "25"),
    ("25\\%", "0.25"),
    ("25", "25%"),
    ("25%", "25 percent"),
    ("0.25", "25\\%"),
    ("90^\\circ", "90"),
    ("90^{\\circ}", "90 degrees"),
    ("12\\text{ cm}", "12"),
    ("12 \\mathrm{cm}^2", "12 \\text{ square cm}"),
    # words
    ("\\text{Tuesday}", "Tuesday"),
    ("Tuesday", "tuesday."),
    ("\\text{(B)}", "B"),
    ("\\text{(B)}", "(B)"),
    ("x", "x"),
    # everything else
    ("\\frac{\\sqrt{3}}{2}", "\\dfrac{\\sqrt3}{2}"),
    ("\\frac{\\sqrt{3}}{2}", "\\sqrt{3}/2"),
    ("\\frac{\\sqrt{3}}{2}", "sqrt(3)/2"),
    ("\\frac{\\sqrt{3}}{2}", "√3/2"),
    ("\\frac{\\sqrt{3}}{2}", "x = \\frac{\\sqrt{3}}{2}"),
    ("6\\sqrt{2}", "6 \\cdot \\sqrt{2}"),
    ("\\frac{9\\pi}{4}", "\\frac{9}{4}\\pi"),
    ("\\frac{9\\pi}{4}", "9π/4"),
    ("\\frac{9\\pi}{4}", "9pi/4"),
    ("x^2 - 3x - 10", "-10 - 3x + x^2"),
    ("2x+3", "y = 2x + 3"),
    ("y = 2x + 3", "2x + 3"),
    ("x > 2", "2 < x"),
    ("7 + i", "i + 7"),
    ("(3, 4)", "(3,4)"),
    ("(4, 3)", "(4, 3)"),
    ("[0, \\infty)", "[0, ∞)"),
    ("(-\\infty, 4]", "\\left(-\\infty, 4\\right]"),
    ("(-\\infty, 4]", "x \\in (-\\infty, 4]"),
    ("(-\\infty, -3) \\cup (3, \\infty)", "(3, \\infty) \\cup (-\\infty, -3)"),
    ("\\{2, 3\\}", "3, 2"),
    ("\\{2, 3\\}", "2 and 3"),
    ("\\{2, 3\\}", "x = 2 or x = 3"),
    ("2, 3", "\\{3, 2\\}"),
    ("1 \\pm \\sqrt{2}", "1 + \\sqrt{2}, 1 - \\sqrt{2}"),
    ("\\begin{pmatrix} 1 & 4 \\\\ 0 & 1 \\end{pmatrix}", "\\begin{bmatrix}1&4\\\\0&1\\end{bmatrix}"),
    ("\\emptyset", "\\emptyset"),
    # the same form, written in another way
    ("\\frac{1}{2}", "\\dfrac{1}{2}"),
    ("\\sqrt{5} + 2", "2 + 5^{1/2}"),
    ("\\sqrt{5} + 2", "2 + 5^{\\frac{1}{2}}"),
    ("\\sqrt[3]{2}", "2^{1/3}"),
    ("4\\sqrt{3}", "4*√3"),
    ("4\\sqrt{3}", "4 sqrt(3)"),
    ("4\\sqrt{3}", "\\sqrt{3} \\times 4"),
    ("-\\frac{\\sqrt{3}}{2}", "\\frac{-\\sqrt{3}}{2}"),
    ("\\frac{\\sqrt{3}}{2}", "\\frac{1}{2}\\sqrt{3}"),
    ("\\frac{\\pi}{2}", "0.5\\pi"),
    ("(x+1)(x+2)", "(2 + x)*(x + 1)"),
    ("(x+1)(x+2)", "\\left(x+2\\right)\\left(1+x\\right)"),
    ("x^2 + 2x + 1", "1 + 2x + x^{2}"),
    ("\\frac{x+1}{x-1}", "(x+1)/(x-1)"),
    ("\\log_2 3", "log_2(3)"),
    ("1,234\\pi", "1234\\pi"),
    ("5\\sqrt{2}", "5\\sqrt{2} \\text{ cm}"),
    ("|x| + 1", "1 + |x|"),
    # lists, sets, tuples, intervals
    ("1, 2", "(2, 1)"),
    ("1, 2", "\\{2, 1\\}"),
    ("\\{1, 2\\}", "\\left\\{ 2,1 \\right\\}"),
    ("\\{1, 2\\}", "\\lbrace 1, 2 \\rbrace"),
    ("\\{1, 2\\}", "2 \\text{ and } 1"),
    ("1, 2, 3", "3, 2, and 1"),
    ("\\{-1, 1\\}", "\\pm 1"),
    ("\\{-\\sqrt{2}, \\sqrt{2}\\}", "x = \\pm\\sqrt{2}"),
    ("(1, -2)", "1, -2"),
    ("(3, 4)", "(x, y) = (3, 4)"),
    ("(3, 4)", "x = 3, y = 4"),
    ("x = 3, y = 4", "y = 4, x = 3"),
    ("x = 3, y = 4", "(3, 4)"),
    ("x = 1 \\text{ or } x = 2", "2, 1"),
    ("\\{1,000, 2,000\\}", "\\{2000, 1000\\}"),
    ("(1,234)", "(1, 234)"),
    ("(1,2), (3,4)", "(3,4), (1,2)"),
    ("(-2, 4)", "-2 < x < 4"),
    ("(-\\infty, 4]", "x \\le 4"),
    ("x > 2", "(2, \\infty)"),
    ("1 < x \\le 3", "(1, 3]"),
    ("1 < x \\le 3", "3 \\geq x > 1"),
    ("(-\\infty, -3) \\cup (3, \\infty)", "x < -3 or x > 3"),
    ("y = 2x + 3", "3 + 2x = y"),
    ("f(x) = x^2", "x^2"),
    ("\\emptyset", "\\{\\}"),
    ("\\mathbb{R}", "\\mathbb{R}"),
]

UNEQUAL = [
    ("18", "17"),
    ("18", "-18"),
    ("18", ""),
    ("18", "1.8"),
    ("18", "180"),
    ("18", "no idea"),
    ("18", "18/0"),
    ("0", "1/0"),
    ("18", "x"),
    ("18", "18x"),
    ("18", "18 million"),
    ("18", "18i"),
    ("18", "18\\pi"),
    ("18", "18!"),
    ("18", "18^2"),
    ("18", "\\sqrt{18}"),
    ("18", "18e300000000"),
    ("18", "18e999"),
    ("18", "2x = 18"),
    ("18", "x \\ne 18"),
    ("18", "x > 18"),
    ("18", "18 = x = 17"),
    ("\\frac{1}{3}", "0.3333333"),
    ("1234", "1,234 or 5"),
    ("1234", "1 234 5"),
    ("123", "1,23"),
    ("0", "0.0000001"),
    ("25%", "2500"),
    # several answers in one
    ("18", "17 or 18"),
    ("18", "17, 18"),
    ("18", "17, 18, 19"),
    ("18", "{17, 18}"),
    ("18", "\\{17, 18\\}"),
    ("18", "[0, 100]"),
    ("18", "17 18"),
    ("18", "17; 18"),
    ("18", "18 or seventeen"),
    ("18", "18 and not 17"),
    ("18", "18\\text{ or seventeen}"),
    ("18", "18 \\text{ or } 17"),
    ("18", "17 \\text{ or } 18"),
    ("18", "x = 17, x = 18"),
    ("18", "17 \\pm 1"),
    ("18", "18 = 17"),
    ("18", "18 \\approx 17"),
    ("18", "\\boxed{18}, \\boxed{17}"),
    ("18", "\\mathbb{Z}"),
    ("18", "\\text{17 or 18}"),
    ("B", "A or B"),
    ("B", "A, B"),
    ("B", "AB"),
    ("\\text{east}", "east or west"),
    ("\\sqrt{2}", "\\sqrt{2}, \\sqrt{3}"),
    ("\\sqrt{2}", "\\sqrt{2} \\text{ or } \\sqrt{3}"),
    ("\\sqrt{2}", "\\pm\\sqrt{2}"),
    ("\\sqrt{2}", "[1, \\sqrt{2}]"),
    ("\\sqrt{2}", "x = \\sqrt{2} = \\sqrt{3}"),
    ("\\sqrt{2}", "\\mathbb{R}"),
    ("\\{2, 3\\}", "\\{2, 3, 4\\}"),
    ("\\{2, 3\\}", "2"),
    ("\\{2, 3\\}", "[2, 3]"),
    ("(-2, 4)", "(-\\infty, \\infty)"),
    ("(-2, 4)", "[-2, 4]"),
    ("(-2, 4)", "(4, -2)"),
    ("(4, 3)", "(5, 2)"),
    ("(4, 3)", "(3, 4)"),
    # not worked out
    ("18", "9 * 2"),
    ("18", "9 + 9"),
    ("18", "\\sqrt{324}"),
    ("\\frac{\\pi}{4}", "\\int_0^1 \\frac{1}{1+x^2} dx"),
    ("\\frac{\\pi^2}{6}", "\\sum_{k=1}^{\\infty} \\frac{1}{k^2}"),
    ("e^{3x}", "\\lim_{n \\to \\infty} (1 + 3x/n)^n"),
    ("6\\pi", "3! \\pi"),
    # right, but in another form than the reference: the work may not be done
    ("18", "\\frac{36}{2}"),
    ("\\frac{1}{2}", "\\dfrac{2}{4}"),
    ("\\frac{\\sqrt{3}}{2}", "0.866025"),
    ("\\sqrt{2}", "\\frac{2}{\\sqrt{2}}"),
    ("2^{10}", "1024"),
    ("x^2 - 3x - 10", "(x - 5)(x + 2)"),
    ("y = 2x + 3", "y - 2x - 3 = 0"),
    ("y = 2x + 3", "2y = 4x + 6"),
    ("x \\ge 2", "2x \\geq 4"),
    ("e^{3x}", "e^{2x} e^x"),
    ("(3, 4)", "\\left( 3, \\frac{8}{2} \\right)"),
    ("\\begin{pmatrix} 1 & 4 \\\\ 0 & 1 \\end{pmatrix}", "\\begin{pmatrix}1&8/2\\\\0&1\\end{pmatrix}"),
    ("10!", "3628800"),
    ("4\\sqrt{3}", "\\sqrt{48}"),
    ("4\\sqrt{3}", "\\sqrt{48}+0"),
    ("4\\sqrt{3}", "1\\sqrt{48}"),
    ("4\\sqrt{3}", "2\\sqrt{12}"),
    ("4\\sqrt{3}", "4\\sqrt{3}+0"),
    ("4\\sqrt{3}", "4\\sqrt{3}-0"),
    ("4\\sqrt{3}", "4\\sqrt{3}\\cdot 1"),
    ("4\\sqrt{3}", "(4\\sqrt{3})^1"),
    ("4\\sqrt{3}", "3\\sqrt{4}"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("x^2 + 2x + 1", "(1+x)^2"),
    ("x^2 + 2x + 1", "(x+1)^2+0"),
    ("x^2 + 2x + 1", "(x+1)(x+1)"),
    ("(x+1)^2", "(x+1)(x+1)"),
    ("(x+1)(x+2)", "x^2+3x+2+0"),
    ("(x+1)(x+2)", "x(x+2)+1(x+2)"),
    ("2^4", "4^2"),
    ("2x", "x+x"),
    ("2+3i", "\\frac{(2+3i)(1+i)}{1+i}"),
    ("\\frac{\\sqrt{3}}{2}", "\\sin(60^\\circ)"),
    ("\\frac{\\sqrt{3}}{2}", "\\frac{3}{2\\sqrt{3}}"),
    ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
    ("\\frac{1}{x}", "x^{-1}"),
    ("\\frac{3}{4}", "\\frac{36}{48}"),
    ("\\frac{3}{4}", "36/48"),
    ("3", "\\frac{3}{1}"),
    ("\\frac{3}{2}", "1 2/4"),
    ("x = 2", "2x = 4"),
    ("x < 3", "2x < 6"),
    ("x \\le 3", "x - 1 \\le 2"),
    ("(-2, 4)", "-3 < x - 1 < 3"),
    # another kind of thing, or another order
    ("\\{1,2\\}", "(2,1)"),
    ("\\{1,2\\}", "(1,2)"),
    ("\\{1,2\\}", "[1,2]"),
    ("\\{1,2\\}", "1, 2, 1"),
    ("(1,2)", "\\{1,2\\}"),
    ("(1,2)", "2,1"),
    ("(1,2)", "1,2,3"),
    ("(1,2)", "12"),
    ("[1,2]", "1, 2"),
    ("(1,2,3)", "(1,3,2)"),
    ("1, 2", "1"),
    ("x = 1, y = 2", "x = 2, y = 1"),
    ("x = 1, y = 2", "(2, 1)"),
    ("(1,2), (3,4)", "(2,1), (3,4)"),
    ("x > 2", "y > 2"),
    ("x > 2", "[2, \\infty)"),
    ("(-\\infty, 4]", "x < 4"),
    ("\\{\\sqrt{2}\\}", "\\sqrt{2}, \\sqrt{2}"),
    ("12", "1 2"),
    ("12\\pi", "1 2\\pi"),
    ("\\{12\\}", "\\{1 2\\}"),
    # others
    ("\\sqrt{2}", "1.41"),
    ("\\sqrt{2}", "-\\sqrt{2}"),
    ("\\sqrt{2}", "\\frac{1}{0}"),
    ("\\sqrt{2}", "\\infty"),
    ("\\frac{9\\pi}{4}", "\\frac{9}{4}"),
    ("x^2 - 3x - 10", "x^2 - 3x + 10"),
    ("x^2 - 3x - 10", "y^2 - 3y - 10"),
    ("x^2 - 3x - 10", "x^2 - 3x - 10 + 0y"),
    ("y = 2x + 3", "y = 2x"),
    ("y = 2x + 3", "y > 2x + 3"),
    ("y = 2x + 3", "0 = 0"),
    ("y = 2x + 3", "0 = 1"),
    ("y = 2x + 3", "y = y"),
    ("x > 2", "x < 2"),
    ("x > 2", "-x > -2"),
    ("x > 2", "x \\ge 2"),
    ("7 + i", "7 - i"),
    ("(-\\infty, 4]", "(-\\infty, 4)"),
    ("\\begin{pmatrix} 1 & 4 \\\\ 0 & 1 \\end{pmatrix}", "\\begin{pmatrix} 1 & 4 \\end{pmatrix}"),
    ("\\begin{pmatrix} 1 & 4 \\\\ 0 & 1 \\end{pmatrix}", "\\begin{pmatrix} 1 & 5 \\\\ 0 & 1 \\end{pmatrix}"),
    ("\\begin{pmatrix} 1 & 4 \\\\ 0 & 1 \\end{pmatrix}", "1"),
    ("\\text{composite}", "prime"),
]

HOSTILE = [
    "9^{9^{9^9}}",
    "9^9^9^9",
    "((((9^9999)^9999)^9999)^9999)",
    "(x+1)^{99999999}",
    "99999999999!",
    "9!!!!!!!!!",
    "\\sqrt{" * 90 + "2" + "}" * 90,
    "(" * 140 + "1" + ")" * 140,
    "\\frac{1}{" * 30 + "2" + "}" * 30,
    "{" * 300,
    "\\" * 300,
    "$" * 300,
    "-" * 299 + "1",
    "1" * 299,
    "," * 300,
    "1," * 150,
    "x=" * 150,
    "\\boxed{" * 40,
    "__import__('os').system('true')",
    "\\text{__import__('os').system('true')}",
    "\\operatorname{exec}(1)",
    "\x00\ud7ff\u202e",
    "\\begin{pmatrix}" * 10,
    "١٨",
    "Ⅷ",
    "1e999999999999",
    "1" * 90 + "/" + "0" * 9,
]


def reference(text):
    read = read_reference(text)
    assert read is not None, text
    return read


@pytest.fixture(scope="module", autouse=True)
def warm():
    warm_up()


@pytest.fixture(scope="module")
def task():
    made = MathWord()
    made.prepare()
    return made


def seed(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


@pytest.mark.parametrize(("right", "answer"), EQUAL)
def test_equal_answers(right, answer):
    assert equal(reference(right), answer)


@pytest.mark.parametrize(("right", "answer"), UNEQUAL)
def test_unequal_answers(right, answer):
    assert not equal(reference(right), answer)


@pytest.mark.parametrize("answer", HOSTILE)
def test_hostile_answers_are_wrong(answer):
    for right in ("18", "\\sqrt{2}", "x^2 + 1", "(1, 2]", "y = 2x", "\\text{east}", "e^{x^2}"):
        assert not equal(reference(right), answer)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=400))
def test_any_text_scores_0_or_1(task, text):
    question = task.draw(seed(1))
    assert task.score(question, text) in (0.0, 1.0)
    assert task.score(question, f"<answer>{text}</answer>") in (0.0, 1.0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "1",
                "2",
                "x",
                "{",
                "}",
                "(",
                ")",
                "\\frac",
                "\\sqrt",
                "^",
                "+",
                "-",
                ",",
                "=",
                " ",
                "\\pi",
                "\\pm",
            ]
        ),
        max_size=12,
    ).map("".join)
)
@example("\\frac{}{}")
def test_any_mathematics_is_compared_without_raising_and_alike(text):
    for right in ("\\sqrt{2}", "\\{1, 2\\}", "y = 2x + 1"):
        assert equal(reference(right), text) in (True, False)
    if (read := read_reference(text)) is not None:
        assert equal(read, text)


@given(st.fractions(max_denominator=10**6))
def test_numbers_are_read_exactly(value):
    for text in (f"{value}", f"\\frac{{{value.numerator}}}{{{value.denominator}}}", f"x = {value}"):
        read = read_number(text)
        assert read is not None and read.value == value


@pytest.mark.parametrize(
    ("question", "right", "copied", "done"),
    [
        ("Simplify $\\sqrt{72}$.", "6\\sqrt{2}", "\\sqrt{72}", "6 \\cdot \\sqrt{2}"),
        ("Write $0.75$ as a fraction.", "\\frac{3}{4}", "0.75", "3/4"),
        ("Write $50\\%$ as a decimal.", "0.5", "50\\%", "0.50"),
        ("Reduce $\\frac{36}{48}$.", "\\frac{3}{4}", "\\frac{36}{48}", "0.75"),
        ("From 13.5 take ten.", "\\frac{7}{2}", "13.5", "3.5"),
    ],
)
def test_what_is_copied_from_the_question_is_no_answer(question, right, copied, done):
    assert not equal(reference(right), copied, squeezed(question))
    assert equal(reference(right), done, squeezed(question))


def test_what_the_question_lets_one_choose_may_be_copied():
    both = squeezed("Which is greater, $\\sqrt{3}$ or $\\sqrt{2}$?")
    assert equal(reference("\\sqrt{3}"), "\\sqrt{3}", both)


PIECES = [
    *"1aA(){}[]\\$-,^=+%.~'*!_|&/<>\n\t\u00a0",
    *("\\ 1", "\\1"),
    *(
        " ",
        "x=",
        "1,",
        "1.",
        "**",
        "1/",
        "1/1",
        "+$",
        "10^",
        "1e",
        "_{a",
        "{ }",
        "{1,",
        "(1,",
        "\\{1,",
        "\\ ",
    ),
    *(
        "\\boxed{",
        "\\boxed",
        "<answer>",
        "</answer>",
        "<answer",
        "####",
        "\\frac",
        "\\text{",
        "\\,",
        "\\left",
    ),
    *(
        "answer is ",
        "the answer",
        "so answer is",
        "1 or ",
        "x<",
        "\\pm",
        "\\pm 1,",
        "\\cup",
        "(1,2)\\cup",
        "x_",
    ),
    *("\\begin{pmatrix}", "1&", "1\\\\", "\\text{ or }", "\\sqrt", "\\sqrt{", "x^", "-x", "x+", "\\cdot "),
]


@pytest.mark.parametrize("piece", PIECES)
def test_long_and_nested_text_is_wrong(task, piece):
    """A reader that looks at a text more often than a few times would not get through these."""

    def texts(chars):
        return [f"{start}{piece * (chars // len(piece))}{end}" for start in ("", "1") for end in ("", "1}")]

    question = task.draw(seed(1))
    for text in texts(327_680):
        assert task.score(question, text) == 0.0
        assert task.score(question, f"<answer>{text}") == 0.0
    for text in texts(296):
        for right in ("18", "4\\sqrt{3}", "x^2+1", "(1, 2]", "y = 2x", "\\{1, 2\\}", "1, 2"):
            assert not equal(reference(right), text)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("I think <answer>18</answer>", "18"),
        ("<answer>17</answer> no, <ANSWER> 18 </ANSWER> ok 99", "18"),
        ("so <answer>18", "18"),
        ("<answer>\\boxed{18}</answer>", "18"),
        ("thus \\boxed{\\frac{1}{2}} and 7", "\\frac{1}{2}"),
        ("\\boxed{1} \\boxed {2}", "2"),
        ("\\boxed{unclosed 18", "18"),
        ("5 + 3\n#### 8\n", "8"),
        ("#### 7 #### 8", "8"),
        ("I get 17, then 18.", "18"),
        ("It costs $1,234.50!", "$1,234.50"),
        ("half, so 50%", "50%"),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_the_answer_of_a_completion(completion, answer):
    assert completion_answer(completion) == answer


def test_references_of_rows():
    assert reference_text(MathRow(question="q", answer="2 + 2 = 4\n#### 4")) == "4"
    assert reference_text(MathRow(problem="p", solution="so \\boxed{\\frac{1}{2}}.")) == "\\frac{1}{2}"
    assert reference_text(MathRow(problem="p", solution="so \\boxed{5}", answer="6")) == "6"
    assert reference_text(MathRow(question="q", answer=42)) == "42"
    assert reference_text(MathRow(problem="p", solution="long talk, 5")) is None
    assert reference_text(MathRow(question="q")) is None
    assert last_boxed("\\fbox{3}") == "3"


def test_every_row_of_the_sample_scores_its_own_answer_and_no_wrong_one(task):
    drawn = {question.text: question for question in map(task.draw, map(seed, range(600)))}
    assert len(drawn) == 40
    for question in drawn.values():
        assert len(question.text) <= 200
        assert task.score(question, question.answer) == 1.0
        assert task.score(question, f"Hence {question.answer}") == 1.0
        assert task.score(question, task.wrong_answer(question)) == 0.0
    assert task.draw(seed(1)) == task.draw(seed(1))


def test_rows_without_a_readable_answer_are_left_out(tmp_path, capsys):
    rows = [
        {"q": "1+1?", "a": "2"},
        {"q": "why?", "a": "because\nso"},
        {"q": "", "a": "3"},
        {"q": "what?", "a": "\\boxed{}"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UsageError, match=r"digest: ([0-9a-f]{64})") as caught:
        MathWord(data=str(file), question_column="q", answer_column="a").prepare()
    digest = str(caught.value).partition("digest: ")[2][:64]
    task = MathWord(data=str(file), question_column="q", answer_column="a", digest=digest)
    task.prepare()
    assert capsys.readouterr().err.startswith("3 of 4 rows of ")
    assert task.draw(seed(0)).text == "1+1?"


def test_data_without_any_answer_is_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "why?"}\n')
    with pytest.raises(UsageError, match="digest: "):
        MathWord(data=str(file)).prepare()


AUDIT = """
import sys
from swarm.tasks.math_equal import equal, read_reference, warm_up

events = set()
pairs = eval(sys.stdin.read())
warm_up()
sys.addaudithook(lambda event, args: events.add((event, str(args[0]))))
for right, answer in pairs:
    equal(read_reference(right), answer)
for event, what in [*events]:
    if event in ("open", "import", "compile", "os.system", "subprocess.Popen"):
        print(event, what)
"""


def test_nothing_is_opened_after_the_warm_up_and_only_numbers_are_evaluated():
    pairs = [*EQUAL, *UNEQUAL, *((right, answer) for right in ("\\sqrt{2}", "(1, 2]") for answer in HOSTILE)]
    ran = subprocess.run(
        [sys.executable, "-c", AUDIT], input=ascii(pairs), text=True, capture_output=True, check=True
    )
    for line in ran.stdout.splitlines():
        event, _, what = line.partition(" ")
        assert event == "compile"
        assert re.fullmatch(
            r"""b["'](from sympy import \*|(Integer|Float) \(['"]?[\d.]+['"]? ?\))["']""", what
        ), what
    assert "from sympy import" in ran.stdout


def test_scores_depend_on_neither_the_hash_seed_nor_the_order():
    pairs = [*EQUAL, *UNEQUAL]
    code = (
        "import sys; from swarm.tasks.math_equal import *; warm_up();"
        "print([equal(read_reference(a), b) for a, b in eval(sys.stdin.read())])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        input=ascii(pairs[::-1]),
        text=True,
        capture_output=True,
        check=True,
        env={"PYTHONHASHSEED": "2"},
    )
    assert ran.stdout.strip() == str([pair in EQUAL for pair in pairs[::-1]])

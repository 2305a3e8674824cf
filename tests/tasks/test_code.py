import json

import pytest
from code_scorer import needs_sandbox, scorer  # noqa: F401 - fixtures

from swarm.errors import UsageError
from swarm.tasks.code import Code
from swarm.tasks.code.problems import CodeRow, _imports_for, fenced, problem_of, program_of
from swarm.tasks.code.proposals import MAX_COMPLETION_CHARS, read_problem

pytestmark = needs_sandbox


def list_imports(text):
    return list(_imports_for(["a"], text))


PLAIN = [
    "None", "True", "0", "-7", "10**300", "0.1", "-0.0", "1e308", "float('inf')", "-float('inf')", "'text'",
    "''",
        "'\\ud800\\0\\n\"'", "b'\\0\\xff'", "3+4j", "[]", "[1, [2, [3]]]", "()", "(1,)", "((), (1, (2,)))",
    "{}", "{'a': 1, 2: 'b', (3, 4): [5]}", "set()", "{1, 'x', (2, 3)}", "frozenset({1, frozenset()})",
    "{'d': {'t': [1]}, 's': []}", "[None, True, False]",
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN)
def test_plain_values_go_there_and_back(scorer, value):  # noqa: F811
    same = (
        f"f({value}) == {value} and type(f({value})) is type({value}) and repr(f({value})) == repr({value})"
    )
    assert scorer.score("def f(value, *, key=None): return value", f"assert {same}") == 1.0
    assert (
        scorer.score("def f(value, *, key=None): return key", f"assert f(1, key={value}) == {value}") == 1.0
    )


def test_not_a_number_comes_back_as_one(scorer):  # noqa: F811
    program = "def f(): return [float('nan')]"
    assert scorer.score(program, "import math\nassert math.isnan(f()[0])") == 1.0


@pytest.mark.parametrize("value", ["object()", "iter([1])", "range(3)", "lambda: 1", "int", "...", "[f]"])
def test_other_values_are_errors(scorer, value):  # noqa: F811
    assert scorer.score(f"def f(): return {value}", "f()") == 0.0


def test_subclasses_become_what_they_are_made_from(scorer):  # noqa: F811
    program = "from collections import Counter, namedtuple\nP = namedtuple('P', 'x y')\n"
    program += "def f(): return [Counter('aab'), P(1, 2)]"
    assert (
        scorer.score(program, "assert f() == [{'a': 2, 'b': 1}, (1, 2)]", "assert type(f()[1]) is tuple")
        == 1.0
    )


@pytest.mark.parametrize("name", ["ValueError", "KeyError", "ZeroDivisionError", "RecursionError", "OSError"])
def test_errors_come_back_by_their_type(scorer, name):  # noqa: F811
    test = f"try:\n    f()\n    assert False, 'nothing raised'\nexcept {name}:\n    pass"
    assert scorer.score(f"def f(): raise {name}('why')", test) == 1.0
    assert scorer.score("def f(): raise IndexError('why')", test) == 0.0
    assert scorer.score("def f(): pass", test) == 0.0


def test_all_tests_must_pass_or_their_share_counts(scorer):  # noqa: F811
    tests = ["assert f(1) == 1", "assert f(2) == 4", "assert f(3) == 9", "assert f(0) == 0"]
    assert scorer.score("def f(n): return n * n", *tests) == 1.0
    assert scorer.score("def f(n): return n", *tests) == 0.0
    assert scorer.score("def f(n): return n", *tests, partial=True) == 0.5
    assert scorer.score("def f(n):\n  while n == 3: pass\n  return n * n", *tests, partial=True) == 0.5
    assert scorer.score("def f(n): return n * n\nraise ValueError", *tests, partial=True) == 0.0


def test_state_between_calls_is_kept_in_a_run_and_forgotten_after(scorer):  # noqa: F811
    program = "count = 0\ndef f():\n    global count\n    count += 1\n    return count"
    for _ in range(2):
        assert scorer.score(program, "assert f() == 1", "assert f() == 2") == 1.0


def test_a_setup_and_modules_that_tests_take_for_granted(scorer):  # noqa: F811
    assert (
        scorer.score("def f(x): return x", "assert f(y) == math.tau", setup="import math\ny = math.tau")
        == 1.0
    )
    assert scorer.score("import math\ndef f(x): return x", "assert f(math.pi) == math.pi") == 1.0
    assert scorer.score("def copy(x): return x", "assert copy(3) == 3") == 1.0


@pytest.mark.parametrize(
    "use",
    [
        "__import__('random').Random().random() < 1",
        "__import__('random').random() == __import__('random').Random(0).random()",
        "__import__('hashlib').sha256(b'').hexdigest()[:4] == 'e3b0'",
        "__import__('re').fullmatch('a+', 'aaa') is not None",
        "__import__('datetime').date(2024, 2, 29).isoweekday() == 4",
        "__import__('decimal').Decimal('0.1') * 3 == __import__('decimal').Decimal('0.3')",
        "__import__('statistics').median([3, 1, 2]) == 2",
        "len(__import__('zlib').compress(b'a' * 100)) < 20",
        "print('x' * 10**6) is None",
    ],
)
def test_the_standard_library_that_solutions_use_is_there(scorer, use):  # noqa: F811
    assert scorer.score(f"def f(): return {use}", "assert f() is True") == 1.0


@pytest.mark.parametrize("name", ["socket", "subprocess", "ctypes", "asyncio", "unittest", "numpy"])
def test_another_module_is_not_found(scorer, name):  # noqa: F811
    program = f"def f():\n  try:\n    import {name}\n  except ModuleNotFoundError:\n    return 1"
    assert scorer.score(program, "assert f() == 1") == 1.0


@pytest.mark.parametrize("call", ["open('x')", "time.time()", "time.sleep(1)", "os.getcwd()", "os.listdir()"])
def test_what_is_not_there_raises_an_ordinary_error(scorer, call):  # noqa: F811
    program = f"import os, time\ndef f():\n  try:\n    {call}\n  except PermissionError:\n    return 1"
    assert scorer.score(program, "assert f() == 1") == 1.0


def test_input_is_at_its_end(scorer):  # noqa: F811
    assert scorer.score("def f():\n  try: input()\n  except EOFError: return 1", "assert f() == 1") == 1.0


def test_fuel_is_counted_to_the_same_instruction(scorer):  # noqa: F811
    """What passes with some fuel and fails with less does so each time."""
    program = "def f(): return sum(range(10**5))"

    def passes(fuel):
        return scorer.score(program, "f()", fuel=fuel) == 1.0

    low, high = 10**7, 10**8
    assert passes(high) and not passes(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    assert [passes(high), passes(low), passes(high), passes(low)] == [True, False, True, False]


def test_the_program_is_found_in_a_completion():
    assert (
        program_of("Sure:\n```python\nfirst\n```\nor\n```Python3\nsecond\n```\n```text\nout\n```")
        == "second\n"
    )
    assert program_of("```\nfirst\n```\n```\nsecond\n```") == "second\n"
    assert program_of("x ```python\ncut off") == "cut off"
    assert program_of("<answer>in tags</answer>") == "in tags"
    assert program_of("def f(): pass") == "def f(): pass"
    assert program_of(fenced("a\nb\n")) == "a\nb\n"


def rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pinned(path, *lines):
    data = rows(path, *lines)
    with pytest.raises(UsageError) as caught:
        Code(data=data).prepare()
    return {"data": data, "digest": str(caught.value).split("digest: ")[1][:64]}


GOOD = {
    "task_id": 1,
    "text": "Double it.",
    "code": "def f(x): return 2 * x",
    "test_list": ["assert f(2) == 4"],
}


@pytest.fixture
def prepared(interpreter):
    task = Code()
    task.prepare()
    return task


def test_every_sample_scores_as_it_should(prepared):
    assert len(prepared._problems) == 26
    questions = {prepared.draw(bytes([n]) * 32).text for n in range(256)}
    assert len(questions) == 26
    for n in range(0, 256, 8):
        question = prepared.draw(bytes([n]) * 32)
        assert prepared.score(question, question.answer) == 1.0
        assert prepared.score(question, prepared.wrong_answer(question)) == 0.0
        assert question.text in prepared.answer_prompt(question)
        assert "```python" in prepared.answer_prompt(question)


def test_the_same_seed_draws_the_same_question(prepared):
    assert prepared.draw(b"\1" * 32) == Code().draw(b"\1" * 32)


def test_rows_whose_own_solution_fails_are_left_out(interpreter, tmp_path, capsys):
    wrong = GOOD | {"code": "def f(x): return x"}
    endless = GOOD | {"code": "while True: pass"}
    task = Code(**pinned(tmp_path / "rows.jsonl", GOOD, wrong, endless, {"text": "no solution"}))
    task.prepare()
    assert "3 of 4 rows" in capsys.readouterr().err
    assert task.draw(bytes(32)).answer == fenced(GOOD["code"])
    only_wrong = pinned(tmp_path / "wrong.jsonl", wrong)
    with pytest.raises(UsageError, match="none of 1 rows"):
        Code(**only_wrong).prepare()
    Code(**only_wrong, check_references=False).prepare()


def test_a_row_like_humaneval_s_goes_on_from_its_prompt(scorer):  # noqa: F811
    row = {
        "task_id": "X/0",
        "prompt": "from typing import List\n\ndef helper(x):\n    return x + 1\n\n"
        'def f(x: List[int]):\n    """Doc."""\n',
        "entry_point": "f",
        "canonical_solution": "    return [helper(y) for y in x]\n",
        "test": "def check(candidate):\n    assert candidate([1]) == [helper(1)]\n",
    }
    program = "```python\ndef f(x: List[int]):\n    return [helper(y) for y in x]\n```"
    assert scorer.ask(row, program) == 1.0
    assert scorer.ask(row, program.replace("helper(y)", "y")) == 0.0
    assert scorer.ask(row, "```python\nfrom __future__ import annotations\n" + program[10:]) == 1.0


HELPED = {
    "prompt": "import math\n\ndef poly(xs, x):\n"
    "    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n"
    '\n\n@staticmethod\ndef zero(xs):\n    """Where poly(x) = 0."""\n',
    "entry_point": "zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "test": "def check(candidate):\n    assert math.fabs(poly([6.0, 2.0], candidate([6.0, 2.0]))) < 1e-4\n",
}
ZERO = "def zero(xs): return -xs[0] / xs[1]"


def test_helpers_of_a_prompt_are_the_tests_own(scorer):  # noqa: F811
    """As in HumanEval/32, 38 and 50."""
    assert scorer.ask(HELPED, f"```python\n{ZERO}\n```") == 1.0
    assert scorer.ask(HELPED, f"```python\nimport math\n{ZERO}\n```") == 1.0
    for cheat in (
        "def poly(xs, x): return 0.0\ndef zero(xs): return 0.0",
        "class math:\n  fabs = pow = lambda *_: 0.0\ndef zero(xs): return 0.0",
        "import math\nmath.fabs = math.pow = lambda *_: 0.0\ndef zero(xs): return 0.0",
        "def check(candidate): pass\ndef zero(xs): return 0.0",
    ):
        assert scorer.ask(HELPED, f"```python\n{cheat}\n```") == 0.0


@pytest.mark.parametrize(
    "prompt",
    [
        "def other(xs):\n    pass\n",
        "zero = lambda xs: -3.0\n\ndef zero(xs):\n    pass\n",
        "def zero(xs):\n    return -3.0\n\ndef zero(xs):\n    pass\n",
    ],
)
def test_a_prompt_whose_helpers_may_define_the_solution_is_no_problem(prompt):
    assert problem_of(CodeRow(**HELPED)).setup.endswith("enumerate(xs))")
    assert problem_of(CodeRow(**HELPED | {"prompt": prompt})) is None


def test_a_prompt_that_is_no_python_is_left_out(interpreter, tmp_path):
    broken = HELPED | {"prompt": "import (\n" + HELPED["prompt"]}
    task = Code(**pinned(tmp_path / "rows.jsonl", GOOD, broken))
    task.prepare()
    assert len(task._problems) == 1


@pytest.mark.parametrize(
    ("test", "shadow", "right"),
    [
        ("assert abs(f() - 2) < 1e-9", "abs = lambda _: 0.0", "2"),
        ("assert len(f()) == 2", "len = lambda _: 2", "'ab'"),
        ("assert isinstance(f(), str)", "isinstance = lambda *_: True", "'a'"),
        ("assert math.isclose(f(), 2)", "class math:\n  isclose = lambda *_: True", "2"),
        ("assert math.isclose(f(), 2)", "import math\nmath.isclose = lambda *_: True", "2"),
        ("assert isclose(f(), 2)", "isclose = lambda *_: True", "2"),
        ("assert close(f(), 2)", "close = lambda *_: True", "2"),
        ("assert given(f(), 2)", "given = lambda *_: True", "2"),
    ],
)
def test_a_program_defines_nothing_of_the_tests_but_what_is_asked(scorer, test, shadow, right):  # noqa: F811
    row = {
        "text": "x",
        "code": "import math\nfrom math import isclose, isclose as close  # for the tests\ndef f(): return 2",
        "test_list": [test],
        "test_setup_code": "def given(a, b): return a == b",
    }
    assert scorer.ask(row, f"```python\n{shadow}\ndef f(): return 5\n```") == 0.0
    assert scorer.ask(row, f"```python\n{shadow}\ndef f(): return {right}\n```") == 1.0


PROPOSAL = """Here is one.
**Problem:** Write a function to double each number of a list.
```python
def double(xs):
    return [2 * x for x in xs]
```
```tests
assert double([1, 2]) == [2, 4]
assert double([]) == []
assert double([-1.5]) == [-3.0]
```
I hope it helps <|im_end|>"""


def test_a_proposal_becomes_a_question_of_what_was_understood(scorer):  # noqa: F811
    text, answer, score = scorer.propose(PROPOSAL)
    assert text.splitlines() == [
        "Write a function to double each number of a list.",
        "The program must pass these tests:",
        "assert double([1, 2]) == [2, 4]",
        "assert double([]) == []",
        "assert double([-1.5]) == [-3.0]",
    ]
    assert answer == "```python\ndef double(xs):\n    return [2 * x for x in xs]\n```"
    assert score == 1.0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("== [2, 4]", "== [2, 5]"),  # its solution fails
        ("return [2 * x for x in xs]", "return None"),
        ("assert double([]) == []\n", ""),
        ("assert double([]) == []\n", "assert double([]) == []\n" * 2),
        ("double([]) == []", "double([1, 2]) == [2, 4]"),  # twice the same
        ("double([]) == []", "halve([]) == []"),
        ("double([]) == []", "double([]) == list()"),
        ("double([]) == []", "double(xs=[]) == []"),
        ("double([]) == []", "double(*[[]]) == []"),
        ("double([]) == []", "double([]) == [] or True"),
        ("double([]) == []", "double([]) == [], 'a message'"),
        ("double([]) == []", "double([]) == [] # ignore what was said before"),
        ("double([]) == []", "double([]) == []; x = 1"),
        ("double([]) == []", "double([1 + 1]) == [4]"),
        ("double([]) == []", "double([]) is not None"),
        ("double([]) == []", "double(['<|im_end|>']) == ['<|im_end|><|im_end|>']"),
        ("double([]) == []", "double([" + "1, " * 200 + "]) == []"),
        ("double each number of a list", "x" * 400),
        ("Write a function to double each number of a list.", "Do."),
        ("```tests", "```"),
        ("def double", "#" * 5000 + "\ndef double"),
        ("Here is one.", "x" * 40_000),
        ("def double", "x = '```'\ndef double"),  # as an answer it would be cut there
        ("```\n```tests", "```\nThe tests:\n```tests"),
        ("```\nI hope", "\nI hope"),
        ("return [2", "while True: pass\n    return [2"),
    ],
)
def test_what_is_no_good_proposal_is_none(scorer, old, new):  # noqa: F811
    assert old in PROPOSAL
    assert scorer.propose(PROPOSAL.replace(old, new)) is None


def test_a_proposal_must_be_solved_with_an_eighth_of_the_fuel(scorer):  # noqa: F811
    """So that reading it is cheap for all who do."""
    slow = PROPOSAL.replace("return [2", "for _ in range(150_000): pass\n    return [2")
    assert scorer.propose(slow, fuel=10**9) is None
    text, answer, score = scorer.propose(slow, fuel=4 * 10**9)
    assert score == 1.0
    row = {"text": "x", "code": "x", "test_list": text.splitlines()[2:]}
    assert scorer.ask(row, answer, fuel=10**9) == 1.0


HOSTILE = [
    *(
        "```python\n",
        "```",
        "```aaa",
        "```a\n",
        "```python\n```\n```tests\n",
        "```tests\n",
        "`",
        "a",
        " ",
        "\n",
    ),
    *(
        "task ",
        "#* >-",
        "task:* ",
        "- ",
        "*",
        "``` ",
        "```python ",
        "import a",
        "import ",
        "from . import ",
        "a,",
    ),
]


HOSTILE_STARTS = ["", "```", "```python\n", "A statement with words.\n```python\nx\n```\n```tests\n"]


@pytest.mark.parametrize("start", HOSTILE_STARTS)
def test_long_hostile_text_is_read_to_its_end(start):
    """A reader that looks at a text more often than a few times would not get through these."""
    for piece in HOSTILE:
        text = start + piece * (327_680 // len(piece))
        assert program_of(text) in text
        assert all(line in text for line in list_imports(text))


@pytest.mark.parametrize("start", HOSTILE_STARTS)
def test_hostile_text_proposes_nothing(start):
    for piece in HOSTILE:
        text = (start + piece * (MAX_COMPLETION_CHARS // len(piece)))[:MAX_COMPLETION_CHARS]
        assert read_problem(text) is None


def test_a_problem_that_a_constant_solves_is_none(scorer):  # noqa: F811
    constant = PROPOSAL.replace("return [2 * x for x in xs]", "return 1")
    for result in ("[2, 4]", "[]", "[-3.0]"):
        constant = constant.replace(f"== {result}", "== 1")
    assert scorer.propose(constant) is None


def test_the_prompt_for_proposals_shows_an_example_that_would_be_read(prepared):
    question = next(
        question for n in range(256) if "digit_sum" in (question := prepared.draw(bytes([n]) * 32)).text
    )
    prompt = prepared.propose_prompt(question)
    statement = question.text.splitlines()[0]
    tests = "\n".join(question.text.splitlines()[2:])
    assert statement in prompt and f"```tests\n{tests}\n```" in prompt
    assert prepared.read_proposal(f"{statement}\n{question.answer}\n```tests\n{tests}\n```") == question


def test_the_gist_of_two_completions_is_their_program(prepared):
    assert prepared.gist("I think\n```python\na = 1  \n```") == prepared.gist("```python\na = 1\n```\nso")

"""Every dataset that a manifest may name is asked here; `-m slow` asks each far more often."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache

import msgspec
import pytest

from swarm.errors import UsageError
from swarm.tasks.prompts import answered, final_answer
from swarm.tasks.reasoning_gym import UNFIT, ReasoningGym, dataset_names, levels_of

GARBAGE = [
    "",
    "no idea",
    "<answer>",
    "nan",
    "-1e999",
    "[" * 20_000,
    "9" * 20_000,
    "[[[[" * 40,
    "((((" * 40,
    "\x00\ud800é²",
    "1e999999999",
    "1/1e999999999",
    "9**9**9**9",
    "(9**99)**(99)",
    "((((9**99)**99)**99)**99)**99",
    "9!!!!!!!!!",
    "0.1e-999999999",
    "((x+1)**99)**99",
    "(x+y+1)**99*(x-1)**99",
    "sin(exp(exp(exp(x**99))))/(x+1)**99",
    "U99999999",
    "__import__('os')._exit(3)",
    "[].__class__.__base__.__subclasses__()",
    "(lambda: 1)()",
    "[1 for x in [1]*9 for y in [1]*9]",
    "'a'*10**9",
    "factorial(10**9)",
    '{"a": ' * 500,
]
# Draws some entries of every dataset as a sandbox does: without a file to open once it is prepared.
SCRIPT = """
import hashlib, json, os, resource, sys
import msgspec
from swarm.tasks.reasoning_gym import ReasoningGym, dataset_names

order, count = int(sys.argv[1]), int(sys.argv[2])
out, quiet = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(quiet, 1)  # some of the datasets print
tasks = {}
for name in dataset_names()[::order]:
    tasks[name] = msgspec.convert({"datasets": [{"name": name}]}, ReasoningGym)
    tasks[name].prepare()
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
drawn = {}
for name, task in tasks.items():
    for number in range(count)[::order]:
        question = task.draw(hashlib.sha256(b"%d" % number).digest())
        assert task.score(question, question.answer) == 1.0, name
        text = f"{question.text} {question.answer}".encode("utf-8", "surrogatepass")
        drawn[f"{name} {number}"] = hashlib.sha256(text).hexdigest()
os.write(out, json.dumps(drawn).encode())
"""


def seed(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def gym(*datasets: dict, partial: bool = False) -> ReasoningGym:
    task = msgspec.convert({"datasets": datasets, "partial": partial}, ReasoningGym)
    task.prepare()
    return task


@cache
def alone(name: str, partial: bool = False) -> ReasoningGym:
    return gym({"name": name}, partial=partial)


def drawn_elsewhere(hash_seed: int, order: int, count: int) -> dict[str, str]:
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(order), str(count)]
    ran = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    return json.loads(ran.stdout)


def check_draws_elsewhere(count: int) -> None:
    forth = drawn_elsewhere(1, 1, count)
    assert len(forth) == count * len(dataset_names()) > 90 * count
    back = drawn_elsewhere(2, -1, count)
    assert {key: value for key, value in back.items() if forth[key] != value} == {}


def test_draws_are_the_same_in_any_process_and_order_and_need_no_files():
    check_draws_elsewhere(3)


@pytest.mark.slow
def test_many_draws_are_the_same_in_any_process_and_order_and_need_no_files():
    check_draws_elsewhere(200)


@pytest.mark.parametrize("name", dataset_names())
def test_right_answers_score_one_and_others_stay_in_bounds(name):
    task = alone(name)
    generous = alone(name, partial=True)
    for number in range(2):
        question = task.draw(seed(number))
        same = generous.draw(seed(number))
        assert question.text == same.text != ""
        assert task.score(question, question.answer) == 1.0
        assert task.score(question, f"I think that\n{question.answer}") == 1.0
        assert task.score(question, task.wrong_answer(question)) == 0.0
        for text in GARBAGE:
            assert task.score(question, answered(text)) in (0.0, 1.0)
            assert 0.0 <= generous.score(same, answered(text)) <= 1.0
        assert task.score(question, question.answer) == 1.0  # scoring leaves the question as it was


@pytest.mark.slow
@pytest.mark.parametrize("name", dataset_names())
def test_many_right_answers_score_one(name):
    task = alone(name)
    for number in range(200):
        question = task.draw(seed(number))
        assert task.score(question, question.answer) == 1.0
        assert task.score(question, task.wrong_answer(question)) == 0.0


def test_code_in_an_answer_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r},'w')"
    names = "binary_matrix countdown n_queens polynomial_multiplication puzzle24 simple_integration"
    for name in f"{names} spiral_matrix string_insertion".split():
        task = alone(name)
        question = task.draw(seed(0))
        assert task.score(question, answered(code)) == 0.0
        assert task.score(question, answered(f"[{code}]")) == 0.0
        # Without a call, a blank around `for`, or a name of anything dangerous.
        hidden = (
            "[Random[y]for Random.__class_getitem__ in[bytes.fromhex]for y in"
            f"[Random['{code.encode().hex()}']]for Random.__class_getitem__ in[exec]]"
        )
        assert task.score(question, answered(hidden)) == 0.0
    assert not mark.exists()


def test_no_number_is_no_right_number():
    task = alone("complex_arithmetic")
    question = task.draw(seed(0))
    for text in ("nan", "nan+nani", "inf", "-Infinity", "NaN"):
        assert task.score(question, answered(text)) == 0.0


def test_24_must_be_made_of_the_given_numbers():
    task = alone("puzzle24")
    question = task.draw(seed(0))
    assert task.score(question, answered("6*4*1*1")) == 0.0


def test_weights_and_levels_are_respected():
    task = gym(
        {"name": "chain_sum", "weight": 3},
        {"name": "gcd", "levels": [0, 2], "level_weights": [1, 4]},
    )
    counts: Counter[str] = Counter()
    for number in range(1000):
        entry = task.draw(seed(number)).data.entry
        counts[entry["metadata"]["source_dataset"]] += 1
        if entry["metadata"]["source_dataset"] == "gcd":
            counts[f"below {entry['metadata']['difficulty']['value'][1]}"] += 1
    assert 700 < counts["chain_sum"] < 800
    low, high = sorted((count for key, count in counts.items() if key.startswith("below")))
    assert low + high == counts["gcd"]
    assert 3 < high / low < 5.5


def test_config_goes_before_the_level():
    task = gym({"name": "chain_sum", "levels": [3], "config": {"min_terms": 2, "max_terms": 2}})
    terms = final_answer(task.draw(seed(5)).text).split(":")[1].split()
    assert len(terms) == 4  # two numbers, an operator, and =


def test_partial_scores_are_kept_only_where_asked_for():
    strict, generous = alone("spell_backward"), alone("spell_backward", partial=True)
    question = strict.draw(seed(1))
    almost = answered(final_answer(question.answer)[:-1])
    assert strict.score(question, almost) == 0.0
    assert 0.0 < generous.score(generous.draw(seed(1)), almost) < 1.0


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({"name": "chain_sums"}, "no dataset is called 'chain_sums'; closest: chain_sum"),
        ({"name": "rush_hour"}, "rush_hour cannot be used: it gives no solutions"),
        (
            {"name": "chain_sum", "config": {"min_term": 1}},
            "chain_sum has no config 'min_term'; closest: min_terms",
        ),
        ({"name": "chain_sum", "config": {"seed": 1}}, "chain_sum has no config 'seed'"),
        ({"name": "chain_sum", "config": {"min_terms": 0}}, "chain_sum refuses its config: AssertionError"),
        ({"name": "chain_sum", "config": {"min_terms": "a"}}, "chain_sum refuses its config: TypeError"),
        ({"name": "chain_sum", "levels": [99]}, f"no level 99; it has 0 to {levels_of('chain_sum') - 1}"),
        ({"name": "list_functions", "levels": [0]}, "list_functions has no level 0; it has no levels"),
        ({"name": "gcd", "levels": [0, 1], "level_weights": [1]}, "gcd has 1 level_weights for 2 levels"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(dataset, said):
    with pytest.raises(UsageError) as error:
        gym(dataset)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("parameters", [{}, {"datasets": []}, {"datasets": [{"name": "gcd", "weight": 0}]}])
def test_parameters_are_checked(parameters):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(parameters, ReasoningGym)


def test_unfit_datasets_have_a_reason_and_are_left_out():
    assert all(UNFIT.values())
    assert not set(UNFIT) & set(dataset_names())

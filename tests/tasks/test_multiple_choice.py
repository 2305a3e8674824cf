import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import UsageError
from swarm.tasks.multiple_choice import MultipleChoice, read_option

OPTIONS = ("Trout", "Bat", "Newt", "Wasp")


@pytest.fixture(scope="module")
def task():
    made = MultipleChoice()
    made.prepare()
    return made


def seed(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


@pytest.mark.parametrize(
    "completion",
    [
        "<answer>B</answer>",
        "<answer> b </answer>",
        "<answer>A</answer> no: <answer>B</answer>",
        "<answer>(B)</answer>",
        "<answer>**B**</answer>",
        "<answer>B.</answer>",
        "<answer>B. Bat</answer>",
        "<answer>Bat</answer>",
        "<answer>bat.</answer>",
        "<answer>The answer is B</answer>",
        "<answer>B",
        "B",
        "B.",
        "(B)",
        "B) Bat",
        "answer: B",
        "Answer: **B**",
        "The answer is (B).",
        "It is not (A), so (B)",
        "A fish is no mammal.\nB",
        "Bat",
        "The mammal is this:\nBat",
        "I took A. first.\nThe correct option is B",
    ],
)
def test_the_option_that_is_chosen(completion):
    assert read_option(completion, OPTIONS) == 1


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "no idea",
        "<answer></answer>",
        "<answer>A or B</answer>",
        "<answer>A, B</answer>",
        "<answer>AB</answer>",
        "<answer>A B C D</answer>",
        "<answer>(A) (B)</answer>",
        "<answer>A\nB</answer>",
        "<answer>not B</answer>",
        "<answer>E</answer>",
        "<answer>Bat, Newt</answer>",
        "<answer>Bat or Newt</answer>",
        "<answer>Z</answer> B",
        "Bats",
    ],
)
def test_no_option_is_chosen(completion):
    assert read_option(completion, OPTIONS) is None


def test_letters_as_options_are_read_as_letters():
    assert read_option("<answer>B</answer>", ("B", "C", "A")) == 1
    assert read_option("<answer>x</answer>", ("x", "y")) == 0


def test_every_row_of_the_sample_is_drawn_and_scored(task):
    drawn = [task.draw(seed(number)) for number in range(400)]
    assert len({question.data.question for question in drawn}) == 20
    for question in drawn:
        first, *lines = question.text.splitlines()
        assert first == question.data.question
        assert [line[:3] for line in lines] == [f"{letter}. " for letter in "ABCD"[: len(lines)]]
        assert task.score(question, question.answer) == 1.0
        assert task.score(question, task.wrong_answer(question)) == 0.0
        right = question.data.options[question.data.right]
        assert task.score(question, f"<answer>{right}</answer>") == 1.0
        assert sum(task.score(question, f"<answer>{letter}</answer>") for letter in "ABCDE") == 1.0
    assert task.draw(seed(1)) == task.draw(seed(1))


def test_options_are_shuffled_evenly_unless_told_not_to(task):
    places = [task.draw(seed(number)).data.right for number in range(800)]
    assert all(140 < places.count(place) < 260 for place in range(4))
    plain = MultipleChoice(shuffle=False)
    plain.prepare()
    bats = [q for q in map(plain.draw, map(seed, range(200))) if "mammal" in q.text]
    assert {question.data.options for question in bats} == {OPTIONS}


def test_arc_and_mmlu_rows(tmp_path, capsys):
    rows = [
        {"question": "a", "choices": ["x", "y"], "answer": 1},
        {"question": "b", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        {"question": "c", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "d", "choices": ["x", "y"], "answer": "B", "subject": "left out"},
        {"question": "no answer", "choices": ["x", "y"]},
        {"question": "two are right", "choices": ["y", "y."], "answer": 1},
        {"question": "none", "choices": ["x", "y"], "answer": 2},
        {"question": "one", "choices": ["x"], "answer": 0},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UsageError) as caught:
        MultipleChoice(data=str(file)).prepare()
    task = MultipleChoice(data=str(file), digest=str(caught.value).partition("digest: ")[2][:64])
    task.prepare()
    assert capsys.readouterr().err.startswith("4 of 8 rows of ")
    drawn = [task.draw(seed(number)) for number in range(100)]
    assert {question.data.question for question in drawn} == set("abcd")
    assert {question.data.options[question.data.right] for question in drawn} == {"y"}


@given(st.text())
def test_any_text_is_scored(task, text):
    question = task.draw(seed(1))
    assert task.score(question, text) in (0.0, 1.0)
    assert task.score(question, f"<answer>{text}") in (0.0, 1.0)


@pytest.mark.parametrize(
    "piece", ["A", "(", "answer ", "answer: (", "<answer>", "\n ", "*", "A. ", "<answer>A.", "\t"]
)
def test_long_text_is_scored_too(task, piece):
    question = task.draw(seed(1))
    assert task.score(question, piece * (1_000_000 // len(piece))) in (0.0, 1.0)


@pytest.mark.parametrize("parameters", [{"shuffle": "yes"}, {"other": 1}, {"digest": "abc"}])
def test_wrong_parameters_are_refused(parameters):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(parameters, MultipleChoice)

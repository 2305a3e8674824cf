import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import UsageError
from swarm.manifest import TaskChoice
from swarm.tasks import load_task

TASK = load_task(TaskChoice(name="arithmetic"))


def seed(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def test_questions_are_sums_and_differences_with_their_answer():
    for number in range(300):
        question = TASK.draw(seed(number))
        left, operator, right = question.text.replace("+", " + ").replace("-", " - ").rstrip("=").split()
        assert 0 <= int(left) < 100 and 0 <= int(right) < 100
        value = int(left) + int(right) if operator == "+" else int(left) - int(right)
        assert question.answer == str(value)
        assert TASK.score(question, str(value)) == 1.0
        assert TASK.score(question, str(value + 1)) == 0.0


def test_drawing_is_deterministic_and_varied():
    assert TASK.draw(seed(1)) == TASK.draw(seed(1))
    assert len({TASK.draw(seed(number)).text for number in range(300)}) > 280


@given(st.text())
def test_any_text_is_scored_without_raising(text):
    question = TASK.draw(seed(0))
    assert TASK.score(question, text) == float(text.strip() == question.answer)


@pytest.mark.parametrize(
    "choice",
    [
        TaskChoice(name="arithmetics"),
        TaskChoice(name="arithmetic", parameters={"digits": 0}),
        TaskChoice(name="arithmetic", parameters={"digit": 2}),
    ],
)
def test_unknown_task_or_parameter_is_refused(choice):
    with pytest.raises(UsageError):
        load_task(choice)

import hashlib
import math
import re
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import UsageError
from swarm.tasks.trl import RewardTask

TEXTS = [{"prompt": f"What is {n}+1?", "answer": str(n + 1), "weight": n} for n in range(5)]
CHATS = [
    {"prompt": [{"role": "user", "content": "Say hello."}], "answer": "hello"},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}],
        "answer": "hello",
    },
]


def accuracy(completions, answer, **kwargs):
    return [
        1.0 if completion == right else 0.0 for completion, right in zip(completions, answer, strict=True)
    ]


def chat_accuracy(completions, answer, **kwargs):
    return [1.0 if c[0]["content"] == right else 0.0 for c, right in zip(completions, answer, strict=True)]


class Accuracy(RewardTask, frozen=True, kw_only=True):
    summary = "sums"
    reward = accuracy

    def rows(self):
        return TEXTS


def made(function, given_rows=TEXTS, low_value=0.0, high_value=1.0, static=True):
    class Made(RewardTask, frozen=True, kw_only=True):
        reward = staticmethod(function) if static else function
        low: ClassVar[float] = low_value
        high: ClassVar[float] = high_value

        def rows(self):
            return given_rows

    return Made()


def prepared(task):
    task.prepare()
    return task


def seed(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def test_a_plain_function_or_a_static_method_is_the_reward():
    for task in (prepared(Accuracy()), prepared(made(accuracy))):
        drawn = {question.text: question for question in map(task.draw, map(seed, range(60)))}
        assert sorted(drawn) == sorted(row["prompt"] for row in TEXTS)
        for question in drawn.values():
            assert task.score(question, question.answer) == 1.0
            assert task.score(question, task.wrong_answer(question)) == 0.0


def test_the_function_gets_what_trl_passes():
    calls = []

    def spy(**kwargs):
        kwargs["log_extra"]("column", ["x"])
        kwargs["log_metric"]("name", 1.0)
        calls.append(kwargs)
        return [0.5]

    task = prepared(made(spy))
    assert task.score(task.draw(seed(1)), "text") == 0.5
    given_arguments = calls[-1]
    assert set(given_arguments) == {
        "prompts", "completions", "completion_ids", "answer", "weight",
        "trainer_state", "log_extra", "log_metric",
    }  # fmt: skip
    assert given_arguments["completions"] == ["text"] and given_arguments["completion_ids"] == [[]]
    assert given_arguments["prompts"] == [task.draw(seed(1)).text]


def test_the_arguments_are_those_of_the_installed_trl():
    import inspect

    from trl import GRPOTrainer

    source = inspect.getsource(inspect.unwrap(GRPOTrainer._calculate_rewards))
    assert set(re.findall(r'[^_]reward_kwargs\["(\w+)"\]', source)) == {
        "trainer_state", "log_extra", "log_metric", "environments"  # the last only with environments
    }  # fmt: skip
    assert (
        "prompts=prompts, completions=completions, completion_ids=completion_ids_list, **reward_kwargs"
        in source
    )
    assert '["prompt", "completion", "completion_ids"]' in source


def test_chats_get_chat_completions():
    task = prepared(made(chat_accuracy, CHATS))
    texts = {task.draw(seed(number)).text for number in range(40)}
    assert texts == {"Say hello.", "system: Be brief.\n\nuser: Say hello."}
    assert task.score(task.draw(seed(1)), "hello") == 1.0
    assert task.score(task.draw(seed(1)), "no") == 0.0


def test_rewards_between_low_and_high_become_scores():
    task = prepared(made(lambda completions, **_: [float(completions[0] or 0)], [{"prompt": "?"}], -2.0, 2.0))
    question = task.draw(seed(0))
    for text, score in (("-2", 0.0), ("0", 0.5), ("1", 0.75), ("2", 1.0), ("9", 1.0), ("-9", 0.0)):
        assert task.score(question, text) == score
    for text in ("nan", "inf", "no number"):
        assert task.score(question, text) == 0.0


def test_none_scores_0():
    task = prepared(made(lambda completions, **_: [None]))
    assert task.score(task.draw(seed(0)), "x") == 0.0


def test_an_async_function_that_waits_for_nothing():
    async def reward(completions, **kwargs):
        return [0.25]

    task = prepared(made(reward))
    assert task.score(task.draw(seed(0)), "x") == 0.25


async def waiting(completions, **kwargs):
    import asyncio

    await asyncio.sleep(0)
    return [0.5]


def raising(completions, **kwargs):
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda **_: [2.0], "gave 2.0, which is not within 0.0 and 1.0"),
        (lambda **_: [math.nan], "gave nan"),
        (lambda **_: [0.5, 0.5], "2 rewards for 1 completion"),
        (lambda **_: ["x"], "could not convert"),
        (lambda completions: [1.0], "TypeError"),
        (raising, "KeyError: 'gone'"),
        (waiting, "must not wait"),
    ],
)
def test_mistakes_are_said_when_prepared_and_score_0_or_1_in_a_round(function, said):
    task = made(function)
    with pytest.raises(UsageError, match=re.escape(said)):
        task.prepare()
    assert task.score(task.draw(seed(0)), "x") in (0.0, 1.0)


@pytest.mark.parametrize("rows", [[], [{"answer": "1"}], [{"prompt": []}], [{"prompt": [{"content": "x"}]}]])
def test_rows_without_a_prompt_are_refused(rows):
    with pytest.raises(UsageError):
        made(accuracy, rows).prepare()


def test_a_range_must_be_one():
    with pytest.raises(UsageError, match="must be below"):
        made(accuracy, low_value=1.0).prepare()


@given(st.text())
def test_any_text_is_scored(text):
    task = Accuracy()
    assert task.score(task.draw(seed(1)), text) in (0.0, 1.0)

"""A reward function written for TRL as a task, unchanged.

    class Brevity(RewardTask, frozen=True, kw_only=True):
        summary = "short answers"
        reward = brevity_reward              # def brevity_reward(completions, **kwargs) -> list[float]

        def rows(self):
            return [{"prompt": "What is a swarm?", "answer": "Peers that share one manifest."}]

What TRL 1.16 passes (`GRPOTrainer._calculate_rewards`) is passed here: `prompts`, `completions`,
`completion_ids`, each other column as a list, `trainer_state`, `log_extra` and `log_metric`. There is one
completion a call, no tokenizer and no trainer: `completion_ids` is `[[]]`, `trainer_state` None, and what is
logged goes nowhere.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from swarm.errors import UsageError
from swarm.tasks.base import Question, Task

_TRIED_ROWS = 8  # with which `prepare` tries the function
_NOT_PASSED = ("prompt", "completion", "completion_ids")  # as in TRL


class RewardTask(Task, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """Base class of tasks around a TRL reward function; a subclass says `reward`, its range and `rows`.

    Rewards from `low` to `high` become scores from 0 to 1. One outside of them is the package's mistake:
    `prepare` tries some rows and says so (hence `swarm task check` does), while in a round it is clipped.
    None, which in TRL means "does not apply", and an error raised over a completion score 0. Async functions
    must not wait for anything.
    """

    reward: ClassVar[Callable[..., Any]]
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows: `prompt` (a text or a list of chat messages) and the columns that `reward` takes.

        Called once, in `prepare`, with files and network; always the same rows in the same order.
        """
        raise NotImplementedError

    def reference(self, row: Mapping[str, Any]) -> str:
        """A completion that scores 1 for a row; its column `answer`, unless a subclass knows better."""
        return str(row.get("answer", ""))

    def prepare(self) -> None:
        """Get the rows, and try the function on some of them; `UsageError` says what it did wrong."""
        name = type(self).__name__
        if not self.low < self.high:
            raise UsageError(f"task {name}: low ({self.low}) must be below high ({self.high})")
        for index, row in enumerate(self._rows):
            prompt = row.get("prompt")
            if not (isinstance(prompt, str) or _is_chat(prompt)):
                raise UsageError(f"task {name}: row {index} has no prompt that is a text or chat messages")
        for row in self._rows[:_TRIED_ROWS]:
            for completion in (self.reference(row), ""):
                try:
                    value = self._reward(row, completion)
                except Exception as error:  # whatever the package's function raises
                    raise UsageError(
                        f"task {name}: its reward function raised {type(error).__name__}: {error}"
                    ) from error
                if value is not None and not self.low <= value <= self.high:  # also if it is not a number
                    raise UsageError(
                        f"task {name}: its reward function gave {value}, which is not within "
                        f"{self.low} and {self.high}; declare other `low` and `high`"
                    )

    def draw(self, seed: bytes) -> Question:
        """A row that the seed picks (128 bits: no bias to speak of)."""
        row = self._rows[int.from_bytes(seed[:16], "big") % len(self._rows)]
        return Question(_text(row["prompt"]), self.reference(row), row)

    def score(self, question: Question, completion: str) -> float:
        """The reward, from `low` and `high` to 0 and 1."""
        if not isinstance(question.data, Mapping):
            raise TypeError("a question that this task did not draw")
        try:
            value = self._reward(question.data, completion)
        except Exception:  # noqa: BLE001 - a stranger's text that a package's function cannot take
            return 0.0
        if value is None or not math.isfinite(value):
            return 0.0
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def wrong_answer(self, question: Question) -> str:
        """Nothing at all."""
        return ""

    @cached_property
    def _rows(self) -> list[Mapping[str, Any]]:
        rows = list(self.rows())
        if not rows:
            raise UsageError(f"task {type(self).__name__} has no rows")
        return rows

    def _reward(self, row: Mapping[str, Any], completion: str) -> float | None:
        """What the function gives, called as TRL calls it."""
        function = inspect.getattr_static(type(self), "reward")
        if isinstance(function, staticmethod):
            function = function.__func__
        chat = _is_chat(row["prompt"])
        columns = {key: [value] for key, value in row.items() if key not in _NOT_PASSED}
        given = function(
            prompts=[row["prompt"]],
            completions=[[{"role": "assistant", "content": completion}] if chat else completion],
            completion_ids=[[]],
            **columns,
            trainer_state=None,
            log_extra=_log_nothing,
            log_metric=_log_nothing,
        )
        rewards = list(_finished(given) if inspect.iscoroutine(given) else given)
        if len(rewards) != 1:
            raise ValueError(f"{len(rewards)} rewards for 1 completion")
        return None if rewards[0] is None else float(rewards[0])


def _is_chat(prompt: object) -> bool:
    """As TRL's `is_conversational` says; a text that is nowhere in the chat would have nothing to ask."""
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(message, dict) and "role" in message and "content" in message for message in prompt
        )
    )


def _text(prompt: Any) -> str:
    """A prompt as one text; of several messages, each with its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _finished(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The value of a coroutine that waits for nothing: an event loop would open sockets."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value
    coroutine.close()
    raise RuntimeError("an async reward function must not wait for anything here")


def _log_nothing(*_arguments: object) -> None:
    """TRL's `log_extra` and `log_metric`, without a trainer."""

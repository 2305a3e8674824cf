"""What is asked and how an answer is scored. A manifest names an installed task; `load_task` makes it."""

from __future__ import annotations

from swarm.errors import UsageError
from swarm.manifest import TaskChoice
from swarm.tasks.arithmetic import Arithmetic
from swarm.tasks.base import Question, Task

__all__ = ["Question", "Task", "load_task"]

TASKS = {"arithmetic": Arithmetic}


def load_task(choice: TaskChoice) -> Task:
    """The task that a manifest names; `UsageError` if it is unknown or its parameters are wrong."""
    kind = TASKS.get(choice.name)
    if kind is None:
        raise UsageError(
            f"manifest names the unknown task {choice.name!r}; installed: {', '.join(sorted(TASKS))}"
        )
    return kind.from_parameters(choice.parameters)

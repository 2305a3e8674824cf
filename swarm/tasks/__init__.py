"""What is asked and how an answer is scored. A manifest names installed tasks; `load_tasks` makes them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import msgspec
from msgspec import Struct

from swarm.errors import UsageError
from swarm.manifest import Manifest, Parameter
from swarm.manifest_source import Keys, path_text
from swarm.tasks.base import ProposingTask, Question, Task
from swarm.tasks.mixture import Drawn, Judged, Mixture, Tasks
from swarm.tasks.trl import RewardTask

__all__ = [
    "Complain",
    "Drawn",
    "Judged",
    "Mixture",
    "ProposingTask",
    "Question",
    "RewardTask",
    "Task",
    "Tasks",
    "complaint",
    "is_harmless",
    "load_tasks",
    "make_task",
    "provider",
    "task_class",
    "task_names",
]

#: Packages that bring tasks name them under this entry point: `my_task = "my_package:MyTask"`.
ENTRY_POINT = "swarm.tasks"


class BuiltIn(Struct, frozen=True):
    """Where a task of this project is; imported when it is used, since some bring large libraries."""

    module: str
    name: str
    # Every line of it was written for hostile text, so it may be scored in a node's own process.
    harmless: bool = False


BUILT_IN = {
    "arithmetic": BuiltIn("swarm.tasks.arithmetic", "Arithmetic", harmless=True),
    "code": BuiltIn("swarm.tasks.code", "Code"),
    "math_word": BuiltIn("swarm.tasks.math_word", "MathWord"),
    "multiple_choice": BuiltIn("swarm.tasks.multiple_choice", "MultipleChoice"),
    "reasoning_gym": BuiltIn("swarm.tasks.reasoning_gym", "ReasoningGym"),
    "rubric": BuiltIn("swarm.tasks.rubric", "Rubric"),
}


#: Makes the error about what stands at a place of a manifest.
Complain = Callable[[Keys, str], UsageError]


def complaint(keys: Keys, what: str) -> UsageError:
    """The error where there is no file whose line could be named."""
    return UsageError(f"{path_text(keys)}{what}")


def task_names() -> list[str]:
    """All installed tasks, this project's first."""
    return [*BUILT_IN, *sorted(set(_entry_points()) - set(BUILT_IN))]


def provider(name: str) -> str | None:
    """The distribution that brings a task; None for this project's own. `UsageError` if none does."""
    if name in BUILT_IN:
        return None
    return _distribution(_entry_point(name))


def is_harmless(manifest: Manifest) -> bool:
    """Whether no task of a manifest needs a process that can only compute."""
    return all(choice.name in BUILT_IN and BUILT_IN[choice.name].harmless for choice in manifest.tasks)


def task_class(name: str) -> type[Task]:
    """The class of an installed task, imported; `UsageError` if there is none or it cannot be."""
    if name in BUILT_IN:
        found: type[Task] = getattr(import_module(BUILT_IN[name].module), BUILT_IN[name].name)
        return found
    entry = _entry_point(name)
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # whatever a package does while it is imported
        raise UsageError(
            f"task {name!r} of {_distribution(entry)} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Task)):
        raise UsageError(f"task {name!r} of {_distribution(entry)} is no subclass of swarm.tasks.Task")
    return loaded


def make_task(name: str, parameters: Mapping[str, Parameter]) -> Task:
    """A task with its parameters, not prepared; `msgspec.ValidationError` if they are wrong."""
    return msgspec.convert(dict(parameters), task_class(name))


def load_tasks(manifest: Manifest, complain: Complain = complaint) -> Mixture:
    """A manifest's tasks, prepared, in this process.

    Args:
        complain: makes the error about what stands at a place of the manifest.

    Raises:
        UsageError: a task is unknown, its parameters are wrong, or what it needs is not there.
    """
    tasks = []
    for index, choice in enumerate(manifest.tasks):
        place = ("tasks", index)
        try:
            kind = task_class(choice.name)
        except UsageError as error:
            raise complain((*place, "name"), str(error)) from error
        try:
            task = msgspec.convert(dict(choice.parameters), kind)
            task.prepare()
        except msgspec.ValidationError as error:
            what = str(error).replace("`$.", "`").replace("`$`", "its parameters")
            raise complain((*place, "parameters"), f"task {choice.name}: {what}") from error
        except UsageError as error:
            raise complain((*place, "parameters"), str(error)) from error
        tasks.append((task, choice.weight))
    mixture = Mixture(tasks)
    if manifest.stage("propose") and not mixture.takes_proposals:
        names = ", ".join(choice.name for choice in manifest.tasks)
        raise complain(
            ("stages", 0), f"there is a propose stage, but none of the tasks ({names}) takes proposals"
        )
    return mixture


def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT)}


def _entry_point(name: str) -> EntryPoint:
    found = _entry_points()
    if name not in found:
        close = difflib.get_close_matches(name, task_names(), 1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(
            f"task {name!r} is not installed; {meant}installed are {', '.join(task_names())}; "
            "install the package that brings it"
        )
    return found[name]


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value

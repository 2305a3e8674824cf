"""`swarm task new`: a package with a task, and tests that pass, to change into one's own."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from swarm.errors import SwarmError, UsageError
from swarm.tasks import task_names

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_FILES = Path(__file__).parent / "files"


def make_package(name: str, parent: Path) -> Path:
    """Write the package `swarm-task-NAME` into `parent` and return its folder; nothing is overwritten.

    The files are those beside this module, with $name, $module, $project and $class_name filled in.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a task: lower-case letters, digits and _, a letter first")
    if name in task_names():
        raise UsageError(f"a task {name!r} is installed already; choose another name")
    project = f"swarm-task-{name.replace('_', '-')}"
    words = {
        "name": name,
        "module": f"swarm_task_{name}",
        "project": project,
        "class_name": "".join(word.capitalize() for word in name.split("_")),
    }
    folder = parent / project
    try:
        folder.mkdir(parents=True)
        for file in sorted(_FILES.rglob("*.txt")):
            place = folder / Template(file.relative_to(_FILES).with_suffix("").as_posix()).substitute(words)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(Template(file.read_text()).substitute(words))
    except FileExistsError:
        raise UsageError(f"{folder} exists already; choose another name or --folder") from None
    except OSError as error:
        raise SwarmError(f"cannot write {folder}: {error.strerror}; choose another --folder") from error
    return folder

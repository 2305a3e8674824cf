"""`swarm task …`: what can be asked, how it looks, and whether a manifest's tasks are sound."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from swarm.console import plain, say
from swarm.errors import UsageError
from swarm.options import count, seed


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `task` and its actions."""
    task = commands.add_parser("task", help="what swarms can ask: list, preview, check and make tasks")
    actions = task.add_subparsers(required=True, metavar="ACTION")

    listed = actions.add_parser("list", help="the installed tasks")
    listed.add_argument("task", metavar="TASK", nargs="?", help="one of them, with what each parameter means")
    listed.add_argument(
        "--json", action="store_true", help="for scripts; with the schema of their parameters"
    )
    listed.set_defaults(run=_list)

    preview = actions.add_parser(
        "preview", help="a question, the prompts of each stage, a right and a wrong answer with their scores"
    )
    preview.add_argument("task", metavar="TASK", help="an installed task, or a manifest's file")
    preview.add_argument("--seed", type=seed, default=0, metavar="S", help="which question (%(default)s)")
    preview.add_argument(
        "--parameters", metavar="JSON", help="of a TASK that is no file, as in '{\"digits\": 3}'"
    )
    preview.add_argument("--json", action="store_true", help="for scripts")
    preview.set_defaults(run=_preview)

    check = actions.add_parser(
        "check",
        help="draw and score many questions, measure the prompts, and play all stages with the tiny model",
    )
    check.add_argument("manifest", type=Path, metavar="MANIFEST", help="the YAML file with the swarm's rules")
    check.add_argument(
        "--questions", type=count, default=1000, metavar="N", help="how many are drawn (%(default)s)"
    )
    check.add_argument("--json", action="store_true", help="for scripts")
    check.set_defaults(run=_check)

    pin = actions.add_parser("pin", help="the `packages` to write into a manifest: what is installed here")
    pin.add_argument("manifest", type=Path, metavar="MANIFEST", help="the YAML file with the swarm's rules")
    pin.add_argument(
        "--write", action="store_true", help="put it into the file, in the place of what is there"
    )
    pin.set_defaults(run=_pin)

    new = actions.add_parser("new", help="a package with a task of your own, and tests that pass")
    new.add_argument("name", metavar="NAME", help="of the task: lower-case letters, digits and _")
    new.add_argument("--folder", type=Path, metavar="DIR", help="where to put the package (here)")
    new.set_defaults(run=_new)

    schema = actions.add_parser("schema", help="the JSON schema of manifests, for editors")
    schema.set_defaults(run=_schema)


def _list(arguments: argparse.Namespace) -> int:
    from swarm.manifest_schema import schema
    from swarm.tasks import provider, task_class, task_names

    if arguments.task and not arguments.json:
        return _describe(arguments.task)
    rows: list[dict[str, Any]] = []
    for name in [arguments.task] if arguments.task else task_names():
        row: dict[str, Any] = {"name": name, "from": provider(name) or "swarm-rl"}
        try:
            kind = task_class(name)
        except UsageError as error:  # somebody's package; the others are worth showing
            rows.append(row | {"summary": None, "error": str(error)})
            continue
        rows.append(row | {"summary": kind.summary, "parameters": schema(kind)})
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("task", "from", "asks", "parameters")
    for row in rows:
        known = row.get("parameters", {})
        name = known.get("$ref", "").rsplit("/", 1)[-1]
        keys = ", ".join(known.get("$defs", {}).get(name, {}).get("properties", {}))
        table.add_row(row["name"], escape(row["from"]), escape(row.get("error") or row["summary"]), keys)
    Console().print(table)
    return 0


def _describe(name: str) -> int:
    """One task and its parameters, for reading."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from swarm.manifest_schema import parameter_rows
    from swarm.tasks import task_class

    kind = task_class(name)
    table = Table("parameter", "is", "default", "means", title=escape(f"{name}: {kind.summary}"))
    for row in parameter_rows(kind):
        table.add_row(*map(escape, row))
    Console().print(table)
    if choices := kind.catalogue():
        print("\n".join(choices))
    return 0


def _preview(arguments: argparse.Namespace) -> int:
    from swarm.manifest import Manifest, load, read
    from swarm.manifest_source import Source
    from swarm.task_preview import preview
    from swarm.tasks import Complain, complaint, task_class, task_names

    complain: Complain

    if arguments.task in task_names() and not Path(arguments.task).is_file():
        complain = complaint
        given = _parameters(arguments.parameters)
        manifest = _manifest_of(arguments.task, task_class(arguments.task).example | given)
    elif Path(arguments.task).suffix in (".yaml", ".yml") or Path(arguments.task).is_file():
        if arguments.parameters is not None:
            raise UsageError("--parameters is for a task's name; a manifest has them inside")
        manifest = load(Path(arguments.task))
        complain = Source(read(Path(arguments.task)), arguments.task).error
    else:
        raise UsageError(
            f"{arguments.task!r} is neither an installed task ({', '.join(task_names())}) "
            "nor a manifest's file"
        )
    assert isinstance(manifest, Manifest)
    with _busy("loading the task"):
        seed = hashlib.sha256(b"preview" + arguments.seed.to_bytes(8, "big")).digest()
        shown = preview(manifest, seed, complain)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
        return 0
    for title, text in shown.parts():
        print(f"── {title}", plain(text, keep="\n\t"), "", sep="\n")
    return 0


def _manifest_of(name: str, parameters: dict[str, Any]) -> Any:
    """A manifest that asks one task in all stages that it can have."""
    from swarm.manifest import parse
    from swarm.tasks import ProposingTask, task_class

    proposes = issubclass(task_class(name), ProposingTask)
    names = [*(["propose"] if proposes else []), "answer", "critique", "revise"]
    stages = [
        {"name": stage, "ends_at": 0.2 * (place + 1), "max_groups": 1, "max_tokens": 512}
        for place, stage in enumerate(names)
    ]
    rules = {
        "name": name,
        "tasks": [{"name": name, "parameters": parameters}],
        "models": ["tiny"],
        "round_seconds": 60,
        "group_size": 2,
        "stages": stages,
        "learn": {"ends_at": 0.9, "external_groups": 1, "learning_rate": 0.1},
    }
    return parse(json.dumps(rules).encode(), f"for task {name}")


def _busy(what: str) -> AbstractContextManager[object]:
    """A sign of life on a terminal; elsewhere nothing."""
    from rich.console import Console

    return Console(stderr=True).status(what)


def _parameters(text: str | None) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise UsageError(f"--parameters is not a JSON object: {error}") from error


def _check(arguments: argparse.Namespace) -> int:
    from swarm.task_check import Report, check

    findings = []
    steps = check(arguments.manifest, arguments.questions)
    while True:
        with _busy("checking; this takes up to some minutes"):
            finding = next(steps, None)
        if finding is None:
            break
        findings.append(finding)
        if not arguments.json:
            mark = {"passed": "ok    ", "failed": "FAILED", "skipped": "-     "}[finding.state]
            print(f"{mark}  {finding.check:8}  {plain(finding.detail)}", flush=True)
    passed = all(finding.state != "failed" for finding in findings)
    if not arguments.json and passed:
        left = sum(finding.state == "skipped" for finding in findings)
        say("sound" + (f", as far as could be looked at: {left} times not (-)" if left else ""))
    if arguments.json:
        report = Report(str(arguments.manifest), passed, findings)
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    return 0 if passed else 1


def _pin(arguments: argparse.Namespace) -> int:
    from swarm.manifest import load
    from swarm.tasks.packages import pins

    found = pins(load(arguments.manifest))
    if not found:
        say("nothing to pin: its tasks depend on nothing outside this project")
        return 0
    lines = ["packages:"]
    for package in found:
        digest = f", digest: {package.digest}" if package.digest else ""
        lines.append(f'  - {{distribution: {package.distribution}, version: "{package.version}"{digest}}}')
    block = "\n".join(lines) + "\n"
    if arguments.write:
        _write_pins(arguments.manifest, block)
    else:
        print(block, end="")
    return 0


# The key and what is indented below it, or belongs to it on its line.
_PACKAGES = re.compile(r"^packages:.*\n(?:(?:[ \t]*\n|#.*\n)*[ \t-].*\n)*", re.M)


def _write_pins(path: Path, block: str) -> None:
    """Put the block in the place of the file's own, or at its end; nothing else changes."""
    from swarm.errors import SwarmError
    from swarm.manifest import parse

    text = path.read_bytes().decode()
    text = text if text.endswith("\n") else f"{text}\n"
    changed = _PACKAGES.sub(lambda _: block, text, count=1) if _PACKAGES.search(text) else text + block
    parse(changed.encode(), str(path))
    beside = path.with_name(f".{path.name}.new")
    try:  # whole, or not at all
        beside.write_bytes(changed.encode())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise SwarmError(f"cannot write {path}: {error.strerror}") from error
    say(f"pinned in {path}")


def _new(arguments: argparse.Namespace) -> int:
    from swarm.tasks.template import make_package

    folder = make_package(arguments.name, arguments.folder or Path())
    say(f"made {folder}; what to do with it:")
    print(f"{sys.executable} -m pip install pytest --editable {folder}")
    print(f"{sys.executable} -m pytest {folder}")
    print(f"{sys.executable} -m swarm task preview {arguments.name}")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from swarm.manifest_schema import schema_text

    print(schema_text(), end="")
    return 0

"""`swarm task check`: whether a manifest's tasks do what a swarm relies on, before there is a swarm.

Every line says what was looked at and what was found. The tasks run as in a node: in a process that can only
compute, unless they are harmless.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from swarm.cellmates import SENDER_SHARE, most_groups
from swarm.errors import ModelError, SwarmError, UsageError
from swarm.manifest import EMBEDDED_MODEL, Manifest, parse, read
from swarm.manifest_source import Source
from swarm.task_process import TaskProcess, open_tasks
from swarm.tasks import Drawn, make_task, task_class
from swarm.tasks.packages import check_packages, unpinned
from swarm.tasks.prompts import Named, shown_text

QUESTIONS = 1000
_SCORED = 40  # of them, with every kind of completion
_LONGEST = 20  # of them, as prompts
State = Literal["passed", "failed", "skipped"]

# What models, and peers who mean no good, write.
_GARBAGE = (
    "",
    " \n\t",
    "0",
    "-1e999999999",
    "nan",
    "<answer></answer>",
    "<answer>" * 50,
    "\\boxed{" * 50,
    "9" * 2000,
    "(" * 500 + ")" * 500,
    "__import__('os').system('true')",
    "```python\nraise SystemExit(0)\n```",
    "\u202e\u0000\x1b[31m🦊 ﷽",
    "Right: A Agree: B none",
)


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    state: State
    detail: str


class Report(Struct, frozen=True):
    """`swarm task check --json`."""

    manifest: str
    passed: bool
    findings: list[Finding]


def check_loads(path: Path) -> Manifest:
    """A manifest whose packages and tasks are here; `UsageError` with file and line if they are not."""
    data = read(path)
    manifest = parse(data, str(path))
    source = Source(data, str(path))
    check_packages(manifest, source.error)  # before any of their code runs
    for index, choice in enumerate(manifest.tasks):
        place = ("tasks", index)
        try:
            make_task(choice.name, choice.parameters)
        except msgspec.ValidationError as error:
            inside = (*place, "parameters")
            raise source.translated(error, inside, task_class(choice.name)) from error
        except UsageError as error:
            raise source.error((*place, "name"), str(error)) from error
    with open_tasks(manifest, source.error):
        return manifest


def check(path: Path, questions: int = QUESTIONS) -> Iterator[Finding]:
    """All checks, one after the other; the first that fails to load anything ends them."""
    try:
        manifest = check_loads(path)
    except SwarmError as error:
        yield Finding("load", "failed", str(error))
        return
    names = ", ".join(choice.name for choice in manifest.tasks)
    size = len(manifest.canonical)
    yield Finding(
        "load", "passed", f"{manifest.name}, {size} bytes, id {manifest.swarm_id.hex()}; tasks: {names}"
    )
    if missing := unpinned(manifest):
        yield Finding(
            "pins", "skipped", f"not pinned, so peers may have others: {', '.join(missing)}; see `task pin`"
        )
    steps = (_check_draws, _check_scores, _check_lengths, _check_stages)
    try:
        # Two processes, with hash seeds of their own, as two peers have them.
        with TaskProcess(manifest, hash_seed=1) as one, TaskProcess(manifest, hash_seed=2) as other:
            seeds = [hashlib.sha256(b"check" + n.to_bytes(4, "big")).digest() for n in range(questions)]
            drawn = [one.draw(seed) for seed in seeds]
            for step in steps:
                yield from step(manifest, one, other, drawn)
    except SwarmError as error:
        yield Finding("tasks", "failed", str(error))


def _check_draws(
    manifest: Manifest, one: TaskProcess, other: TaskProcess, drawn: Sequence[Drawn]
) -> Iterator[Finding]:
    # In another order: what was drawn before must not matter.
    again = {question.seed: other.draw(question.seed) for question in reversed(drawn)}
    differing = [question for question in drawn if again[question.seed] != question]
    distinct = len({question.text for question in drawn})
    lengths = [len(question.text) for question in drawn]
    shares = Counter(manifest.tasks[question.task].name for question in drawn)
    detail = (
        f"{len(drawn)} questions, {distinct} different, {min(lengths)} to {max(lengths)} characters; "
        + ", ".join(f"{count} of {name}" for name, count in shares.most_common())
    )
    if differing:
        detail = f"{len(differing)} of {detail}; another process drew others: {_excerpt(differing[0].text)}"
    yield Finding("draw", "failed" if differing else "passed", detail)


def _check_scores(
    manifest: Manifest, one: TaskProcess, other: TaskProcess, drawn: Sequence[Drawn]
) -> Iterator[Finding]:
    wrong_side = {"right": 0, "wrong": 0}
    differing = slow = 0
    seconds = 0.0
    worst = ""
    some = _spread(drawn, _SCORED)
    for question in some:
        completions = [question.answer, one.wrong_answer(question), *_GARBAGE, question.text]
        began = time.monotonic()
        judged = one.judge(question, completions)
        seconds += time.monotonic() - began
        differing += judged != other.judge(question, completions)
        slow += sum(each.score is None for each in judged)
        right, wrong = judged[0].score or 0.0, judged[1].score or 0.0
        if right < 1.0 and not task_class(manifest.tasks[question.task].name).graded:
            wrong_side["right"] += 1
            worst = worst or (
                f"the reference to {_excerpt(question.text)} scores {right}; a task whose right answers may "
                "score less says `graded = True`"
            )
        if wrong >= right:
            wrong_side["wrong"] += 1
            worst = worst or f"a wrong answer to {_excerpt(question.text)} scores {wrong}"
    count = len(some) * (len(_GARBAGE) + 3)
    faults = [f"{n} {kind} answers" for kind, n in wrong_side.items() if n]
    faults += [f"{differing} questions scored otherwise in another process"] if differing else []
    faults += [f"{slow} completions that took over {manifest.score_seconds} s"] if slow else []
    if faults:
        yield Finding("score", "failed", f"of {count} completions: {'; '.join(faults)}. {worst}".strip())
    else:
        yield Finding("score", "passed", f"{count} completions, right, wrong and hostile, within [0, 1]")
    yield _pace(manifest, seconds / count)


def _pace(manifest: Manifest, each: float) -> Finding:
    """Whether peers like this machine can score all that one of them may publish, in its share of a round."""
    stage = manifest.stage("answer")
    assert stage is not None  # every swarm has it
    most = most_groups(manifest, stage) * manifest.group_size
    share = SENDER_SHARE * manifest.round_seconds
    detail = f"{each * 1e3:.1f} ms a completion here; {most} of one sender have {share:.1f} s"
    if each * most <= share:
        return Finding("pace", "passed", detail)
    return Finding(
        "pace", "skipped", f"{detail}: lengthen round_seconds or lower max_groups, or honest peers lose some"
    )


def _check_lengths(
    manifest: Manifest, one: TaskProcess, other: TaskProcess, drawn: Sequence[Drawn]
) -> Iterator[Finding]:
    from swarm.policy.encoding import Encoding
    from swarm.policy.loading import context_length, declared_ends, find, load_tokenizer, read_config

    prompts = _longest_prompts(manifest, one, drawn)
    for model in manifest.models:
        try:
            source = find(model)
            encoding = Encoding(load_tokenizer(source), declared_ends(source))
            context = context_length(source, read_config(source))
        except ModelError as error:
            yield Finding("lengths", "skipped", str(error))
            continue
        said, fits = [], True
        for stage in manifest.stages:
            tokens = max(len(encoding.prompt(prompt)) for prompt in prompts[stage.name])
            said.append(f"{stage.name} {tokens} + {stage.max_tokens}")
            fits &= tokens + stage.max_tokens <= context
        detail = f"{model}: {', '.join(said)} tokens of prompt and completion at most, of {context}"
        if not fits:
            detail += "; lower shown_answers, shown_chars or max_tokens"
        yield Finding("lengths", "passed" if fits else "failed", detail)


def _check_stages(
    manifest: Manifest, one: TaskProcess, other: TaskProcess, drawn: Sequence[Drawn]
) -> Iterator[Finding]:
    from swarm.policy.model import Policy
    from swarm.rehearsal import PEERS, rehearse

    with tempfile.TemporaryDirectory(prefix="swarm-check-") as folder:
        policy = Policy.load(EMBEDDED_MODEL, threads=1)  # more only get into one another's way
        came = rehearse(manifest, one, policy, Path(folder), hashlib.sha256(b"rehearsal").digest())
    missing = [stage.name for stage in manifest.stages if not came.groups.get(stage.name)]
    said = ", ".join(f"{stage.name} {came.rewards[stage.name]:.2f}" for stage in manifest.stages)
    detail = f"{PEERS} peers with {EMBEDDED_MODEL}, mean rewards: {said}; {came.steps} optimizer steps"
    if manifest.stage("propose"):
        detail += f"; {came.asked_proposals} proposed questions answered"
    if missing:
        detail += f"; no group in {', '.join(missing)} ({came.too_long} prompts too long)"
    if came.dropped:
        detail += f"; refused of each other: {came.dropped}"
    yield Finding("stages", "failed" if missing or came.dropped else "passed", detail)


def _longest_prompts(manifest: Manifest, tasks: TaskProcess, drawn: Sequence[Drawn]) -> dict[str, list[str]]:
    """For each stage, prompts of the longest questions with as much of others in them as is allowed."""
    longest = sorted(drawn, key=lambda question: len(question.text))[-_LONGEST:]
    answers = [shown_text("8" * manifest.shown_chars, manifest.shown_chars)] * manifest.shown_answers
    critiques = [Named(0)] * manifest.shown_critiques
    make: dict[str, Callable[[Drawn], str]] = {
        "answer": tasks.answer_prompt,
        "critique": lambda question: tasks.critique_prompt(question, answers),
        "revise": lambda question: tasks.revise_prompt(question, answers, critiques),
    }
    prompts = {stage: [write(question) for question in longest] for stage, write in make.items()}
    if manifest.stage("propose"):
        prompts["propose"] = [tasks.propose_prompt(question.seed) for question in longest]
    return prompts


def _spread(drawn: Sequence[Drawn], count: int) -> list[Drawn]:
    """So many of them, of every task."""
    by_task: dict[int, list[Drawn]] = {}
    for question in drawn:
        by_task.setdefault(question.task, []).append(question)
    each = max(1, count // len(by_task))
    return [question for questions in by_task.values() for question in questions[:each]]


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")

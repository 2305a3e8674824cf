"""`swarm task preview`: a question as models see it in each stage, and what answers to it earn."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from swarm.manifest import Manifest
from swarm.task_process import open_tasks
from swarm.tasks import Complain, Drawn, Tasks, complaint
from swarm.tasks.prompts import Named, shown_text


class Scored(Struct, frozen=True):
    """A completion and what it scores."""

    completion: str
    score: float | None  # None: it took too long


class Preview(Struct, frozen=True):
    """One question; the seed says which."""

    task: str
    seed: str  # hex
    question: str
    right: Scored
    wrong: Scored
    prompts: dict[str, str]  # of the manifest's stages, in order

    def parts(self) -> Iterator[tuple[str, str]]:
        """Titles and texts, for reading."""
        yield f"question of {self.task}", self.question
        for stage, prompt in self.prompts.items():
            yield f"{stage} prompt", prompt
        for title, scored in (("right answer", self.right), ("wrong answer", self.wrong)):
            yield f"{title}, scores {scored.score}", scored.completion


def preview(manifest: Manifest, seed: bytes, complain: Complain = complaint) -> Preview:
    """The question of a 32-byte seed in all of a manifest's stages, two students' answers shown."""
    with open_tasks(manifest, complain) as tasks:
        question = tasks.draw(seed)
        completions = [question.answer, tasks.wrong_answer(question)]
        right, wrong = (
            Scored(text, judged.score)
            for text, judged in zip(completions, tasks.judge(question, completions), strict=True)
        )
        prompts: dict[str, str] = {
            stage.name: _prompt(tasks, manifest, stage.name, question, seed, completions)
            for stage in manifest.stages
        }
    name = manifest.tasks[question.task].name
    return Preview(name, seed.hex(), question.text, right, wrong, prompts)


def _prompt(
    tasks: Tasks, manifest: Manifest, stage: str, question: Drawn, seed: bytes, completions: list[str]
) -> str:
    answers = [shown_text(text, manifest.shown_chars) for text in completions]
    if stage == "propose":
        return tasks.propose_prompt(seed)
    if stage == "answer":
        return tasks.answer_prompt(question)
    if stage == "critique":
        return tasks.critique_prompt(question, answers)
    return tasks.revise_prompt(question, answers, [Named(0), Named(None)])

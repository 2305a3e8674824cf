"""What a peer knows of its cell in one round: others' groups, checked and scored anew.

Others' data is never trusted and never raises: what breaks a rule is dropped and counted by reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise

from msgspec import Struct

from swarm.draw import Draw
from swarm.effects import Received
from swarm.exchange.wire import MAX_GROUPS_BLOB_BYTES, Group, GroupsLimit
from swarm.manifest import STAGE_NUMBER, Manifest, Stage
from swarm.tasks import Question, Task
from swarm.tasks.stages import read_critique
from swarm.verde.commitment import group_digest, groups_root, rollout_leaf

ANSWER, CRITIQUE = STAGE_NUMBER["answer"], STAGE_NUMBER["critique"]

# Text is re-encoded by its readers, so a few tokens must not carry a book. Few tokens of any vocabulary
# are longer than this, and a completion of nothing else is no answer.
MAX_CHARS_PER_TOKEN = 16


def groups_limit(manifest: Manifest, stage: Stage) -> GroupsLimit:
    """The most that one peer's groups of a stage can be in msgpack, if they keep to the manifest."""
    token_bytes = 4 + 4 * MAX_CHARS_PER_TOKEN  # a packed id, and characters of four bytes
    completion_bytes = 16 + stage.max_tokens * token_bytes
    shown_bytes = 34 * (manifest.shown_answers + manifest.shown_critiques)  # digests
    group_bytes = 32 + shown_bytes + manifest.group_size * completion_bytes
    max_bytes = min(MAX_GROUPS_BLOB_BYTES, 32 + stage.max_groups * group_bytes)
    return GroupsLimit(max_bytes=max_bytes, max_groups=stage.max_groups, completions=manifest.group_size)


class Answer(Struct, frozen=True):
    """One completion of the answer stage, with its true score."""

    peer: bytes
    leaf: bytes
    text: str
    score: float


class Critique(Struct, frozen=True):
    """One readable critique: the text of the answer that it names, or None for "none is right"."""

    peer: bytes
    leaf: bytes
    named: str | None


class AnswerGroup(Struct, frozen=True):
    """A group of the answer stage with recomputed rewards, ready to be learned from."""

    peer: bytes
    digest: bytes
    group: Group
    leaves: tuple[bytes, ...]  # of its completions
    rewards: tuple[float, ...]


class Cellmates:
    """Fills up from stage to stage with what `Gather` brought; `dropped` counts refusals by reason."""

    def __init__(self, manifest: Manifest, task: Task, draw: Draw, round_number: int, cell: int) -> None:
        self._manifest = manifest
        self._task = task
        self._draw = draw
        self._round = round_number
        self._cell = cell
        self._questions: dict[int, Question] = {}
        self._answer_by_leaf: dict[bytes, Answer] = {}
        self.answers: defaultdict[int, list[Answer]] = defaultdict(list)
        self.critiques: defaultdict[int, list[Critique]] = defaultdict(list)
        self.answer_groups: list[AnswerGroup] = []
        self.dropped: Counter[str] = Counter()

    def question(self, index: int) -> Question:
        """Question j of this cell."""
        if index not in self._questions:
            self._questions[index] = self._task.draw(self._draw.question_seed(self._cell, index))
        return self._questions[index]

    def hear(self, stage: Stage, received: list[Received]) -> None:
        """Take in what peers published in a stage, checked peer by peer."""
        take: dict[str, Callable[[bytes, Group], None]] = {
            "answer": self._take_answers,
            "critique": self._take_critiques,
            "revise": lambda peer, group: None,  # nobody builds on revisions; audits read them
        }
        for sent in received:
            fault = self._fault(stage, sent)
            if fault:
                self.dropped[fault] += 1
                continue
            for group in sent.groups:
                take[stage.name](sent.peer, group)

    def _fault(self, stage: Stage, sent: Received) -> str | None:
        """The rule that a peer's groups break, if any (DESIGN.md, section 7, "checked by every reader")."""
        if self._draw.cell(sent.peer) != self._cell:
            return "sender is not of this cell"
        if len(sent.groups) > stage.max_groups:
            return "more groups than the stage allows"
        indices = [group.index for group in sent.groups]
        if stage.name == "answer" and indices != list(range(len(indices))):
            return "question numbers have gaps"
        if any(later <= earlier for earlier, later in pairwise(indices)):
            return "question numbers do not grow"
        for group in sent.groups:
            if len(group.completions) != self._manifest.group_size:
                return "group has the wrong size"
            if any(not 0 < c.length <= stage.max_tokens for c in group.completions):
                return "completion has the wrong length"
            if any(len(c.text) > MAX_CHARS_PER_TOKEN * c.length for c in group.completions):
                return "text is too long for its tokens"
            if stage.name == "answer" and (group.answers or group.critiques):
                return "answer stage shows nothing"
            if len(group.answers) > self._manifest.shown_answers:
                return "prompt shows too many answers"
            if len(group.critiques) > self._manifest.shown_critiques:
                return "prompt shows too many critiques"
        if groups_root(sent.peer, self._round, STAGE_NUMBER[stage.name], sent.groups) != sent.root:
            return "groups are not the announced ones"
        return None

    def _take_answers(self, peer: bytes, group: Group) -> None:
        question = self.question(group.index)
        answers = [
            Answer(
                peer,
                rollout_leaf(peer, self._round, ANSWER, group.index, g, completion),
                completion.text,
                self._task.score(question, completion.text),
            )
            for g, completion in enumerate(group.completions)
        ]
        self.answers[group.index] += answers
        self._answer_by_leaf.update((answer.leaf, answer) for answer in answers)
        digest = group_digest(peer, self._round, ANSWER, group)
        leaves, scores = zip(*((answer.leaf, answer.score) for answer in answers), strict=True)
        self.answer_groups.append(AnswerGroup(peer, digest, group, leaves, scores))

    def _take_critiques(self, peer: bytes, group: Group) -> None:
        shown = [self._answer_by_leaf.get(leaf) for leaf in group.answers]
        for g, completion in enumerate(group.completions):
            named = read_critique(completion.text, len(shown))
            if not named.readable:
                continue
            answer = None if named.position is None else shown[named.position]
            if named.position is not None and answer is None:
                self.dropped["critique names an answer we do not have"] += 1
                continue
            leaf = rollout_leaf(peer, self._round, CRITIQUE, group.index, g, completion)
            self.critiques[group.index].append(Critique(peer, leaf, answer.text if answer else None))

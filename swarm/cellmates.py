"""What a peer knows of its cell in one round: others' groups, checked and scored anew.

Others' data is never trusted and never raises: what breaks a rule is dropped and counted by reason.

A question has a number. Those that the beacon draws are j = 0, 1, 2 …; one that a peer proposed has
`PROPOSED` and the first 31 bits of its rollout's leaf, which is the same number for everybody who heard it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from functools import partial
from itertools import pairwise

from msgspec import Struct

from swarm.draw import Draw
from swarm.effects import Received
from swarm.exchange.wire import MAX_GROUPS_BLOB_BYTES, Group, GroupsLimit
from swarm.manifest import STAGE_NUMBER, Manifest, Stage
from swarm.reading import PATIENCE, Reading
from swarm.tasks import Drawn, Tasks
from swarm.verde.commitment import group_digest, groups_root, rollout_leaf, rollout_leaves

ANSWER, CRITIQUE, PROPOSE = STAGE_NUMBER["answer"], STAGE_NUMBER["critique"], STAGE_NUMBER["propose"]
PROPOSED = 2**31

# Text is re-encoded by its readers, so a few tokens must not carry a book. Few tokens of any vocabulary
# are longer than this, and a completion of nothing else is no answer.
MAX_CHARS_PER_TOKEN = 16
# Reading and scoring what one sender published in a stage may take this share of a round, and all of it
# together that: so many senders of slow texts cost a round, and not more. A round that is played again takes
# a sender's share times its patience, and what it read is for its player to say.
SENDER_SHARE = 0.03
STAGE_SHARE = 0.3
MAX_PROPOSED_CHARS = 4096  # of a proposed question: a longer one is none
TOO_SLOW = "its texts take too long to score"
UNDER_FLOOR = "sender's score is under the floor"


def most_groups(manifest: Manifest, stage: Stage) -> int:
    """The most groups of a stage that one peer can make."""
    proposed = manifest.asked_proposals if manifest.stage("propose") and stage.name == "answer" else 0
    return stage.max_groups + proposed


def groups_limit(manifest: Manifest, stage: Stage) -> GroupsLimit:
    """The most that one peer's groups of a stage can be in msgpack, if they keep to the manifest."""
    token_bytes = 4 + 4 * MAX_CHARS_PER_TOKEN  # a packed id, and characters of four bytes
    completion_bytes = 16 + stage.max_tokens * token_bytes
    shown_bytes = 34 * (manifest.shown_answers + manifest.shown_critiques)  # digests
    group_bytes = 32 + shown_bytes + manifest.group_size * completion_bytes
    groups = most_groups(manifest, stage)
    max_bytes = min(MAX_GROUPS_BLOB_BYTES, 32 + groups * group_bytes)
    return GroupsLimit(max_bytes=max_bytes, max_groups=groups, completions=manifest.group_size)


def proposed_number(leaf: bytes) -> int:
    """The number of the question that a rollout of the propose stage proposes."""
    return PROPOSED | int.from_bytes(leaf[:4], "big") >> 1


class Candidate(Struct, frozen=True):
    """A rollout of the propose stage; whether it is a question nobody has looked yet."""

    peer: bytes
    leaf: bytes
    seed: bytes
    text: str


class Proposal(Struct, frozen=True):
    """A question that a peer proposed, and whose answer holds."""

    peer: bytes
    leaf: bytes
    question: Drawn
    prompt: str  # of the answer stage


class Answer(Struct, frozen=True):
    """One completion of the answer stage, with its true score."""

    peer: bytes
    leaf: bytes
    text: str
    score: float
    gist: str


class Critique(Struct, frozen=True):
    """One readable critique: the gist of the answer that it names, or None for "none is right"."""

    peer: bytes
    leaf: bytes
    named: str | None


class AnswerGroup(Struct, frozen=True):
    """A group of the answer stage with recomputed scores."""

    peer: bytes
    digest: bytes
    group: Group
    leaves: tuple[bytes, ...]  # of its completions
    scores: tuple[float, ...]


class Cellmates:
    """Fills up from stage to stage with what `Gather` brought; `dropped` counts refusals by reason."""

    def __init__(
        self,
        manifest: Manifest,
        tasks: Tasks,
        draw: Draw,
        round_number: int,
        cell: int,
        ineligible: Callable[[], Collection[bytes]] = frozenset,
        replayed: Collection[bytes] | None = None,
    ) -> None:
        """
        Args:
            ineligible: the peers whose score is under the floor; asked when the first ones are heard.
            replayed: as in `Reading`.
        """
        self._manifest = manifest
        self._tasks = tasks
        self._draw = draw
        self._round = round_number
        self._cell = cell
        self._ask_ineligible = ineligible
        self._ineligible: Collection[bytes] | None = None  # not asked yet
        self._questions: dict[int, Drawn] = {}
        self._candidates: list[Candidate] = []
        self._answer_by_leaf: dict[bytes, Answer] = {}
        self.asked: dict[int, Proposal] = {}  # proposed questions that the cell answers, by number
        self.answers: defaultdict[int, list[Answer]] = defaultdict(list)
        self.critiques: defaultdict[int, list[Critique]] = defaultdict(list)
        self.answer_groups: list[AnswerGroup] = []
        self.dropped: Counter[str] = Counter()
        self.reading = Reading(tasks, replayed)
        self.passed_over: set[bytes] = set()

    def question(self, number: int) -> Drawn:
        """A question of this cell; one that was proposed must be in `asked`."""
        if number in self.asked:
            return self.asked[number].question
        if number not in self._questions:
            self._questions[number] = self._tasks.draw(self._draw.question_seed(self._cell, number))
        return self._questions[number]

    def answer_prompt(self, number: int) -> str:
        """What the answer stage shows of a question of this cell."""
        if number in self.asked:
            return self.asked[number].prompt
        return self._tasks.answer_prompt(self.question(number))

    def hear(self, stage: Stage, received: list[Received]) -> None:
        """Take in what peers published in a stage, checked peer by peer."""
        take: dict[str, Callable[[bytes, Group], None]] = {
            "propose": self._take_proposals,
            "answer": self._take_answers,
            "critique": self._take_critiques,
            "revise": lambda peer, group: None,  # nobody builds on revisions; audits read them
        }
        began = self._tasks.spent
        if self._ineligible is None:
            self._ineligible = self._ask_ineligible()
        for sent in received:
            fault = self.fault(stage, sent)
            if sent.peer in self._ineligible:
                self.passed_over.add(sent.peer)
                fault = UNDER_FLOOR
            if fault:
                self.dropped[fault] += 1
                continue
            if self._is_over(STAGE_SHARE, began):
                self.dropped["no time left to score it"] += 1
                self.reading.leave(self._digests(stage, sent))
                continue
            if stage.name in ("answer", "critique"):  # others are not read here
                self._tasks.allow(self._sender_seconds)
            if stage.name == "answer":
                for group in sent.groups:  # before any of its texts is read
                    if group.index < PROPOSED:
                        self.question(group.index)
            self._hear_sender(stage, take[stage.name], sent)
        if stage.name == "propose":
            self._choose_proposals()
        self._tasks.allow(None)  # what follows is our own

    def _is_over(self, share: float, began: float) -> bool:
        """Whether a share of the round was spent since; of a round that is played again no clock decides."""
        spent = self._tasks.spent - began
        return not self.reading.is_replay and spent > share * self._manifest.round_seconds

    @property
    def _sender_seconds(self) -> float:
        patience = PATIENCE if self.reading.is_replay else 1.0
        return SENDER_SHARE * self._manifest.round_seconds * patience

    def _hear_sender(self, stage: Stage, take: Callable[[bytes, Group], None], sent: Received) -> None:
        began = self._tasks.spent
        digests = self._digests(stage, sent)
        for number, group in enumerate(sent.groups):
            if self._is_over(SENDER_SHARE, began):
                self.dropped[TOO_SLOW] += 1
                self.reading.leave(digests[number:])
                return
            if not self.reading.is_unread(digests[number]):
                take(sent.peer, group)

    def _digests(self, stage: Stage, sent: Received) -> list[bytes]:
        number = STAGE_NUMBER[stage.name]
        return [group_digest(sent.peer, self._round, number, group) for group in sent.groups]

    def _choose_proposals(self) -> None:
        """The first of them in the common order, no question twice, nobody's second before all firsts.

        Peers that heard the same proposals ask the same; who heard fewer asks some that others do not know.
        """
        ordered = self._draw.pick(
            self._draw.asker(self._cell),
            self._candidates,
            len(self._candidates),
            leaf=lambda candidate: candidate.leaf,
            sender=lambda candidate: candidate.peer,
        )
        texts: set[str] = set()
        began = self._tasks.spent
        left = defaultdict[bytes, float](lambda: self._sender_seconds)
        for candidate in ordered:
            if len(self.asked) == self._manifest.asked_proposals:
                break
            if self._is_over(STAGE_SHARE, began):
                self.dropped["no time left to read it"] += 1
                self.reading.leave([candidate.leaf])
                continue
            if left[candidate.peer] <= 0 and not self.reading.is_replay:
                self.dropped[TOO_SLOW] += 1
                self.reading.leave([candidate.leaf])
                continue
            proposal = self.reading.read(candidate.leaf, partial(self._read, candidate, left), None)
            if proposal is not None and proposal.question.text not in texts:
                texts.add(proposal.question.text)
                self.asked.setdefault(proposed_number(candidate.leaf), proposal)

    def _read(self, candidate: Candidate, left: dict[bytes, float]) -> Proposal | None:
        """The question with its prompt: what is asked later must be read by then."""
        began = self._tasks.spent
        self._tasks.allow(left[candidate.peer])
        try:
            question = self._tasks.read_proposal(candidate.seed, candidate.text)
            if question is None or len(question.text) > MAX_PROPOSED_CHARS:
                return None
            prompt = self._tasks.answer_prompt(question)
        finally:
            left[candidate.peer] -= self._tasks.spent - began
        return Proposal(candidate.peer, candidate.leaf, question, prompt)

    def fault(self, stage: Stage, sent: Received) -> str | None:
        """The rule that a peer's groups break, if any (DESIGN.md, section 7, "checked by every reader")."""
        if self._draw.cell(sent.peer) != self._cell:
            return "sender is not of this cell"
        numbers = [group.index for group in sent.groups]
        drawn = [number for number in numbers if number < PROPOSED]
        if len(numbers) > most_groups(self._manifest, stage) or len(drawn) > stage.max_groups:
            return "more groups than the stage allows"
        if stage.name == "propose" and len(drawn) < len(numbers):
            return "proposal has the number of a proposed question"
        if stage.name in ("propose", "answer") and drawn != list(range(len(drawn))):
            return "question numbers have gaps"
        if any(later <= earlier for earlier, later in pairwise(numbers)):
            return "question numbers do not grow"
        for group in sent.groups:
            if len(group.completions) != self._manifest.group_size:
                return "group has the wrong size"
            if any(not 0 < c.length <= stage.max_tokens for c in group.completions):
                return "completion has the wrong length"
            if any(len(c.text) > MAX_CHARS_PER_TOKEN * c.length for c in group.completions):
                return "text is too long for its tokens"
            if stage.name in ("propose", "answer") and (group.answers or group.critiques):
                return f"{stage.name} stage shows nothing"
            if len(group.answers) > self._manifest.shown_answers:
                return "prompt shows too many answers"
            if len(group.critiques) > self._manifest.shown_critiques:
                return "prompt shows too many critiques"
        if groups_root(sent.peer, self._round, STAGE_NUMBER[stage.name], sent.groups) != sent.root:
            return "groups are not the announced ones"
        return None

    def _take_proposals(self, peer: bytes, group: Group) -> None:
        seed = self._draw.proposal_seed(peer, group.index)
        for g, completion in enumerate(group.completions):
            leaf = rollout_leaf(peer, self._round, PROPOSE, group.index, g, completion)
            self._candidates.append(Candidate(peer, leaf, seed, completion.text))

    def _take_answers(self, peer: bytes, group: Group) -> None:
        if group.index >= PROPOSED and group.index not in self.asked:
            self.dropped["answers a question that is not asked"] += 1
            return
        if group.index >= PROPOSED and self.asked[group.index].peer == peer:
            self.dropped["answers its own question"] += 1
            return
        texts = [completion.text for completion in group.completions]
        leaves = rollout_leaves(peer, self._round, ANSWER, group)
        judged = self.reading.judge(self.question(group.index), leaves, texts)
        answers = [
            Answer(peer, leaf, text, one.score or 0.0, one.gist)
            for leaf, text, one in zip(leaves, texts, judged, strict=True)
        ]
        # Not shown to anybody: else who says that it had no time to score them could say that none is right.
        known = [answer for answer, one in zip(answers, judged, strict=True) if one.score is not None]
        if known:
            self.answers[group.index] += known
        self._answer_by_leaf.update((answer.leaf, answer) for answer in known)
        digest = group_digest(peer, self._round, ANSWER, group)
        scores = tuple(answer.score for answer in answers)
        self.answer_groups.append(AnswerGroup(peer, digest, group, leaves, scores))

    def _take_critiques(self, peer: bytes, group: Group) -> None:
        if group.index not in self.answers:
            self.dropped["critique of a question that nobody answered"] += 1
            return
        question = self.question(group.index)
        shown = [self._answer_by_leaf.get(leaf) for leaf in group.answers]
        for g, completion in enumerate(group.completions):
            leaf = rollout_leaf(peer, self._round, CRITIQUE, group.index, g, completion)
            named = self.reading.critique(question, leaf, completion.text, len(shown))
            if not named.readable:
                continue
            answer = None if named.position is None else shown[named.position]
            if named.position is not None and answer is None:
                self.dropped["critique names an answer we do not have"] += 1
                continue
            self.critiques[group.index].append(Critique(peer, leaf, answer.gist if answer else None))

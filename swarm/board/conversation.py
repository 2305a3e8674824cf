"""What the peers of a cell said to one another in a round, checked and scored anew, for people to read.

Nobody's claim is believed: all goes through `Cellmates` and `Reading`, which check what every reader checks.
Peers' text is hostile: here it is cut, and what steers a terminal or hides in a line is made visible; that
none of it is markup is for whoever shows it to see to. No I/O, no clock.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from identity import peer_id_text, peer_name
from swarm.board.schema import Completion, Conversation, Said, Thread
from swarm.cellmates import PROPOSED, SENDER_SHARE, STAGE_SHARE, Cellmates
from swarm.draw import Draw
from swarm.effects import Received
from swarm.exchange.wire import Group
from swarm.manifest import STAGE_NUMBER, Manifest, Stage, StageName
from swarm.tasks import Tasks, prompts, stages
from swarm.tasks.prompts import Named
from swarm.verde.commitment import group_digest, rollout_leaves

MAX_THREADS = 32
MAX_SENDERS = 24  # of a stage; hashing makes cells of 16 seldom larger
MAX_COMPLETIONS = 16  # shown of a group, which may have 256
MAX_TEXT_CHARS = 2000
# Of all texts together: where there are more, each is cut shorter, so that no peer's hide the others'.
MAX_CHARS = 4_000_000
LEAST_TEXT_CHARS = 60
# Of all that was heard in one cell and round, as it came, for that is what later stages refer to.
MAX_HEARD_BYTES = 64 * 2**20
UNKNOWN = "unknown"  # whose answer a prompt showed, if that was not heard

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}


def visible(text: str) -> str:
    """A text as people may see it: newlines and tabs stay, other control characters become pictures.

    What has no look of its own but changes that of others (bidirectional marks, zero-width characters) or is
    no character (surrogates) becomes U+FFFD.
    """
    return "".join(char if char.isprintable() or char in "\n\t" else _picture(char) for char in text)


def _picture(char: str) -> str:
    if unicodedata.category(char) == "Zs":  # a space, if another than the usual one
        return char
    return _PICTURES.get(ord(char), "\ufffd")


@dataclass(frozen=True)
class _Group:
    """One peer's completions about one question, as far as they may be shown."""

    peer: bytes
    texts: tuple[str, ...]
    cut: tuple[bool, ...]
    scores: tuple[float | None, ...] = ()  # of answers and revisions
    names: tuple[Named | None, ...] = ()  # of critiques and revisions; None: not read in time
    shown: tuple[bytes, ...] = ()  # leaves of the answers in its prompt


@dataclass(frozen=True)
class _Author:
    """Whose answer a leaf is, and its true score, if there was time for it."""

    peer: bytes
    score: float | None


class Overheard:
    """What was heard in one cell in one round, and the conversation that it makes.

    Stages are heard in their order; one may be heard again, for what came late. `SandboxError` where the
    process of the tasks cannot be had any more.
    """

    def __init__(self, manifest: Manifest, tasks: Tasks, draw: Draw, round_number: int, cell: int) -> None:
        self._manifest = manifest
        self._tasks = tasks
        self._draw = draw
        self._round = round_number
        self._cell = cell
        self._mates = self._new_mates()
        self._heard: dict[str, dict[bytes, Received]] = {}  # by stage, in their order, and peer
        self._heard_bytes = 0
        self._refused: dict[tuple[str, bytes], str] = {}  # whom we did not hear in a stage, and why
        self._peers: set[bytes] = set()
        self._authors: defaultdict[int, dict[bytes, _Author]] = defaultdict(dict)  # by question and leaf
        self._groups: dict[str, defaultdict[int, list[_Group]]] = {
            stage.name: defaultdict(list) for stage in manifest.stages
        }
        self._noted = 0  # of the answer groups
        self._unanswered: Counter[str] = Counter()
        self._missed: dict[str, Mapping[str, int]] = {}  # by stage: what `collect` dropped the last time

    @property
    def anything(self) -> bool:
        """Whether anybody said anything that counts."""
        return bool(self._peers)

    def hear(
        self, stage: Stage, received: Sequence[Received], missed: Mapping[str, int] | None = None
    ) -> bool:
        """Take in what was collected of a stage; whether the conversation is another one now.

        Args:
            missed: what could not be collected, by reason; in place of what was missed before.
        """
        is_first = stage.name not in self._heard
        new, missed = self._new(stage, received), dict(missed or {})
        changed = is_first or bool(new) or missed != self._missed.get(stage.name)
        self._missed[stage.name] = missed
        if stage.name == "propose" and new:
            # What is asked hangs on all proposals together.
            self._mates = self._new_mates()
            self._mates.hear(stage, list(self._heard[stage.name].values()))
        elif new:
            self._mates.hear(stage, new)
        good = [sent for sent in new if self._mates.fault(stage, sent) is None]
        self._peers.update(sent.peer for sent in good)
        match stage.name:
            case "answer":
                self._note_answers()
            case "critique":
                self._note_critiques(good)
            case "revise":
                self._note_revisions(good)
        return changed

    def conversation(self) -> Conversation:
        """All of it so far."""
        numbers = self._numbers()
        shown = numbers[:MAX_THREADS]
        limit = self._text_limit(shown)
        left_out = self._mates.dropped + self._unanswered + Counter(self._refused.values())
        for missed in self._missed.values():
            left_out.update(missed)
        if len(numbers) > len(shown):
            left_out["question beyond those that are shown"] += len(numbers) - len(shown)
        return Conversation(
            round=self._round,
            cell=self._cell,
            cells=self._draw.cells,
            heard=list(self._heard),
            peers=len(self._peers),
            threads=[self._thread(number, limit) for number in shown],
            left_out=dict(left_out),
            trouble="",
        )

    # Hearing

    def _new_mates(self) -> Cellmates:
        return Cellmates(self._manifest, self._tasks, self._draw, self._round, self._cell)

    def _new(self, stage: Stage, received: Sequence[Received]) -> list[Received]:
        """Those whom we did not hear in this stage before, as far as there is room; the shortest first."""
        is_late = stage.name == "propose" and "answer" in self._heard
        known = self._heard.setdefault(stage.name, {})
        new = []
        for sent in sorted(received, key=_size_bytes):
            size_bytes = _size_bytes(sent)
            if sent.peer in known:
                continue
            if is_late:
                self._refused[stage.name, sent.peer] = "proposals were heard too late"
            elif len(known) == MAX_SENDERS:
                self._refused[stage.name, sent.peer] = "cell is crowded"
            elif self._heard_bytes + size_bytes > MAX_HEARD_BYTES:
                self._refused[stage.name, sent.peer] = "cell says more than is kept here"
            else:
                self._refused.pop((stage.name, sent.peer), None)
                known[sent.peer] = sent
                new.append(sent)
                self._heard_bytes += size_bytes
        return new

    def _note_answers(self) -> None:
        """What `Cellmates` made of the answers that it heard last."""
        new, self._noted = self._mates.answer_groups[self._noted :], len(self._mates.answer_groups)
        for answered in new:
            # Of what was left for want of time it says 0.
            scores = tuple(
                None if self._mates.reading.is_unread(leaf) else score
                for leaf, score in zip(answered.leaves, answered.scores, strict=True)
            )
            number = answered.group.index
            self._authors[number].update(
                (leaf, _Author(answered.peer, score))
                for leaf, score in zip(answered.leaves, scores, strict=True)
            )
            self._note("answer", answered.peer, answered.group, scores=scores)

    def _note_critiques(self, heard: Iterable[Received]) -> None:
        """`Cellmates` has read them; what it left, for whatever reason, it has counted."""
        reading = self._mates.reading
        for sent, group in _each_group(heard):
            digest = group_digest(sent.peer, self._round, STAGE_NUMBER["critique"], group)
            if group.index not in self._mates.answers or reading.is_unread(digest):
                continue
            question, leaves = self._mates.question(group.index), self._leaves("critique", sent.peer, group)
            names = tuple(
                _unless_unread(
                    reading.critique(question, leaf, completion.text, len(group.answers)),
                    reading.is_unread(leaf),
                )
                for leaf, completion in zip(leaves, group.completions, strict=True)
            )
            self._note("critique", sent.peer, group, names=names)

    def _note_revisions(self, heard: Iterable[Received]) -> None:
        """`Cellmates` does not read them; here they have the time that it gives to critiques."""
        reading, began = self._mates.reading, self._tasks.spent
        try:
            for sent in heard:
                self._tasks.allow(SENDER_SHARE * self._manifest.round_seconds)
                for group in sent.groups:
                    if group.index not in self._mates.answers:
                        self._unanswered["revision of a question that nobody answered"] += 1
                        continue
                    leaves = self._leaves("revise", sent.peer, group)
                    if self._tasks.spent - began > STAGE_SHARE * self._manifest.round_seconds:
                        reading.leave(leaves)
                    texts = [completion.text for completion in group.completions]
                    question = self._mates.question(group.index)
                    read = reading.revisions(question, leaves, texts, len(group.answers))
                    unread = [reading.is_unread(leaf) for leaf in leaves]
                    scores = tuple(
                        None if late else score for (score, _), late in zip(read, unread, strict=True)
                    )
                    names = tuple(
                        _unless_unread(named, late) for (_, named), late in zip(read, unread, strict=True)
                    )
                    self._note("revise", sent.peer, group, scores=scores, names=names)
        finally:
            self._tasks.allow(None)

    def _leaves(self, stage: StageName, peer: bytes, group: Group) -> tuple[bytes, ...]:
        return rollout_leaves(peer, self._round, STAGE_NUMBER[stage], group)

    def _note(
        self,
        stage: StageName,
        peer: bytes,
        group: Group,
        *,
        scores: tuple[float | None, ...] = (),
        names: tuple[Named | None, ...] = (),
    ) -> None:
        shown = group.completions[:MAX_COMPLETIONS]
        noted = _Group(
            peer=peer,
            texts=tuple(visible(completion.text[:MAX_TEXT_CHARS]) for completion in shown),
            cut=tuple(len(completion.text) > MAX_TEXT_CHARS for completion in shown),
            scores=scores[:MAX_COMPLETIONS],
            names=names[:MAX_COMPLETIONS],
            shown=group.answers,
        )
        self._groups[stage][group.index].append(noted)

    # Showing

    def _numbers(self) -> list[int]:
        """The questions, drawn and proposed ones by turns, as peers take them: the most discussed first."""
        answered = self._groups["answer"]
        drawn = sorted(number for number in answered if number < PROPOSED)
        pairs = zip_longest(drawn, self._mates.asked)
        return [number for pair in pairs for number in pair if number is not None]

    def _text_limit(self, numbers: Sequence[int]) -> int:
        """Characters to which each text is cut, so that all of these questions' together fit."""
        lengths = [
            len(text)
            for groups in self._groups.values()
            for number in numbers
            for group in groups.get(number, ())
            for text in group.texts
        ]
        limit = MAX_TEXT_CHARS
        while limit > LEAST_TEXT_CHARS and sum(min(length, limit) for length in lengths) > MAX_CHARS:
            limit //= 2
        return limit

    def _thread(self, number: int, limit: int) -> Thread:
        question, proposal = self._mates.question(number), self._mates.asked.get(number)
        answer = prompts.final_answer(question.answer) if "answer" in self._heard else ""
        return Thread(
            question=visible(question.text[:MAX_TEXT_CHARS]),
            answer=visible(answer[:MAX_TEXT_CHARS]),
            proposed_by=peer_name(proposal.peer) if proposal else "",
            answers=self._said("answer", number, limit),
            critiques=self._said("critique", number, limit),
            revisions=self._said("revise", number, limit),
        )

    def _said(self, stage: StageName, number: int, limit: int) -> list[Said]:
        by_question = self._groups.get(stage)
        groups = by_question.get(number, []) if by_question else []
        return [
            self._said_by(group, stage, number, limit)
            for group in sorted(groups, key=lambda group: (peer_name(group.peer), group.peer))
        ]

    def _said_by(self, group: _Group, stage: StageName, number: int, limit: int) -> Said:
        shown = [self._authors[number].get(leaf) for leaf in group.shown]
        scores, names = group.scores, group.names or (None,) * len(group.texts)
        if stage == "critique":
            scores = tuple(_earned(named, shown) for named in names)
        return Said(
            peer=peer_id_text(group.peer),
            name=peer_name(group.peer),
            shown=[peer_name(author.peer) if author else UNKNOWN for author in shown],
            completions=[
                Completion(
                    text=text[:limit],
                    cut=cut or len(text) > limit,
                    score=score,
                    names=prompts.name(named) if named is not None and named.readable else None,
                )
                for text, cut, score, named in zip(group.texts, group.cut, scores, names, strict=True)
            ],
        )


def _earned(named: Named | None, shown: Sequence[_Author | None]) -> float | None:
    """What a critique earned; None if that hangs on an answer that was not heard, or not scored in time."""
    scores = [author.score if author else None for author in shown]
    if named is None:
        return None
    if named.readable and None in scores:
        if named.position is not None and scores[named.position] is None:
            return None
        if named.position is None and 1.0 not in scores:
            return None
    return stages.critique_reward(named, [score or 0.0 for score in scores])


def _unless_unread(named: Named, unread: bool) -> Named | None:
    return None if unread else named


def _each_group(heard: Iterable[Received]) -> Iterable[tuple[Received, Group]]:
    return ((sent, group) for sent in heard for group in sent.groups)


def _size_bytes(sent: Received) -> int:
    """About what it takes in memory."""
    return sum(
        len(completion.packed) + 4 * len(completion.text)
        for group in sent.groups
        for completion in group.completions
    )

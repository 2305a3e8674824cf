"""What was heard of a cell, by hand-made groups of the arithmetic task, as a conversation."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest

from identity import peer_id_text, peer_name
from swarm.board import conversation as module
from swarm.board.conversation import MAX_SENDERS, MAX_TEXT_CHARS, MAX_THREADS, UNKNOWN, Overheard, visible
from swarm.board.schema import Conversation
from swarm.cellmates import proposed_number
from swarm.draw import Draw
from swarm.effects import Received
from swarm.exchange.wire import Completion, Group
from swarm.manifest import STAGE_NUMBER, Manifest, parse
from swarm.tasks import Judged, Mixture, load_tasks
from swarm.verde.commitment import groups_root, rollout_leaf, rollout_leaves

MANIFEST = parse(
    b"""
    name: overheard
    tasks: [{name: arithmetic}]
    models: [tiny]
    round_seconds: 100
    group_size: 2
    shown_answers: 3
    asked_proposals: 2
    stages:
      - {name: propose, ends_at: 0.1, max_groups: 2, max_tokens: 600}
      - {name: answer, ends_at: 0.3, max_groups: 40, max_tokens: 600}
      - {name: critique, ends_at: 0.5, max_groups: 4, max_tokens: 600}
      - {name: revise, ends_at: 0.7, max_groups: 4, max_tokens: 600}
    learn: {ends_at: 0.9, external_groups: 4, learning_rate: 0.1}
    """,
    "test",
)
ROUND = 7
ANN, BOB, EVE = (hashlib.sha256(name).digest() for name in (b"ann", b"bob", b"eve"))
TASKS = load_tasks(MANIFEST)
DRAW = Draw(MANIFEST.swarm_id, b"b" * 32, active=3, cell_size=16)


def overheard(tasks=TASKS, manifest: Manifest = MANIFEST) -> Overheard:
    return Overheard(manifest, tasks, DRAW, ROUND, 0)


def stage(name):
    return MANIFEST.stage(name)


def right(j: int) -> str:
    return TASKS.draw(DRAW.question_seed(0, j)).answer


def said(index: int, *texts: str, answers=()) -> Group:
    completions = tuple(Completion.of(range(1, 501), text) for text in texts)
    return Group(index=index, answers=answers, completions=completions)


def sent(peer: bytes, name: str, *groups: Group) -> Received:
    root = groups_root(peer, ROUND, STAGE_NUMBER[name], groups)
    return Received(peer, b"", root, groups)


def leaf(peer: bytes, name: str, group: Group, g: int = 0) -> bytes:
    return rollout_leaves(peer, ROUND, STAGE_NUMBER[name], group)[g]


def of(thread, kind: str, peer: bytes):
    return next(one for one in getattr(thread, kind) if one.peer == peer_id_text(peer))


def as_json(conversation: Conversation) -> dict:
    return json.loads(conversation.model_dump_json())


def test_answers_have_their_true_scores_and_the_true_answer_comes_with_them():
    heard = overheard()
    assert heard.conversation().heard == [] and not heard.anything
    group = said(0, right(0), "-1")
    assert heard.hear(stage("answer"), [sent(ANN, "answer", group), sent(BOB, "answer", said(0, "x", "y"))])
    whole = heard.conversation()
    assert (whole.round, whole.cell, whole.cells, whole.heard, whole.peers) == (ROUND, 0, 1, ["answer"], 2)
    (thread,) = whole.threads
    assert thread.question == TASKS.draw(DRAW.question_seed(0, 0)).text
    assert thread.answer == right(0) and thread.proposed_by == ""
    ann = of(thread, "answers", ANN)
    assert (ann.name, ann.shown) == (peer_name(ANN), [])
    assert [(c.text, c.score, c.cut, c.names) for c in ann.completions] == [
        (right(0), 1.0, False, None),
        ("-1", 0.0, False, None),
    ]
    assert thread.critiques == thread.revisions == [] and whole.left_out == {} and whole.trouble == ""


def test_critiques_and_revisions_say_whom_they_name_and_what_that_earned():
    heard = overheard()
    good, bad = said(0, right(0), "-1"), said(0, "-1", "-2")
    heard.hear(stage("answer"), [sent(ANN, "answer", good), sent(BOB, "answer", bad)])
    shown = (leaf(BOB, "answer", bad), leaf(ANN, "answer", good))
    heard.hear(
        stage("critique"),
        [
            sent(ANN, "critique", said(0, "B: so it is", "none: all wrong", answers=shown)),
            sent(BOB, "critique", said(0, "A: mine", "who knows", answers=shown)),
        ],
    )
    heard.hear(stage("revise"), [sent(BOB, "revise", said(0, f"{right(0)} B", "-1 none", answers=shown))])
    whole = heard.conversation()
    assert whole.heard == ["answer", "critique", "revise"]
    (thread,) = whole.threads
    ann, bob = of(thread, "critiques", ANN), of(thread, "critiques", BOB)
    assert ann.shown == bob.shown == [peer_name(BOB), peer_name(ANN)]
    assert [(c.names, c.score) for c in ann.completions] == [("B", 1.0), ("none", 0.0)]
    assert [(c.names, c.score) for c in bob.completions] == [("A", 0.0), (None, 0.0)]
    (revised,) = thread.revisions
    assert revised.name == peer_name(BOB) and revised.shown == ann.shown
    assert [(c.names, c.score) for c in revised.completions] == [("B", 1.0), ("none", 0.0)]


def test_what_hangs_on_answers_that_were_not_heard_is_not_known():
    heard = overheard()
    wrong, other = said(0, "-1", "-2"), said(1, right(1), right(1))
    heard.hear(stage("answer"), [sent(ANN, "answer", wrong, other)])
    # The third is of another question, so nothing that this prompt can have shown.
    shown = (b"?" * 32, leaf(ANN, "answer", wrong), leaf(ANN, "answer", other))
    heard.hear(
        stage("critique"),
        [
            sent(BOB, "critique", said(0, "A: it", "B: it", answers=shown)),
            sent(EVE, "critique", said(0, "none: of them", "C: it", answers=shown)),
        ],
    )
    thread = heard.conversation().threads[0]
    bob, eve = of(thread, "critiques", BOB), of(thread, "critiques", EVE)
    assert bob.shown == [UNKNOWN, peer_name(ANN), UNKNOWN]
    assert [c.score for c in bob.completions] == [None, 0.0]
    assert [(c.names, c.score) for c in eve.completions] == [("none", None), ("C", None)]


def test_proposed_questions_name_their_proposer_and_come_before_their_answers():
    heard = overheard()
    proposals = said(0, "A: 40+6=46", "A: 1+1=3")
    heard.hear(stage("propose"), [sent(ANN, "propose", proposals)])
    (thread,) = heard.conversation().threads
    assert (thread.question, thread.answer, thread.proposed_by) == ("40+6=", "", peer_name(ANN))
    number = proposed_number(rollout_leaf(ANN, ROUND, 3, 0, 0, proposals.completions[0]))
    answers = [said(0, right(0), "-1"), said(number, "46", "47")]
    heard.hear(stage("answer"), [sent(BOB, "answer", *answers), sent(ANN, "answer", *answers)])
    whole = heard.conversation()
    drawn, proposed = whole.threads
    assert drawn.proposed_by == "" and len(drawn.answers) == 2
    assert proposed.answer == "46"
    assert [(one.name, [c.score for c in one.completions]) for one in proposed.answers] == [
        (peer_name(BOB), [1.0, 0.0])
    ]
    assert whole.left_out == {"answers its own question": 1}


def test_who_proposes_late_changes_what_is_asked_only_until_answers_were_heard():
    def asked(heard: Overheard) -> set[str]:
        return {thread.question for thread in heard.conversation().threads if thread.proposed_by}

    texts = {ANN: ("A: 1+2=3", "A: 2+2=4"), BOB: ("A: 3+2=5", "A: 4+2=6"), EVE: ("A: 5+2=7", "A: 6+2=8")}
    proposals = [sent(peer, "propose", said(0, *said_)) for peer, said_ in texts.items()]
    at_once, in_parts, too_late = overheard(), overheard(), overheard()
    at_once.hear(stage("propose"), proposals)
    for sender in proposals:
        assert in_parts.hear(stage("propose"), [sender])
    assert not in_parts.hear(stage("propose"), proposals)
    assert asked(at_once) == asked(in_parts) and len(asked(at_once)) == 2
    too_late.hear(stage("propose"), proposals[:1])
    before = asked(too_late)
    too_late.hear(stage("answer"), [])
    too_late.hear(stage("propose"), proposals)
    too_late.hear(stage("propose"), proposals)
    assert asked(too_late) == before
    assert too_late.conversation().left_out == {"proposals were heard too late": 2}


def test_what_comes_late_is_added_once_and_critiques_of_it_are_understood():
    heard = overheard()
    first, late = said(0, "-1", "-1"), said(0, right(0), right(0))
    heard.hear(stage("answer"), [sent(ANN, "answer", first)], {"blob did not come in time": 1})
    assert heard.conversation().left_out == {"blob did not come in time": 1}
    shown = (leaf(ANN, "answer", first), leaf(BOB, "answer", late))
    heard.hear(stage("critique"), [sent(ANN, "critique", said(0, "B: right", "A: right", answers=shown))])
    assert [c.score for c in heard.conversation().threads[0].critiques[0].completions] == [None, 0.0]
    both = [sent(ANN, "answer", first), sent(BOB, "answer", late)]
    assert heard.hear(stage("answer"), both)
    assert not heard.hear(stage("answer"), both)
    (thread,) = heard.conversation().threads
    assert len(thread.answers) == 2
    assert [c.score for c in thread.critiques[0].completions] == [1.0, 0.0]


RULES = {
    "groups are not the announced ones": lambda: Received(EVE, b"", b"r" * 32, (said(0, "1", "2"),)),
    "question numbers have gaps": lambda: sent(EVE, "answer", said(1, "1", "2")),
    "group has the wrong size": lambda: sent(EVE, "answer", said(0, "1")),
    "text is too long for its tokens": lambda: sent(
        EVE, "answer", Group(index=0, completions=(Completion.of((1,), "9" * 17),) * 2)
    ),
    "answer stage shows nothing": lambda: sent(EVE, "answer", said(0, "1", "2", answers=(b"l" * 32,))),
}


@pytest.mark.parametrize("reason", RULES)
def test_who_breaks_a_rule_is_left_out_and_counted(reason):
    heard = overheard()
    heard.hear(stage("answer"), [RULES[reason](), sent(ANN, "answer", said(0, right(0), "-1"))])
    whole = heard.conversation()
    assert whole.left_out == {reason: 1} and whole.peers == 1
    assert [one.name for one in whole.threads[0].answers] == [peer_name(ANN)]


def test_revisions_are_checked_like_all_else():
    heard = overheard()
    heard.hear(stage("answer"), [sent(ANN, "answer", said(0, right(0), "-1"))])
    heard.hear(
        stage("revise"),
        [
            sent(EVE, "revise", said(0, "1 A")),
            sent(BOB, "revise", said(0, "1 none", "2 none"), said(3, "1 none", "2 none")),
        ],
    )
    whole = heard.conversation()
    assert whole.left_out == {
        "group has the wrong size": 1,
        "revision of a question that nobody answered": 1,
    }
    assert [one.name for one in whole.threads[0].revisions] == [peer_name(BOB)]


def test_hostile_text_is_cut_and_made_visible_and_left_as_it_is_otherwise():
    script = "<script>alert(1)</script>\n\t<b>&amp;"
    steering = "\x1b[2J\x00\x07\r\x7f\x9b1m \u202eevil\u2066\u200b\u200d\ufeff\u2028\u00ad\ue000"
    heard = overheard()
    heard.hear(stage("answer"), [sent(EVE, "answer", said(0, script + steering, "é漢🙂\u00a0" + "x" * 5000))])
    first, second = as_json(heard.conversation())["threads"][0]["answers"][0]["completions"]
    assert first["text"] == script + "␛[2J␀␇␍␡�1m �evil" + "�" * 7
    assert not first["cut"]
    assert second["text"] == "é漢🙂\u00a0" + "x" * (MAX_TEXT_CHARS - 4) and second["cut"]


def test_no_text_breaks_the_encoding():
    everything = "".join(map(chr, range(0x3000))) + "\ud800\udfff\U000e0041\U0010ffff"
    shown = visible(everything)
    assert len(shown) == len(everything)
    assert shown.encode()
    assert all(char.isprintable() or char in "\n\t" or char.isspace() for char in shown)


def test_conversation_is_bounded(monkeypatch):
    heard = overheard()
    peers = [hashlib.sha256(bytes([n])).digest() for n in range(MAX_SENDERS + 3)]
    groups = [said(j, "x" * 300, "y" * 300) for j in range(MAX_THREADS + 2)]
    received = [sent(peer, "answer", *groups) for peer in peers]
    monkeypatch.setattr(module, "MAX_CHARS", 24 * 32 * 2 * 150)
    assert heard.hear(stage("answer"), received)
    assert not heard.hear(stage("answer"), received)
    whole = heard.conversation()
    assert len(whole.threads) == MAX_THREADS and whole.peers == MAX_SENDERS
    assert {len(thread.answers) for thread in whole.threads} == {MAX_SENDERS}
    texts = [c for thread in whole.threads for one in thread.answers for c in one.completions]
    assert {len(c.text) for c in texts} == {125} and all(c.cut for c in texts)
    assert whole.left_out == {"cell is crowded": 3, "question beyond those that are shown": 2}


def test_who_says_more_than_is_kept_does_not_push_out_others(monkeypatch):
    heard = overheard()
    monkeypatch.setattr(module, "MAX_HEARD_BYTES", 30_000)
    long = sent(EVE, "answer", said(0, "x" * 5000, "x" * 5000))
    heard.hear(stage("answer"), [long, sent(ANN, "answer", said(0, "1", "2"))])
    whole = heard.conversation()
    assert [one.name for one in whole.threads[0].answers] == [peer_name(ANN)]
    assert whole.left_out == {"cell says more than is kept here": 1}


class Impatient(Mixture):
    """Has no time for some texts."""

    def judge(self, question, completions):
        judged = super().judge(question, completions)
        return [
            Judged(None, "") if "slow" in text else one for one, text in zip(judged, completions, strict=True)
        ]


def test_what_there_was_no_time_for_has_no_score():
    heard = overheard(Impatient([(task, 1) for task in TASKS.tasks]))
    group = said(0, "slow", right(0))
    heard.hear(stage("answer"), [sent(ANN, "answer", group)])
    shown = (leaf(ANN, "answer", group), leaf(ANN, "answer", group, 1))
    heard.hear(stage("critique"), [sent(BOB, "critique", said(0, "A: it", "none: of them", answers=shown))])
    heard.hear(stage("revise"), [sent(BOB, "revise", said(0, "slow A", f"{right(0)} B", answers=shown))])
    (thread,) = heard.conversation().threads
    assert [c.score for c in thread.answers[0].completions] == [None, 1.0]
    assert [c.score for c in thread.critiques[0].completions] == [None, 0.0]
    assert [(c.score, c.names) for c in thread.revisions[0].completions] == [(None, None), (1.0, "B")]


def test_swarm_of_the_answer_stage_alone_has_a_conversation():
    manifest = msgspec.structs.replace(MANIFEST, stages=(stage("answer"),))
    heard = overheard(manifest=manifest)
    heard.hear(stage("answer"), [sent(ANN, "answer", said(0, "1", "2"))])
    assert heard.conversation().threads[0].critiques == []

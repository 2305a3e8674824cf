"""Rounds of simulated peers, played again from their commitments: honest ones come to the same."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import msgspec
import pytest
from simulation import MANIFEST, SimulatedPeer, peer_id, play_round

from swarm import round
from swarm.audit import Undecided, _Audit
from swarm.cellmates import SENDER_SHARE
from swarm.draw import Draw
from swarm.effects import Publish, Received
from swarm.errors import SandboxError, SandboxTimeout
from swarm.exchange.wire import Completion, Group, GroupsBlob, decode, encode
from swarm.findings import Finding
from swarm.manifest import STAGE_NUMBER, Manifest, parse
from swarm.reading import MAX_TOO_SLOW_HERE, PATIENCE
from swarm.replay import Evidence, Replay, replay
from swarm.tasks import load_tasks
from swarm.tasks.mixture import Judged, Mixture
from swarm.verde.commitment import Commitment, groups_root, rollout_leaves
from swarm.verde.verdicts import AuditClass, Check, Outcome, Plant, PlantKind

BEACON = b"b" * 32
NUMBER = 5


def groups_of(peer: SimulatedPeer, stage: int) -> tuple[Group, ...]:
    if stage not in peer.published:
        return ()
    blob = peer.published[stage].blob
    return decode(GroupsBlob, blob, len(blob)).groups


def evidence_of(peer: SimulatedPeer, peers: list[SimulatedPeer], manifest: Manifest = MANIFEST) -> Evidence:
    """What an auditor would fetch for the peer's commitment."""
    commitment = msgspec.msgpack.decode(peer.commit.blob, type=Commitment)
    senders = {b"envelope of " + one.peer: one for one in peers}
    own, heard = [], []
    for stage, envelopes in zip(manifest.stages, commitment.heard, strict=True):
        number = STAGE_NUMBER[stage.name]
        own.append(groups_of(peer, number))
        heard.append(
            tuple(
                Received(
                    senders[envelope].peer,
                    envelope,
                    senders[envelope].published[number].announcement.root,
                    groups_of(senders[envelope], number),
                )
                for envelope in envelopes
            )
        )
    return Evidence(commitment, tuple(own), tuple(heard))


def replayed(evidence: Evidence, manifest: Manifest = MANIFEST, tasks=None) -> Replay:
    claimed = evidence.commitment
    rules = round.RoundRules(
        manifest=manifest,
        tasks=tasks or load_tasks(manifest),
        peer=claimed.peer,
        round=claimed.round,
        starts_at=0.0,
        expiration=0,
        draw=Draw(manifest.swarm_id, claimed.beacon, claimed.active, manifest.cell_size),
    )
    return replay(rules, evidence)


def test_every_honest_round_comes_to_the_same():
    peers = [
        SimulatedPeer(
            peer_id(number),
            skill=0.2 + 0.03 * number,
            groups_in_time=1 + number % 7,
            screens_in_time=2 * number,
            foreign=lambda text, number=number: len(text) == number % 3 + 1,
        )
        for number in range(20)
    ]
    play_round(peers)
    for peer in peers:
        found = replayed(evidence_of(peer, peers))
        assert found.faults == []
        assert found.batch == peer.batch
        assert len(found.sampled) == peer.commit.played.groups
        assert found.too_slow_here == 0


def test_sampled_groups_have_the_prompts_and_seeds_that_the_model_was_given():
    peers = [SimulatedPeer(peer_id(number)) for number in range(5)]
    play_round(peers)
    found = replayed(evidence_of(peers[0], peers))
    for stage in MANIFEST.stages:
        asked = [one.prompt for one in found.sampled if one.stage.name == stage.name]
        assert asked == list(peers[0].prompts[stage.name])[: len(asked)]
        assert asked


@pytest.mark.parametrize("seed", range(3))
def test_proposals_and_their_judges_come_to_the_same(seed):
    manifest = parse(
        b"""
        name: proposing
        tasks: [{name: arithmetic}]
        models: [simulated/none]
        round_seconds: 100
        group_size: 4
        asked_proposals: 3
        stages:
          - {name: propose, ends_at: 0.2, max_groups: 2, max_tokens: 8}
          - {name: answer, ends_at: 0.5, max_groups: 3, max_tokens: 8}
        learn: {ends_at: 0.9, external_groups: 5, learning_rate: 0.1}
        """,
        "proposing",
    )
    peers = [SimulatedPeer(peer_id(number)) for number in range(4)]
    play_round(peers, manifest=manifest, beacon=bytes([seed]) * 32)
    for peer in peers:
        assert replayed(evidence_of(peer, peers, manifest), manifest).faults == []


def words(found: Replay) -> list[str]:
    return [fault.words for fault in found.faults]


def cheated(change: Callable[[Commitment], Commitment]) -> list[str]:
    """What is said of a commitment that was changed."""
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers)
    honest = evidence_of(peers[0], peers)
    return words(replayed(replace(honest, commitment=change(honest.commitment))))


def test_false_reward_is_found():
    (fault,) = cheated(lambda c: msgspec.structs.replace(c, reward_micros=c.reward_micros + 1))
    assert fault.startswith("reward: claims ")


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda c: {"reward_micros": c.reward_micros - 1}, 1),
        (lambda c: {"reward_micros": c.reward_micros + 300_000}, 300_000),
        (lambda c: {"judges": (b"x" * 32,)}, 2),
        (lambda c: {"batch": (*c.batch[:-1], b"x" * 32)}, 2),
        (lambda c: {"skips": c.skips[1:]}, 2),
    ],
    ids=["planted reward", "reward", "judges", "batch", "skips"],
)
def test_only_a_micro_unit_of_reward_counts_as_one(change, count):
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers)
    honest = evidence_of(peers[0], peers)
    commitment = msgspec.structs.replace(honest.commitment, **change(honest.commitment))
    (fault,) = replayed(replace(honest, commitment=commitment)).faults
    assert fault.count == count


def test_cherry_picked_batch_is_found():
    faults = cheated(lambda c: msgspec.structs.replace(c, batch=c.batch[:1] + c.batch[2:]))
    assert any(fault.startswith("batch: ") for fault in faults)


def test_made_up_digest_is_found():
    faults = cheated(lambda c: msgspec.structs.replace(c, batch=(*c.batch[:-1], b"x" * 32)))
    assert any(fault.startswith("batch: 1 groups") for fault in faults)


def test_skip_without_reason_is_found():
    faults = cheated(lambda c: msgspec.structs.replace(c, skips=c.skips[1:]))
    assert any(fault.startswith("skips: ") for fault in faults)


def test_hiding_a_peer_that_was_heard_in_another_order_is_found():
    def reverse(c: Commitment) -> Commitment:
        return msgspec.structs.replace(c, heard=(c.heard[0][::-1], *c.heard[1:]))

    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers)
    honest = evidence_of(peers[0], peers)
    turned = Evidence(reverse(honest.commitment), honest.own, (honest.heard[0][::-1], *honest.heard[1:]))
    assert any("another order" in fault for fault in words(replayed(turned)))


@dataclass
class Forger:
    """Changes what a peer publishes of one stage, consistently: blob, root and announcement."""

    stage: int
    change: Callable[[tuple[Group, ...]], tuple[Group, ...]]
    peer: bytes

    def __call__(self, publish: Publish) -> list[Publish]:
        if publish.announcement.stage != self.stage:
            return [publish]
        groups = self.change(decode(GroupsBlob, publish.blob, len(publish.blob)).groups)
        blob = encode(GroupsBlob(groups=groups))
        announcement = msgspec.structs.replace(
            publish.announcement,
            root=groups_root(self.peer, NUMBER, self.stage, groups),
            blob=hashlib.sha256(blob).digest(),
            blob_bytes=len(blob),
            groups=len(groups),
        )
        return [Publish(announcement, blob)]


def forged(stage: int, change: Callable[[tuple[Group, ...]], tuple[Group, ...]]) -> list[str]:
    """What is said of a peer whose commitment names the groups that it changed."""
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    peers[0].forge = Forger(stage, change, peers[0].peer)
    play_round(peers)
    evidence = evidence_of(peers[0], peers)
    published = list(evidence.commitment.published)
    index = [STAGE_NUMBER[one.name] for one in MANIFEST.stages].index(stage)
    announced = peers[0].published[stage].announcement
    published[index] = msgspec.structs.replace(
        published[index],
        root=announced.root,
        blob=announced.blob,
        blob_bytes=announced.blob_bytes,
        groups=announced.groups,
    )
    commitment = msgspec.structs.replace(evidence.commitment, published=tuple(published))
    return words(replayed(replace(evidence, commitment=commitment)))


def test_prompt_that_shows_other_answers_is_found():
    def swap(groups: tuple[Group, ...]) -> tuple[Group, ...]:
        first = msgspec.structs.replace(groups[0], answers=groups[0].answers[::-1])
        return (first, *groups[1:])

    assert any("the common draw does not give" in fault for fault in forged(STAGE_NUMBER["critique"], swap))


def test_over_long_answer_is_found():
    def lengthen(groups: tuple[Group, ...]) -> tuple[Group, ...]:
        long = (Completion.of(range(9), "1"), *groups[0].completions[1:])
        return (msgspec.structs.replace(groups[0], completions=long), *groups[1:])

    assert any("wrong length" in fault for fault in forged(STAGE_NUMBER["answer"], lengthen))


def test_question_that_was_left_out_is_found():
    assert any("gaps" in fault for fault in forged(STAGE_NUMBER["answer"], lambda groups: groups[1:]))


def test_peers_under_the_floor_are_passed_over_and_the_round_comes_to_the_same():
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    shunned = frozenset({peers[3].peer, peers[4].peer})
    for peer in peers:
        peer.ineligible = shunned
    play_round(peers)
    evidence = evidence_of(peers[0], peers)
    assert set(evidence.commitment.passed_over) == shunned
    assert replayed(evidence).faults == []
    assert not {group.sender for group in peers[0].batch} & shunned


class SlowTasks(Mixture):
    """Texts that end in 7 take too long to score, on one machine or the other; all take a second to read."""

    def __init__(self, tasks: Mixture, slow: bool) -> None:
        super().__init__([(task, 1) for task in tasks.tasks])
        self._slow = slow
        self._seconds = 0.0

    @property
    def spent(self) -> float:
        return self._seconds

    def judge(self, question, completions):
        self._seconds += 1.0 if self._slow else 0.0
        return [
            Judged(None, "") if self._slow and text.endswith("7") else judged
            for text, judged in zip(completions, super().judge(question, completions), strict=True)
        ]


def test_what_there_was_no_time_for_is_named_and_the_round_comes_to_the_same_elsewhere():
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers, tasks=SlowTasks(load_tasks(MANIFEST), slow=True))
    evidence = evidence_of(peers[0], peers)
    assert evidence.commitment.unread
    assert replayed(evidence).faults == []
    assert replayed(
        replace(evidence, commitment=msgspec.structs.replace(evidence.commitment, unread=()))
    ).faults


class Machine(Mixture):
    """Tasks on a machine where a text takes `slowness` times as long as a text may."""

    def __init__(self, slowness: Callable[[str], float], manifest: Manifest = MANIFEST) -> None:
        super().__init__([(task, 1) for task in load_tasks(manifest).tasks])
        self.slowness = slowness

    def _take(self, text: str) -> None:
        if self.slowness(text) > self.patience:
            raise SandboxTimeout("too slow")

    def judge(self, question, completions):
        return [
            Judged(None, "") if self.slowness(text) > self.patience else judged
            for text, judged in zip(completions, super().judge(question, completions), strict=True)
        ]

    def answer_prompt(self, question):
        if question.proposal is not None:
            self._take(question.proposal)
        return super().answer_prompt(question)

    def critique_prompt(self, question, answers):
        self._take("prompt " + answers[-1])
        return super().critique_prompt(question, answers)

    def revise_prompt(self, question, answers, critiques):
        self._take("prompt " + answers[-1])
        return super().revise_prompt(question, answers, critiques)

    def read_critique(self, question, completion, shown):
        self._take(completion)
        return super().read_critique(question, completion, shown)

    def read_revision(self, question, completion, shown):
        self._take(completion)
        return super().read_revision(question, completion, shown)

    def read_proposal(self, seed, completion):
        self._take(completion)
        return super().read_proposal(seed, completion)


def slow(times: float) -> Callable[[str], float]:
    """Texts that end in 7 or f take so many times as long as they may."""
    return lambda text: times if text.endswith(("7", "f")) else 0.0


ALL_STAGES = parse(
    b"""
    name: all stages
    tasks: [{name: arithmetic}]
    models: [simulated/none]
    round_seconds: 100
    group_size: 4
    asked_proposals: 3
    stages:
      - {name: propose, ends_at: 0.1, max_groups: 2, max_tokens: 8}
      - {name: answer, ends_at: 0.3, max_groups: 6, max_tokens: 8}
      - {name: critique, ends_at: 0.5, max_groups: 4, max_tokens: 8}
      - {name: revise, ends_at: 0.7, max_groups: 4, max_tokens: 8}
    learn: {ends_at: 0.9, external_groups: 5, learning_rate: 0.1}
    """,
    "all stages",
)


@pytest.mark.parametrize("seed", range(4))
def test_round_of_a_machine_that_is_slow_now_and_then_comes_to_the_same_elsewhere(seed):
    """Every text is met several times and is too slow at some of them."""
    dice = random.Random(seed)
    peers = [SimulatedPeer(peer_id(number), skill=0.7) for number in range(5)]
    tasks = Machine(lambda text: 2.0 if dice.random() < 0.15 else 0.0, ALL_STAGES)
    play_round(peers, manifest=ALL_STAGES, beacon=bytes([seed]) * 32, tasks=tasks)
    for peer in peers:
        evidence = evidence_of(peer, peers, ALL_STAGES)
        found = replayed(evidence, ALL_STAGES, Machine(slow(0.0), ALL_STAGES))
        assert found.faults == [] and found.batch == peer.batch
        assert len(found.sampled) == peer.commit.played.groups
        assert [one.prompt for one in found.sampled if one.stage.name == "revise"] == list(
            peer.prompts["revise"]
        )
        unlisted = msgspec.structs.replace(evidence.commitment, unread=())
        assert replayed(
            replace(evidence, commitment=unlisted), ALL_STAGES, Machine(slow(0.0), ALL_STAGES)
        ).faults


@pytest.mark.parametrize("stage", ["propose", "critique", "revise"])
def test_text_that_was_not_read_in_time_is_listed(stage):
    """Told apart from one that says nothing, which any machine finds."""
    refused = {
        "propose": lambda text: text.startswith("A: "),
        "critique": lambda text: text.endswith(": because"),
        "revise": lambda text: bool(re.fullmatch(r"-?\d+ (none|[A-Z])", text)),
    }[stage]
    peers = [SimulatedPeer(peer_id(number)) for number in range(4)]
    tasks = Machine(lambda text: 2.0 * refused(text), ALL_STAGES)
    play_round(peers, manifest=ALL_STAGES, tasks=tasks)
    for peer in peers:
        evidence = evidence_of(peer, peers, ALL_STAGES)
        number = STAGE_NUMBER[stage]
        theirs = {
            leaf
            for one in peers
            for group in groups_of(one, number)
            for leaf in rollout_leaves(one.peer, NUMBER, number, group)
        }
        assert theirs & set(evidence.commitment.unread)
        assert replayed(evidence, ALL_STAGES, Machine(slow(0.0), ALL_STAGES)).faults == []


def test_prompt_that_the_task_has_no_time_to_write_is_listed_and_in_our_words():
    peers = [SimulatedPeer(peer_id(number), skill=0.7) for number in range(5)]
    play_round(peers, tasks=Machine(lambda text: 2.0 if text.startswith("prompt ") else 0.0))
    evidence = evidence_of(peers[0], peers)
    found = replayed(evidence, tasks=Machine(slow(0.0)))
    assert found.faults == []
    shown = [one.prompt for one in found.sampled if one.stage.name == "critique"]
    assert shown and all("Which student is right?" in prompt for prompt in shown)


def test_auditor_waits_longer_for_a_text_than_its_player_did():
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers, tasks=Machine(slow(0.9)))
    for peer in peers:
        tasks = Machine(slow(10.0))
        found = replayed(evidence_of(peer, peers), tasks=tasks)
        assert found.faults == [] and found.batch == peer.batch and found.too_slow_here == 0
        assert tasks.patience == 1.0


def test_time_of_a_round_that_is_played_again_is_its_players():
    """However long the senders' texts take here."""
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers)
    tasks = SlowTasks(load_tasks(MANIFEST), slow=False)
    tasks.allowed = []
    tasks.allow = tasks.allowed.append
    tasks.judge = lambda question, texts: (
        setattr(tasks, "_seconds", tasks._seconds + 1000.0) or Mixture.judge(tasks, question, texts)
    )
    assert replayed(evidence_of(peers[0], peers), tasks=tasks).faults == []
    given = {seconds for seconds in tasks.allowed if seconds is not None}
    assert given == {PATIENCE * SENDER_SHARE * MANIFEST.round_seconds}


def batch_check(evidence: Evidence, tasks: Mixture, monkeypatch: pytest.MonkeyPatch) -> Finding:
    """What an audit's check of the batch finds; its model is not asked."""
    monkeypatch.setattr("swarm.audit._evidence", lambda *_: evidence)
    facts = SimpleNamespace(peer=evidence.commitment.peer, round=NUMBER)
    case = SimpleNamespace(facts=facts, states=None)
    audit = _Audit(MANIFEST, tasks, None, case, evidence.commitment, AuditClass.SAME_BUILD)
    return audit.batch()


@pytest.mark.parametrize("more", [300_000, 1])
def test_slow_text_excuses_nothing(more, monkeypatch):
    """Nobody can score it, and the cheater says that it did."""
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers, tasks=Machine(slow(math.inf)))
    honest = evidence_of(peers[0], peers)
    assert honest.commitment.unread
    assert batch_check(honest, Machine(slow(math.inf)), monkeypatch).outcome is Outcome.PASSED
    claims = {"unread": (), "reward_micros": honest.commitment.reward_micros + more}
    cheater = replace(honest, commitment=msgspec.structs.replace(honest.commitment, **claims))
    found = batch_check(cheater, Machine(slow(math.inf)), monkeypatch)
    assert found.outcome is Outcome.FAILED
    assert [(fault.check, fault.count) for fault in found.faults] == [(Check.BATCH, more)]


def test_several_faults_of_a_batch_count_for_more_than_one(monkeypatch):
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers)
    honest = evidence_of(peers[0], peers)
    claims = {"judges": (b"x" * 32,), "reward_micros": honest.commitment.reward_micros + 1}
    cheater = replace(honest, commitment=msgspec.structs.replace(honest.commitment, **claims))
    (fault,) = batch_check(cheater, load_tasks(MANIFEST), monkeypatch).faults
    assert fault.count == 3


def test_machine_whose_tasks_fail_does_not_judge(monkeypatch):
    class Broken(Mixture):
        def answer_prompt(self, question):
            raise SandboxError("the tasks cannot be loaded again")

    peers = [SimulatedPeer(peer_id(number)) for number in range(2)]
    play_round(peers)
    tasks = Broken([(task, 1) for task in load_tasks(MANIFEST).tasks])
    with pytest.raises(Undecided, match="loaded again"):
        batch_check(evidence_of(peers[0], peers), tasks, monkeypatch)


def test_patience_ends_with_texts_that_should_have_been_listed():
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers)
    tasks = Machine(slow(math.inf))
    patience: list[float] = []
    tasks.slowness = lambda text: patience.append(tasks.patience) or math.inf
    found = replayed(evidence_of(peers[0], peers), tasks=tasks)
    assert found.too_slow_here > MANIFEST.group_size >= patience.count(PATIENCE) >= MAX_TOO_SLOW_HERE
    assert patience[-1] == 1.0


def test_planted_reward_is_the_one_fault_that_is_found():
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    peers[0].plant = Plant(PlantKind.REWARD)
    play_round(peers)
    assert peers[0].commit.played.planted
    (fault,) = replayed(evidence_of(peers[0], peers)).faults
    assert fault.words.startswith("reward: ") and fault.count == 1


def test_planted_token_is_in_a_group_that_nobody_learns_from():
    peers = [SimulatedPeer(peer_id(number), skill=0.1) for number in range(6)]
    peers[0].plant = Plant(PlantKind.TOKEN)
    play_round(peers)
    assert peers[0].commit.played.planted
    found = replayed(evidence_of(peers[0], peers))
    assert found.faults == []  # the model's part is for another check
    planted = [
        one
        for one in found.sampled
        if one.stage.name == "answer" and one.completions != tuple(peers[0].honest(one))
    ]
    assert len(planted) == 1
    learned = {(group.prompt, group.completions) for peer in peers for group in peer.batch}
    assert (planted[0].prompt, planted[0].completions) not in learned


def test_fault_is_not_planted_where_somebody_would_learn_from_it():
    peers = [SimulatedPeer(peer_id(number), skill=0.5) for number in range(6)]
    peers[0].plant = Plant(PlantKind.TOKEN)
    manifest = msgspec.structs.replace(MANIFEST, group_size=64)  # no group of these has equal rewards
    play_round(peers, manifest=manifest)
    assert not peers[0].commit.played.planted
    assert replayed(evidence_of(peers[0], peers, manifest), manifest).faults == []

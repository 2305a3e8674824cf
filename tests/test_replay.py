"""Rounds of simulated peers, played again from their commitments: honest ones come to the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import pytest
from simulation import MANIFEST, SimulatedPeer, peer_id, play_round

from swarm import round
from swarm.draw import Draw
from swarm.effects import Publish, Received
from swarm.exchange.wire import Completion, Group, GroupsBlob, decode, encode
from swarm.manifest import STAGE_NUMBER, Manifest, parse
from swarm.replay import Evidence, Replay, replay
from swarm.tasks import load_tasks
from swarm.tasks.mixture import Judged, Mixture
from swarm.verde.commitment import Commitment, groups_root
from swarm.verde.verdicts import Plant, PlantKind

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
        assert not found.undecided


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


def cheated(change: Callable[[Commitment], Commitment]) -> list[str]:
    """What is said of a commitment that was changed."""
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers)
    honest = evidence_of(peers[0], peers)
    return replayed(replace(honest, commitment=change(honest.commitment))).faults


def test_false_reward_is_found():
    (fault,) = cheated(lambda c: msgspec.structs.replace(c, reward_micros=c.reward_micros + 1))
    assert fault.startswith("reward: claims ")


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
    assert any("another order" in fault for fault in replayed(turned).faults)


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
    return replayed(replace(evidence, commitment=commitment)).faults


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


def test_text_that_is_too_slow_for_the_auditor_alone_proves_nothing():
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    play_round(peers)
    found = replayed(evidence_of(peers[0], peers), tasks=SlowTasks(load_tasks(MANIFEST), slow=True))
    assert found.undecided


def test_planted_reward_is_the_one_fault_that_is_found():
    peers = [SimulatedPeer(peer_id(number)) for number in range(6)]
    peers[0].plant = Plant(PlantKind.REWARD)
    play_round(peers)
    assert peers[0].commit.played.planted
    (fault,) = replayed(evidence_of(peers[0], peers)).faults
    assert fault.startswith("reward: ")


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

import dataclasses
import hashlib

import msgspec
import pytest
from simulation import MANIFEST, SimulatedPeer, peer_id, play_round

from swarm.cellmates import PROPOSED, SENDER_SHARE, STAGE_SHARE, proposed_number
from swarm.exchange.wire import Completion, GroupsBlob, decode, encode
from swarm.manifest import Stage
from swarm.tasks import Judged, load_tasks
from swarm.verde.commitment import Commitment, group_digest, groups_root, rollout_leaf


def some_peers(count: int, **options) -> list[SimulatedPeer]:
    return [SimulatedPeer(peer_id(number), **options) for number in range(count)]


def test_every_stage_has_its_groups_prompts_and_deadlines():
    peers = some_peers(3)
    played = play_round(peers)
    for peer in peers:
        assert {name: len(prompts) for name, prompts in peer.prompts.items()} == {
            "answer": 6,
            "critique": 3,
            "revise": 2,
        }
        assert played[peer.peer].groups == 11
        assert peer.deadlines == pytest.approx([1000 + 25.5, 1000 + 47, 1000 + 67])
        assert peer.prompts["critique"][0].endswith("right?")
        assert peer.prompts["critique"][0].count(") ") == 4  # three peers: one of each, then a second of one
    assert peers[0].prompts["answer"] == peers[1].prompts["answer"]


def test_rewards_follow_skill():
    able, unable = SimulatedPeer(peer_id(0), skill=1.0), SimulatedPeer(peer_id(1), skill=0.0)
    played = play_round([able, unable])
    assert played[able.peer].rewards["answer"] == 1.0
    assert played[unable.peer].rewards["answer"] == 0.0
    assert played[able.peer].reward_micros > 8_000_000


def test_slow_peer_takes_part_with_one_group_a_stage():
    peers = [*some_peers(2), SimulatedPeer(peer_id(7), groups_in_time=0)]
    played = play_round(peers)
    assert played[peer_id(7)].groups == 3
    assert set(played[peer_id(7)].rewards) == {"answer", "critique", "revise"}
    assert not played[peer_id(7)].dropped


def test_batch_holds_own_groups_and_capped_external_ones_without_equal_rewards():
    peers = some_peers(6)
    played = play_round(peers)
    for peer in peers:
        external = [group for group in peer.batch if not group.own]
        assert played[peer.peer].external_groups == len(external) == MANIFEST.learn.external_groups
        assert all(len(set(group.rewards)) > 1 for group in peer.batch)
        assert not peer.batch[1].own  # by turns: a prefix holds both


def test_commitment_names_what_was_made_and_learned_from():
    peers = some_peers(3)
    play_round(peers)
    commitment = msgspec.msgpack.decode(peers[0].commit.blob, type=Commitment)
    assert commitment.root() == peers[0].commit.played.commitment
    assert commitment.batch == tuple(group.digest for group in peers[0].batch)
    announced = [peers[0].published[stage].announcement for stage in range(3)]
    assert [one.root for one in commitment.published] == [one.root for one in announced]
    assert [one.blob for one in commitment.published] == [one.blob for one in announced]
    assert [len(envelopes) for envelopes in commitment.heard] == [len(peers)] * 3


def test_same_beacon_gives_the_same_round_and_another_a_different_one():
    first, second, other = (some_peers(4) for _ in range(3))
    assert play_round(first) == play_round(second)
    assert play_round(other, beacon=b"c" * 32) != play_round(first)


def test_peer_alone_still_trains():
    peers = some_peers(1)
    played = play_round(peers)
    assert played[peers[0].peer].external_groups == 0
    assert peers[0].batch


def test_swarm_of_the_answer_stage_alone_works():
    manifest = msgspec.structs.replace(MANIFEST, stages=MANIFEST.stages[:1])
    peers = some_peers(3)
    played = play_round(peers, manifest=manifest)
    assert all(set(p.rewards) == {"answer"} and p.external_groups for p in played.values())


def test_hundreds_of_peers_split_into_cells_and_all_train():
    peers = some_peers(300)
    played = play_round(peers)
    assert len(played) == 300
    assert sum(p.external_groups > 0 for p in played.values()) > 290
    assert len({peer.prompts["answer"] for peer in peers}) == 300 // MANIFEST.cell_size + 1


def rewritten(change):
    """A forger that changes its groups and announces the changed ones properly."""

    def forge(publish):
        groups = change(decode(GroupsBlob, publish.blob, len(publish.blob)).groups)
        blob = encode(GroupsBlob(groups=groups))
        root = groups_root(peer_id(0), 5, publish.announcement.stage, groups)
        announcement = msgspec.structs.replace(
            publish.announcement, root=root, blob=hashlib.sha256(blob).digest(), blob_bytes=len(blob)
        )
        return [dataclasses.replace(publish, announcement=announcement, blob=blob)]

    return forge


def each_group(**change):
    return rewritten(lambda groups: tuple(msgspec.structs.replace(group, **change) for group in groups))


LONG = Completion.of(tuple(range(9)), "46")
FORGERIES = {
    "groups are not the announced ones": lambda publish: [
        dataclasses.replace(
            publish, announcement=msgspec.structs.replace(publish.announcement, root=b"x" * 32)
        )
    ],
    "question numbers have gaps": rewritten(lambda groups: groups[1:]),
    "more groups than the stage allows": rewritten(lambda groups: groups * 2),
    "question numbers do not grow": rewritten(lambda groups: (*groups[:2], groups[0])),
    "group has the wrong size": rewritten(
        lambda groups: tuple(msgspec.structs.replace(g, completions=g.completions[:1]) for g in groups)
    ),
    "completion has the wrong length": each_group(completions=(LONG,) * 4),
    "text is too long for its tokens": each_group(completions=(Completion.of((1,), "4" * 17),) * 4),
    "answer stage shows nothing": each_group(answers=(b"l" * 32,)),
    "prompt shows too many answers": each_group(answers=(b"l" * 32,) * 5),
    "prompt shows too many critiques": each_group(critiques=(b"l" * 32,) * 5),
}


@pytest.mark.parametrize("reason", FORGERIES)
def test_forged_groups_are_dropped_and_counted_and_honest_peers_go_on(reason):
    forger = SimulatedPeer(peer_id(0), forge=FORGERIES[reason])
    honest = [SimulatedPeer(peer_id(number)) for number in (1, 2)]
    played = play_round([forger, *honest])
    for peer in honest:
        assert reason in played[peer.peer].dropped
        assert played[peer.peer].external_groups > 0


def test_sender_of_another_cell_is_dropped():
    peers = some_peers(40)

    def into_cell_zero(publish):
        moved = msgspec.structs.replace(publish.announcement, cell=0)
        return [dataclasses.replace(publish, announcement=moved)]

    for peer in peers[:20]:
        peer.forge = into_cell_zero
    played = play_round(peers)
    assert any("sender is not of this cell" in p.dropped for p in played.values())


def test_critique_that_names_an_unknown_answer_is_not_shown():
    def unknown(groups):
        return tuple(
            msgspec.structs.replace(
                group,
                answers=(b"l" * 32,) * 4,
                completions=(Completion.of((1,), "A: trust me"),) * 4,
            )
            for group in groups
        )

    forge = rewritten(unknown)
    forger = SimulatedPeer(peer_id(0), forge=lambda p: forge(p) if p.announcement.stage == 1 else [p])
    honest = SimulatedPeer(peer_id(1))
    played = play_round([forger, honest])
    assert played[honest.peer].dropped["critique names an answer we do not have"] == 12


PROPOSING = msgspec.structs.replace(
    MANIFEST,
    stages=(Stage(name="propose", ends_at=0.1, max_groups=3, max_tokens=8), *MANIFEST.stages),
    asked_proposals=5,
)


def proposals_answered(peer: SimulatedPeer) -> set[int]:
    groups = decode(GroupsBlob, peer.published[0].blob, 10**6).groups
    return {group.index for group in groups if group.index >= PROPOSED}


def test_cell_answers_the_same_proposed_questions_and_nobody_its_own():
    peers = some_peers(4, skill=0.6)
    played = play_round(peers, manifest=PROPOSING)
    asked = set().union(*map(proposals_answered, peers))
    assert len(asked) == 5
    makers = {
        number: peer
        for peer in peers
        for number in asked
        if number in {proposed_number(leaf) for group in own(peer) for leaf in group.leaves}
    }
    for peer in peers:
        assert proposals_answered(peer) == {number for number in asked if makers.get(number) is not peer}
        assert not played[peer.peer].dropped
        assert played[peer.peer].rewards.keys() == {"propose", "answer", "critique", "revise"}


def own(peer: SimulatedPeer):
    return [group for group in peer.batch if group.own]


def test_proposer_is_paid_by_the_others_answers_and_commits_to_them():
    peers = some_peers(4, skill=0.5)
    played = play_round(peers, manifest=PROPOSING)
    paid = [peer for peer in peers if played[peer.peer].rewards["propose"] > 0]
    assert paid
    for peer in paid:
        commitment = msgspec.msgpack.decode(peer.commit.blob, type=Commitment)
        others = {
            group_digest(other.peer, 5, 0, group)
            for other in peers
            if other is not peer
            for group in decode(GroupsBlob, other.published[0].blob, 10**6).groups
        }
        assert commitment.judges and set(commitment.judges) <= others


@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_question_that_all_or_none_can_answer_pays_its_proposer_nothing(skill):
    peers = some_peers(4, skill=skill)
    played = play_round(peers, manifest=PROPOSING)
    assert any(map(proposals_answered, peers))
    assert all(one.rewards["propose"] == 0 for one in played.values())


def forged_answers(forge):
    """A peer that forges its answer stage alone."""
    return lambda publish: forge(publish) if publish.announcement.stage == 0 else [publish]


def test_answers_to_a_question_that_is_not_asked_are_dropped_alone():
    def invent(groups):
        last = msgspec.structs.replace(groups[-1], index=2**32 - 1)
        return (*[group for group in groups if group.index < PROPOSED], last)

    forger = SimulatedPeer(peer_id(0), forge=forged_answers(rewritten(invent)))
    honest = SimulatedPeer(peer_id(1))
    played = play_round([forger, honest], manifest=PROPOSING)
    assert played[honest.peer].dropped == {"answers a question that is not asked": 1}
    assert played[honest.peer].external_groups > 0


def test_answers_to_ones_own_question_are_dropped_alone():
    forger, honest = SimulatedPeer(peer_id(0)), SimulatedPeer(peer_id(1))
    mine: list[int] = []

    def answer_own(groups):
        blob = decode(GroupsBlob, forger.published[3].blob, 10**6)
        mine.extend(
            proposed_number(rollout_leaf(forger.peer, 5, 3, group.index, g, completion))
            for group in blob.groups
            for g, completion in enumerate(group.completions)
        )
        last = [msgspec.structs.replace(groups[-1], index=number) for number in mine]
        drawn = [group for group in groups if group.index < PROPOSED]
        return tuple(sorted([*drawn, *last], key=lambda group: group.index))[: len(drawn) + 5]

    forger.forge = forged_answers(rewritten(answer_own))
    played = play_round([forger, honest], manifest=PROPOSING)
    dropped = played[honest.peer].dropped
    assert (
        dropped.get("answers its own question", 0) + dropped.get("answers a question that is not asked", 0)
        == 5
    )


class SlowTasks:
    """Takes a second over each of one peer's texts, by its own clock."""

    def __init__(self, tasks):
        self.tasks, self.spent = tasks, 0.0

    def __getattr__(self, name):
        return getattr(self.tasks, name)

    def judge(self, question, completions):
        if completions[0] != "bomb":
            return self.tasks.judge(question, completions)
        self.spent += 1.0
        return [Judged(None, "")] * len(completions)

    def read_proposal(self, seed, completion):
        self.spent += completion == "bomb"
        return self.tasks.read_proposal(seed, completion)


BOMBS = each_group(completions=(Completion.of((1, 2), "bomb"),) * 4)


def test_sender_of_slow_texts_has_a_share_of_the_round_and_no_more():
    forger = SimulatedPeer(peer_id(0), forge=forged_answers(BOMBS))
    honest = SimulatedPeer(peer_id(1))
    tasks = SlowTasks(load_tasks(MANIFEST))
    played = play_round([forger, honest], tasks=tasks)
    assert played[honest.peer].dropped == {"its texts take too long to score": 1}
    assert played[honest.peer].reward_micros > 0
    share = SENDER_SHARE * MANIFEST.round_seconds
    assert tasks.spent == 2 * (share + 1)  # by both peers: up to the group that is over it


def test_many_senders_of_slow_texts_have_a_share_of_the_round_together():
    forgers = [SimulatedPeer(peer_id(number), forge=forged_answers(BOMBS)) for number in range(12)]
    manifest = msgspec.structs.replace(MANIFEST, cell_size=16)
    tasks = SlowTasks(load_tasks(manifest))
    honest = SimulatedPeer(peer_id(99))
    for forger in forgers:
        forger.groups_in_time = 0  # nothing of their own to score
    played = play_round([*forgers, honest], manifest=manifest, tasks=tasks)
    assert played[honest.peer].rewards["answer"] >= 0
    longest = (STAGE_SHARE + SENDER_SHARE) * MANIFEST.round_seconds + 1
    assert tasks.spent <= 13 * longest


def test_slow_proposals_are_given_up_too():
    forger = SimulatedPeer(
        peer_id(0), forge=lambda publish: BOMBS(publish) if publish.announcement.stage == 3 else [publish]
    )
    honest = SimulatedPeer(peer_id(1))
    tasks = SlowTasks(load_tasks(PROPOSING))
    played = play_round([forger, honest], manifest=PROPOSING, tasks=tasks)
    assert played[honest.peer].dropped["its texts take too long to score"] > 0
    assert proposals_answered(forger)


def test_two_proposals_with_one_number_pay_once(monkeypatch):
    """31 bits of a leaf are soon met twice by who searches for them."""
    monkeypatch.setattr("swarm.cellmates.proposed_number", lambda leaf: PROPOSED | leaf[0] >> 7)
    monkeypatch.setattr("swarm.round.proposed_number", lambda leaf: PROPOSED | leaf[0] >> 7)
    peers = some_peers(3, skill=0.5)
    played = play_round(peers, manifest=PROPOSING)
    paid = [peer for peer in peers if played[peer.peer].rewards["propose"] > 0]
    assert len(paid) <= 2, "two numbers, so two questions"
    assert all(
        sum(reward > 0 for group in own(peer) if group.prompt.startswith("A)") for reward in group.rewards)
        <= 2
        for peer in peers
    )


def test_proposals_keep_to_the_numbers_of_the_stage():
    def high(groups):
        return (msgspec.structs.replace(groups[0], index=2**32 - 1),)

    forge = rewritten(high)
    forger = SimulatedPeer(
        peer_id(0), forge=lambda publish: forge(publish) if publish.announcement.stage == 3 else [publish]
    )
    honest = SimulatedPeer(peer_id(1))
    played = play_round([forger, honest], manifest=PROPOSING)
    assert played[honest.peer].dropped == {"proposal has the number of a proposed question": 1}

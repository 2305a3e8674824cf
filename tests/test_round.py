import dataclasses
import hashlib

import msgspec
import pytest
from simulation import MANIFEST, SimulatedPeer, peer_id, play_round

from swarm.exchange.wire import Completion, GroupsBlob, decode, encode
from swarm.verde.commitment import Commitment, groups_root


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
    assert commitment.rollouts == tuple(peers[0].published[stage].announcement.root for stage in range(3))


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

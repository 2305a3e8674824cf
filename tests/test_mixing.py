"""What goes into a batch, in whole simulated rounds."""

from __future__ import annotations

import msgspec
import pytest
from simulation import MANIFEST, SimulatedPeer, peer_id, play_round

from swarm.effects import TrainingGroup
from swarm.manifest import Manifest
from swarm.mixing import FOREIGN, FOREIGN_GROUP, NO_ADVANTAGE, NOT_SCREENED
from swarm.verde.commitment import Commitment


def some_peers(count: int, **options) -> list[SimulatedPeer]:
    return [SimulatedPeer(peer_id(number), **options) for number in range(count)]


def learning(**change: object) -> Manifest:
    return msgspec.structs.replace(MANIFEST, learn=msgspec.structs.replace(MANIFEST.learn, **change))


def external(peer: SimulatedPeer) -> list[TrainingGroup]:
    return [group for group in peer.batch if not group.own]


def skips(peer: SimulatedPeer, reason: str) -> list[bytes]:
    commitment = msgspec.msgpack.decode(peer.commit.blob, type=Commitment)
    return [skip.leaf for skip in commitment.skips if skip.reason == reason]


def is_foreign(text: str) -> bool:
    """Of about a third of all answers."""
    return text[-1] in "123"


@pytest.mark.parametrize("own", [0, 3, None])
def test_batch_holds_at_most_so_many_own_groups(own):
    peers = some_peers(5)
    play_round(peers, manifest=learning(own_groups=own))
    for peer in peers:
        ours = [group for group in peer.batch if group.own]
        assert len(ours) == own if own is not None else len(ours) > 3
        assert len(external(peer)) == MANIFEST.learn.external_groups


def test_own_groups_are_picked_by_the_beacon_and_not_by_their_stage():
    peers = some_peers(5)
    stages = set()
    for number in range(12):
        play_round(peers, manifest=learning(own_groups=3), beacon=bytes([number]) * 32)
        stages |= {group.prompt.split("\n")[-1] for group in peers[0].batch if group.own}
    assert {"right?", "final?"} < stages


def test_foreign_completions_are_left_out_counted_and_named_by_their_leaves():
    peers = [SimulatedPeer(peer_id(0), foreign=is_foreign), *some_peers(6)[1:]]
    played = play_round(peers)
    reader = peers[0]
    assert not any(is_foreign(c.text) for group in external(reader) for c in group.completions)
    left_out = skips(reader, FOREIGN)
    assert played[reader.peer].dropped[FOREIGN] == len(left_out) > 0
    used = {leaf for group in external(reader) for leaf in group.leaves}
    assert not used & set(left_out)
    assert all(len(group.leaves) == len(group.completions) == len(group.rewards) for group in reader.batch)
    assert FOREIGN not in played[peers[1].peer].dropped


def test_group_that_loses_its_advantage_makes_room_for_the_next():
    """Right answers alone are kept, so no group with one foreign wrong answer has an advantage any more."""
    peers = some_peers(6)
    play_round(peers)
    first = external(peers[0])[0]
    right = max(zip(first.rewards, first.completions, strict=True), key=lambda pair: pair[0])[1].text
    again = [SimulatedPeer(peer_id(0), foreign=lambda text: text == right), *some_peers(6)[1:]]
    play_round(again)
    assert first.digest in skips(again[0], FOREIGN_GROUP)
    assert first.digest not in {group.digest for group in again[0].batch}
    assert len(external(again[0])) == MANIFEST.learn.external_groups


def test_flood_of_foreign_text_costs_a_bounded_number_of_looks():
    peers = [SimulatedPeer(peer_id(0), foreign=lambda text: True), *some_peers(6)[1:]]
    played = play_round(peers)
    assert not external(peers[0])
    assert played[peers[0].peer].external_groups == 0
    assert peers[0].screened == 2 * MANIFEST.learn.external_groups
    assert peers[0].batch  # own groups are there


@pytest.mark.parametrize("options", [{"foreign": lambda text: True}, {"screens_in_time": 0}])
def test_every_group_that_was_not_even_looked_at_is_named_where_more_were_wanted(options):
    peers = [SimulatedPeer(peer_id(0), **options), *some_peers(6)[1:]]
    play_round(peers)
    reader = peers[0]
    offered = 5 * MANIFEST.stages[0].max_groups
    named = [skips(reader, reason) for reason in (NO_ADVANTAGE, FOREIGN_GROUP, NOT_SCREENED)]
    assert len({leaf for leaves in named for leaf in leaves}) == sum(map(len, named)) == offered
    assert len(skips(reader, NOT_SCREENED)) > 0
    assert not external(reader)


def test_time_that_runs_out_leaves_what_was_screened_before():
    manifest = learning(external_groups=20)
    peers = [SimulatedPeer(peer_id(0), screens_in_time=8), *some_peers(6)[1:]]
    play_round(peers, manifest=manifest)
    assert len(external(peers[0])) == 8


def test_without_the_filter_nothing_is_left_out():
    peers = some_peers(4, foreign=lambda text: True)
    play_round(peers, manifest=learning(external_top_k=0))
    assert all(external(peer) and not skips(peer, FOREIGN) for peer in peers)


def test_equal_rewards_are_skipped_with_the_reason():
    peers = [*some_peers(3), SimulatedPeer(peer_id(9), skill=1.0)]
    play_round(peers)
    for peer in peers[:3]:
        assert (
            len(skips(peer, NO_ADVANTAGE)) >= MANIFEST.stages[0].max_groups
        )  # all of the one who is always right
        assert peer_id(9) not in {group.sender for group in peer.batch}

"""Announcements between real DHT nodes: what arrives, what is refused, and that the rest stays readable."""

from __future__ import annotations

import math

import pytest
from exchange_cast import key_of, signed

from swarm.errors import ExchangeError


def test_announcement_reaches_every_other_peer(make_exchange, swarm, identities):
    first = make_exchange(0)
    second = make_exchange(1, first)
    third = make_exchange(2, first)
    second.announce(swarm.announcement())
    third.announce(swarm.announcement(blob=b"c" * 32))
    expected = sorted([identities[1].peer, identities[2].peer])
    for peer in (first, second, third):
        heard = peer.heard(swarm.round, 0, 0)
        assert [one.peer for one in heard] == expected
        assert not peer.dropped
    assert first.peer_count() == 2
    assert first.heard(swarm.round, 1, 0) == [] and first.heard(swarm.round, 0, 1) == []


def test_second_announcement_does_not_replace_the_first(make_exchange, make_rogue, swarm):
    victim = make_exchange(0)
    rogue = make_rogue(1, victim)
    first, second = swarm.announcement(blob=b"1" * 32), swarm.announcement(blob=b"2" * 32)
    for announcement, stored in ((first, True), (second, False), (first, False)):
        envelope = signed(rogue.identity, announcement)
        peer = rogue.identity.peer
        assert rogue.store(key_of(announcement), envelope, announcement.expiration, peer) is stored
    assert [heard.announcement for heard in victim.heard(swarm.round, 0, 0)] == [first]


def test_own_slot_is_announced_once(make_exchange, swarm):
    exchange = make_exchange(0)
    exchange.announce(swarm.announcement())
    exchange.announce(swarm.announcement())  # a retry of the same is harmless
    with pytest.raises(ExchangeError, match="signed something else already"):
        exchange.announce(swarm.announcement(blob=b"x" * 32))
    exchange.announce(swarm.announcement(stage=1))
    assert len(exchange.heard(swarm.round, 0, 0)) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"swarm": b"\x02" * 32}, "another swarm"),
        ({"expiration": 2**40}, "expiration"),
        ({"round": 2}, "too old"),
        ({"round": 99}, "ahead"),
    ],
)
def test_announcement_that_nodes_would_refuse_is_not_sent(make_exchange, swarm, changes, reason):
    with pytest.raises(ExchangeError, match=reason):
        make_exchange(0).announce(swarm.announcement(**changes))


def forgeries(swarm, sender, other):
    """Name of the counted reason, then the record: key, value, expiration, subkey."""
    good = swarm.announcement(cell=5)
    envelope = signed(sender, good)
    key, expiration, peer = key_of(good), good.expiration, sender.peer
    elsewhere = key_of(swarm.announcement(cell=6))
    foreign = swarm.announcement(swarm=b"\x02" * 32, cell=5)
    old, early = swarm.announcement(round=swarm.round - 2), swarm.announcement(round=swarm.round + 2)
    endless = swarm.announcement(cell=5, expiration=2**40)
    return [
        ("not a valid Envelope", key, b"no envelope", expiration, peer),
        ("signature is not the sender's", key, envelope[:-1] + bytes([envelope[-1] ^ 1]), expiration, peer),
        ("record is over the size limit", key, envelope + bytes(2048), expiration, peer),
        ("subkey is not the signer's peer digest", key, envelope, expiration, other.peer),
        ("subkey is not a peer digest", key, envelope, expiration, "text"),
        ("key is not that of the announced round, stage and cell", elsewhere, envelope, expiration, peer),
        ("announcement is of another swarm", key_of(foreign), signed(sender, foreign), expiration, peer),
        ("expiration is not the one that the round fixes", key, envelope, expiration + 1.0, peer),
        ("expiration is not the one that the round fixes", key, signed(sender, endless), 2.0**40, peer),
        ("plain value instead of a dictionary's", key, envelope, expiration, None),
        ("round is ahead of the clock", key_of(early), signed(sender, early), early.expiration, peer),
        ("round is too old", key_of(old), signed(sender, old), old.expiration, peer),
    ]


def test_forged_records_are_refused_and_counted_and_good_ones_stay(
    make_exchange, make_rogue, swarm, identities
):
    victim = make_exchange(0)
    rogue = make_rogue(1, victim)
    victim.announce(swarm.announcement(cell=5))
    for reason, key, value, expiration, subkey in forgeries(swarm, rogue.identity, identities[2]):
        before = victim.dropped[reason]
        assert not rogue.store(key, value, expiration, subkey), reason
        assert victim.dropped[reason] == before + 1, reason
    assert [heard.peer for heard in victim.heard(swarm.round, 0, 5)] == [identities[0].peer]
    good = swarm.announcement(cell=5)
    assert rogue.store(key_of(good), signed(rogue.identity, good), good.expiration, rogue.identity.peer)
    assert len(victim.heard(swarm.round, 0, 5)) == 2


def test_one_bad_record_in_an_answer_hides_no_good_one(make_exchange, make_rogue, swarm, identities):
    reader = make_exchange(0)
    rogue = make_rogue(1, reader)
    good = swarm.announcement()
    records = {
        identities[2].peer: signed(identities[2], good),
        identities[3].peer: signed(identities[2], good),  # not its signer's
        identities[4].peer: b"rubbish",
    }
    rogue.answer(key_of(good), records, good.expiration)
    assert [heard.peer for heard in reader.heard(swarm.round, 0, 0)] == [identities[2].peer]
    assert reader.dropped["subkey is not the signer's peer digest"] == 1
    assert reader.dropped["not a valid Envelope"] == 1


def test_answer_that_claims_to_last_for_ever_does_not_stop_the_search(
    make_exchange, make_rogue, swarm, identities
):
    reader = make_exchange(0)
    rogue = make_rogue(1, reader)
    good = swarm.announcement()
    rogue.answer(key_of(good), {identities[2].peer: signed(identities[2], good)}, good.expiration)
    rogue.claim_expiration(key_of(good), math.inf)
    assert len(reader.heard(swarm.round, 0, 0)) == 1
    late = {identities[3].peer: signed(identities[3], good)}
    rogue.answer(key_of(good), late, good.expiration)
    assert len(reader.heard(swarm.round, 0, 0)) == 2


def test_node_with_a_chosen_id_is_not_listed(make_exchange, make_rogue):
    victim = make_exchange(0)
    rogue = make_rogue(1, victim)
    assert victim.peer_count() == 1
    honest_id = rogue.node.protocol.node_info.node_id
    rogue.node.protocol.node_info.node_id = bytes(20)
    listed = victim._peer._host.node.protocol.routing_table.uid_to_peer_id
    rogue.run(rogue.node.protocol.call_ping(rogue.victim))
    assert [uid.to_bytes() for uid in listed] == [honest_id]


def test_losing_every_peer_leaves_the_own_announcement(make_exchange, swarm, identities):
    first = make_exchange(0)
    second = make_exchange(1, first)
    second.announce(swarm.announcement())
    first.stop()
    assert [heard.peer for heard in second.heard(swarm.round, 0, 0)] == [identities[1].peer]
    second.announce(swarm.announcement(stage=1))
    assert len(second.heard(swarm.round, 1, 0)) == 1
    assert second.peer_count() == 0

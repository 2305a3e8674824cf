"""Announcements between real DHT nodes: what arrives, what is refused, and that the rest stays readable."""

from __future__ import annotations

import math
import signal
import time

import msgpack
import pytest
from exchange_cast import key_of, signed, until
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import PeerID

from identity.key import MULTIHASH_PREFIX
from swarm.errors import ExchangeError
from swarm.exchange import wire
from swarm.exchange.gossip import GOSSIP_FILE
from swarm.exchange.gossip_reader import GossipReader
from swarm.exchange.protocol import node_id
from swarm.exchange.validator import MAX_REFUSED_FROM_ONE

TEN_THOUSAND = 10_000
EXTENSION, DICTIONARY = 0x40, 0x50  # hivemind's msgpack extensions: a tuple, and a dictionary of records


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
    assert [peer.health.heard for peer in (first, second, third)] == [2, 1, 1]  # of others
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


# Registration


def test_unregistered_sender_is_refused_and_its_node_not_listed_until_it_registers(
    make_exchange, make_rogue, swarm, identities
):
    registered: dict[bytes, bool] = {identities[1].peer: False}
    victim = make_exchange(0, registered=lambda peer: registered.get(peer))
    rogue = make_rogue(1, victim)
    mine, unknown = swarm.announcement(), swarm.announcement()
    envelope = signed(rogue.identity, mine)
    assert not rogue.store(key_of(mine), envelope, mine.expiration, rogue.identity.peer)
    assert victim.dropped == {"sender is not registered": 1}
    # Of the other one nobody knows; who hands it over does not matter.
    assert rogue.store(
        key_of(unknown), signed(identities[2], unknown), unknown.expiration, identities[2].peer
    )
    assert [heard.peer for heard in victim.heard(swarm.round, 0, 0)] == [identities[2].peer]
    assert victim.peer_count() == 0
    registered[rogue.identity.peer] = True
    assert rogue.store(key_of(mine), envelope, mine.expiration, rogue.identity.peer)
    assert len(victim.heard(swarm.round, 0, 0)) == 2
    until(lambda: victim.peer_count() == 1)


def test_unregistered_sender_in_an_answer_is_left_out_beside_good_ones(
    make_exchange, make_rogue, swarm, identities
):
    stranger, known, unknown = (identity.peer for identity in identities[2:5])
    registered: dict[bytes, bool] = {stranger: False, known: True}
    reader = make_exchange(0, registered=lambda peer: registered.get(peer))
    rogue = make_rogue(1, reader)
    good = swarm.announcement()
    records = {identity.peer: signed(identity, good) for identity in identities[2:5]}
    rogue.answer(key_of(good), records, good.expiration)
    assert {heard.peer for heard in reader.heard(swarm.round, 0, 0)} == {known, unknown}
    assert reader.dropped == {"sender is not registered": 1}
    registered[stranger] = True
    assert {heard.peer for heard in reader.heard(swarm.round, 0, 0)} == {stranger, known, unknown}


# Cells


def test_record_in_another_cell_than_drawn_is_refused_once_the_draw_is_known(
    make_exchange, make_rogue, swarm, identities
):
    victim = make_exchange(0)
    rogue = make_rogue(1, victim)
    drawn, wrong = swarm.announcement(cell=5), swarm.announcement(cell=6)
    next_round = swarm.announcement(cell=6, round=swarm.round + 1)
    victim.enter(swarm.round, lambda _peer: 5)
    for identity, announcement, stored in (
        (identities[1], wrong, False),
        (identities[1], drawn, True),
        (identities[2], next_round, True),  # of which nobody knows the draw
    ):
        envelope = signed(identity, announcement)
        assert rogue.store(key_of(announcement), envelope, announcement.expiration, identity.peer) is stored
    assert victim.dropped == {"sender is not of this cell": 1}
    # The same holds for what another node answers.
    for announcement in (drawn, wrong):
        records = {identities[3].peer: signed(identities[3], announcement)}
        rogue.answer(key_of(announcement), records, announcement.expiration)
    assert victim.heard(swarm.round, 0, 6) == []
    assert {heard.peer for heard in victim.heard(swarm.round, 0, 5)} == {
        identities[1].peer,
        identities[3].peer,
    }
    assert len(victim.heard(swarm.round + 1, 0, 6)) == 1
    assert victim.dropped == {"sender is not of this cell": 2}


def test_all_cells_pass_while_the_draw_is_unknown(make_exchange, make_rogue, swarm, identities):
    victim = make_exchange(0)
    rogue = make_rogue(1, victim)
    victim.enter(swarm.round, None)
    stored, answered = swarm.announcement(cell=6), swarm.announcement(cell=7)
    envelope = signed(rogue.identity, stored)
    assert rogue.store(key_of(stored), envelope, stored.expiration, rogue.identity.peer)
    records = {identities[2].peer: signed(identities[2], answered)}
    rogue.answer(key_of(answered), records, answered.expiration)
    assert [heard.peer for heard in victim.heard(swarm.round, 0, 6)] == [rogue.identity.peer]
    assert [heard.peer for heard in victim.heard(swarm.round, 0, 7)] == [identities[2].peer]
    assert not victim.dropped


# Equivocation


@pytest.mark.parametrize("way", ["stored", "answered"])
@pytest.mark.parametrize("cell", [0, 1], ids=["same cell", "another cell"])
def test_second_announcement_of_a_slot_leaves_the_first_and_becomes_evidence(
    make_exchange, make_rogue, swarm, identities, tmp_path, monkeypatch, cell, way
):
    monkeypatch.setattr("swarm.exchange.peer.FLUSH_SECONDS", 0.1)
    victim = make_exchange(0)
    rogue = make_rogue(1, victim)
    sender = identities[2]
    first, second = swarm.announcement(blob=b"1" * 32), swarm.announcement(blob=b"2" * 32, cell=cell)
    assert rogue.store(key_of(first), signed(sender, first), first.expiration, sender.peer)
    if way == "stored":
        assert not rogue.store(key_of(second), signed(sender, second), second.expiration, sender.peer)
    else:
        rogue.answer(key_of(second), {sender.peer: signed(sender, second)}, second.expiration)
    assert [heard.announcement for heard in victim.heard(swarm.round, 0, 0)] == [first]
    assert victim.heard(swarm.round, 0, 1) == []
    assert victim.dropped == {"sender announced something else before": 1}
    assert victim.copies == 0
    log = GossipReader(tmp_path / "peer-0" / GOSSIP_FILE)
    until(log.equivocations)
    (evidence,) = log.equivocations()
    opened = [wire.open_envelope(envelope) for envelope in (evidence.first, evidence.second)]
    assert [heard.announcement for heard in opened] == [first, second]
    assert {heard.peer for heard in opened} == {sender.peer}
    assert (evidence.round, evidence.stage, evidence.peer) == (swarm.round, "answer", sender.peer_id)


def test_whoever_speaks_with_our_key_is_a_copy(
    make_exchange, make_rogue, swarm, identities, tmp_path, monkeypatch
):
    monkeypatch.setattr("swarm.exchange.peer.FLUSH_SECONDS", 0.1)
    victim = make_exchange(0)
    rogue = make_rogue(1, victim)
    own = identities[0]
    first, second = swarm.announcement(blob=b"1" * 32), swarm.announcement(blob=b"2" * 32)
    victim.announce(first)
    assert not rogue.store(key_of(second), signed(own, second), second.expiration, own.peer)
    assert victim.copies == 1
    assert [heard.announcement for heard in victim.heard(swarm.round, 0, 0)] == [first]
    log = GossipReader(tmp_path / "peer-0" / GOSSIP_FILE)
    until(log.equivocations)
    assert [evidence.peer for evidence in log.equivocations()] == [own.peer_id]
    # A slot in which we said nothing ourselves counts, too.
    silent = swarm.announcement(stage=1)
    assert rogue.store(key_of(silent), signed(own, silent), silent.expiration, own.peer)
    victim.enter(swarm.round, None)
    assert len(victim.heard(swarm.round, 1, 0)) == 1
    assert victim.copies == 2


def test_what_we_said_before_a_restart_is_no_copy(make_exchange, make_rogue, swarm, identities):
    restarted = make_exchange(0)
    rogue = make_rogue(1, restarted)
    own, before = identities[0], swarm.announcement()
    assert rogue.store(key_of(before), signed(own, before), before.expiration, own.peer)
    assert len(restarted.heard(swarm.round, 0, 0)) == 1  # an audit may look before the next round begins
    restarted.enter(swarm.round + 1, None)
    assert len(restarted.heard(swarm.round, 0, 0)) == 1
    assert restarted.copies == 0


# Hostile answers


def ten_thousand_records() -> bytes:
    many = DictionaryDHTValue()
    for n in range(TEN_THOUSAND):
        many.store(n.to_bytes(32, "big"), b"\xc4\x01x", time.time() + 1000)
    return msgpack.packb(msgpack.ExtType(DICTIONARY, many.packb()))


def nested_extensions() -> bytes:
    packed = b"\xc1"
    for _ in range(500):
        packed = msgpack.packb(msgpack.ExtType(EXTENSION, packed))
    return packed


@pytest.mark.parametrize(
    ("packed", "plain", "reason"),
    [
        (ten_thousand_records, False, "not a DHT value"),
        (nested_extensions, False, "value is neither bytes nor a dictionary"),
        (lambda: msgpack.packb(msgpack.ExtType(DICTIONARY, nested_extensions())), False, "not a DHT value"),
        (lambda: b"\x91" * 2**20, False, "not a DHT value"),
        (lambda: b"\xdd\x7f\xff\xff\xff" * 1000, False, "not a DHT value"),
        (lambda: b"", False, "not a DHT value"),
        (lambda: b"plain", True, "plain value instead of a dictionary's"),
    ],
    ids=["10,000 records", "extensions", "extensions inside", "deep", "wide", "nothing", "plain value"],
)
def test_one_hostile_answer_hides_no_good_record(
    make_exchange, make_rogue, swarm, identities, packed, plain, reason
):
    reader = make_exchange(0)
    honest = make_exchange(2, reader)
    rogue = make_rogue(1, reader)
    rogue.run(rogue.connect(honest.multiaddrs[0]))
    good, sender = swarm.announcement(), identities[3]
    victim = PeerID.from_base58(identities[2].peer_id)
    assert rogue.store(key_of(good), signed(sender, good), good.expiration, sender.peer, victim)
    rogue.answer_verbatim(key_of(good), packed(), good.expiration, plain=plain)
    assert [heard.peer for heard in reader.heard(swarm.round, 0, 0)] == [identities[3].peer]
    assert reader.dropped == {reason: 1}


def test_subkeys_of_odd_types_hide_no_good_record_of_the_same_answer(
    make_exchange, make_rogue, swarm, identities
):
    reader = make_exchange(0)
    rogue = make_rogue(1, reader)
    good = swarm.announcement()
    value = msgpack.packb(signed(identities[2], good))
    odd = [None, 7, "text", [b"list"], {b"a": b"map"}, b"short", msgpack.ExtType(EXTENSION, b"\xc1")]
    records = [[subkey, value, float(good.expiration)] for subkey in [*odd, identities[2].peer]]
    dictionary = msgpack.packb([None, float(good.expiration), records], use_bin_type=True)
    # hivemind packs each record of a dictionary in place, and the dictionary as an extension.
    packed = msgpack.packb(msgpack.ExtType(DICTIONARY, dictionary))
    rogue.answer_verbatim(key_of(good), packed, good.expiration)
    assert [heard.peer for heard in reader.heard(swarm.round, 0, 0)] == [identities[2].peer]
    assert reader.dropped.total() == len(odd)


def test_node_that_hands_over_too_many_bad_records_is_ignored_until_the_next_round(
    make_exchange, make_rogue, swarm, identities
):
    victim = make_exchange(0)
    rogue = make_rogue(1, victim)
    bad, good = swarm.announcement(cell=1), swarm.announcement()
    rubbish = {n.to_bytes(32, "big"): b"rubbish" for n in range(MAX_REFUSED_FROM_ONE + 1)}
    rogue.answer(key_of(bad), rubbish, bad.expiration)
    rogue.answer(key_of(good), {identities[2].peer: signed(identities[2], good)}, good.expiration)
    assert victim.heard(swarm.round, 0, 1) == []
    assert victim.dropped == {"not a valid Envelope": MAX_REFUSED_FROM_ONE + 1}
    rogue.forget(key_of(bad))

    def store() -> bool:
        envelope = signed(rogue.identity, good)
        return rogue.store(key_of(good), envelope, good.expiration, rogue.identity.peer)

    assert not store()
    # What it answers is looked at all the same: what we ask for is bounded, and nobody's silence is bought.
    assert {heard.peer for heard in victim.heard(swarm.round, 0, 0)} == {identities[2].peer}
    victim.enter(swarm.round, None)
    assert store()
    assert {heard.peer for heard in victim.heard(swarm.round, 0, 0)} == {
        rogue.identity.peer,
        identities[2].peer,
    }


def test_honest_node_is_not_ignored_for_records_that_it_could_not_know_to_be_bad(
    make_exchange, make_rogue, swarm, identities
):
    registered: dict[bytes, bool] = {identities[2].peer: False}
    victim = make_exchange(0, registered=lambda peer: registered.get(peer))
    relay = make_rogue(1, victim)
    for cell in range(MAX_REFUSED_FROM_ONE + 2):
        record = swarm.announcement(cell=cell)
        if not cell:
            envelope = signed(identities[2], record)  # refused before its signature is looked at
        relay.store(key_of(swarm.announcement()), envelope, record.expiration, identities[2].peer)
    assert victim.dropped == {"sender is not registered": MAX_REFUSED_FROM_ONE + 2}
    good = swarm.announcement()
    assert relay.store(key_of(good), signed(identities[3], good), good.expiration, identities[3].peer)


@pytest.mark.parametrize(
    "told",
    [
        pytest.param([(bytes(20), b"x" * 200_000)], id="a peer id that takes minutes to encode"),
        pytest.param([(bytes(20), bytes(34))] * 5000, id="many"),
        pytest.param("strangers", id="made-up peers next to the key"),
        pytest.param("ed25519", id="keys that no peer of ours has"),
    ],
)
def test_neighbours_that_cannot_be_some_are_not_asked(make_exchange, make_rogue, swarm, identities, told):
    known = {identity.peer for identity in identities}
    reader = make_exchange(0, registered=lambda peer: peer in known)
    rogue = make_rogue(1, reader)
    good = swarm.announcement()
    rogue.answer(key_of(good), {identities[2].peer: signed(identities[2], good)}, good.expiration)
    asked: list[bytes] = []
    if told == "strangers":
        ids = [MULTIHASH_PREFIX + n.to_bytes(32, "big") for n in range(20)]
        told = [(node_id(PeerID(one)).to_bytes(), one) for one in ids]
    elif told == "ed25519":
        ids = [bytes([0, 36, 8, 1, 18, 32]) + n.to_bytes(32, "big") for n in range(20)]
        told = [(node_id(PeerID(one)).to_bytes(), one) for one in ids]
    rogue.tell_neighbours(told)
    protocol = reader._peer._host.node.protocol
    ask = protocol.call_find

    async def call_find(peer, keys):
        asked.append(peer.to_bytes())
        return await ask(peer, keys)

    protocol.call_find = call_find
    assert [heard.peer for heard in reader.heard(swarm.round, 0, 0)] == [identities[2].peer]
    assert asked == [rogue.p2p.peer_id.to_bytes()]


def test_stranger_that_was_listed_before_the_ledger_was_read_is_forgotten(make_exchange, make_rogue):
    registered: dict[bytes, bool] = {}
    victim = make_exchange(0, registered=lambda peer: registered.get(peer))
    rogue = make_rogue(1, victim)
    assert victim.peer_count() == 1
    registered[rogue.identity.peer] = False
    rogue.run(rogue.node.protocol.call_ping(rogue.victim))
    assert victim.peer_count() == 0


def test_silent_node_does_not_cost_what_others_answered(make_exchange, make_rogue, swarm, identities):
    reader = make_exchange(0)
    answering, silent = make_rogue(1, reader), make_rogue(2, reader)
    good = swarm.announcement()
    answering.answer(key_of(good), {identities[3].peer: signed(identities[3], good)}, good.expiration)
    until(lambda: reader.peer_count() == 2)
    silent.p2p._child.send_signal(signal.SIGSTOP)
    try:
        heard = reader._call(reader._peer.heard(swarm.round, 0, 0, timeout=1))
        assert [one.peer for one in heard] == [identities[3].peer]
        assert reader.dropped == {"DHT did not answer in time": 1}
    finally:
        silent.p2p._child.send_signal(signal.SIGCONT)

"""`collect`: the whole way from a cell's announcements to its groups."""

from __future__ import annotations

import hashlib

from exchange_cast import key_of, one_group, signed

from swarm.exchange import wire


def _contribute(exchange, swarm, data, **changes):
    exchange.announce(swarm.announcement(exchange.put_blob(data), len(data), **changes))


def test_collect_keeps_the_good_and_counts_the_bad(make_exchange, make_rogue, swarm, identities):
    own = make_exchange(0)
    good, garbage, miscounted = (make_exchange(n, own) for n in (1, 2, 3))
    _contribute(own, swarm, one_group("own"))
    _contribute(good, swarm, one_group("good"))
    _contribute(garbage, swarm, b"not msgpack at all")
    _contribute(miscounted, swarm, one_group("miscounted"), groups=2)
    collected = own.collect(swarm.round, 0, 0, timeout=10, max_peers=16)
    texts = {one.heard.peer: one.groups[0].completions[0].text for one in collected}
    assert texts == {identities[0].peer: "own", identities[1].peer: "good"}
    assert [one.heard.peer for one in collected] == sorted(texts)
    assert own.dropped == {"not a valid GroupsBlob": 1, "blob has another number of groups than announced": 1}


def test_silent_peer_is_left_out_when_its_time_is_over(make_exchange, make_rogue, swarm, identities):
    own = make_exchange(0)
    rogue = make_rogue(1, own)

    async def silent(_info, reader, writer):
        await reader.read()
        writer.close()

    rogue.serve(wire.BLOB_STREAM, silent)
    announcement = swarm.announcement(hashlib.sha256(b"never comes").digest(), 11)
    envelope = signed(rogue.identity, announcement)
    assert rogue.store(key_of(announcement), envelope, announcement.expiration, rogue.identity.peer)
    _contribute(own, swarm, one_group())
    collected = own.collect(swarm.round, 0, 0, timeout=2, max_peers=16)
    assert [one.heard.peer for one in collected] == [identities[0].peer]
    assert own.dropped == {"blob did not come in time": 1}


def test_max_peers_are_taken_in_the_given_order(make_exchange, swarm):
    own = make_exchange(0)
    exchanges = [own, make_exchange(1, own), make_exchange(2, own)]
    for exchange in exchanges:
        _contribute(exchange, swarm, one_group())

    def backwards(heard: wire.Heard) -> bytes:
        return bytes(255 - byte for byte in heard.peer)

    everyone = [one.peer for one in own.heard(swarm.round, 0, 0)]
    collected = own.collect(swarm.round, 0, 0, timeout=10, max_peers=2, order=backwards)
    assert [one.heard.peer for one in collected] == everyone[:0:-1]
    assert own.collect(swarm.round, 1, 0, timeout=5, max_peers=2) == []

"""`collect`: the whole way from a cell's announcements to its groups."""

from __future__ import annotations

import hashlib

from exchange_cast import key_of, one_group, signed

from swarm.exchange import peer, streams, wire


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


def test_peer_alone_in_its_cell_gets_its_own_groups_back(make_exchange, swarm, identities):
    own = make_exchange(0)
    make_exchange(1, own)
    _contribute(own, swarm, one_group("own"), cell=3)
    (one,) = own.collect(swarm.round, 0, 3, timeout=10, max_peers=16)
    assert one.heard.peer == identities[0].peer
    assert one.groups[0].completions[0].text == "own"
    assert not own.dropped


def test_crowd_beyond_max_peers_is_taken_in_the_given_order(make_exchange, swarm):
    own = make_exchange(0)
    exchanges = [own, make_exchange(1, own), make_exchange(2, own)]
    for exchange in exchanges:
        _contribute(exchange, swarm, one_group())

    def backwards(heard: wire.Heard) -> bytes:
        return bytes(255 - byte for byte in heard.peer)

    everyone = [one.peer for one in own.heard(swarm.round, 0, 0)]
    collected = own.collect(swarm.round, 0, 0, timeout=10, max_peers=2, order=backwards)
    assert [one.heard.peer for one in collected] == everyone[:0:-1]
    assert own.dropped == {"cell is crowded": 1}
    assert own.collect(swarm.round, 1, 0, timeout=5, max_peers=2) == []


def test_stage_brings_in_no_more_bytes_than_a_reader_takes(make_exchange, swarm, identities, monkeypatch):
    own = make_exchange(0)
    large, small = one_group("x" * 1000), one_group("x")
    for n, data in ((0, large), (1, large), (2, small)):
        exchange = own if n == 0 else make_exchange(n, own)
        _contribute(exchange, swarm, data)
    order = {identities[n].peer: bytes([n]) for n in range(3)}
    monkeypatch.setattr(peer, "MAX_STAGE_BYTES", len(large) + len(small))
    collected = own.collect(
        swarm.round, 0, 0, timeout=10, max_peers=16, order=lambda heard: order[heard.peer]
    )
    assert [one.heard.peer for one in collected] == [identities[0].peer, identities[2].peer]
    assert own.dropped == {"cell announces more bytes than a reader takes": 1}


def test_what_breaks_the_limit_of_a_stage_is_left_out(make_exchange, swarm, identities):
    own = make_exchange(0)
    wrong_size, too_large = make_exchange(1, own), make_exchange(2, own)
    completion = wire.Completion.of((1, 2, 3), "one of two")
    pair = wire.GroupsBlob(groups=(wire.Group(index=0, completions=(completion, completion)),))
    _contribute(own, swarm, wire.encode(pair))
    _contribute(wrong_size, swarm, one_group())
    _contribute(too_large, swarm, one_group("x" * 1000))
    limit = wire.GroupsLimit(max_bytes=500, completions=2)
    collected = own.collect(swarm.round, 0, 0, timeout=10, max_peers=16, limit=limit)
    assert [one.heard.peer for one in collected] == [identities[0].peer]
    assert own.dropped == {"group has the wrong size": 1, "blob is larger than the stage allows": 1}


def test_sender_that_served_something_wrong_is_skipped_until_the_next_round(make_exchange, make_rogue, swarm):
    own = make_exchange(0)
    rogue = make_rogue(1, own)
    blob, served = one_group("late honesty"), bytearray()

    async def serve(_info, reader, writer):
        await streams.receive_message(reader, wire.BlobRequest)
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=len(blob)))
        await streams.send(writer, bytes(served))
        writer.close()

    rogue.serve(wire.BLOB_STREAM, serve)
    for number, stage in ((swarm.round, 0), (swarm.round, 1), (swarm.round + 1, 0)):
        announcement = swarm.announcement(hashlib.sha256(blob).digest(), len(blob), round=number, stage=stage)
        envelope = signed(rogue.identity, announcement)
        assert rogue.store(key_of(announcement), envelope, announcement.expiration, rogue.identity.peer)

    own.enter(swarm.round, None)
    served[:] = bytes(len(blob))
    assert own.collect(swarm.round, 0, 0, timeout=10, max_peers=16) == []
    assert own.dropped == {"blob has another digest than announced": 1}
    served[:] = blob
    assert own.collect(swarm.round, 1, 0, timeout=10, max_peers=16) == []
    assert own.dropped["sender failed earlier in this round"] == 1
    own.enter(swarm.round + 1, None)
    (one,) = own.collect(swarm.round + 1, 0, 0, timeout=10, max_peers=16)
    assert one.heard.peer == rogue.identity.peer and one.groups[0].completions[0].text == "late honesty"


def test_fetched_blob_that_the_store_cannot_keep_is_returned_all_the_same_and_counted(
    make_exchange, identities
):
    server = make_exchange(0)
    reader = make_exchange(1, server, max_blob_bytes=3)
    assert reader.fetch(identities[0].peer, server.put_blob(b"content"), 7, 10) == b"content"
    assert reader.dropped == {"fetched blob could not be kept": 1}


def test_fetched_blob_is_read_from_the_own_store_when_its_server_is_gone(make_exchange, identities):
    server = make_exchange(0)
    reader = make_exchange(1, server)
    digest = server.put_blob(b"content")
    assert reader.fetch(identities[0].peer, digest, 7, 10) == b"content"
    server.stop()
    assert reader.fetch(identities[0].peer, digest, 7, 1) == b"content"


def test_blob_moves_between_peers_that_share_only_a_bootstrap_peer(make_exchange, identities):
    bootstrap = make_exchange(0)
    server = make_exchange(1, bootstrap)
    reader = make_exchange(2, bootstrap)
    assert reader.fetch(identities[1].peer, server.put_blob(b"content"), 7, 10) == b"content"

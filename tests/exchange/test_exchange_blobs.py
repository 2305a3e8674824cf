"""Blobs: the store's limits, and fetching from honest, wrong, silent and flooding servers."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest
from exchange_cast import one_group

from swarm.errors import ExchangeError
from swarm.exchange import blobs, wire
from swarm.exchange.blobs import BlobStore

SIZE = wire.MAX_GROUPS_BLOB_BYTES // 2


def test_store_returns_what_was_put_also_after_reopening(tmp_path):
    digest = BlobStore(tmp_path, 100).put(b"content")
    assert digest == hashlib.sha256(b"content").digest()
    (tmp_path / ".half.partial").write_bytes(b"cut off by a crash")
    reopened = BlobStore(tmp_path, 100)
    assert reopened.get(digest) == b"content"
    assert reopened.get(bytes(32)) is None
    assert [path.name for path in tmp_path.iterdir()] == [digest.hex()]


def test_full_store_evicts_the_oldest(tmp_path):
    store = BlobStore(tmp_path, 100)
    first, second = store.put(b"1" * 40), store.put(b"2" * 40)
    store.put(b"1" * 40)  # again: now the newest
    third = store.put(b"3" * 40)
    assert [store.get(digest) is None for digest in (first, second, third)] == [False, True, False]
    with pytest.raises(ExchangeError, match="over the store's 100"):
        store.put(b"x" * 101)


def test_blob_spoiled_on_disk_is_not_returned_and_can_be_put_again(tmp_path):
    store = BlobStore(tmp_path, 100)
    digest = store.put(b"content")
    store.path(digest).write_bytes(b"c0ntent")
    assert store.get(digest) is None
    assert store.get(store.put(b"content")) == b"content"


def test_large_blob_arrives_whole_and_is_then_served_by_the_reader(make_exchange, identities):
    server = make_exchange(0)
    reader = make_exchange(1, server)
    data = os.urandom(SIZE)
    digest = server.put_blob(data)
    assert reader.fetch(identities[0].peer, digest, SIZE, 20) == data
    server.stop()
    assert reader.fetch(identities[0].peer, digest, SIZE, 1) == data  # from its own store


def test_fetched_blob_that_the_store_cannot_keep_is_returned_all_the_same(make_exchange, identities):
    server = make_exchange(0)
    reader = make_exchange(1, server, max_blob_bytes=3)
    assert reader.fetch(identities[0].peer, server.put_blob(b"content"), 7, 10) == b"content"
    assert reader.dropped == {"fetched blob could not be kept": 1}


def test_blob_moves_between_peers_that_share_only_a_bootstrap_peer(make_exchange, identities):
    bootstrap = make_exchange(0)
    server = make_exchange(1, bootstrap)
    reader = make_exchange(2, bootstrap)
    assert reader.fetch(identities[1].peer, server.put_blob(b"content"), 7, 10) == b"content"


def test_unknown_blob_wrong_size_and_absent_peer_are_named(make_exchange, identities):
    server = make_exchange(0)
    reader = make_exchange(1, server)
    digest = server.put_blob(b"content")
    with pytest.raises(ExchangeError, match="does not have the blob"):
        reader.fetch(identities[0].peer, bytes(32), 7, 5)
    with pytest.raises(ExchangeError, match="another size"):
        reader.fetch(identities[0].peer, digest, 6, 5)
    with pytest.raises(ExchangeError, match=r"cannot be reached|in time"):
        reader.fetch(identities[4].peer, digest, 7, 2)


async def _wrong(_info, reader, writer):
    await reader.readexactly(blobs.DIGEST_BYTES)
    writer.write(blobs.OK + (7).to_bytes(8, "big") + b"c0ntent")
    writer.close()


async def _short(_info, reader, writer):
    await reader.readexactly(blobs.DIGEST_BYTES)
    writer.write(blobs.OK + (7).to_bytes(8, "big") + b"con")
    writer.close()


async def _flood(_info, reader, writer):
    await reader.readexactly(blobs.DIGEST_BYTES)
    writer.write(blobs.OK + (7).to_bytes(8, "big"))
    try:
        while True:
            writer.write(b"c" * 65536)
            await writer.drain()
    except OSError:
        writer.close()


async def _silent(_info, reader, writer):
    await reader.read()  # until the other side gives up
    writer.close()


async def _dripping(_info, _reader, writer):
    writer.write(blobs.OK + (7).to_bytes(8, "big"))
    try:
        while True:
            await asyncio.sleep(0.4)
            writer.write(b"c")
            await writer.drain()
    except OSError:
        writer.close()


async def _busy(_info, reader, writer):
    await reader.readexactly(blobs.DIGEST_BYTES)
    writer.write(blobs.BUSY)
    writer.close()


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (_wrong, "another digest"),
        (_short, "broke off"),
        (_flood, "another digest"),
        (_silent, "in time"),
        (_dripping, "in time"),
        (_busy, "in time"),
    ],
)
def test_hostile_server_is_given_up_with_the_reason(make_exchange, make_rogue, handler, reason):
    reader = make_exchange(0)
    rogue = make_rogue(1, reader)
    rogue.serve(blobs.PROTOCOL, handler)
    with pytest.raises(ExchangeError, match=reason):
        reader.fetch(rogue.identity.peer, hashlib.sha256(b"content").digest(), 7, 1.5)


def test_stalled_server_is_given_up_before_a_long_timeout(make_exchange, make_rogue, monkeypatch):
    monkeypatch.setattr(blobs, "CHUNK_TIMEOUT_SECONDS", 0.5)
    reader = make_exchange(0)
    rogue = make_rogue(1, reader)
    rogue.serve(blobs.PROTOCOL, _silent)
    with pytest.raises(ExchangeError, match="stalled"):
        reader.fetch(rogue.identity.peer, bytes(32), 7, 30)


def test_hostile_requests_leave_the_server_serving(make_exchange, make_rogue, identities):
    server = make_exchange(0)
    rogue = make_rogue(1, server)
    digest = server.put_blob(one_group())

    async def misbehave():
        held = []
        for request in (b"", b"../../../etc/passwd", os.urandom(100_000), digest[:31]):
            _, _, writer = await rogue.p2p.call_binary_stream_handler(rogue.victim, blobs.PROTOCOL)
            writer.write(request)
            held.append(writer)  # streams kept open: this peer's slots are used up
        _, reader, writer = await rogue.p2p.call_binary_stream_handler(rogue.victim, blobs.PROTOCOL)
        writer.write(digest)
        status = await reader.read(1)
        for one in [*held, writer]:
            one.close()
        return status

    assert rogue.run(misbehave()) in (blobs.OK, blobs.BUSY)
    reader = make_exchange(2, server)
    assert reader.fetch(identities[0].peer, digest, len(one_group()), 5) == one_group()

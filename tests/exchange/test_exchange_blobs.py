"""Blobs between real libp2p hosts: honest servers and readers, and wrong, silent, slow and flooding ones."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from blob_cast import Handler, Hosts, answering, digest_of, silent
from hivemind.p2p import P2P

from identity import Identity
from swarm.errors import ExchangeError
from swarm.exchange import blobs, multiaddr, serving, streams, wire
from swarm.exchange.blobs import Fetcher
from swarm.exchange.store import BlobStore

HOUR = 3600.0
QUOTA = 2**30


@pytest.fixture
def served(hosts: Hosts, tmp_path: Path) -> BlobStore:
    """The store that host 0 serves."""
    store = BlobStore(tmp_path / "served", QUOTA, HOUR)
    hosts.serve_store(0, store)
    return store


@pytest.fixture
def kept(tmp_path: Path) -> BlobStore:
    """The store into which is fetched."""
    return BlobStore(tmp_path / "kept", QUOTA, HOUR)


def fetch(
    hosts: Hosts, fetcher: Fetcher, data: bytes, *, server: int = 0, reader: int = 1, timeout: float = 20
) -> bytes:
    """Fetch what an announcement of `data` names."""
    return hosts.run(
        fetcher.fetch(hosts.p2p[reader], hosts.peers[server], digest_of(data), len(data), timeout=timeout)
    )


def test_large_blob_arrives_whole_and_is_kept(hosts, served, kept):
    data = os.urandom(wire.MAX_GROUPS_BLOB_BYTES)
    served.put(data, own=True)
    fetcher = Fetcher(kept)
    assert fetch(hosts, fetcher, data) == data
    assert kept.get(digest_of(data)) == data
    assert fetcher.shunned == {}
    assert fetcher.fetched_bytes == len(data)


def test_what_is_not_to_be_had_is_named_and_nobody_is_shunned_for_it(hosts, served, kept):
    served.put(b"content", own=True)
    fetcher = Fetcher(kept)
    with pytest.raises(ExchangeError, match=r"^peer does not have the blob$"):
        fetch(hosts, fetcher, b"other")
    with pytest.raises(ExchangeError, match=r"^peer cannot be reached: "):
        hosts.run(fetcher.fetch(hosts.p2p[1], os.urandom(32), bytes(32), 7, timeout=10))
    assert fetcher.shunned == {}
    assert fetch(hosts, fetcher, b"content") == b"content"


@pytest.mark.parametrize("quota", [3, 10])
def test_blob_that_the_store_cannot_keep_is_returned_all_the_same(hosts, served, tmp_path, quota):
    served.put(b"content", own=True)
    small = BlobStore(tmp_path / "small", quota, HOUR)
    small.put(b"own" * (quota // 3), own=True)
    fetcher = Fetcher(small)
    assert fetch(hosts, fetcher, b"content") == b"content"
    assert small.get(digest_of(b"content")) is None


def garbage(data: bytes) -> Handler:
    async def answer(_info: Any, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        with suppress(OSError):
            await writer.drain()
        writer.close()

    return answer


async def flooding(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await streams.receive_message(reader, wire.BlobRequest)
    await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=7))
    with suppress(OSError, ExchangeError):
        while True:
            await streams.send(writer, b"c" * 65536)
    writer.close()


def dripping(first: bytes) -> Handler:
    async def answer(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.receive_message(reader, wire.BlobRequest)
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=2**20))
        with suppress(OSError):
            writer.write(first)
            while True:
                writer.write(b"c")
                await writer.drain()
                await asyncio.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    ("handler", "size_bytes", "reason"),
    [
        (answering(b"c0ntent"), 7, "blob has another digest than announced"),
        (answering(b"content", size_bytes=6), 7, "blob has another size than announced"),
        (answering(b"con"), 7, "peer broke off the blob"),
        (flooding, 7, "blob has another digest than announced"),
        (garbage(b"\xff" * 100), 7, "message is over its size limit"),
        (garbage(b"\x00\x04junk"), 7, "not a valid BlobHeader"),
        (silent, 7, "peer stalled"),
        (dripping(b""), 2**20, "peer stalled"),
        (dripping(b"c" * 2**19), 2**20, "peer stalled"),
    ],
    ids=["wrong", "size", "short", "flood", "oversized", "malformed", "silent", "drip", "burst-then-drip"],
)
def test_bad_server_is_given_up_long_before_the_timeout_and_shunned_until_forgiven(
    hosts, kept, impatient, handler, size_bytes, reason
):
    hosts.serve(0, handler)
    fetcher = Fetcher(kept)
    for _ in range(2):
        with pytest.raises(ExchangeError, match=f"^{reason}"):
            hosts.run(
                fetcher.fetch(
                    hosts.p2p[1], hosts.peers[0], digest_of(b"content"), size_bytes, timeout=10 * HOUR
                )
            )
        assert fetcher.shunned == {hosts.peers[0]: reason}
        with pytest.raises(ExchangeError, match=f"^sender failed earlier in this round: {reason}$"):
            fetch(hosts, fetcher, b"content")
        fetcher.forgive()
    hosts.serve(1, answering(b"content"))
    assert fetch(hosts, fetcher, b"content", server=1, reader=2) == b"content"


def test_right_blob_counts_whatever_comes_after_it(hosts, kept):
    hosts.serve(0, answering(b"content", b"and more"))
    assert fetch(hosts, Fetcher(kept), b"content") == b"content"


def test_busy_server_is_asked_again_and_at_the_end_not_blamed(hosts, kept, monkeypatch):
    monkeypatch.setattr(blobs, "BUSY_RETRY_SECONDS", 0.02)
    asked = 0

    async def busy_at_first(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            writer.transport.abort()  # a door that is shut counts as busy too
        else:
            status = wire.BLOB_BUSY if asked < 4 else wire.BLOB_FOLLOWS
            await answering(b"content", status=status)(info, reader, writer)

    hosts.serve(0, busy_at_first)
    fetcher = Fetcher(kept)
    assert fetch(hosts, fetcher, b"content") == b"content"
    assert asked == 4
    hosts.serve(0, answering(status=wire.BLOB_BUSY))
    with pytest.raises(ExchangeError, match=r"^blob did not come in time$"):
        fetch(hosts, fetcher, b"content", timeout=0.5)
    assert fetcher.shunned == {}


def test_good_server_serves_the_rest_of_what_another_began_also_after_a_restart(
    hosts, served, kept, tmp_path
):
    data = os.urandom(2**20)
    served.put(data, own=True)
    asked: list[int] = []

    async def halfway(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await streams.receive_message(reader, wire.BlobRequest)
        asked.append(request.offset)
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=len(data)))
        await streams.send(writer, data[request.offset : request.offset + 300_000])
        writer.close()

    hosts.serve(2, halfway)
    with pytest.raises(ExchangeError, match=r"^peer broke off the blob$"):
        fetch(hosts, Fetcher(kept), data, server=2)
    assert asked == [0, 300_000]  # it broke off, was asked for the rest once, and broke off again

    reopened = BlobStore(kept.folder, QUOTA, HOUR)
    partial = reopened.begin(digest_of(data), len(data))
    assert partial.offset == 600_000
    partial.close()
    served.path(digest_of(data)).write_bytes(bytes(600_000) + data[600_000:])  # only the rest can be right
    assert fetch(hosts, Fetcher(reopened), data) == data
    assert reopened.get(digest_of(data)) == data


def test_fetch_that_is_given_up_in_the_middle_keeps_what_came(hosts, served, kept):
    data = os.urandom(2**20)
    served.put(data, own=True)

    async def stuck(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.receive_message(reader, wire.BlobRequest)
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=len(data)))
        await streams.send(writer, data[:300_000])
        await reader.read()

    async def give_up() -> None:
        fetching = asyncio.create_task(
            Fetcher(kept).fetch(hosts.p2p[1], hosts.peers[2], digest_of(data), len(data), timeout=HOUR)
        )
        unfinished = kept.folder / "partial" / digest_of(data).hex()
        while not (unfinished.exists() and unfinished.stat().st_size == 300_000):
            await asyncio.sleep(0.01)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)

    hosts.serve(2, stuck)
    hosts.run(give_up())
    partial = kept.begin(digest_of(data), len(data))
    assert partial.offset == 300_000
    partial.close()
    assert fetch(hosts, Fetcher(kept), data) == data


def test_first_part_that_another_spoiled_is_not_blamed_on_who_serves_the_rest(hosts, served, kept):
    data = os.urandom(2**20)
    served.put(data, own=True)
    hosts.serve(2, answering(bytes(1000), size_bytes=len(data)))
    fetcher = Fetcher(kept)
    with pytest.raises(ExchangeError, match=r"^peer broke off the blob$"):
        fetch(hosts, fetcher, data, server=2)
    assert fetch(hosts, fetcher, data) == data
    assert list(fetcher.shunned) == [hosts.peers[2]]


def test_who_serves_the_rest_and_then_the_whole_wrong_is_blamed(hosts, kept):
    partial = kept.begin(digest_of(b"content"), 7)
    partial.write(b"con")
    partial.close()
    hosts.serve(0, answering(b"t3nt" + b"c0n"))
    fetcher = Fetcher(kept)
    with pytest.raises(ExchangeError, match=r"^blob has another digest than announced$"):
        fetch(hosts, fetcher, b"content")
    assert list(fetcher.shunned) == [hosts.peers[0]]


def test_bad_server_of_a_blob_does_not_hold_up_a_good_one_of_the_same(hosts, served, kept):
    served.put(b"content", own=True)
    asked = asyncio.Event()

    async def stuck(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.receive_message(reader, wire.BlobRequest)
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=7))
        await streams.send(writer, b"c0n")
        asked.set()
        await reader.read()

    hosts.serve(2, stuck)
    fetcher = Fetcher(kept)

    async def both() -> bytes:
        first = asyncio.create_task(
            fetcher.fetch(hosts.p2p[1], hosts.peers[2], digest_of(b"content"), 7, timeout=HOUR)
        )
        await asked.wait()
        second = await fetcher.fetch(hosts.p2p[1], hosts.peers[0], digest_of(b"content"), 7, timeout=20)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return second

    assert hosts.run(both()) == b"content"
    assert kept.get(digest_of(b"content")) == b"content"


def test_one_blob_is_fetched_many_times_at_once(hosts, served, kept):
    data = os.urandom(2**20)
    served.put(data, own=True)
    fetcher = Fetcher(kept)

    async def together() -> list[bytes]:
        return await asyncio.gather(
            *(
                fetcher.fetch(hosts.p2p[1], hosts.peers[0], digest_of(data), len(data), timeout=20)
                for _ in range(6)
            )
        )

    assert hosts.run(together()) == [data] * 6
    assert kept.get(digest_of(data)) == data
    assert not list((kept.folder / "partial").iterdir())


class Counting:
    """Serves nothing; keeps its readers waiting until so many are there, and knows how many there were."""

    def __init__(self, awaited: int) -> None:
        self.now = self.most = self.in_all = 0
        self._awaited = awaited
        self._all_here = asyncio.Event()

    async def handle(self, _info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.receive_message(reader, wire.BlobRequest)
        self.now += 1
        self.in_all += 1
        self.most = max(self.most, self.now)
        if self.now == self._awaited:
            self._all_here.set()
        await self._all_here.wait()
        await asyncio.sleep(0.05)  # for one too many to come
        self.now -= 1
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_UNKNOWN))
        writer.close()


@pytest.mark.parametrize(
    ("per_peer", "in_all", "size_bytes", "most"),
    [(2, 8, 7, 4), (9, 3, 7, 3), (9, 9, 100, 2), (9, 9, 1000, 1)],
    ids=["per-peer", "in-all", "bytes", "one-too-large-goes-alone"],
)
def test_fetches_at_once_are_limited(hosts, kept, monkeypatch, per_peer, in_all, size_bytes, most):
    monkeypatch.setattr(blobs, "MAX_FETCHES_PER_PEER", per_peer)
    monkeypatch.setattr(blobs, "MAX_FETCHES", in_all)
    monkeypatch.setattr(blobs, "MAX_FETCHED_BYTES", 250)
    counting = Counting(most)
    hosts.serve(0, counting.handle)
    hosts.serve(2, counting.handle)
    fetcher = Fetcher(kept)

    async def many() -> list[bytes | BaseException]:
        return await asyncio.gather(
            *(
                fetcher.fetch(hosts.p2p[1], hosts.peers[server], bytes([n]) * 32, size_bytes, timeout=20)
                for n in range(6)
                for server in (0, 2)
            ),
            return_exceptions=True,
        )

    results = hosts.run(many())
    assert {str(result) for result in results} == {"peer does not have the blob"}
    assert (counting.most, counting.in_all) == (most, 12)


def test_waiting_for_a_slot_counts_as_time_and_leaves_no_trace(hosts, served, kept, monkeypatch):
    monkeypatch.setattr(blobs, "MAX_FETCHES", 1)
    served.put(b"content", own=True)
    hosts.serve(2, silent)
    fetcher = Fetcher(kept)

    async def behind_another() -> None:
        first = asyncio.create_task(fetcher.fetch(hosts.p2p[1], hosts.peers[2], bytes(32), 7, timeout=HOUR))
        await asyncio.sleep(0)
        try:
            await fetcher.fetch(hosts.p2p[1], hosts.peers[0], digest_of(b"content"), 7, timeout=0.2)
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    with pytest.raises(ExchangeError, match=r"^blob did not come in time$"):
        hosts.run(behind_another())
    assert fetch(hosts, fetcher, b"content") == b"content"


def test_busy_peers_do_not_hold_the_slots(hosts, served, kept, monkeypatch):
    monkeypatch.setattr(blobs, "MAX_FETCHES", 1)
    served.put(b"content", own=True)
    hosts.serve(2, answering(status=wire.BLOB_BUSY))
    fetcher = Fetcher(kept)

    async def beside_busy_ones() -> bytes:
        waiting = [
            asyncio.create_task(fetcher.fetch(hosts.p2p[1], hosts.peers[2], bytes(32), 7, timeout=HOUR))
            for _ in range(4)
        ]
        await asyncio.sleep(0)
        data = await fetcher.fetch(hosts.p2p[1], hosts.peers[0], digest_of(b"content"), 7, timeout=20)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return data

    assert hosts.run(beside_busy_ones()) == b"content"


def test_peer_that_fails_one_fetch_is_not_asked_by_those_that_waited(hosts, kept):
    asked = 0

    async def wrong(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await answering(b"c0ntent")(info, reader, writer)

    hosts.serve(0, wrong)
    fetcher = Fetcher(kept)

    async def many() -> list[bytes | BaseException]:
        return await asyncio.gather(
            *(fetcher.fetch(hosts.p2p[1], hosts.peers[0], bytes([n]) * 32, 7, timeout=20) for n in range(10)),
            return_exceptions=True,
        )

    results = hosts.run(many())
    assert all(isinstance(result, ExchangeError) for result in results)
    assert asked <= 2 * blobs.MAX_FETCHES_PER_PEER


async def ask(
    hosts: Hosts, request: wire.BlobRequest, reader: int = 1
) -> tuple[wire.BlobHeader, asyncio.StreamReader, asyncio.StreamWriter]:
    """Host 0's answer to a request."""
    incoming, outgoing = await hosts.open(reader, 0)
    await streams.send_message(outgoing, request)
    return await streams.receive_message(incoming, wire.BlobHeader), incoming, outgoing


def test_server_serves_from_the_offset_and_knows_no_offset_beyond_the_end(hosts, served):
    digest = served.put(b"content", own=True)

    async def rest(offset: int) -> tuple[int, bytes]:
        header, incoming, outgoing = await ask(hosts, wire.BlobRequest(digest=digest, offset=offset))
        data = await incoming.read()
        outgoing.close()
        return header.status, data

    assert [hosts.run(rest(offset)) for offset in (0, 3, 7, 8, 2**48 - 1)] == [
        (wire.BLOB_FOLLOWS, b"content"),
        (wire.BLOB_FOLLOWS, b"tent"),
        (wire.BLOB_FOLLOWS, b""),
        (wire.BLOB_UNKNOWN, b""),
        (wire.BLOB_UNKNOWN, b""),
    ]


def test_peer_that_asks_for_too_much_at_once_is_told_to_wait_and_others_are_served(hosts, served, kept):
    digest = served.put(os.urandom(2**24), own=True)  # more than fits into what libp2p buffers
    served.put(b"content", own=True)

    async def greedy() -> list[int]:
        answers = [
            await ask(hosts, wire.BlobRequest(digest=digest)) for _ in range(serving.MAX_SERVES_PER_PEER + 1)
        ]
        other = Fetcher(kept).fetch(hosts.p2p[2], hosts.peers[0], digest_of(b"content"), 7, timeout=20)
        assert await other == b"content"
        for _, _, outgoing in answers:
            outgoing.close()
        return [header.status for header, _, _ in answers]

    assert hosts.run(greedy()) == [wire.BLOB_FOLLOWS] * serving.MAX_SERVES_PER_PEER + [wire.BLOB_BUSY]


def test_reader_that_does_not_read_is_dropped_and_its_slots_are_free_again(hosts, served, impatient):
    digest = served.put(os.urandom(2**24), own=True)

    async def lazy() -> int:
        held = [await ask(hosts, wire.BlobRequest(digest=digest)) for _ in range(serving.MAX_SERVES_PER_PEER)]
        status = wire.BLOB_BUSY
        while status == wire.BLOB_BUSY:
            header, _, outgoing = await ask(hosts, wire.BlobRequest(digest=digest))
            status = header.status
            outgoing.close()
        for _, _, outgoing in held:
            outgoing.close()
        return status

    assert hosts.run(lazy()) == wire.BLOB_FOLLOWS


def test_streams_of_a_peer_that_says_nothing_are_shut_at_once_and_others_are_served(
    hosts, served, kept, monkeypatch
):
    monkeypatch.setattr(streams, "STALL_SECONDS", HOUR)  # none is shut for its silence
    served.put(b"content", own=True)

    async def crowd() -> bytes:
        before = open_files()
        held = [await hosts.open(1, 0) for _ in range(300)]
        ended = [asyncio.create_task(incoming.read()) for incoming, _ in held]
        while sum(task.done() for task in ended) < len(held) - serving.MAX_STREAMS_PER_PEER:
            await asyncio.wait(
                [task for task in ended if not task.done()], return_when=asyncio.FIRST_COMPLETED
            )
        assert sum(not task.done() for task in ended) == serving.MAX_STREAMS_PER_PEER
        data = await Fetcher(kept).fetch(hosts.p2p[2], hosts.peers[0], digest_of(b"content"), 7, timeout=20)
        for _, outgoing in held:
            outgoing.close()
        await asyncio.gather(*ended, return_exceptions=True)
        del held, ended
        assert open_files() < before + 50
        return data

    assert hosts.run(crowd()) == b"content"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_hostile_requests_leave_the_server_serving(hosts, served, kept, impatient):
    digest = served.put(b"content", own=True)
    frame = wire.encode(wire.BlobRequest(digest=digest))
    requests = (
        b"",
        b"\x00",
        b"\x00\x00",
        b"\xff\xff" + os.urandom(100_000),
        b"\x00\x04junk",
        b"\x00\x20../../../../../../../../etc/passwd",
        len(frame).to_bytes(2, "big") + frame[:-1],
        len(frame + b"x").to_bytes(2, "big") + frame + b"x",
        b"\x00\x05" + b"\x92\xc4\x00\xd0\xff",  # an empty digest, a negative offset
    )

    async def misbehave() -> None:
        for request in requests:
            for wait in (False, True):
                incoming, outgoing = await hosts.open(1, 0)
                outgoing.write(request)
                with suppress(OSError):
                    await outgoing.drain()
                    if wait:
                        assert await incoming.read() == b""
                outgoing.close()

    hosts.run(misbehave())
    assert fetch(hosts, Fetcher(kept), b"content", reader=2) == b"content"
    assert fetch(hosts, Fetcher(kept), b"content", reader=1) == b"content"


def test_slow_reader_that_keeps_the_pace_gets_everything(impatient):
    async def exchange() -> int:
        near, far = socket.socketpair()
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        _, writer = await asyncio.open_connection(sock=near)
        reader, other = await asyncio.open_connection(sock=far, limit=4096)
        sending = asyncio.create_task(streams.send(writer, bytes(400_000)))
        came = 0
        while came < 400_000:  # takes several times as long as a silence may
            came += len(await reader.read(16_384))
            await asyncio.sleep(0.05)
        await sending
        writer.close()
        other.close()
        return came

    assert asyncio.run(exchange()) == 400_000


def test_strangers_cannot_keep_registered_peers_waiting(hosts, served, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "MAX_STRANGERS_STREAMS", 1)
    monkeypatch.setattr(serving, "MAX_SERVES", 1)
    hosts.serve_store(0, served, registered=lambda peer: peer == hosts.peers[1])
    data = b"content"
    digest = served.put(data, own=True)

    async def hold() -> tuple[bytes, asyncio.StreamWriter]:
        """Take all that strangers have, and one stream more, which is closed at once: what came on that."""
        _, silent = await hosts.open(2, 0)
        await asyncio.sleep(0.1)
        reader, writer = await hosts.open(2, 0)
        answer = b""
        with suppress(ConnectionError):
            await streams.send_message(writer, wire.BlobRequest(digest=digest))
            answer = await reader.read()
        return answer, silent

    answer, silent = hosts.run(hold())
    assert answer == b""
    assert fetch(hosts, Fetcher(kept), data, reader=1) == data
    silent.close()


def test_peer_that_has_just_met_one_other_fetches_from_all_whom_that_one_knows(hosts, served, kept, tmp_path):
    """Where others are, its p2pd learns a moment after the connection stands; until then it knows nobody."""
    served.put(b"content", own=True)

    async def scene() -> bytes:
        async with newcomer(tmp_path) as p2p:
            fetching = asyncio.create_task(
                Fetcher(kept).fetch(p2p, hosts.peers[0], digest_of(b"content"), 7, timeout=20)
            )
            await asyncio.sleep(blobs.BUSY_RETRY_SECONDS / 2)  # asked in vain once
            (address,) = map(str, await hosts.p2p[1].get_visible_maddrs())
            await p2p._client.connect(hosts.p2p[1].peer_id, [multiaddr.parse(address)])
            return await fetching

    assert hosts.run(scene()) == b"content"


@asynccontextmanager
async def newcomer(folder: Path) -> AsyncIterator[P2P]:
    p2p = await P2P.create(
        identity_path=str(Identity.create(folder / "newcomer.pem").path),
        auto_nat=False,
        nat_port_map=False,
        use_relay=False,
        check_if_identity_free=False,
    )
    try:
        yield p2p
    finally:
        await p2p.shutdown()

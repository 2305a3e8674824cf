"""Files too large for memory, between real libp2p hosts: who gets them, and what no trouble costs twice."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from blob_cast import Handler, Hosts, answering, digest_of, silent

from swarm.errors import ExchangeError
from swarm.exchange import blobs, serving, streams, wire
from swarm.exchange.file_fetcher import FileFetcher
from swarm.exchange.serving import BlobServer
from swarm.exchange.sharing import DAY_SECONDS, Quota
from swarm.exchange.store import BlobStore

HOUR = 3600.0
MEGABYTE = 2**20
LARGE = 6 * MEGABYTE  # more than sockets and libp2p hold on the way


def nothing_own(_digest: bytes, _offset: int) -> None:
    """What a peer serves itself that has nothing."""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A large file."""
    path = tmp_path / "state"
    path.write_bytes(os.urandom(LARGE))
    return path


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "served", 2**30, HOUR)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where fetched files go."""
    (tmp_path / "fetched").mkdir()
    return tmp_path / "fetched"


def fetch(
    hosts: Hosts,
    data: bytes | Path,
    path: Path,
    *,
    fetcher: FileFetcher | None = None,
    server: int = 0,
    reader: int = 1,
    timeout: float = 20,
) -> None:
    data = data.read_bytes() if isinstance(data, Path) else data
    fetcher = fetcher or FileFetcher(nothing_own)
    p2p, peer = hosts.p2p[reader], hosts.peers[server]
    hosts.run(fetcher.fetch(p2p, peer, digest_of(data), len(data), path, timeout=timeout))


def server_of(hosts: Hosts, store: BlobStore, *files: Path, **settings: Any) -> BlobServer:
    """Host 0, with files beside its store."""
    server = hosts.serve_store(0, store, **settings)
    server.shared.replace({digest_of(path.read_bytes()): path for path in files})
    return server


def test_large_file_comes_whole_and_little_of_it_is_in_memory(hosts, store, shared, folder):
    shared.write_bytes(os.urandom(4 * LARGE))
    digest, size_bytes = digest_of(shared.read_bytes()), 4 * LARGE
    server = server_of(hosts, store, shared)
    fetcher = FileFetcher(nothing_own)
    tracemalloc.start()
    try:
        fetching = fetcher.fetch(hosts.p2p[1], hosts.peers[0], digest, size_bytes, folder / "it", timeout=20)
        hosts.run(fetching)
        assert tracemalloc.get_traced_memory()[1] < 6 * MEGABYTE  # of the server, too
    finally:
        tracemalloc.stop()
    assert digest_of((folder / "it").read_bytes()) == digest
    assert [path.name for path in folder.iterdir()] == ["it"]
    assert server.served_bytes == fetcher.fetched_bytes == size_bytes


def test_file_is_served_as_long_as_it_is_shared_and_as_it_was(hosts, store, tmp_path, folder):
    paths = [tmp_path / name for name in ("longer", "rewritten", "gone", "good")]
    for path in paths:
        path.write_bytes(path.name.encode())
    digests = {path.name: path.read_bytes() for path in paths}
    server = server_of(hosts, store, *paths)
    server.shared.replace(
        {digest_of(path.read_bytes()): path for path in paths} | {bytes(32): tmp_path / "never"}
    )
    longer, rewritten, gone, _ = paths
    longer.write_bytes(b"longer than it was")
    rewritten.with_name("other").write_bytes(b"rewr1tten")
    rewritten.with_name("other").replace(rewritten)
    gone.unlink()
    for path in (longer, rewritten, gone):
        with pytest.raises(ExchangeError, match=r"^peer does not have the blob$"):
            fetch(hosts, digests[path.name], folder / "it")
    fetch(hosts, b"good", folder / "it")
    server.shared.replace({})
    with pytest.raises(ExchangeError, match=r"^peer does not have the blob$"):
        fetch(hosts, b"good", folder / "again")


def test_blobs_of_the_store_can_be_fetched_into_files_too(hosts, store, folder):
    server_of(hosts, store, others_bytes_per_day=0)
    store.put(b"content", own=True)
    fetch(hosts, b"content", folder / "it")
    assert (folder / "it").read_bytes() == b"content"


async def begin(hosts: Hosts, reader: int, digest: bytes) -> tuple[int, asyncio.StreamWriter]:
    """Ask host 0 for a file and read no more of it than how it answers."""
    incoming, outgoing = await hosts.open(reader, 0)
    await streams.send_message(outgoing, wire.BlobRequest(digest=digest))
    return (await streams.receive_message(incoming, wire.BlobHeader)).status, outgoing


def test_others_wait_for_one_another_and_auditors_for_nobody(hosts, store, shared, folder, monkeypatch):
    monkeypatch.setattr(serving, "MAX_FILES", 1)
    digest = digest_of(shared.read_bytes())
    server = server_of(hosts, store, shared)

    async def scene() -> list[int]:
        statuses, held = [], []
        for reader in (1, 2):
            status, outgoing = await begin(hosts, reader, digest)
            statuses.append(status)
            held.append(outgoing)
        server.set_auditors({hosts.peers[2]})
        for reader in (2, 2, 2, 1):
            status, outgoing = await begin(hosts, reader, digest)
            statuses.append(status)
            held.append(outgoing)
        for outgoing in held:
            outgoing.close()
        return statuses

    follows, busy = wire.BLOB_FOLLOWS, wire.BLOB_BUSY
    assert hosts.run(scene()) == [follows, busy, follows, follows, busy, busy]
    fetch(hosts, shared, folder / "it")  # busy passes


def test_strangers_keep_neither_peers_nor_auditors_waiting(hosts, store, shared):
    digest = digest_of(shared.read_bytes())
    server = server_of(hosts, store, shared, registered=lambda peer: peer == hosts.peers[1])

    async def scene() -> list[int]:
        answers = [await begin(hosts, reader, digest) for reader in (2, 2, 1)]
        server.set_auditors({hosts.peers[2]})  # it was registered a moment ago
        answers.append(await begin(hosts, 2, digest))
        for _, outgoing in answers:
            outgoing.close()
        return [status for status, _ in answers]

    follows = wire.BLOB_FOLLOWS
    assert hosts.run(scene()) == [follows, wire.BLOB_BUSY, follows, follows]


def test_others_share_a_day_s_bytes_strangers_half_of_them_and_auditors_need_none(
    hosts, store, shared, folder
):
    server = server_of(
        hosts,
        store,
        shared,
        registered=lambda peer: peer == hosts.peers[1],
        others_bytes_per_day=LARGE,
    )
    refused = r"^peer serves no more of its files today$"
    with pytest.raises(ExchangeError, match=refused):
        fetch(hosts, shared, folder / "stranger's", reader=2)
    (unfinished,) = folder.iterdir()
    assert LARGE // 2 <= unfinished.stat().st_size <= LARGE // 2 + streams.CHUNK_BYTES
    (folder / "peers").mkdir()
    with pytest.raises(ExchangeError, match=refused):
        fetch(hosts, shared, folder / "peers" / "it", reader=1)
    server.set_auditors({hosts.peers[2]})
    fetch(hosts, shared, folder / "stranger's", reader=2)  # goes on
    assert (folder / "stranger's").read_bytes() == shared.read_bytes()
    fetch(hosts, shared, folder / "again", reader=2)


def test_quota_counts_a_day_from_its_first_byte():
    now = 1e6
    quota = Quota(100, lambda: now)
    assert quota.has_left(1.0)
    now += 2 * DAY_SECONDS
    quota.spend(60)
    assert quota.has_left(1.0) and not quota.has_left(0.5)
    now += DAY_SECONDS - 1
    quota.spend(60)
    assert not quota.has_left(1.0)
    now += 1
    assert quota.has_left(0.5)


def in_parts(data: bytes, part: int, asked: list[int]) -> Handler:
    """Serves a part of what is asked for, and breaks off."""

    async def answer(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await streams.receive_message(reader, wire.BlobRequest)
        asked.append(request.offset)
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=len(data)))
        await streams.send(writer, data[request.offset : request.offset + part])
        writer.close()

    return answer


def test_connection_that_breaks_again_and_again_costs_nothing_twice(hosts, folder):
    data, asked = os.urandom(MEGABYTE), []
    hosts.serve(0, in_parts(data, 300_000, asked))
    fetch(hosts, data, folder / "it")
    assert (folder / "it").read_bytes() == data
    assert asked == [0, 300_000, 600_000, 900_000]


def test_peer_that_breaks_off_and_gives_nothing_is_given_up(hosts, folder):
    data, asked = os.urandom(MEGABYTE), []
    hosts.serve(0, in_parts(data, 1000, asked))
    with pytest.raises(ExchangeError, match=r"^peer broke off the blob$"):
        fetch(hosts, data, folder / "it", timeout=HOUR)
    assert asked == [0, 1000]


def test_interrupted_fetch_goes_on_in_another_life_with_another_peer(hosts, store, shared, folder):
    async def stuck(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.receive_message(reader, wire.BlobRequest)
        await streams.send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=LARGE))
        await streams.send(writer, shared.read_bytes()[: LARGE // 2])
        await reader.read()

    hosts.serve(2, stuck)
    with pytest.raises(ExchangeError, match=r"^blob did not come in time$"):
        fetch(hosts, shared, folder / "it", server=2, timeout=1)
    (unfinished,) = folder.iterdir()
    assert unfinished.stat().st_size == LARGE // 2
    data = shared.read_bytes()
    asked: list[int] = []
    hosts.serve(0, in_parts(data, LARGE, asked))
    fetch(hosts, data, folder / "it")
    assert asked == [LARGE // 2]
    assert (folder / "it").read_bytes() == data
    fetch(hosts, data, folder / "it")  # nothing is asked for what is there
    assert asked == [LARGE // 2]


def test_silent_peer_is_given_up_and_what_came_is_kept(hosts, folder, impatient):
    hosts.serve(0, silent)
    with pytest.raises(ExchangeError, match=r"^peer stalled$"):
        fetch(hosts, b"content", folder / "it", timeout=HOUR)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (answering(b"c0ntent"), "blob has another digest than announced"),
        (answering(b"content", size_bytes=8), "blob has another size than announced"),
        (answering(status=wire.BLOB_UNKNOWN), "peer does not have the blob"),
    ],
    ids=["digest", "size", "unknown"],
)
def test_wrong_file_is_gone_and_the_reason_is_told(hosts, folder, handler, reason):
    hosts.serve(0, handler)
    with pytest.raises(ExchangeError, match=f"^{reason}$"):
        fetch(hosts, b"content", folder / "it", timeout=HOUR)
    assert not list(folder.iterdir())
    hosts.serve(0, answering(b"content"))
    fetch(hosts, b"content", folder / "it")


@pytest.mark.parametrize("left", [b"c0n", b"c0ntent", b"more than the content"])
def test_spoiled_first_part_is_fetched_again(hosts, folder, store, left):
    server_of(hosts, store)
    store.put(b"content", own=True)
    (folder / f".{digest_of(b'content').hex()}.part").write_bytes(left)
    fetch(hosts, b"content", folder / "it")
    assert (folder / "it").read_bytes() == b"content"
    assert [path.name for path in folder.iterdir()] == ["it"]


def test_one_file_is_fetched_once_for_all_who_want_it_at_once(hosts, folder):
    data, asked = os.urandom(MEGABYTE), []
    hosts.serve(0, in_parts(data, MEGABYTE, asked))
    fetcher = FileFetcher(nothing_own)

    async def together() -> None:
        await asyncio.gather(
            *(
                fetcher.fetch(
                    hosts.p2p[1], hosts.peers[0], digest_of(data), len(data), folder / "it", timeout=20
                )
                for _ in range(3)
            )
        )

    hosts.run(together())
    assert asked == [0]
    assert (folder / "it").read_bytes() == data


def test_busy_peer_is_asked_again_until_the_time_is_up(hosts, folder, monkeypatch):
    monkeypatch.setattr(blobs, "BUSY_RETRY_SECONDS", 0.02)
    hosts.serve(0, answering(status=wire.BLOB_BUSY))
    with pytest.raises(ExchangeError, match=r"^blob did not come in time$"):
        fetch(hosts, b"content", folder / "it", timeout=0.5)


def test_own_file_is_copied_and_nobody_is_asked_unless_it_is_spoiled(hosts, store, shared, folder, tmp_path):
    asked: list[int] = []
    data = shared.read_bytes()
    hosts.serve(0, in_parts(data, LARGE, asked))
    own = BlobServer(store, lambda peer: None, 0)
    own.shared.replace({digest_of(data): shared})
    fetch(hosts, data, folder / "it", fetcher=FileFetcher(own.open))
    assert asked == [] and (folder / "it").read_bytes() == data
    shared.write_bytes(bytes(LARGE))
    own.shared.replace({digest_of(data): shared})
    fetch(hosts, data, folder / "again", fetcher=FileFetcher(own.open))
    assert asked == [0] and (folder / "again").read_bytes() == data


def test_disk_without_room_is_one_line_before_anything_is_fetched(hosts, folder, monkeypatch):
    asked: list[int] = []
    hosts.serve(0, in_parts(b"content", 7, asked))
    fetcher = FileFetcher(nothing_own)
    fetching = fetcher.fetch(
        hosts.p2p[1], hosts.peers[0], hashlib.sha256(b"content").digest(), 2**47, folder / "it", timeout=20
    )
    with pytest.raises(ExchangeError, match=r"^file cannot be written: .*it: the disk has no room") as caught:
        hosts.run(fetching)
    assert "\n" not in str(caught.value) and asked == []
    missing = folder / "missing" / "it"
    with pytest.raises(ExchangeError, match=r"^file cannot be written: .*No such file or directory$"):
        fetch(hosts, b"content", missing)

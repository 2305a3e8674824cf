"""The blob store on a real disk: what goes when it is full, and what crashes and downloads leave."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from swarm.errors import ExchangeError
from swarm.exchange import store as store_module
from swarm.exchange.store import BlobStore

DAY = 24 * 3600.0


class Clock:
    """Moves by a second whenever it is read, so that nothing is as old as anything else."""

    def __init__(self) -> None:
        self.now = 1.8e9

    def time(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(store_module.time, "time", clock.time)
    return clock


@pytest.fixture
def store(tmp_path, clock):
    return BlobStore(tmp_path, 100, DAY)


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def files(folder: Path) -> dict[str, int]:
    """Every file below the folder, and its size."""
    return {
        f"{path.parent.name}/{path.name}": path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def held(store: BlobStore, *blobs: bytes) -> list[bytes]:
    """Those of the blobs that the store has."""
    return [data for data in blobs if store.get(digest_of(data)) == data]


def test_what_was_put_is_there_also_after_reopening_and_crash_leftovers_are_not(store, tmp_path):
    own, fetched = store.put(b"own", own=True), store.put(b"fetched", own=False)
    (tmp_path / "own" / f".{digest_of(b'x').hex()}").write_bytes(b"cut off by a crash")
    reopened = BlobStore(tmp_path, 100, DAY)
    assert (own, fetched) == (digest_of(b"own"), digest_of(b"fetched"))
    assert (reopened.get(own), reopened.get(fetched), reopened.get(bytes(32))) == (b"own", b"fetched", None)
    assert (reopened.size(fetched), reopened.size(bytes(32)), reopened.path(bytes(32))) == (7, None, None)
    assert files(tmp_path) == {f"own/{own.hex()}": 3, f"fetched/{fetched.hex()}": 7}


def test_other_files_in_the_folder_are_left_alone(store, tmp_path):
    (tmp_path / "own" / "notes.txt").write_bytes(b"x" * 500)
    reopened = BlobStore(tmp_path, 100, DAY)
    reopened.put(b"1" * 100, own=True)  # they do not count either
    assert (tmp_path / "own" / "notes.txt").exists()


def test_blob_both_fetched_and_own_is_own(store, tmp_path):
    digest = store.put(b"content", own=False)
    store.put(b"content", own=True)
    store.put(b"content", own=False)
    assert files(tmp_path) == {f"own/{digest.hex()}": 7}
    assert store.path(digest) == tmp_path / "own" / digest.hex()


def test_oldest_fetched_blob_goes_first_and_putting_again_makes_one_the_newest(store):
    one, two, three = b"1" * 40, b"2" * 40, b"3" * 40
    store.put(one, own=False)
    store.put(two, own=False)
    store.put(one, own=False)
    store.put(three, own=False)
    assert held(store, one, two, three) == [one, three]


def test_ages_survive_a_restart(store, tmp_path):
    one, two, three = b"1" * 40, b"2" * 40, b"3" * 40
    store.put(two, own=False)
    store.put(one, own=False)
    store.put(two, own=False)
    reopened = BlobStore(tmp_path, 100, DAY)
    reopened.put(three, own=False)
    assert held(reopened, one, two, three) == [two, three]


def test_fetched_blobs_go_before_older_own_ones_and_a_fetched_one_evicts_no_own_one(store, tmp_path):
    own, fetched = b"o" * 60, b"f" * 40
    store.put(own, own=True)
    store.put(fetched, own=False)
    store.put(b"F" * 40, own=False)
    assert held(store, own, fetched, b"F" * 40) == [own, b"F" * 40]
    before = files(tmp_path)
    with pytest.raises(ExchangeError, match=r"^blob cannot be kept: .*raise the quota"):
        store.put(b"G" * 41, own=False)
    assert files(tmp_path) == before  # nothing went in vain


def test_older_own_blobs_are_the_last_resort_for_an_own_one(store):
    first, second, fetched = b"1" * 40, b"2" * 30, b"f" * 30
    store.put(first, own=True)
    store.put(second, own=True)
    store.put(fetched, own=False)
    store.put(b"3" * 30, own=True)
    assert held(store, first, second, fetched) == [first, second]
    store.put(b"4" * 30, own=True)
    assert held(store, first, second, b"3" * 30, b"4" * 30) == [second, b"3" * 30, b"4" * 30]
    with pytest.raises(ExchangeError, match=r"^blob cannot be kept: "):
        store.put(b"x" * 101, own=True)


def test_what_is_too_old_goes_first_whoever_made_it_and_an_old_partial_before_it(store, clock, tmp_path):
    half = store.begin(digest_of(b"p" * 20), 20)
    store.put(b"o" * 30, own=True)
    store.put(b"f" * 30, own=False)
    half.write(b"p" * 10)
    half.close()
    clock.now += 2 * DAY
    store.put(b"y" * 20, own=False)  # 90 of 100
    store.put(b"1" * 20, own=False)
    assert not list((tmp_path / "partial").iterdir())
    assert held(store, b"o" * 30, b"f" * 30, b"y" * 20, b"1" * 20) == [
        b"o" * 30,
        b"f" * 30,
        b"y" * 20,
        b"1" * 20,
    ]
    store.put(b"2" * 20, own=False)
    assert held(store, b"o" * 30, b"f" * 30, b"y" * 20) == [b"f" * 30, b"y" * 20]


def test_blob_spoiled_on_disk_is_removed_and_can_be_put_again(store, tmp_path):
    digest = store.put(b"content", own=True)
    store.path(digest).write_bytes(b"c0ntent")
    assert store.get(digest) is None
    assert files(tmp_path) == {}
    assert store.get(store.put(b"content", own=True)) == b"content"
    store.path(digest).write_bytes(b"c0ntent")
    assert store.get(store.put(b"content", own=True)) == b"content"  # also when nobody had noticed


def test_blob_removed_behind_our_back_is_not_there(store):
    digest = store.put(b"content", own=False)
    store.path(digest).unlink()
    assert store.get(digest) is None
    assert store.path(digest) is None


def test_full_disk_is_one_line_and_leaves_nothing_behind(store, tmp_path, monkeypatch):
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(ExchangeError, match=r"^blob cannot be kept: .*No space left on device$"):
        store.put(b"content", own=True)
    assert files(tmp_path) == {}
    store.put(b"1" * 100, own=False)  # nor is it counted


def test_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExchangeError, match=r"^blobs cannot be kept in .*file"):
        BlobStore(tmp_path / "file", 100, DAY)


def test_download_becomes_a_fetched_blob(store, tmp_path):
    partial = store.begin(digest_of(b"content"), 7)
    partial.write(b"con")
    partial.write(b"tent")
    assert partial.finish() == b"content"
    partial.close()
    assert partial.kept
    assert files(tmp_path) == {f"fetched/{digest_of(b'content').hex()}": 7}
    assert store.get(digest_of(b"content")) == b"content"


def test_closed_download_goes_on_after_a_restart(store, tmp_path):
    partial = store.begin(digest_of(b"content"), 7)
    partial.write(b"con")
    partial.close()
    partial.write(b"late")  # a thread that lagged behind
    again = BlobStore(tmp_path, 100, DAY).begin(digest_of(b"content"), 7)
    assert again.offset == 3
    again.write(b"tent")
    assert again.finish() == b"content"
    assert files(tmp_path) == {f"fetched/{digest_of(b'content').hex()}": 7}


def test_download_that_was_whole_before_a_crash_needs_no_more_bytes(store, tmp_path):
    partial = store.begin(digest_of(b"content"), 7)
    partial.write(b"content")
    again = BlobStore(tmp_path, 100, DAY).begin(digest_of(b"content"), 7)
    assert (again.offset, again.finish()) == (7, b"content")
    assert files(tmp_path) == {f"fetched/{digest_of(b'content').hex()}": 7}


def test_download_with_another_digest_leaves_nothing(store, tmp_path):
    partial = store.begin(digest_of(b"content"), 7)
    partial.write(b"c0ntent")
    with pytest.raises(ExchangeError, match=r"^blob has another digest than announced$"):
        partial.finish()
    partial.close()
    assert files(tmp_path) == {}
    assert store.begin(digest_of(b"content"), 7).offset == 0


def test_discarded_download_leaves_nothing(store, tmp_path):
    partial = store.begin(digest_of(b"content"), 7)
    partial.write(b"con")
    partial.discard()
    partial.close()
    assert files(tmp_path) == {}


def test_partial_longer_than_announced_is_thrown_away(store, tmp_path):
    partial = store.begin(digest_of(b"content"), 1000)
    partial.write(b"x" * 50)
    partial.close()
    partial = store.begin(digest_of(b"content"), 50)
    partial.write(b"x" * 50)
    partial.close()
    assert store.begin(digest_of(b"content"), 7).offset == 0
    assert files(tmp_path) == {}


def test_second_download_of_a_blob_is_in_memory_and_writes_no_file_of_the_first(store, tmp_path):
    first, second = (store.begin(digest_of(b"content"), 7) for _ in range(2))
    first.write(b"con")
    second.write(b"wrong")
    second.close()
    third = store.begin(digest_of(b"content"), 7)
    third.write(b"content")
    assert third.finish() == b"content"
    first.write(b"tent")
    assert first.finish() == b"content"
    assert files(tmp_path) == {f"fetched/{digest_of(b'content').hex()}": 7}


def test_download_reserves_its_room_at_the_first_byte_and_gives_back_what_it_did_not_use(store):
    store.put(b"f" * 60, own=False)
    partial = store.begin(digest_of(b"content"), 90)
    assert held(store, b"f" * 60)
    partial.write(b"x" * 10)
    assert not held(store, b"f" * 60)
    with pytest.raises(ExchangeError, match=r"^blob cannot be kept: "):
        store.put(b"F" * 11, own=False)
    partial.close()
    store.put(b"F" * 90, own=False)
    assert store.begin(digest_of(b"content"), 90).offset == 10


@pytest.mark.parametrize("quota", [3, 10])
def test_download_over_the_quota_is_in_memory(tmp_path, quota):
    store = BlobStore(tmp_path, quota, DAY)
    store.put(b"own" * (quota // 3), own=True)
    partial = store.begin(digest_of(b"content"), 7)
    partial.write(b"content")
    assert partial.finish() == b"content"
    assert not partial.kept
    assert held(store, b"own" * (quota // 3))
    assert not list((tmp_path / "partial").iterdir())


def test_disk_that_fills_up_in_the_middle_of_a_download_does_not_end_it(store, tmp_path):
    class Full:
        def write(self, _chunk: bytes) -> None:
            raise OSError(28, "No space left on device")

        close = flush = lambda self: None

    partial = store.begin(digest_of(b"content"), 7)
    partial.write(b"con")
    partial._file.close()
    partial._file = Full()
    partial.write(b"te")
    assert files(tmp_path) == {}
    partial.write(b"nt")
    assert partial.finish() == b"content"


def test_own_blob_takes_the_room_of_a_download_which_goes_on_in_memory(store, tmp_path):
    partial = store.begin(digest_of(b"content" * 10), 70)
    partial.write(b"content" * 5)
    store.put(b"o" * 90, own=True)
    partial.write(b"content" * 5)
    assert partial.finish() == b"content" * 10
    assert not partial.kept
    assert files(tmp_path) == {f"own/{digest_of(b'o' * 90).hex()}": 90}


def test_partial_evicted_before_its_attempt_goes_on_makes_no_file_with_a_hole(store, tmp_path):
    partial = store.begin(digest_of(b"content"), 7)
    partial.write(b"con")
    partial.close()
    partial = store.begin(digest_of(b"content"), 7)
    store.put(b"o" * 100, own=True)
    partial.write(b"te")
    partial.close()
    assert files(tmp_path) == {f"own/{digest_of(b'o' * 100).hex()}": 100}
    assert store.begin(digest_of(b"content"), 7).offset == 0


def test_quota_holds_while_threads_put_and_fetch(tmp_path):
    store = BlobStore(tmp_path, 2000, DAY)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for n in range(40):
                data = bytes([seed, n]) * 100
                store.get(store.put(data, own=False))
                partial = store.begin(digest_of(data + b"p"), 201)
                partial.write(data)
                if n % 2:
                    partial.write(b"p")
                    assert partial.finish() == data + b"p"
                partial.close()
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures
    assert sum(files(tmp_path).values()) <= 2000
    assert BlobStore(tmp_path, 2000, DAY)._total == store._total == sum(files(tmp_path).values())

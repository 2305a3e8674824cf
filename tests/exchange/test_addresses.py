"""The address book: what it remembers, and what a damaged file or a full disk costs."""

from __future__ import annotations

import os
import threading

import msgspec
import pytest

from identity import peer_id_text
from swarm.exchange.addresses import (
    KEPT_SECONDS,
    MAX_ADDRESSES,
    MAX_FILE_BYTES,
    MAX_PEERS,
    AddressBook,
)

ALICE, BOB = b"a" * 32, b"b" * 32
DAY = 24 * 3600.0


class Clock:
    seconds = 1_700_000_000.0

    def __call__(self):
        self.seconds += 1
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a swarm" / "addresses.json"


@pytest.fixture
def book(path, clock):
    return AddressBook(path, clock)


def ending(peer):
    return f"/p2p/{peer_id_text(peer)}"


def test_peers_are_found_again_in_the_next_life(book, path, clock, caplog):
    book.remember(ALICE, ["/ip4/10.0.0.1/tcp/1", "/dns4/alice.example/tcp/2"])
    book.remember(BOB, ["/ip6/::1/tcp/3"])
    book.own_port = 38331
    book.save()
    again = AddressBook(path, clock)
    first_of_each = {"/ip6/::1/tcp/3" + ending(BOB), "/ip4/10.0.0.1/tcp/1" + ending(ALICE)}
    assert set(again.multiaddrs(2)) == first_of_each
    assert again.multiaddrs(10)[2:] == ["/dns4/alice.example/tcp/2" + ending(ALICE)]
    assert again.own_port == 38331 and len(again) == 2
    assert {again.multiaddrs(1)[0] for _ in range(100)} == first_of_each  # nobody is always the first
    assert not caplog.records and list(path.parent.iterdir()) == [path]


def test_new_book_is_empty(book, caplog):
    assert book.multiaddrs(10) == [] and book.own_port is None and not caplog.records


def test_peer_seen_again_is_known_by_its_new_addresses(book):
    book.remember(ALICE, ["/ip4/10.0.0.1/tcp/1"])
    book.remember(BOB, ["/ip4/10.0.0.2/tcp/1"])
    book.remember(ALICE, ["/ip4/10.0.0.3/tcp/1"])
    book.remember(BOB, [])  # nothing to dial: nothing changes
    assert sorted(book.multiaddrs(10)) == [
        "/ip4/10.0.0.2/tcp/1" + ending(BOB),
        "/ip4/10.0.0.3/tcp/1" + ending(ALICE),
    ]


def test_own_peer_id_at_the_end_is_not_doubled(book):
    book.remember(ALICE, ["/ip4/10.0.0.1/tcp/1" + ending(ALICE), "/ip4/10.0.0.1/tcp/1"])
    assert book.multiaddrs(10) == ["/ip4/10.0.0.1/tcp/1" + ending(ALICE)]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/unix/tmp/socket",
        "/p2p-circuit",
        "ip4/10.0.0.1/tcp/1",
        "/ip4/10.0.0.1/tcp/1\n",
        "/ip4/10.0.0.1/tcp/1\x1b[2J",
        "/ip4/10.0.0.1/tcp/1é",
        "/ip4/10.0.0.1/tcp/1" + ending(BOB),
        "/ip4/10.0.0.1/tcp/1" + ending(BOB) + "/p2p-circuit",
        "/dns/" + "x" * 200,
    ],
)
def test_what_cannot_be_dialled_is_not_remembered(book, address):
    book.remember(ALICE, [address])
    assert book.multiaddrs(10) == []


def test_book_stays_small(book, path, clock):
    peers = [bytes([number]) * 32 for number in range(200)]
    for peer in peers:
        book.remember(peer, ["/dns/" + '"\\' * 90 + str(number) for number in range(100)])
    assert len(book) == MAX_PEERS and len(book.multiaddrs(10**6)) == MAX_PEERS * MAX_ADDRESSES
    book.save()
    assert path.stat().st_size < MAX_FILE_BYTES
    again = AddressBook(path, clock)
    assert sorted(again.multiaddrs(10**6)) == sorted(book.multiaddrs(10**6))


def test_many_newcomers_do_not_drive_out_all_others(book):
    old = [bytes([number]) * 32 for number in range(32)]
    for peer in [*old, *(bytes([number]) * 32 for number in range(100, 164))]:
        book.remember(peer, ["/ip4/10.0.0.1/tcp/1"])
    endings = {address.partition("/p2p/")[2] for address in book.multiaddrs(MAX_PEERS)}
    assert len(endings) == MAX_PEERS and endings & {peer_id_text(peer) for peer in old}


def test_peer_not_seen_for_a_month_is_forgotten(book, path, clock):
    book.remember(ALICE, ["/ip4/10.0.0.1/tcp/1"])
    clock.seconds += 20 * DAY
    book.remember(BOB, ["/ip4/10.0.0.2/tcp/1"])
    book.save()
    clock.seconds += KEPT_SECONDS - 20 * DAY
    assert AddressBook(path, clock).multiaddrs(10) == ["/ip4/10.0.0.2/tcp/1" + ending(BOB)]
    book.save()
    assert len(book) == 1


def test_peer_seen_in_the_future_is_forgotten_in_time(book, path, clock):
    clock.seconds += 1000 * DAY
    book.remember(ALICE, ["/ip4/10.0.0.1/tcp/1"])
    book.save()
    clock.seconds -= 1000 * DAY
    AddressBook(path, clock).save()
    clock.seconds += KEPT_SECONDS + 10
    assert len(AddressBook(path, clock)) == 0


def _saved(**changes):
    entry = {"peer": peer_id_text(ALICE), "addresses": ["/ip4/10.0.0.1/tcp/1"], "seen": 1_700_000_000.0}
    return msgspec.json.encode({"version": 1, "own_port": 5, "peers": [entry | changes]})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"version": 2}',
        b'{"version": 1, "own_port": 70000}',
        _saved(peer="Qm" + "x" * 10**5),
        _saved(peer="12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"),
        _saved(addresses=["/ip4/10.0.0.1/tcp/1"] * 100),
        _saved(addresses=["", 7]),
        _saved(seen="yesterday"),
        b'{"version": 1, "peers": [' + b",".join([b"{}"] * 10_000) + b"]}",
        b" " * (MAX_FILE_BYTES + 1) + _saved(),
    ],
    ids=[
        "nothing",
        "no UTF-8",
        "deep",
        "a later version",
        "a port too high",
        "a long peer id",
        "a peer id that is not RSA",
        "many addresses",
        "an address that is a number",
        "a time that is a word",
        "many peers",
        "large",
    ],
)
def test_damaged_file_is_an_empty_book_and_one_log_line(path, clock, caplog, content):
    path.parent.mkdir()
    path.write_bytes(content)
    book = AddressBook(path, clock)
    assert book.multiaddrs(10) == [] and book.own_port is None
    assert len(caplog.records) == 1
    book.remember(ALICE, ["/ip4/10.0.0.1/tcp/1"])
    book.save()
    assert len(AddressBook(path, clock)) == 1 and len(caplog.records) == 1


def test_addresses_in_a_file_are_checked_as_those_of_peers(path, clock):
    path.parent.mkdir()
    path.write_bytes(_saved(addresses=["/ip4/10.0.0.1/tcp/1", "/unix/socket", "/dns/" + "x" * 300]))
    assert AddressBook(path, clock).multiaddrs(10) == ["/ip4/10.0.0.1/tcp/1" + ending(ALICE)]


def test_pipe_in_the_files_place_is_not_waited_for(path, clock, caplog):
    path.parent.mkdir()
    os.mkfifo(path)
    assert AddressBook(path, clock).multiaddrs(10) == []


def test_book_is_saved_in_other_threads_while_peers_are_met(book, path, clock, caplog):
    def save():
        for _ in range(50):
            book.save()

    threads = [threading.Thread(target=save) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        book.remember(number.to_bytes(32, "big"), [f"/ip4/10.0.0.1/tcp/{number}"])
    for thread in threads:
        thread.join()
    book.save()
    assert not caplog.records and len(AddressBook(path, clock)) == MAX_PEERS


def test_file_that_cannot_be_written_costs_one_log_line_and_no_old_file(book, path, clock, caplog):
    book.remember(ALICE, ["/ip4/10.0.0.1/tcp/1"])
    book.save()
    obstacle = path.with_name(f".{path.name}")
    obstacle.mkdir()
    book.remember(BOB, ["/ip4/10.0.0.2/tcp/1"])
    for _ in range(3):
        book.save()
    assert len(caplog.records) == 1 and len(AddressBook(path, clock)) == 1
    obstacle.rmdir()
    book.save()
    assert len(AddressBook(path, clock)) == 2


def test_full_disk_costs_one_log_line(clock, caplog, tmp_path):
    path = tmp_path / "addresses.json"
    partial = path.with_name(f".{path.name}")
    partial.symlink_to("/dev/full")
    book = AddressBook(path, clock)
    book.remember(ALICE, ["/ip4/10.0.0.1/tcp/1"])
    book.save()
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert not path.exists() and not partial.is_symlink()

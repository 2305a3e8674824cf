"""The gossip log: what its readers find, and what hostile peers and broken disks cannot do to it."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
from collections import Counter
from contextlib import closing

import pytest
from exchange_cast import signed

from identity import peer_id_text, peer_name
from swarm.exchange import gossip as module
from swarm.exchange import wire
from swarm.exchange.gossip import GOSSIP_FILE, Gossip
from swarm.exchange.gossip_reader import GossipReader

ALICE, BOB = b"a" * 32, b"b" * 32


class Clock:
    def __init__(self, round_number=100):
        self.round = round_number

    def __call__(self):
        return self.round


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a swarm?#%20" / GOSSIP_FILE  # a name that is not to be taken for a part of a URI


@pytest.fixture
def gossip(path, clock):
    with closing(Gossip(path, current_round=clock)) as gossip:
        yield gossip


@pytest.fixture
def reader(path):
    return GossipReader(path)


def heard(peer=ALICE, round_number=100, stage=0, **changes):
    announced = {
        "swarm": bytes(32),
        "round": round_number,
        "stage": stage,
        "cell": 0,
        "expiration": 9,
        "groups": 3,
        "root": bytes(32),
        "blob": b"\xbb" * 32,
        "blob_bytes": 500,
    }
    return wire.Heard(peer=peer, announcement=wire.Announcement(**(announced | changes)), envelope=b"")


def rows(path, table):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def random_peer():
    return random.randbytes(32)


# What readers find


def test_round_is_summed_up(gossip, reader):
    for peer in (ALICE, BOB):
        gossip.heard(heard(peer))
    gossip.fetched(heard(ALICE), 500, 0.25)
    gossip.dropped("blob did not come in time", peer=BOB)
    gossip.dropped("signature is not the sender's", via=BOB)
    gossip.dropped("signature is not the sender's")
    gossip.equivocated(BOB, 100, 0, b"first", b"second")
    gossip.heard(heard(ALICE, 101))
    gossip.flush()
    before, after = reader.rounds()
    assert (before.round, before.heard, before.fetched, before.fetched_bytes) == (100, 2, 1, 500)
    assert list(before.dropped.items()) == [
        ("signature is not the sender's", 2),
        ("blob did not come in time", 1),
    ]
    assert before.equivocations == 1
    assert (after.round, after.heard, after.dropped) == (101, 1, {})


def test_announcement_is_shown_with_its_peer_and_blob(gossip, reader):
    gossip.heard(heard(ALICE, stage=1))
    gossip.flush()
    (entry,) = reader.heard(100)
    assert (entry.peer, entry.name) == (peer_id_text(ALICE), peer_name(ALICE))
    assert (entry.stage, entry.groups, entry.blob, entry.blob_bytes) == ("critique", 3, "bb" * 32, 500)
    assert entry.fetched_bytes is None and entry.seconds is None
    gossip.fetched(heard(ALICE, stage=1), 500, 0.25)
    gossip.flush()
    (entry,) = reader.heard(100)
    assert (entry.fetched_bytes, entry.seconds) == (500, 0.25)


def test_blob_that_is_asked_for_again_keeps_its_first_time(gossip, reader):
    gossip.fetched(heard(), 500, 0.25)
    gossip.fetched(heard(), 500, 0.0)
    gossip.flush()
    gossip.fetched(heard(), 500, 0.0)
    gossip.flush()
    assert [entry.seconds for entry in reader.heard(100)] == [0.25]


def test_drops_of_one_peer_for_one_reason_are_one_row(gossip, reader):
    for _ in range(3):
        gossip.dropped("late", peer=ALICE, via=BOB)
    gossip.flush()
    gossip.dropped("late", peer=ALICE, via=BOB)
    gossip.dropped("late", peer=ALICE)
    gossip.dropped("late", round=99)
    gossip.flush()
    assert [(drop.count, drop.peer, drop.via) for drop in reader.drops(100)] == [
        (4, peer_id_text(ALICE), peer_id_text(BOB)),
        (1, peer_id_text(ALICE), None),
    ]
    assert [(drop.count, drop.peer, drop.via) for drop in reader.drops(99)] == [(1, None, None)]
    assert gossip.totals == Counter({"late": 6})


def test_times_are_unix_seconds(gossip, reader):
    gossip.heard(heard())
    gossip.dropped("late")
    gossip.equivocated(ALICE, 100, 0, b"1", b"2")
    gossip.flush()
    moments = [reader.heard(100)[0].at, reader.drops(100)[0].last_at, reader.equivocations()[0].at]
    written = gossip._path.stat().st_mtime
    assert all(abs(moment - written) < 60 for moment in moments)


def test_evidence_can_be_checked_again(gossip, reader, identities):
    cheat = identities[0]
    first, second = (
        signed(cheat, heard(cheat.peer, blob=bytes([number]) * 32).announcement) for number in (1, 2)
    )
    gossip.equivocated(cheat.peer, 100, 0, first, second)
    gossip.equivocated(cheat.peer, 100, 0, second, first)  # one proof is enough
    gossip.flush()
    (proof,) = reader.equivocations()
    assert (proof.round, proof.stage, proof.peer, proof.name) == (
        100,
        "answer",
        cheat.peer_id,
        peer_name(cheat.peer),
    )
    said = [wire.open_envelope(envelope) for envelope in (proof.first, proof.second)]
    assert [each.peer for each in said] == [cheat.peer] * 2
    assert said[0].announcement != said[1].announcement


# Rounds


def test_old_rounds_are_deleted(path, clock, reader):
    with closing(Gossip(path, current_round=clock, keep_rounds=2)) as gossip:
        for clock.round in range(100, 105):
            gossip.heard(heard(round_number=clock.round))
            gossip.dropped("late")
            gossip.equivocated(ALICE, clock.round, 0, b"1", b"2")
            gossip.flush()
        assert [summary.round for summary in reader.rounds()] == [102, 103, 104]
        assert [proof.round for proof in reader.equivocations()] == [102, 103, 104]
        clock.round = 200
        gossip.flush()  # though nothing new was heard
        assert reader.rounds() == []


def test_rounds_that_peers_make_up_are_not_kept(gossip, clock, reader):
    clock.round = 10_000
    for number in (0, 2**48 - 1):
        gossip.heard(heard(round_number=number))
        gossip.equivocated(ALICE, number, 0, b"1", b"2")
        gossip.dropped("round is ahead of the clock", round=number)
    gossip.flush()
    (only,) = reader.rounds()
    assert (only.round, only.heard, only.equivocations) == (10_000, 0, 0)
    assert only.dropped == {"round is ahead of the clock": 2}


# Volume


def test_hundred_thousand_drops_of_made_up_peers_stay_few(gossip, path, reader):
    for number in range(100_000):
        gossip.dropped("late", peer=random_peer(), via=random_peer(), round=random.randrange(2**48))
        if number % 10_000 == 0:
            gossip.flush()
            assert len(gossip._gathered.drops) == 0
        assert len(gossip._gathered.drops) <= module.MAX_PENDING + 1
    gossip.flush()
    assert rows(path, "drops") == module.MAX_DROPS + 1
    assert reader.rounds()[0].dropped == {"late": 100_000}
    assert gossip.totals == Counter({"late": 100_000})


def test_announcements_of_a_stage_stay_few(gossip, path):
    for stage in (0, 1):
        for _ in range(5000):
            gossip.heard(heard(random_peer(), stage=stage))
        assert len(gossip._gathered.heard) <= module.MAX_PENDING
        gossip.flush()
    assert rows(path, "heard") == 2 * module.MAX_HEARD


def test_equivocations_of_a_round_stay_few(gossip, path):
    for _ in range(5):
        for _ in range(50):
            gossip.equivocated(random_peer(), 100, 0, b"1", b"2")
        assert len(gossip._gathered.equivocations) <= module.MAX_EQUIVOCATIONS
        gossip.flush()
    assert rows(path, "equivocations") == module.MAX_EQUIVOCATIONS


def test_reasons_without_end_are_counted_together(gossip, reader):
    for number in range(1000):
        gossip.dropped(f"reason {number}")
    gossip.flush()
    assert len(gossip.totals) == module.MAX_REASONS + 1
    assert gossip.totals[module.OTHER_REASONS] == 1000 - module.MAX_REASONS
    assert reader.rounds()[0].dropped == gossip.totals


def test_reason_is_cut_and_printable(gossip, reader):
    gossip.dropped("\x1b[2J\ud800" + "x" * 1000)
    gossip.flush()
    assert list(reader.rounds()[0].dropped) == ["?[2J?" + "x" * (module.MAX_REASON_CHARS - 5)]


def test_subkey_in_a_peers_place_is_cut(gossip, reader):
    gossip.dropped("subkey is not a peer digest", peer=b"\xff" * 10**6)
    gossip.flush()
    (drop,) = reader.drops(100)
    assert len(drop.peer) < 100


def test_threads_write_at_the_same_time(gossip, reader):
    def drop(peer):
        for number in range(5000):
            gossip.dropped("late", peer=peer)
            gossip.heard(heard(peer, round_number=90 + number % 10))
            if number % 500 == 0:
                gossip.flush()

    threads = [threading.Thread(target=drop, args=(peer,)) for peer in (ALICE, BOB, ALICE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gossip.flush()
    assert gossip.totals["late"] == 15_000
    assert {drop.peer: drop.count for drop in reader.drops(100)} == {
        peer_id_text(ALICE): 10_000,
        peer_id_text(BOB): 5000,
    }
    assert [summary.heard for summary in reader.rounds()] == [2] * 10 + [0]


# Lives, disks and readers


def test_next_life_goes_on_in_the_same_file(path, clock, reader):
    for life in (1, 2):
        with closing(Gossip(path, current_round=clock)) as gossip:
            gossip.heard(heard(ALICE))
            gossip.dropped("late", peer=ALICE)
            assert gossip.totals == Counter({"late": 1})
        assert reader.rounds()[0].heard == 1
        assert reader.drops(100)[0].count == life


def test_what_comes_after_the_end_is_only_counted(gossip, reader):
    gossip.close()
    gossip.dropped("late")
    gossip.flush()
    gossip.close()
    assert gossip.totals == Counter({"late": 1}) and reader.rounds() == []


def test_without_a_file_there_are_totals(clock):
    gossip = Gossip(None, current_round=clock)
    for _ in range(10_000):
        gossip.dropped("late", peer=random_peer())
        gossip.heard(heard(random_peer()))
    gossip.flush()
    gossip.close()
    assert gossip.totals == Counter({"late": 10_000})


def test_nothing_is_written_before_a_flush(gossip, path):
    gossip.heard(heard())
    gossip.dropped("late")
    assert not path.exists()


def test_disk_that_is_full_for_a_while_costs_one_log_line_and_no_evidence(
    gossip, reader, caplog, monkeypatch
):
    gossip.heard(heard())
    gossip.flush()
    gossip._close_file()
    opened = module._open

    def open_on_full_disk(path):
        db = opened(path)
        db.execute("PRAGMA max_page_count = 1")  # as many as there are: "database or disk is full"
        return db

    monkeypatch.setattr(module, "_open", open_on_full_disk)
    for _ in range(3):
        gossip.equivocated(random_peer(), 100, 0, bytes(2048), bytes(2048))
        for _ in range(10_000):
            gossip.dropped("late", peer=random_peer())
        gossip.flush()
        assert len(gossip._gathered.drops) <= module.MAX_PENDING + 1
    assert len(caplog.records) == 1 and "full" in caplog.text
    assert reader.rounds()[0].dropped == {}
    monkeypatch.undo()
    gossip.flush()
    assert len(reader.equivocations()) == 3
    assert reader.rounds()[0].dropped == {"late": 30_000}
    assert len(caplog.records) == 1


def test_broken_disk_makes_memory_keep_no_more_rounds_than_the_log(path, clock):
    path.parent.write_text("a file where the folder should be")
    gossip = Gossip(path, current_round=clock, keep_rounds=4)
    for clock.round in range(100, 200):
        gossip.heard(heard(round_number=clock.round))
        gossip.dropped("late")
        gossip.equivocated(ALICE, clock.round, 0, b"1", b"2")
        gossip.flush()
    gathered = gossip._gathered
    assert [len(kept) for kept in (gathered.heard, gathered.drops, gathered.equivocations)] == [5, 5, 5]


@pytest.mark.parametrize(
    "obstacle", ["file in the folder's place", "folder in the file's place", "no database"]
)
def test_path_that_cannot_be_written_costs_one_log_line(path, clock, reader, caplog, obstacle):
    if obstacle == "file in the folder's place":
        path.parent.write_text("")
    elif obstacle == "folder in the file's place":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir()
        path.write_bytes(b"not a database at all" * 100)
    with closing(Gossip(path, current_round=clock)) as gossip:
        for _ in range(5):
            gossip.heard(heard())
            gossip.dropped("late")
            gossip.flush()
        assert reader.rounds() == [] and reader.heard(100) == [] and reader.equivocations() == []
    assert len(caplog.records) == 1 and str(path) in caplog.text
    assert gossip.totals == Counter({"late": 5})


def test_log_that_can_be_written_again_has_what_waited(path, clock, reader, caplog):
    path.parent.write_text("")
    with closing(Gossip(path, current_round=clock)) as gossip:
        gossip.dropped("late")
        gossip.flush()
        gossip.dropped("late")
        path.parent.unlink()
        gossip.flush()
        assert reader.rounds()[0].dropped == {"late": 2}
        gossip._close_file()
        shutil.rmtree(path.parent)
        path.parent.write_text("")
        gossip.dropped("late")
        gossip.flush()
    assert len(caplog.records) == 2  # one for each time that it began


def test_reader_sees_whole_flushes_only(gossip, path, reader):
    gossip.heard(heard(ALICE))
    gossip.flush()
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as other:
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM heard").fetchone() == (1,)
        gossip.heard(heard(BOB))
        gossip.flush()  # a reader in the middle of reading does not hold it up
        assert other.execute("SELECT count(*) FROM heard").fetchone() == (1,)
    writer = gossip._db
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM heard")
    assert reader.rounds()[0].heard == 2  # nor the other way round
    writer.rollback()


def test_reader_before_the_writer_finds_nothing(path, reader):
    assert reader.rounds() == [] and reader.drops(100) == [] and reader.equivocations() == []
    path.parent.mkdir()
    sqlite3.connect(path).close()
    assert reader.rounds() == [] and reader.heard(100) == []
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True).execute("CREATE TABLE heard (round)")

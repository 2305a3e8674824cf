"""Each test of an interruption makes the state that a kill would leave, by the documented steps."""

import os

import pytest

from identity import Identity, IdentityError, Journal, Slot, SlotTaken, open_identity
from identity.rotation import adopt_successor, prepare_successor

SLOT = Slot("swarm", 3, 0)
ONE, TWO = b"1" * 32, b"2" * 32


@pytest.fixture
def old_and_new(tmp_path, put_key):
    """A home whose old peer has signed and whose successor is prepared."""
    old, new = put_key(tmp_path, 0), put_key(tmp_path, 1, "swarm.next.pem")
    journal = Journal.create(tmp_path / "journal.sqlite", old.peer)
    journal.claim(SLOT, ONE)
    journal.close()
    return old, new


def check_adopted(home, old, new):
    """The new key is in place with a journal of its own; the old one's are retired and still refuse."""
    identity, journal = adopt_successor(home)
    assert identity.peer == new.peer == Identity.load(home / "swarm.pem").peer
    assert journal.reason_to_listen("swarm", 3, 10) == "missing"  # a backup may have the key elsewhere
    journal.claim(SLOT, TWO)
    journal.close()
    assert not (home / "swarm.next.pem").exists()
    assert Identity.load(home / "retired" / f"{old.peer_id}.pem").peer == old.peer
    retired = Journal.open(home / "retired" / f"{old.peer_id}.sqlite", old.peer)
    with pytest.raises(SlotTaken):
        retired.claim(SLOT, TWO)
    retired.close()
    assert sorted(file.name for file in home.iterdir()) == ["journal.sqlite", "retired", "swarm.pem"]


def steps(home, old, new, count):
    """What the first `count` steps leave."""
    retired = home / "retired"
    retired.mkdir()
    if count >= 1:
        os.link(home / "swarm.pem", retired / f"{old.peer_id}.pem")
    if count >= 2:
        (home / "journal.sqlite").rename(retired / f"{old.peer_id}.sqlite")
    if count >= 3:
        Journal.open(home / "journal.sqlite", new.peer).close()
    if count >= 4:
        (home / "swarm.next.pem").replace(home / "swarm.pem")


def test_successor_is_prepared_once(tmp_path, put_key):
    old = put_key(tmp_path)
    successor = prepare_successor(tmp_path)
    assert successor.peer != old.peer
    assert prepare_successor(tmp_path).peer == successor.peer
    assert (tmp_path / "swarm.next.pem").stat().st_mode & 0o777 == 0o600
    assert Identity.load(tmp_path / "swarm.pem").peer == old.peer


def test_adoption_swaps_the_keys_and_retires_the_old_with_its_journal(tmp_path, old_and_new):
    check_adopted(tmp_path, *old_and_new)


@pytest.mark.parametrize("done", range(5))
def test_adoption_killed_after_any_step_ends_as_if_it_had_not_been(tmp_path, old_and_new, done):
    steps(tmp_path, *old_and_new, done)
    check_adopted(tmp_path, *old_and_new)


@pytest.mark.parametrize("done", range(4))
def test_node_that_starts_in_between_is_the_old_peer_and_loses_nothing(tmp_path, old_and_new, done):
    old, new = old_and_new
    steps(tmp_path, old, new, done)
    identity, journal = open_identity(tmp_path)
    assert identity.peer == old.peer
    assert journal.reason_to_listen("swarm", 3, 10) == (None if done < 2 else "missing")
    journal.claim(Slot("swarm", 4, 0), ONE)
    journal.close()
    check_adopted(tmp_path, old, new)
    retired = Journal.open(tmp_path / "retired" / f"{old.peer_id}.sqlite", old.peer)
    with pytest.raises(SlotTaken):
        retired.claim(Slot("swarm", 4, 0), TWO)
    retired.close()


def test_journal_of_a_killed_node_moves_with_what_its_log_holds(tmp_path, old_and_new):
    old, new = old_and_new
    journal = Journal.open(tmp_path / "journal.sqlite", old.peer)
    journal.claim(Slot("swarm", 5, 0), ONE)
    log = tmp_path / "journal.sqlite-wal"
    content = log.read_bytes()
    database = (tmp_path / "journal.sqlite").read_bytes()
    journal.close()
    (tmp_path / "journal.sqlite").write_bytes(database)
    log.write_bytes(content)
    check_adopted(tmp_path, old, new)
    retired = Journal.open(tmp_path / "retired" / f"{old.peer_id}.sqlite", old.peer)
    assert retired.last_round("swarm") == 5
    retired.close()


def test_journal_in_use_is_not_moved(tmp_path, old_and_new):
    running = Journal.open(tmp_path / "journal.sqlite", old_and_new[0].peer)
    with pytest.raises(IdentityError, match="in use"):
        adopt_successor(tmp_path)
    running.close()
    check_adopted(tmp_path, *old_and_new)


def test_finished_adoption_returns_the_same_key_again(tmp_path, old_and_new):
    adopt_successor(tmp_path)[1].close()
    identity, journal = adopt_successor(tmp_path)
    assert identity.peer == old_and_new[1].peer
    journal.close()


def test_adoption_without_a_prepared_key_changes_nothing(tmp_path, put_key):
    put_key(tmp_path)
    with pytest.raises(IdentityError, match="prepare a successor"):
        adopt_successor(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["swarm.pem"]


def test_successor_that_is_the_same_key_is_refused(tmp_path, put_key):
    put_key(tmp_path)
    put_key(tmp_path, name="swarm.next.pem")
    with pytest.raises(IdentityError, match="same key"):
        adopt_successor(tmp_path)

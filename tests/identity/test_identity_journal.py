import sqlite3
import threading

import pytest

from identity import IdentityError, Journal, Slot, SlotTaken
from identity.interchange import ScopeEntry, SlotEntry, encode_document

PEER, OTHER_PEER = bytes(32), bytes([1]) * 32
ONE, TWO = b"1" * 32, b"2" * 32
SLOT = Slot("swarm", 7, 0)


@pytest.fixture
def journal(tmp_path):
    journal = Journal.create(tmp_path / "journal.sqlite", PEER)
    yield journal
    journal.close()


def reopened(journal, peer=PEER):
    journal.close()
    return Journal.open(journal.path, peer)


def test_slot_signs_one_digest_for_ever(journal):
    journal.claim(SLOT, ONE)
    journal.claim(SLOT, ONE)
    with pytest.raises(SlotTaken, match="signed something else already"):
        journal.claim(SLOT, TWO)
    with pytest.raises(SlotTaken):
        reopened(journal).claim(SLOT, TWO)


@pytest.mark.parametrize("other", [Slot("swarm", 7, 1), Slot("swarm", 8, 0), Slot("swarm ", 7, 0)])
def test_other_slots_are_free(journal, other):
    journal.claim(SLOT, ONE)
    journal.claim(other, TWO)


def test_signature_is_the_keys_and_its_digest_is_claimed(tmp_path, keys):
    journal = Journal.create(tmp_path / "journal.sqlite", keys[0].peer)
    signature = journal.sign(keys[0], SLOT, b"message")
    assert keys[0].public_key.verify(b"message", signature)
    assert journal.sign(keys[0], SLOT, b"message") == signature
    with pytest.raises(SlotTaken):
        journal.sign(keys[0], SLOT, b"other")
    with pytest.raises(IdentityError, match="not the journal of"):
        journal.sign(keys[1], Slot("swarm", 8, 0), b"message")


@pytest.mark.parametrize(
    "slot",
    [
        Slot("", 0, 0),
        Slot("x" * 129, 0, 0),
        Slot("tab\t", 0, 0),
        Slot("line\n", 0, 0),
        Slot("é", 0, 0),
        Slot("s", -1, 0),
        Slot("s", 0, -1),
        Slot("s", 1 << 63, 0),
    ],
)
def test_slot_that_is_none_is_refused(journal, slot):
    with pytest.raises(IdentityError):
        journal.claim(slot, ONE)


def test_digest_of_another_length_is_refused(journal):
    with pytest.raises(IdentityError, match="32 bytes"):
        journal.claim(SLOT, b"short")


def test_old_rounds_are_forgotten_and_never_signed_again(journal):
    journal.kept_rounds = 3
    for round in (1, 5, 6, 7):
        journal.claim(Slot("swarm", round, 0), ONE)
    for round in (0, 1, 4):
        with pytest.raises(SlotTaken, match="older"):
            journal.claim(Slot("swarm", round, 0), ONE)
    journal.claim(Slot("swarm", 5, 0), ONE)
    journal.claim(Slot("other", 0, 0), ONE)
    assert journal.last_round("swarm") == 7


def test_journal_keeps_4096_rounds(journal):
    slots = [SlotEntry(round, 0, ONE.hex()) for round in range(4_097)]
    assert journal.import_(encode_document(PEER, [ScopeEntry("swarm", -1, slots)])) == 4_097
    journal.claim(Slot("swarm", 1, 1), ONE)
    with pytest.raises(SlotTaken):
        journal.claim(Slot("swarm", 0, 1), ONE)
    journal.claim(Slot("swarm", 4_097, 0), ONE)
    with pytest.raises(SlotTaken):
        journal.claim(Slot("swarm", 1, 2), ONE)


def test_last_round_is_the_highest_claimed(journal):
    assert journal.last_round("swarm") == -1
    for round in (9, 4):
        journal.claim(Slot("swarm", round, 2), ONE)
    assert journal.last_round("swarm") == 9
    assert journal.last_round("other") == -1


def test_journal_made_with_its_key_may_speak_at_once(journal):
    assert journal.reason_to_listen("swarm", 1_000, 10) is None
    assert reopened(journal).reason_to_listen("swarm", 1_000, 10) is None


def test_missing_journal_listens_in_every_scope_once(tmp_path):
    journal = Journal.open(tmp_path / "journal.sqlite", PEER)
    assert journal.reason_to_listen("a", 5, 10) == "missing"
    journal.listened("a", 5)
    journal = reopened(journal)
    assert journal.reason_to_listen("a", 6, 10) is None
    assert journal.reason_to_listen("b", 6, 10) == "missing"


def test_scope_that_was_left_alone_is_stale_until_it_listened(journal):
    journal.claim(SLOT, ONE)
    assert journal.reason_to_listen("swarm", 17, 10) is None
    assert journal.reason_to_listen("swarm", 18, 10) == "stale"
    assert journal.reason_to_listen("other", 18, 10) is None
    journal.listened("swarm", 18)
    assert journal.reason_to_listen("swarm", 19, 10) is None
    assert journal.reason_to_listen("swarm", 29, 10) == "stale"


def test_journal_is_readable_by_its_owner_only(journal):
    journal.claim(SLOT, ONE)
    files = list(journal.path.parent.iterdir())
    assert len(files) == 3  # SQLite's log and index too
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_journal_open_to_others_is_refused(journal):
    journal.path.chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        reopened(journal)


def test_journal_is_never_made_over_another(journal):
    with pytest.raises(IdentityError, match="never overwritten"):
        Journal.create(journal.path, PEER)


def test_journal_of_another_peer_is_refused(journal):
    with pytest.raises(IdentityError, match=r"put that peer's swarm\.pem back"):
        reopened(journal, OTHER_PEER)


def test_unused_journal_of_another_peer_can_be_taken_over(journal):
    Journal.open(journal.path, OTHER_PEER, take_empty=True).close()
    with pytest.raises(IdentityError, match="taken over"):
        journal.claim(SLOT, ONE)
    theirs = reopened(journal, OTHER_PEER)
    assert theirs.reason_to_listen("swarm", 0, 10) == "missing"
    theirs.claim(SLOT, ONE)
    theirs.close()
    with pytest.raises(IdentityError, match="is the journal of peer"):
        Journal.create(journal.path, PEER, take_empty=True)


@pytest.mark.parametrize("where", [0, 100, 3 * 4_096])
def test_damaged_journal_is_one_clear_error(journal, where):
    for round in range(200):
        journal.claim(Slot("swarm", round, 0), ONE)
    journal.close()
    content = bytearray(journal.path.read_bytes())
    content[where : where + 3_000] = b"\xa5" * 3_000
    journal.path.write_bytes(content)
    with pytest.raises(IdentityError, match=r"damaged|not a journal") as caught:
        Journal.open(journal.path, PEER)
    assert "\n" not in str(caught.value)


def test_other_database_and_folder_are_no_journal(tmp_path):
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE slots (x)")
    db.close()
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="not a journal"):
        Journal.open(path, PEER)
    path.unlink()
    path.mkdir()
    with pytest.raises(IdentityError, match="not a plain file"):
        Journal.open(path, PEER)


def test_emptied_journal_counts_as_missing(journal):
    journal.claim(SLOT, ONE)
    journal.close()
    journal.path.write_bytes(b"")
    assert reopened(journal).reason_to_listen("swarm", 7, 10) == "missing"


def test_log_of_a_deleted_journal_is_not_taken_for_the_new_ones(tmp_path):
    old = Journal.create(tmp_path / "journal.sqlite", PEER)
    old.claim(SLOT, ONE)
    log = old.path.with_name("journal.sqlite-wal")
    content = log.read_bytes()
    old.close()
    old.path.unlink()
    log.write_bytes(content)
    journal = Journal.open(old.path, PEER)
    assert journal.reason_to_listen("swarm", 7, 10) == "missing"
    assert journal.last_round("swarm") == -1
    journal.claim(SLOT, TWO)
    assert reopened(journal).last_round("swarm") == 7


def test_of_many_threads_and_two_connections_one_gets_the_slot(journal):
    second = Journal.open(journal.path, PEER)
    won, start = [], threading.Barrier(8)

    def claim(number):
        start.wait()
        for round in range(20):
            try:
                (journal, second)[number % 2].claim(Slot("swarm", round, 0), bytes([number]) * 32)
                won.append(round)
            except SlotTaken:
                pass

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.close()
    assert sorted(won) == list(range(20))


def test_closed_journal_signs_nothing(journal, keys):
    journal.close()
    with pytest.raises(IdentityError):
        journal.claim(SLOT, ONE)

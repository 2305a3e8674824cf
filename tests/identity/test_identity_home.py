import os
import shutil
import stat

import pytest
from hivemind.p2p import P2P
from hivemind.proto import crypto_pb2

from identity import (
    Identity,
    IdentityError,
    Journal,
    Slot,
    create_identity,
    load_or_create_identity,
    open_identity,
    write_private_file,
)
from identity.key import MAX_FILE_BYTES

SLOT = Slot("swarm", 3, 0)


def reason(journal):
    return journal.reason_to_listen("swarm", 3, 10)


def test_key_and_journal_are_born_together_and_open_again(tmp_path):
    home = tmp_path / "new" / "home"
    identity, journal = create_identity(home)
    assert reason(journal) is None
    journal.sign(identity, SLOT, b"message")
    journal.close()
    for opener in (open_identity, load_or_create_identity):
        again, journal = opener(home)
        assert again.peer == identity.peer
        assert reason(journal) is None
        assert journal.last_round("swarm") == 3
        journal.close()
    assert {file.stat().st_mode & 0o777 for file in home.iterdir()} == {0o600}


def test_home_without_a_key_gets_one(tmp_path):
    journal = load_or_create_identity(tmp_path)[1]
    assert reason(journal) is None
    journal.close()


def test_key_made_by_hivemind_works_unchanged_and_its_journal_says_that_it_was_missing(tmp_path):
    path = tmp_path / "swarm.pem"
    P2P.generate_identity(str(path))  # RL Swarm's are made by the same
    before = path.read_bytes()
    identity, journal = open_identity(tmp_path)
    assert reason(journal) == "missing"
    assert identity.public_key.verify(b"message", journal.sign(identity, SLOT, b"message"))
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    journal.close()


def test_key_that_we_make_is_read_by_hivemind(keys):
    message = crypto_pb2.PrivateKey.FromString(keys[0].path.read_bytes())
    assert message.key_type == crypto_pb2.RSA
    assert message.SerializeToString() == keys[0].path.read_bytes()


def test_existing_key_is_never_made_anew(tmp_path, put_key):
    identity = put_key(tmp_path)
    with pytest.raises(IdentityError, match="never overwritten"):
        create_identity(tmp_path)
    assert Identity.load(tmp_path / "swarm.pem").peer == identity.peer
    assert not (tmp_path / "journal.sqlite").exists()


def test_no_key_is_made_beside_the_journal_of_one_that_signed(tmp_path, keys):
    with_entries = Journal.create(tmp_path / "journal.sqlite", keys[0].peer)
    with_entries.claim(SLOT, bytes(32))
    with_entries.close()
    with pytest.raises(IdentityError, match=r"put that peer's swarm\.pem back"):
        create_identity(tmp_path)
    assert not (tmp_path / "swarm.pem").exists()


def test_killed_between_journal_and_key_the_next_creation_succeeds(tmp_path, keys):
    Journal.create(tmp_path / "journal.sqlite", keys[0].peer).close()
    identity, journal = create_identity(tmp_path)
    assert identity.peer != keys[0].peer
    assert reason(journal) is None
    journal.close()


def test_key_dropped_into_a_home_that_was_killed_there_has_to_listen(tmp_path, keys, put_key):
    Journal.create(tmp_path / "journal.sqlite", keys[0].peer).close()
    put_key(tmp_path, 1)
    journal = open_identity(tmp_path)[1]
    assert reason(journal) == "missing"
    journal.close()


def test_failure_to_write_the_key_leaves_no_journal_that_claims_a_used_key_is_fresh(tmp_path, monkeypatch):
    def fail(*_):
        raise IdentityError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("identity.key.write_private_file", fail)
        with pytest.raises(IdentityError, match="disk full"):
            create_identity(tmp_path)
    create_identity(tmp_path)[1].close()


def test_another_peers_journal_does_not_open_for_the_key(tmp_path, keys, put_key):
    put_key(tmp_path / "a", 0)
    put_key(tmp_path / "b", 1)
    journal = open_identity(tmp_path / "a")[1]
    journal.claim(SLOT, bytes(32))
    journal.close()
    shutil.copy(tmp_path / "a" / "journal.sqlite", tmp_path / "b" / "journal.sqlite")
    with pytest.raises(IdentityError, match="is the journal of peer"):
        open_identity(tmp_path / "b")


def test_key_file_of_absurd_size_is_refused(tmp_path):
    path = tmp_path / "swarm.pem"
    path.write_bytes(bytes(MAX_FILE_BYTES + 1))
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="larger"):
        open_identity(tmp_path)


def test_pipe_in_the_keys_place_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "swarm.pem", 0o600)
    with pytest.raises(IdentityError, match="not a plain file"):
        open_identity(tmp_path)


@pytest.mark.parametrize("opener", [create_identity, load_or_create_identity])
def test_home_that_is_a_file_is_one_clear_error(tmp_path, opener):
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="choose another --home"):
        opener(tmp_path / "file")
    with pytest.raises(IdentityError, match="choose another --home"):
        write_private_file(tmp_path / "file" / "wallet.json", b"")

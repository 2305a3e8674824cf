import json
import subprocess
import sys

import msgspec
import pytest

from identity import (
    BackupContents,
    IdentityError,
    Journal,
    Slot,
    SlotTaken,
    collect_backup,
    create_identity,
    load_or_create_identity,
    load_or_create_wallet,
    open_identity,
    read_backup,
    restore_backup,
    write_backup,
)
from identity.backup import MAX_BYTES
from identity.sealed import MAX_HEADER_BYTES
from identity.wallet import PASSWORD_VARIABLE

PASSWORD = "correct horse"
SLOT = Slot("swarm", 3, 0)
WALLET_KEY = "0x" + "11" * 32


@pytest.fixture(autouse=True)
def no_password_set(monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A peer that has signed and has a wallet and a prepared successor."""
    from eth_account import Account

    from identity import prepare_successor

    home = tmp_path_factory.mktemp("home")
    identity, journal = create_identity(home)
    journal.sign(identity, SLOT, b"message")
    journal.close()
    prepare_successor(home)
    keystore = json.dumps(Account.encrypt(WALLET_KEY, "wallet password", kdf="scrypt", iterations=2))
    for name, content in (("wallet.json", keystore), ("wallet.password", "wallet password")):
        (home / name).write_text(content)
        (home / name).chmod(0o600)
    return home


@pytest.fixture(scope="module")
def contents(home):
    return collect_backup(home)


@pytest.fixture(scope="module")
def backup(contents, tmp_path_factory):
    path = tmp_path_factory.mktemp("backup") / "peer.backup"
    write_backup(path, contents, PASSWORD)
    return path


def changed(contents, **changes):
    return msgspec.structs.replace(contents, **changes)


def test_backup_holds_all_that_a_peer_is_and_shows_only_its_id(home, contents, backup):
    assert read_backup(backup, PASSWORD) == contents
    assert contents.key == (home / "swarm.pem").read_bytes()
    assert contents.wallet == (home / "wallet.json").read_bytes()
    sealed = backup.read_bytes()
    assert contents.peer_id.encode() in sealed
    for secret in (contents.key[200:240], b"wallet password", b"ciphertext", b"swarm-journal"):
        assert secret not in sealed
    assert backup.stat().st_mode & 0o777 == 0o600


def test_password_typed_on_another_system_is_the_same(contents, tmp_path):
    write_backup(tmp_path / "b", contents, "pässword-é")
    assert read_backup(tmp_path / "b", "pa\u0308ssword-e\u0301") == contents


def test_wrong_password_and_damage_are_one_line_that_names_both(backup, tmp_path):
    sealed = bytearray(backup.read_bytes())
    sealed[-1] ^= 1
    damaged = tmp_path / "damaged"
    damaged.write_bytes(sealed)
    for path, password in ((backup, "wrong password"), (damaged, PASSWORD)):
        with pytest.raises(IdentityError, match="password is wrong, or the file is damaged") as caught:
            read_backup(path, password)
        assert "\n" not in str(caught.value)


def test_header_is_under_the_seal(backup, contents, tmp_path):
    path = tmp_path / "b"
    other = ("a" if contents.peer_id[-1] != "a" else "b").encode()
    peer = contents.peer_id.encode()
    path.write_bytes(backup.read_bytes().replace(peer, peer[:-1] + other))
    with pytest.raises(IdentityError, match="damaged"):
        read_backup(path, PASSWORD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a swarm-rl backup"),
        (b"swarm-backup/2\n" + bytes(100), "newer"),
        (b"swarm-backup/1\n\x00\x00", "cut short"),
        (b"swarm-backup/1\n\xff\xff\xff\xff" + bytes(MAX_HEADER_BYTES), "cut short"),
        (b"swarm-backup/1\n\x00\x00\x00\x02{}" + bytes(16), "header is unreadable"),
        (bytes(MAX_BYTES + 1), "larger"),
    ],
)
def test_file_that_is_no_backup_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "b"
    path.write_bytes(content)
    with pytest.raises(IdentityError, match=message):
        read_backup(path, PASSWORD)


@pytest.mark.parametrize(
    "cost", [{"n": 1 << 25}, {"r": 1 << 20}, {"p": 1 << 20}, {"n": 3}, {"n": 1 << 16, "r": 1}]
)
def test_header_that_asks_for_gigabytes_or_nonsense_is_refused_before_any_work(tmp_path, cost):
    header = {"peer": "Qm", "n": 2, "r": 8, "p": 1, "salt": "00" * 16, "nonce": "00" * 12} | cost
    head = json.dumps(header).encode()
    path = tmp_path / "b"
    path.write_bytes(b"swarm-backup/1\n" + len(head).to_bytes(4, "big") + head + bytes(64))
    with pytest.raises(IdentityError, match="is damaged"):
        read_backup(path, PASSWORD)


def test_backup_is_never_written_over_a_file(backup, contents):
    before = backup.read_bytes()
    with pytest.raises(IdentityError, match="never overwritten"):
        write_backup(backup, contents, PASSWORD)
    assert backup.read_bytes() == before


def test_short_password_is_refused(contents, tmp_path):
    with pytest.raises(IdentityError, match="8 characters"):
        write_backup(tmp_path / "b", contents, "1234567")
    assert not list(tmp_path.iterdir())


def test_home_without_wallet_or_journal_is_backed_up_too(tmp_path, put_key):
    put_key(tmp_path)
    contents = collect_backup(tmp_path)
    assert contents.wallet is contents.wallet_password is contents.successor is None


@pytest.mark.parametrize("name", ["swarm.pem", "wallet.json", "wallet.password"])
def test_file_open_to_others_is_not_backed_up(home, name):
    (home / name).chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        collect_backup(home)
    (home / name).chmod(0o600)


def test_restored_peer_is_the_same_and_has_to_listen(contents, tmp_path):
    home = tmp_path / "new"
    written = restore_backup(contents, home)
    assert sorted(written) == sorted(home.iterdir())
    assert written[-1].name == "swarm.pem"
    assert {path.stat().st_mode & 0o777 for path in written} == {0o600}
    identity, journal = open_identity(home)
    assert identity.peer_id == contents.peer_id
    assert journal.reason_to_listen("swarm", 3, 10) == "imported"
    with pytest.raises(SlotTaken):
        journal.sign(identity, SLOT, b"other")
    journal.close()
    assert load_or_create_wallet(home / "wallet.json").key.hex() == WALLET_KEY[2:]
    assert collect_backup(home) == contents


@pytest.mark.parametrize(
    "name", ["swarm.pem", "journal.sqlite", "wallet.json", "wallet.password", "swarm.next.pem"]
)
def test_nothing_is_restored_over_an_existing_file(contents, tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(IdentityError, match=name):
        restore_backup(contents, tmp_path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(name, b"precious")]


def test_unsound_contents_are_refused_before_anything_is_written(contents, tmp_path, keys):
    theirs = Journal.create(tmp_path / "theirs" / "journal.sqlite", keys[0].peer)
    unsound = [
        {"key": b"garbage"},
        {"key": keys[0].path.read_bytes()},
        {"peer_id": keys[0].peer_id},
        {"journal": theirs.export()},
        {"journal": b"{}"},
        {"wallet": b"{}"},
        {"wallet_password": b"wrong"},
        {"wallet_password": b""},
        {"successor": b"garbage"},
    ]
    theirs.close()
    for changes in unsound:
        with pytest.raises(IdentityError):
            restore_backup(changed(contents, **changes), tmp_path / "home")
        assert not (tmp_path / "home").exists(), changes


def test_wallet_whose_password_is_kept_elsewhere_is_restored_unopened(contents, tmp_path):
    written = restore_backup(changed(contents, wallet_password=None), tmp_path)
    assert "wallet.json" in {path.name for path in written}


def test_failing_restore_takes_back_what_it_wrote(contents, tmp_path, monkeypatch):
    from identity import backup
    from identity.files import write_private_file

    def fail_at_the_key(path, data):
        if path.name == "swarm.pem":
            raise IdentityError("disk full")
        write_private_file(path, data)

    monkeypatch.setattr(backup, "write_private_file", fail_at_the_key)
    with pytest.raises(IdentityError, match="disk full"):
        restore_backup(contents, tmp_path)
    assert not list(tmp_path.iterdir())


KILLED_RESTORE = """
import os, sys
from pathlib import Path
import msgspec
from identity import BackupContents, backup
write = backup.write_private_file
def killed(path, data):
    if path.name == sys.argv[2]:
        os.kill(os.getpid(), 9)
    write(path, data)
backup.write_private_file = killed
contents = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=BackupContents)
backup.restore_backup(contents, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("at", ["wallet.password", "swarm.pem"])
@pytest.mark.parametrize("signed", [True, False])
def test_killed_restore_leaves_nothing_that_passes_for_a_peer(contents: BackupContents, tmp_path, at, signed):
    if not signed:
        document = json.loads(contents.journal) | {"scopes": []}
        contents = changed(contents, journal=json.dumps(document).encode())
    command = [sys.executable, "-c", KILLED_RESTORE, str(tmp_path), at]
    assert subprocess.run(command, input=msgspec.msgpack.encode(contents)).returncode == -9
    assert not (tmp_path / "swarm.pem").exists()
    with pytest.raises(IdentityError, match=r"put that peer's swarm\.pem back"):
        load_or_create_identity(tmp_path)
    (tmp_path / "swarm.pem").write_bytes(contents.key)  # as its owner may do then
    (tmp_path / "swarm.pem").chmod(0o600)
    journal = open_identity(tmp_path)[1]
    assert journal.reason_to_listen("swarm", 3, 10) == "imported"
    journal.close()

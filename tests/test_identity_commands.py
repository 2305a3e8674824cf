"""`swarm identity …` as a user types it."""

import json
import shutil

import pytest
from eth_account import Account
from small_swarm import small_manifest

from identity import load_or_create_identity, load_or_create_wallet
from swarm.cli import main
from swarm.ledger.account import LedgerAccount
from swarm.ledger.creation import deploy
from swarm.ledger.deliveries import Deliveries
from swarm.ledger.devnet import Devnet
from swarm.ledger.facts import FACTS_FILE, save_facts
from swarm.ledger.records import Report
from swarm.records import Records, RoundRecord
from swarm.settings import Settings

PASSWORD = "a password of the backup"
MANIFEST = small_manifest("keys")


@pytest.fixture
def swarm(capsys):
    """Runs a command; its exit code, and what it printed to stdout and stderr."""

    def run(*arguments, home):
        code = main([*map(str, arguments), "--home", str(home)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def ledger(machine_dir):
    with Devnet(block_seconds=None) as devnet:
        block = devnet.call("eth_getBlockByNumber", "latest", False)
        account = Account.from_key(devnet.funded_key)
        ledger = deploy(devnet.rpc_url, account, MANIFEST, int(block["timestamp"], 16), machine_dir)
        ledger.devnet = devnet
        yield ledger


def peer_id(home) -> str:
    identity, journal = load_or_create_identity(home)
    journal.close()
    return identity.peer_id


def test_backup_comes_back_on_another_machine(home, swarm, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARM_BACKUP_PASSWORD", PASSWORD)
    address = load_or_create_wallet(home / "wallet.json").address
    code, _, said = swarm("identity", "backup", tmp_path / "b", home=home)
    assert code == 0 and peer_id(home) in said
    code, _, said = swarm("identity", "backup", tmp_path / "b", home=home)
    assert code == 1 and "never overwritten" in said
    code, out, said = swarm("identity", "restore", tmp_path / "b", home=tmp_path / "new")
    assert code == 0 and "swarm.pem" in out and "listens" in said
    assert peer_id(tmp_path / "new") == peer_id(home)
    assert load_or_create_wallet(tmp_path / "new" / "wallet.json").address == address
    code, _, said = swarm("identity", "restore", tmp_path / "b", home=tmp_path / "new")
    assert code == 1 and len(said.splitlines()) == 1


def test_wrong_password_and_none_are_one_line(home, swarm, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert swarm("identity", "backup", tmp_path / "b", home=home)[0] == 2
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o644)
    code, _, said = swarm("identity", "backup", tmp_path / "b", "--password-file", password, home=home)
    assert code == 1 and "chmod 600" in said
    password.chmod(0o600)
    assert swarm("identity", "backup", tmp_path / "b", "--password-file", password, home=home)[0] == 0
    monkeypatch.setenv("SWARM_BACKUP_PASSWORD", "another password")
    code, _, said = swarm("identity", "restore", tmp_path / "b", home=tmp_path / "new")
    assert code == 1 and len(said.splitlines()) == 1
    assert not (tmp_path / "new" / "swarm.pem").exists()


def test_short_password_of_a_new_backup_is_refused(home, swarm, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARM_BACKUP_PASSWORD", "short")
    code, _, said = swarm("identity", "backup", tmp_path / "b", home=home)
    assert code == 1 and "8" in said and not (tmp_path / "b").exists()


def test_imported_key_speaks_for_the_peer_and_never_replaces_a_wallet(home, swarm, tmp_path):
    account = Account.create()
    (tmp_path / "key").write_text(account.key.hex())
    (tmp_path / "key").chmod(0o600)
    assert swarm("identity", "import-wallet", tmp_path / "key", home=home)[:2] == (0, account.address + "\n")
    code, _, said = swarm("identity", "import-wallet", tmp_path / "key", home=home)
    assert code == 1 and "wallet.json" in said


def test_journal_goes_along_with_a_key(home, swarm, tmp_path):
    assert swarm("identity", "export-journal", tmp_path / "j", home=home)[0] == 0
    (tmp_path / "new").mkdir()
    shutil.copy2(home / "swarm.pem", tmp_path / "new")
    code, _, said = swarm("identity", "import-journal", tmp_path / "j", home=tmp_path / "new")
    assert code == 0 and "listens" in said
    (tmp_path / "j").chmod(0o600)
    (tmp_path / "j").write_text("{}")
    code, _, said = swarm("identity", "import-journal", tmp_path / "j", home=tmp_path / "new")
    assert code == 1 and len(said.splitlines()) == 1


def test_register_binds_the_peer_once(home, swarm, ledger):
    ledger.devnet.fund(load_or_create_wallet(home / "wallet.json").address, 1)
    code, out, _ = swarm("identity", "register", ledger.join_line, "--yes", home=home)
    assert code == 0 and "is now bound to 0x" in out
    code, out, _ = swarm("identity", "register", ledger.join_line, "--yes", home=home)
    assert code == 0 and "was already bound" in out


def test_rotation_keeps_the_score_and_retires_the_old_key(home, swarm, ledger, machine_dir, monkeypatch):
    wallet = load_or_create_wallet(home / "wallet.json")
    ledger.devnet.fund(wallet.address, 1)
    assert swarm("identity", "register", ledger.join_line, "--yes", home=home)[0] == 0
    identity, journal = load_or_create_identity(home)
    journal.close()
    digest = bytes(32)
    report = Report(
        round=0, groups=1, reward_micros=5, commitment=digest, state_before=digest, state_after=digest
    )
    account = LedgerAccount(ledger, wallet, machine_dir)
    while account.carry(identity.peer, "0", [report]).state != "mined":
        account.follow()
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    code, _, said = swarm("identity", "rotate", ledger.join_line, home=home)
    assert code == 2 and "--yes" in said
    assert peer_id(home) == identity.peer_id
    code, out, said = swarm("identity", "rotate", ledger.join_line, "--yes", home=home)
    assert code == 0 and "retired for good" in said
    assert peer_id(home) in out and peer_id(home) != identity.peer_id
    assert (home / "retired" / f"{identity.peer_id}.pem").exists()
    adopted, journal = load_or_create_identity(home)
    journal.close()
    assert ledger.peer_record(adopted.peer).rounds == 1
    assert ledger.account_of(identity.peer) is None


def test_status_shows_how_far_each_report_is(home, swarm, ledger):
    folder = Settings(home=home).swarm_dir(ledger.swarm_id, ledger.address, ledger.genesis)
    save_facts(ledger.facts, folder / FACTS_FILE)
    record = RoundRecord(
        round=0,
        rewards={},
        groups=1,
        external_groups=0,
        reward_micros=5,
        commitment="00" * 32,
        state_before="00" * 32,
        state_after="00" * 32,
    )
    records, deliveries = Records(folder / "state.sqlite"), Deliveries(folder / "outbox.sqlite")
    records.save(record)
    deliveries.put(record.report)
    records.close()
    deliveries.close()
    code, out, _ = swarm("status", "--json", home=home)
    (shown,) = json.loads(out)["swarms"]
    assert [(entry["round"], entry["report"]) for entry in shown["rounds"]] == [(0, "queued")]
    code, out, _ = swarm("status", home=home)
    assert code == 0 and "queued" in out and "keys" in out

"""`swarm doctor` as a user types it."""

import asyncio
import hashlib
import json
import socket
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from eth_account import Account
from hivemind.p2p import P2P
from small_swarm import small_manifest

from identity import Identity, load_or_create_identity, load_or_create_wallet
from swarm import doctor
from swarm.cli import main
from swarm.exchange.reach import Reachability, ReachServer
from swarm.ledger.account import LedgerAccount
from swarm.ledger.creation import deploy
from swarm.ledger.devnet import Devnet
from swarm.ledger.facts import FACTS_FILE, save_facts
from swarm.settings import Settings, hold_home

MANIFEST = small_manifest("patients")
NOWHERE = "0x5FbDB2315678afecb367f032d93F642f64180aa3@http://127.0.0.1:9"
RELAY_PEER = "/ip4/203.0.113.7/tcp/38331/p2p/QmNLei78zWmzUdbeRB3CiUfAizWUrbeeZh5K1rhAQKCh51"


@pytest.fixture
def examine(capsys):
    """Runs `swarm doctor --json`; its exit code, and each check by name."""

    def run(home: Path, *arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
        code = main(["doctor", *map(str, arguments), "--home", str(home), "--json"])
        shown = json.loads(capsys.readouterr().out)
        checks = {check["name"]: check for check in shown["checks"]}
        assert all("\n" not in check["found"] + check["advice"] for check in checks.values())
        assert shown["ok"] == (code == 0)
        return code, checks

    return run


@pytest.fixture
def machine_only(monkeypatch):
    """Leaves out the network, which takes a second."""
    monkeypatch.setattr("swarm.doctor_network.network", lambda _: iter(()))


@pytest.fixture(scope="module")
def ledger(machine_dir):
    with Devnet() as devnet:
        account = Account.from_key(devnet.funded_key)
        ledger = deploy(devnet.rpc_url, account, MANIFEST, int(time.time()) - 10, machine_dir)
        ledger.devnet = devnet
        yield ledger


class Bootnode:
    """A registered peer that the ledger lists and that answers whether it reaches others."""

    def __init__(self, folder: Path, ledger, machine_dir: Path) -> None:
        self.identity = Identity.create(folder / "bootnode.pem")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        account = LedgerAccount(ledger, Account.from_key(ledger.devnet.funded_key), machine_dir)
        account.register(self.identity)
        account.announce_bootnode(self.identity.peer, self.address)
        while self.address not in ledger.bootnodes():
            account.follow()

    async def _start(self) -> str:
        self._p2p = await P2P.create(
            identity_path=str(self.identity.path), auto_nat=False, nat_port_map=False, use_relay=False
        )
        await ReachServer().start(self._p2p)
        return str((await self._p2p.get_visible_maddrs())[0])

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._p2p.shutdown(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


@pytest.fixture
def bootnode(tmp_path, ledger, machine_dir):
    node = Bootnode(tmp_path, ledger, machine_dir)
    yield node
    node.stop()


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, hashlib.sha256(path.read_bytes()).digest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_empty_home_is_healthy_and_stays_empty(tmp_path, examine):
    code, checks = examine(tmp_path / "none")
    assert code == 0
    assert {name for name, check in checks.items() if check["state"] == "ok"} == {
        "software",
        "sandbox",
        "home",
        "ports",
        "libp2p",
    }
    assert "swarm join" in checks["swarm.pem"]["found"]
    assert "CONTRACT@RPC" in checks["ledger"]["found"]
    assert not (tmp_path / "none").exists()


def test_text_says_one_line_for_each_check(tmp_path, capsys):
    assert main(["doctor", "--home", str(tmp_path / "none")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14
    assert {line.split()[0] for line in lines} == {"ok", "skipped"}


def test_broken_keys_are_named_with_what_to_do(home, examine, machine_only):
    path = home / "swarm.pem"
    path.chmod(0o644)
    code, checks = examine(home)
    assert (code, checks["swarm.pem"]["state"]) == (1, "failed")
    assert "chmod 600" in checks["swarm.pem"]["found"]
    path.write_bytes(b"garbage")
    path.chmod(0o600)
    code, checks = examine(home)
    assert code == 1 and "not a swarm.pem" in checks["swarm.pem"]["found"]


def test_journal_is_looked_at_and_not_touched(home, tmp_path, examine, machine_only):
    load_or_create_wallet(home / "wallet.json")
    before = contents(home)
    code, checks = examine(home)
    assert code == 0
    assert {checks[name]["state"] for name in ("swarm.pem", "journal", "wallet")} == {"ok"}
    assert contents(home) == before
    _, journal = load_or_create_identity(tmp_path / "other")
    journal.close()
    (home / "journal.sqlite").write_bytes(b"x" * 5000)
    code, checks = examine(home)
    assert (code, checks["journal"]["state"]) == (1, "failed")
    (home / "journal.sqlite").unlink()
    code, checks = examine(home)
    assert (code, checks["journal"]["state"]) == (0, "warning")


def test_wallet_that_its_password_does_not_open(home, examine, monkeypatch, machine_only):
    load_or_create_wallet(home / "wallet.json")
    monkeypatch.setenv("SWARM_WALLET_PASSWORD", "another")
    code, checks = examine(home)
    assert (code, checks["wallet"]["state"]) == (1, "failed")


def test_ledger_that_does_not_answer(home, examine):
    code, checks = examine(home, NOWHERE)
    assert (code, checks["ledger"]["state"]) == (1, "failed")
    assert "127.0.0.1:9" in checks["ledger"]["found"]
    assert {checks[name]["state"] for name in ("clock", "funds", "peers", "reachability")} == {"skipped"}


def test_check_that_hangs_is_given_up(home, examine, monkeypatch, machine_only):
    stuck = [("stuck", 0.1, lambda _: threading.Event().wait())]
    monkeypatch.setattr(doctor, "_MACHINE_CHECKS", stuck)
    code, checks = examine(home)
    assert (code, checks["stuck"]["state"]) == (1, "failed")


def test_last_swarm_is_named_when_none_is_given(home, ledger, examine, machine_only):
    folder = Settings(home=home).swarm_dir(ledger.swarm_id, ledger.address, ledger.genesis)
    save_facts(ledger.facts, folder / FACTS_FILE)
    _, checks = examine(home)
    assert "patients" in checks["ledger"]["found"] and ledger.address in checks["ledger"]["found"]


def test_swarm_with_peers_is_examined_to_the_end(home, ledger, bootnode, examine):
    address = load_or_create_wallet(home / "wallet.json").address
    code, checks = examine(home, ledger.join_line)
    assert (code, checks["funds"]["state"]) == (1, "failed") and address.lower() in checks["funds"]["found"]
    ledger.devnet.fund(address, 1)
    code, checks = examine(home, ledger.join_line)
    assert code == 0, checks
    assert checks["peers"]["found"].startswith("1 of ")
    for name in ("ledger", "clock", "funds", "peers", "reachability"):
        assert checks[name]["state"] == "ok", checks[name]
    assert "127.0.0.1" in checks["reachability"]["found"]


def test_peer_given_by_hand_is_asked_too(home, bootnode, examine):
    code, checks = examine(home, "--peer", bootnode.address)
    assert code == 0
    assert checks["reachability"]["state"] == "ok"
    code, checks = examine(home, "--peer", RELAY_PEER.replace("203.0.113.7", "127.0.0.1"))
    assert (code, checks["peers"]["state"]) == (1, "failed")


@pytest.mark.parametrize(
    ("listen", "advice"),
    [("/ip4/127.0.0.1/tcp/0", "--listen /ip4/0.0.0.0/tcp/38331"), (None, "forward TCP port {} to")],
)
def test_machine_behind_a_nat_is_told_which_port_to_forward(
    home, bootnode, examine, monkeypatch, listen, advice
):
    async def reachability(*_: object) -> Reachability:
        return Reachability(state="nat", seen_as="8.8.8.8", asked=1)

    monkeypatch.setattr("swarm.doctor_network.reachability", reachability)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listen = listen or f"/ip4/127.0.0.1/tcp/{port}"
    code, checks = examine(home, "--peer", bootnode.address, "--listen", listen)
    assert (code, checks["reachability"]["state"]) == (0, "warning")
    assert "8.8.8.8" in checks["reachability"]["found"]
    assert advice.format(port) in checks["reachability"]["advice"]
    assert "--relay-peer" in checks["reachability"]["advice"]


def test_home_with_a_running_node(home, examine):
    with hold_home(home):
        code, checks = examine(home, "--listen", "/ip4/127.0.0.1/tcp/9")
    assert code == 0
    assert "running" in checks["ports"]["found"]
    assert "running node" in checks["reachability"]["found"]


def test_taken_port_is_named(home, examine, machine_only):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        code, checks = examine(home, "--listen", listen)
    assert (code, checks["ports"]["state"]) == (1, "failed")
    assert listen in checks["ports"]["found"]


@pytest.mark.parametrize("command", ["doctor", "join"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "here"],
        ["--public-address", "/ip4/203.0.113.7/tcp/0"],
        ["--relay-peer", "https://relay.example.org"],
        ["--relay-peer", RELAY_PEER, "--nat", "off"],
        ["--peer", "/ip4/203.0.113.7/tcp/38331"],
        ["--relay", "/ip4/203.0.113.7/tcp/38331"],
    ],
)
def test_wrong_network_options_are_one_line_and_wrong_usage(tmp_path, capsys, command, arguments):
    assert main([command, NOWHERE, *arguments, "--home", str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_network_options_mean_the_same_to_join(tmp_path, monkeypatch):
    seen = []

    class Node:
        def __init__(self, settings, _line) -> None:
            seen.append(settings)
            raise KeyboardInterrupt

    # Not the real module, which takes seconds to import.
    monkeypatch.setitem(sys.modules, "swarm.node", types.SimpleNamespace(Node=Node))
    arguments = ["--listen", "/ip6/::/tcp/38331", "--listen", "/ip4/0.0.0.0/udp/38331/quic-v1"]
    arguments += ["--public-address", "/dns4/peer.example.org/tcp/38331", "--relay-peer", RELAY_PEER]
    assert main(["join", NOWHERE, *arguments, "--home", str(tmp_path)]) == 130
    assert main(["join", NOWHERE, "--nat", "off", "--home", str(tmp_path)]) == 130
    assert seen[0] == Settings(
        home=tmp_path,
        listen=("/ip6/::/tcp/38331", "/ip4/0.0.0.0/udp/38331/quic-v1"),
        public_addresses=("/dns4/peer.example.org/tcp/38331",),
        trusted_relays=(RELAY_PEER,),
    )
    assert seen[1] == Settings(home=tmp_path, nat="off")

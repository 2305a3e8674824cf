"""One peer's life as a real process on a real ledger: restarts, outages, full disks."""

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from eth_account import Account

from identity import load_or_create_wallet
from swarm.ledger.client import deploy
from swarm.ledger.devnet import Devnet
from swarm.manifest import parse
from swarm.records import Records, RoundRecord
from swarm.settings import Settings

MANIFEST = parse(
    b"""
    name: life
    task: {name: arithmetic}
    model: tiny
    round_seconds: 10
    group_size: 4
    stages: [{name: answer, ends_at: 0.4, max_groups: 8, max_tokens: 8}]
    learn: {ends_at: 0.8, external_groups: 2, learning_rate: 1.0e-4}
    """,
    "test",
)
WAIT_SECONDS = 120


@pytest.fixture
def devnet(tmp_path):
    with Devnet(log_path=tmp_path / "anvil.log") as devnet:
        yield devnet


@pytest.fixture
def ledger(devnet):
    return deploy(devnet.rpc_url, Account.from_key(devnet.funded_key), MANIFEST, int(time.time()) + 10)


class Peer:
    """A `swarm join` process with a home of its own."""

    def __init__(self, home: Path, devnet: Devnet, ledger) -> None:
        self.settings = Settings(home=home)
        self.ledger = ledger
        self.log = home / "node.log"
        home.mkdir()
        devnet.fund(load_or_create_wallet(self.settings.wallet_path).address, 1)

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "swarm", "join", self.ledger.join_line]
        command += ["--home", str(self.settings.home), "--threads", "1", *arguments]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)

    def records(self) -> list[RoundRecord]:
        path = self.settings.swarm_dir(self.ledger.swarm_id, self.ledger.address, self.ledger.genesis)
        if not (path / "state.sqlite").exists():
            return []
        with contextlib.closing(Records(path / "state.sqlite", read_only=True)) as records:
            return records.rounds() if records.exist else []

    def wait_for(self, condition) -> list[RoundRecord]:
        """Poll until the condition holds for the records."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition(self.records()):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return self.records()


@pytest.fixture
def peer(tmp_path, devnet, ledger):
    return Peer(tmp_path / "home", devnet, ledger)


@pytest.fixture
def processes():
    started = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def reported_rounds(ledger) -> list[int]:
    return [report.round for report in ledger.reports()]


def test_killed_peer_goes_on_where_it_was(peer, ledger, processes):
    processes.append(peer.start())
    before = peer.wait_for(lambda records: any(record.tx for record in records))
    processes[0].kill()
    processes[0].wait()
    processes.append(peer.start("--rounds", "1"))
    assert processes[1].wait(WAIT_SECONDS) == 0, peer.log.read_text()
    after = peer.records()
    assert "resumed checkpoint" in peer.log.read_text()
    assert after[-1].round > before[-1].round
    assert not after[-1].late
    chain = [record for record in after if record.tx]
    assert all(b.state_before == a.state_after for a, b in itertools.pairwise(chain))
    assert reported_rounds(ledger) == [record.round for record in chain]


def test_ledger_that_is_away_costs_the_rank_of_rounds_but_no_round_and_no_report(
    peer, devnet, ledger, processes
):
    processes.append(peer.start())
    peer.wait_for(lambda records: any(record.tx for record in records))
    os.kill(devnet.pid, signal.SIGSTOP)
    away = peer.wait_for(lambda records: records[-1].tx is None and "not sent" in peer.log.read_text())[-1]
    os.kill(devnet.pid, signal.SIGCONT)
    records = peer.wait_for(lambda records: not records[-1].late and all(record.tx for record in records))
    late = next(record for record in records if record.round == away.round)
    assert late.late
    assert sorted(reported_rounds(ledger)) == [record.round for record in records]
    assert processes[0].poll() is None


def test_peer_whose_p2p_daemon_dies_goes_on_alone(peer, ledger, processes):
    processes.append(peer.start("--rounds", "2"))
    peer.wait_for(lambda records: any(record.tx for record in records))
    (daemon,) = [p for p in psutil.Process(processes[0].pid).children(recursive=True) if p.name() == "p2pd"]
    daemon.kill()
    assert processes[0].wait(WAIT_SECONDS) == 0, peer.log.read_text()
    assert len(reported_rounds(ledger)) == 2
    assert "Traceback" not in peer.log.read_text()


def test_second_node_on_one_home_says_so_and_leaves_the_first_alone(peer, processes):
    processes.append(peer.start())
    peer.wait_for(lambda records: "registered" in peer.log.read_text())
    second = peer.start()
    assert second.wait(WAIT_SECONDS) == 1
    assert "another node is running on" in peer.log.read_text()
    assert "Traceback" not in peer.log.read_text()
    assert processes[0].poll() is None


def test_disk_without_room_for_checkpoints_costs_no_round(peer, ledger, processes):
    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    processes.append(peer.start("--rounds", "2", preexec_fn=small_files_only))
    assert processes[0].wait(WAIT_SECONDS) == 0, peer.log.read_text()
    assert "checkpoint not written" in peer.log.read_text()
    assert reported_rounds(ledger) == [record.round for record in peer.records()]
    assert len(peer.records()) == 2


def test_account_without_funds_is_one_line(tmp_path, devnet, ledger):
    peer = Peer(tmp_path / "poor", devnet, ledger)
    (peer.settings.home / "wallet.json").unlink()
    assert peer.start().wait(WAIT_SECONDS) == 1
    assert "no funds for registration by 0x" in peer.log.read_text()
    assert "Traceback" not in peer.log.read_text()

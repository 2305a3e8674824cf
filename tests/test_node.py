"""One peer's life as a real process on a real ledger: restarts, outages, full disks."""

import itertools
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from eth_account import Account
from prometheus_client.parser import text_string_to_metric_families
from small_swarm import small_manifest

from identity import Slot, load_or_create_identity, load_or_create_wallet
from swarm.board.status import RoundStatus, peer_status
from swarm.exchange.health import Health
from swarm.ledger.creation import deploy
from swarm.ledger.devnet import Devnet
from swarm.settings import Settings, machine_dir

MANIFEST = small_manifest("life", round_seconds=8)
WAIT_SECONDS = 120


@pytest.fixture
def devnet(tmp_path):
    with Devnet(log_path=tmp_path / "anvil.log") as devnet:
        yield devnet


@pytest.fixture
def ledger(devnet):
    genesis = int(time.time()) + 10
    return deploy(devnet.rpc_url, Account.from_key(devnet.funded_key), MANIFEST, genesis, machine_dir())


class Peer:
    """A `swarm join` process with a home of its own."""

    def __init__(self, home: Path, devnet: Devnet, ledger) -> None:
        self.settings = Settings(home=home)
        self.ledger = ledger
        self.log = home / "node.log"
        identity, journal = load_or_create_identity(home)
        journal.close()
        self.peer = identity.peer
        devnet.fund(load_or_create_wallet(self.settings.wallet_path).address, 1)

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "swarm", "join", self.ledger.join_line]
        command += ["--home", str(self.settings.home), "--threads", "1", *arguments]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)

    def rounds(self) -> list[RoundStatus]:
        """What `swarm status` shows."""
        swarms = peer_status(self.settings).swarms
        return swarms[-1].rounds if swarms else []

    def wait_for(self, condition) -> list[RoundStatus]:
        """Poll until the condition holds for the rounds."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition(self.rounds()):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return self.rounds()


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


def mined(rounds: list[RoundStatus]) -> bool:
    return any(entry.report == "mined" for entry in rounds)


def reported_rounds(ledger) -> list[int]:
    return [report.round for report in ledger.reports()]


def metrics_are_what_the_node_wrote(peer: Peer, process: subprocess.Popen) -> None:
    url = re.search(r"metrics url=(http://\S+)", peer.log.read_text())[1]
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    (swarm,) = peer_status(peer.settings).swarms
    samples = [sample for family in families for sample in family.samples]

    def value(name: str, **labels: str) -> float:
        (found,) = [one.value for one in samples if (one.name, one.labels) == (name, labels)]
        return found

    (last,) = swarm.rounds
    assert last.stages == {"answer": "on_time", "learn": "on_time"}
    assert value("swarm_rounds_played_total") == 1
    assert value("swarm_last_round") == last.round
    assert value("swarm_sampled_tokens_total") == last.tokens > 0
    assert value("swarm_tokens_per_second") == last.tokens_per_second
    assert value("swarm_last_reward", stage="answer") == last.rewards["answer"]
    assert value("swarm_last_phase_seconds", phase="learn") == last.seconds["learn"]
    assert value("swarm_stages_total", stage="answer", outcome="on_time") == 1
    assert value("swarm_reports", state="mined") == 1
    assert (value("swarm_dht_peers"), value("swarm_ledger_away")) == (0, 0)
    assert value("swarm_score") == pytest.approx(0.1)  # a newcomer's
    assert value("swarm_memory_bytes", process="p2pd") > 10e6
    assert value("process_resident_memory_bytes") > 100e6
    assert "swarm_metrics_errors_total" not in [sample.name for sample in samples]
    (info,) = [sample for sample in samples if sample.name == "swarm_node_info"]
    assert info.labels["contract"] == peer.ledger.address
    assert swarm.doing.pid == process.pid
    assert swarm.doing.ends_at - time.time() < MANIFEST.round_seconds


def test_killed_peer_goes_on_where_it_was(peer, ledger, processes):
    processes.append(peer.start("--metrics", "127.0.0.1:0"))
    before = peer.wait_for(mined)
    metrics_are_what_the_node_wrote(peer, processes[0])
    processes[0].kill()
    processes[0].wait()
    with socket.create_server(("127.0.0.1", 0)) as other:  # has the port that is wanted
        place = f"127.0.0.1:{other.getsockname()[1]}"
        processes.append(peer.start("--rounds", "1", "--metrics", place))
        assert processes[1].wait(WAIT_SECONDS) == 0, peer.log.read_text()
    assert (
        f"no metrics at {place} error='Address already in use': join with --metrics" in peer.log.read_text()
    )
    after = peer.rounds()
    assert "resumed after round" in peer.log.read_text()
    assert "listening" not in peer.log.read_text()
    assert after[-1].round > before[-1].round
    assert not after[-1].late
    assert reported_rounds(ledger) == [entry.round for entry in after]
    chain = ledger.reports()
    assert all(b.state_before == a.state_after for a, b in itertools.pairwise(chain))


def test_ledger_that_is_away_for_three_rounds_costs_their_rank_but_no_round_and_no_report(
    peer, devnet, ledger, processes
):
    processes.append(peer.start())
    first = peer.wait_for(mined)[0].round
    os.kill(devnet.pid, signal.SIGSTOP)  # it does not refuse: it hangs, which is worse
    # The fourth may still be reported in time, three are over by then.
    away = peer.wait_for(lambda rounds: sum(entry.report != "mined" for entry in rounds) >= 4)
    assert peer_status(peer.settings).swarms[-1].doing.is_ledger_away
    os.kill(devnet.pid, signal.SIGCONT)
    rounds = peer.wait_for(
        lambda rounds: rounds[-1].late is False and all(entry.report == "mined" for entry in rounds)
    )
    assert [entry.round for entry in rounds] == list(range(first, rounds[-1].round + 1)), peer.log.read_text()
    assert sum(entry.late for entry in rounds) >= 3
    assert {entry.round for entry in away if entry.report != "mined"} <= set(reported_rounds(ledger))
    assert sorted(reported_rounds(ledger)) == [entry.round for entry in rounds]
    assert processes[0].poll() is None
    assert "Traceback" not in peer.log.read_text()


def test_peer_starts_while_the_ledger_is_away_and_reports_when_it_is_back(peer, devnet, ledger, processes):
    processes.append(peer.start("--rounds", "1"))
    assert processes[0].wait(WAIT_SECONDS) == 0, peer.log.read_text()
    os.kill(devnet.pid, signal.SIGSTOP)
    processes.append(peer.start())
    peer.wait_for(lambda rounds: len(rounds) >= 2)
    assert "starting from what is known" in peer.log.read_text()
    os.kill(devnet.pid, signal.SIGCONT)
    rounds = peer.wait_for(lambda rounds: all(entry.report == "mined" for entry in rounds))
    assert sorted(reported_rounds(ledger))[:2] == [entry.round for entry in rounds][:2]


def test_peer_whose_p2p_daemon_dies_goes_on_and_is_in_touch_again(peer, devnet, ledger, processes, tmp_path):
    def health() -> Health:
        return peer_status(peer.settings).swarms[-1].doing.health

    other = Peer(tmp_path / "other", devnet, ledger)
    processes.append(other.start())
    other.wait_for(mined)  # and so it is listed on the ledger, where the peer finds it
    processes.insert(0, peer.start("--rounds", "2"))
    peer.wait_for(lambda rounds: mined(rounds) and health().peers)
    (daemon,) = [p for p in psutil.Process(processes[0].pid).children(recursive=True) if p.name() == "p2pd"]
    daemon.kill()
    assert processes[0].wait(WAIT_SECONDS) == 0, peer.log.read_text()
    reports = [report for report in ledger.reports() if report.peer == peer.peer]
    assert [report.round for report in reports] == [entry.round for entry in peer.rounds()]
    assert len(reports) == 2
    assert (health().restarts, health().peers) == (1, 1)
    assert processes[1].poll() is None, other.log.read_text()
    assert "Traceback" not in peer.log.read_text()


def copy_of_key(peer: Peer, home: Path) -> Path:
    """A home with the same swarm.pem and wallet, as somebody makes it who moves to another machine."""
    home.mkdir()
    for name in ("swarm.pem", "wallet.json", "wallet.password"):
        shutil.copy2(peer.settings.home / name, home)
    return home


def test_second_node_on_one_home_or_key_says_so_and_leaves_the_first_alone(peer, processes, tmp_path):
    processes.append(peer.start())
    peer.wait_for(lambda _: "registered" in peer.log.read_text())
    command = [sys.executable, "-m", "swarm", "join", peer.ledger.join_line, "--home"]
    for home, words in (
        (peer.settings.home, "swarm: another node is running on"),
        (copy_of_key(peer, tmp_path / "second"), "swarm: another node of peer Qm"),
    ):
        second = subprocess.run([*command, str(home)], capture_output=True, text=True, timeout=WAIT_SECONDS)
        assert second.returncode == 1
        assert second.stderr.splitlines()[-1].startswith(words)
        assert "Traceback" not in second.stderr
    assert f"pid {processes[0].pid}" in second.stderr
    assert processes[0].poll() is None


def test_copy_on_another_machine_listens_hears_the_first_and_never_speaks(
    peer, devnet, ledger, processes, tmp_path
):
    other = Peer(tmp_path / "other", devnet, ledger)  # keeps what the first one says
    processes += [other.start(), peer.start()]
    peer.wait_for(mined)
    elsewhere = {**os.environ, "SWARM_MACHINE_DIR": str(tmp_path / "another machine")}
    command = [sys.executable, "-m", "swarm", "join", ledger.join_line, "--threads", "1"]
    copy = subprocess.run(
        [*command, "--home", str(copy_of_key(peer, tmp_path / "copy"))],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        env=elsewhere,
    )
    assert copy.returncode == 1, copy.stderr
    assert "the journal is missing" in copy.stderr
    assert "is running elsewhere" in copy.stderr.splitlines()[-1]
    assert "played" not in copy.stderr
    assert processes[1].poll() is None, peer.log.read_text()


def test_imported_key_listens_one_round_and_then_speaks(peer, ledger, processes):
    (peer.settings.home / "journal.sqlite").unlink()
    _, journal = load_or_create_identity(peer.settings.home)
    # What came along is of a round far ahead: that one is lost, and no other.
    journal.claim(Slot(f"{ledger.swarm_id.hex()}/{ledger.genesis}", 5000, 0), bytes(32))
    journal.close()
    processes.append(peer.start("--rounds", "1"))
    assert processes[0].wait(WAIT_SECONDS) == 0, peer.log.read_text()
    assert "listening round=" in peer.log.read_text()
    assert "the journal is missing" in peer.log.read_text()
    assert "journal is ahead of the ledger last=5000" in peer.log.read_text()
    assert [entry.report for entry in peer.rounds()] == ["mined"]


def test_disk_without_room_for_checkpoints_costs_no_round(peer, ledger, processes):
    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    processes.append(peer.start("--rounds", "2", preexec_fn=small_files_only))
    assert processes[0].wait(WAIT_SECONDS) == 0, peer.log.read_text()
    assert "checkpoint not written" in peer.log.read_text()
    assert reported_rounds(ledger) == [entry.round for entry in peer.rounds()]
    assert len(peer.rounds()) == 2


def test_account_without_funds_is_one_line(tmp_path, devnet, ledger):
    peer = Peer(tmp_path / "poor", devnet, ledger)
    (peer.settings.home / "wallet.json").unlink()
    assert peer.start().wait(WAIT_SECONDS) == 1
    address = load_or_create_wallet(peer.settings.wallet_path).address
    assert "no funds for registration 1 of Qm" in peer.log.read_text()
    assert f"by {address}: send that account some of the chain's coin" in peer.log.read_text()
    assert "Traceback" not in peer.log.read_text()


def test_peer_without_funds_takes_part_through_a_relay(tmp_path, devnet, ledger, processes):
    wallet = load_or_create_wallet(tmp_path / "relay" / "wallet.json")
    devnet.fund(wallet.address, 1)
    command = [sys.executable, "-m", "swarm", "relay", ledger.join_line, "--listen", "127.0.0.1:0"]
    relay = subprocess.Popen(
        [*command, "--home", str(tmp_path / "relay")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    processes.append(relay)
    url = relay.stdout.readline().split()[2]
    poor = Peer(tmp_path / "poor", devnet, ledger)
    account = load_or_create_wallet(poor.settings.wallet_path).address
    devnet.call("anvil_setBalance", account, "0x0")
    processes.append(poor.start("--rounds", "2", "--relay", url))
    assert processes[1].wait(WAIT_SECONDS) == 0, poor.log.read_text()
    assert [entry.report for entry in poor.rounds()] == ["mined", "mined"]
    assert reported_rounds(ledger) == [entry.round for entry in poor.rounds()]
    assert int(devnet.call("eth_getBalance", account, "latest"), 16) == 0
    assert int(devnet.call("eth_getTransactionCount", account, "latest"), 16) == 0
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(WAIT_SECONDS) == 0

"""Reports get on the ledger once each, whatever is killed, taken away or taken back."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from eth_account import Account
from ledger_cast import make_report

from identity import Identity
from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.account import LedgerAccount
from swarm.ledger.client import LedgerClient
from swarm.ledger.creation import deploy
from swarm.ledger.deliveries import Deliveries
from swarm.ledger.devnet import Devnet
from swarm.ledger.outbox import Outbox
from swarm.ledger.refusals import ContractRefusal

KILLS, KILLED_ROUNDS = 20, 30
SHARED_PEERS, SHARED_ROUNDS = 4, 100
WAIT_SECONDS = 120


class RunningChain:
    """A devnet whose clock runs fast: a second a block, a block every few milliseconds."""

    def __init__(self, devnet: Devnet, manifest, machine_dir) -> None:
        self.devnet = devnet
        account = Account.from_key(devnet.funded_key)
        block = devnet.call("eth_getBlockByNumber", "latest", False)
        self.ledger = deploy(devnet.rpc_url, account, manifest, int(block["timestamp"], 16) + 2, machine_dir)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self.devnet.call("evm_increaseTime", 1)
            self.devnet.call("evm_mine")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.fixture
def running(manifest, machine_dir):
    with (
        Devnet(block_seconds=None) as devnet,
        RunningChain(
            devnet, msgspec.structs.replace(manifest, round_seconds=2, acceptance_window=63), machine_dir
        ) as chain,
    ):
        yield chain


@pytest.fixture
def start_peer(running, tmp_path):
    """Starts reporting peers, as processes; ends what is left of them."""
    command = [sys.executable, str(Path(__file__).with_name("reporting_process.py"))]
    command += [running.devnet.rpc_url, running.ledger.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:

        def start(secret: str, folder: Path, rounds: int) -> psutil.Process:
            print(secret, folder, rounds, file=nursery.stdin, flush=True)
            return psutil.Process(int(nursery.stdout.readline()))

        yield start
        for child in psutil.Process(nursery.pid).children():
            child.kill()
        nursery.kill()


def a_peer(running: RunningChain, account, folder: Path, machine_dir: Path) -> Identity:
    identity = Identity.create(folder / "swarm.pem")
    assert LedgerAccount(running.ledger, account, machine_dir).register(identity)
    return identity


def funded(devnet: Devnet):
    account = Account.create()
    devnet.fund(account.address, 10)
    return account


def wait_for_end(process: psutil.Process) -> None:
    """The peer is the nursery's child, which does not reap it before it ends."""
    deadline = time.monotonic() + WAIT_SECONDS
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the peer did not end"
        time.sleep(0.05)


def test_peer_killed_at_twenty_random_points_has_each_of_thirty_rounds_on_the_ledger_once(
    running, start_peer, tmp_path, machine_dir
):
    account = funded(running.devnet)
    identity = a_peer(running, account, tmp_path, machine_dir)
    dice = random.Random(3)
    for _ in range(KILLS):
        process = start_peer(account.key.hex(), tmp_path, KILLED_ROUNDS)
        time.sleep(dice.uniform(0.0, 0.6))
        os.kill(process.pid, signal.SIGKILL)
    wait_for_end(start_peer(account.key.hex(), tmp_path, KILLED_ROUNDS))
    assert sorted(report.round for report in running.ledger.reports()) == list(range(KILLED_ROUNDS))
    (record,) = running.ledger.leaderboard()
    assert (record.peer, record.rounds) == (identity.peer, KILLED_ROUNDS)
    with contextlib.closing(Deliveries(tmp_path / "outbox.sqlite", read_only=True)) as deliveries:
        on_ledger = {report.round: report for report in running.ledger.reports()}
        for delivery in deliveries.all():
            assert delivery.state == "mined" and delivery.error is None
            assert (delivery.tx, delivery.late) == (
                on_ledger[delivery.round].tx,
                on_ledger[delivery.round].late,
            )


def test_four_peers_on_one_account_report_a_hundred_rounds_without_a_lost_nonce(
    running, start_peer, tmp_path, machine_dir
):
    account = funded(running.devnet)
    folders = [tmp_path / str(number) for number in range(SHARED_PEERS)]
    peers = [a_peer(running, account, folder, machine_dir) for folder in folders]
    for process in [start_peer(account.key.hex(), folder, SHARED_ROUNDS) for folder in folders]:
        wait_for_end(process)
    reports = running.ledger.reports()
    for identity in peers:
        rounds = [report.round for report in reports if report.peer == identity.peer]
        assert sorted(rounds) == list(range(SHARED_ROUNDS))
    (queue,) = (machine_dir / "accounts").glob(f"*{account.address}*.sqlite")
    with contextlib.closing(sqlite3.connect(f"file:{queue}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT nonce, state FROM transactions ORDER BY nonce").fetchall()
    used = int(running.devnet.call("eth_getTransactionCount", account.address, "latest"), 16)
    assert rows == [(nonce, "mined") for nonce in range(used)]
    assert len({report.tx for report in reports}) + SHARED_PEERS == used  # every nonce did its work


class Desk:
    """One peer's outbox on a chain whose clock the test holds; `deliver` is one pass of its thread."""

    def __init__(self, chain, ledger, identity, machine_dir, folder, window=32) -> None:
        self.account = chain.funded_account()
        self.chain = chain
        self.ledger = ledger
        self.identity = identity
        self.carrier = LedgerAccount(ledger, self.account, machine_dir)
        self.deliveries = Deliveries(folder / "outbox.sqlite")
        self.outbox = Outbox(self.deliveries, ledger, self.carrier, identity, lambda: chain.time, window)

    def states(self) -> dict[int, str]:
        return {delivery.round: delivery.state for delivery in self.deliveries.all()}

    def deliver(self, passes: int = 1) -> dict[int, str]:
        for _ in range(passes):
            self.outbox.deliver()
            self.chain.settle()
        return self.states()


@pytest.fixture
def desk(chain, ledger, identities, machine_dir, tmp_path):
    desk = Desk(chain, ledger, identities[0], machine_dir, tmp_path)
    desk.carrier.register(desk.identity)
    with contextlib.closing(desk.deliveries):
        yield desk


def test_report_goes_from_queued_to_sent_to_mined_with_its_transaction(desk, chain):
    chain.devnet.call("evm_setAutomine", False)
    try:
        desk.outbox.put(make_report(0))
        assert desk.states() == {0: "queued"}
        assert desk.deliver() == {0: "sent"}
        (sent,) = desk.deliveries.all()
    finally:
        chain.devnet.call("evm_setAutomine", True)
        chain.devnet.call("evm_mine")
    assert desk.deliver(2) == {0: "mined"}
    (mined,) = desk.deliveries.all()
    (reported,) = desk.ledger.reports()
    assert mined.tx == sent.tx == reported.tx
    assert (mined.late, mined.block) == (False, reported.block_number)


def test_what_waited_goes_in_one_transaction_and_is_late(desk, chain):
    for number in range(3):
        desk.outbox.put(make_report(number))
    chain.enter(desk.ledger, 3)
    desk.outbox.put(make_report(3))
    assert desk.deliver(2) == dict.fromkeys(range(4), "mined")
    reports = desk.ledger.reports()
    assert len({report.tx for report in reports}) == 1
    assert [report.late for report in reports] == [True, True, True, False]
    assert [delivery.late_rounds for delivery in desk.deliveries.all()] == [3, 2, 1, 0]


def test_state_on_the_ledger_before_a_round_is_of_the_last_report_that_was_in_time_for_it(desk, chain):
    desk.outbox.put(make_report(0))
    assert desk.deliver(2) == {0: "mined"}
    desk.outbox.put(make_report(1))
    before = desk.deliveries.mined_before
    assert before(0) is None
    assert before(1).round == before(2).round == 0  # the one of round 1 is not sent yet
    chain.enter(desk.ledger, 3)
    desk.deliver(2)
    assert before(3).round == 0  # it came in during round 3: too late for that one's beacon
    assert before(4).round == 1


def test_the_first_report_of_a_round_stays(desk):
    desk.outbox.put(make_report(0))
    desk.outbox.put(make_report(0, note=b"another"))
    desk.deliver(2)
    assert desk.ledger.reports()[0].commitment == make_report(0).commitment


def test_one_that_is_refused_does_not_hold_up_the_others(desk, chain):
    desk.outbox.put(make_report(0))
    desk.outbox.put(make_report(1, reward_micros=2**37))  # over the manifest's cap
    desk.outbox.put(make_report(2))
    chain.enter(desk.ledger, 2)
    assert desk.deliver(4) == {0: "mined", 1: "failed", 2: "mined"}
    assert "RewardTooHigh" in desk.deliveries.all()[1].error


def test_report_that_comes_too_late_fails_and_says_so(desk, chain):
    desk.outbox.put(make_report(0))
    chain.enter(desk.ledger, 40)
    desk.outbox.put(make_report(40))
    assert desk.deliver(2) == {0: "failed", 40: "mined"}
    assert "32 rounds" in desk.deliveries.all()[0].error


def test_report_that_a_lost_outbox_sent_already_is_found_on_the_ledger(desk, chain, tmp_path, machine_dir):
    desk.outbox.put(make_report(0))
    desk.deliver(2)
    with contextlib.closing(Deliveries(tmp_path / "new" / "outbox.sqlite")) as fresh:
        carrier = LedgerAccount(desk.ledger, desk.account, tmp_path / "new machine")
        outbox = Outbox(fresh, desk.ledger, carrier, desk.identity, desk.ledger.now, 32)
        outbox.put(make_report(0))
        outbox.deliver()
        (delivery,) = fresh.all()
    assert delivery.state == "mined"
    assert [report.tx for report in desk.ledger.reports()] == [delivery.tx]


def test_another_report_of_the_round_on_the_ledger_means_that_a_copy_runs(desk, tmp_path):
    desk.outbox.put(make_report(0))
    desk.deliver(2)
    with contextlib.closing(Deliveries(tmp_path / "copy" / "outbox.sqlite")) as copy:
        carrier = LedgerAccount(desk.ledger, desk.account, tmp_path / "copy")
        outbox = Outbox(copy, desk.ledger, carrier, desk.identity, desk.ledger.now, 32)
        outbox.put(make_report(0, note=b"another"))
        outbox.deliver()
        (delivery,) = copy.all()
    assert delivery.state == "failed" and "is a copy of this peer running" in delivery.error


def test_unregistered_peer_is_registered_on_the_way(chain, ledger, identities, machine_dir, tmp_path):
    desk = Desk(chain, ledger, identities[1], machine_dir, tmp_path)
    with contextlib.closing(desk.deliveries):
        desk.outbox.put(make_report(0))
        assert desk.deliver(3) == {0: "mined"}


def test_report_that_the_chain_takes_back_is_sent_again(desk, chain, monkeypatch):
    monkeypatch.setattr("swarm.ledger.outbox.MISSING_SECONDS", 0.0)
    monkeypatch.setattr("swarm.ledger.outbox.WATCH_SECONDS", 0.0)
    desk.outbox.put(make_report(0))
    desk.deliver(2)
    chain.devnet.call("anvil_reorg", 1, [])
    assert desk.ledger.reports() == []
    chain.devnet.call("evm_mine")
    states = desk.deliver()
    deadline = time.monotonic() + WAIT_SECONDS
    while states != {0: "mined"} or len(desk.ledger.reports()) != 1:
        assert time.monotonic() < deadline, desk.deliveries.all()
        chain.devnet.call("evm_mine")
        states = desk.deliver()
    assert desk.deliveries.all()[0].tx == desk.ledger.reports()[0].tx


def test_account_without_funds_holds_reports_up_until_it_has_some(desk, chain):
    chain.devnet.call("anvil_setBalance", desk.account.address, "0x0")
    desk.outbox.put(make_report(0))
    with pytest.raises(LedgerError, match="no funds"):
        desk.deliver()
    assert desk.states() == {0: "queued"}
    assert "no funds" in desk.deliveries.all()[0].error
    chain.devnet.fund(desk.account.address, 1)
    assert desk.deliver(2) == {0: "mined"}
    assert desk.deliveries.all()[0].error is None


def test_refusal_that_somebody_can_mend_is_tried_again(desk, chain, machine_dir):
    other = LedgerAccount(desk.ledger, chain.funded_account(), machine_dir)
    other.register(desk.identity, move=True)
    desk.outbox.put(make_report(0))
    with pytest.raises(ContractRefusal, match="NotPeersAccount"):
        desk.deliver()
    desk.carrier.register(desk.identity, move=True)
    assert desk.deliver(2) == {0: "mined"}


def test_ledger_that_is_away_is_one_warning_and_everything_goes_out_when_it_is_back(
    chain, ledger, identities, machine_dir, tmp_path, caplog
):
    account = chain.funded_account()
    LedgerAccount(ledger, account, machine_dir).register(identities[2])
    away = LedgerClient("http://127.0.0.1:9", ledger.address, ledger.facts)
    away.assume_time(chain.time)
    with contextlib.closing(Deliveries(tmp_path / "outbox.sqlite")) as deliveries:
        carrier = LedgerAccount(away, account, machine_dir)
        outbox = Outbox(deliveries, away, carrier, identities[2], away.now_without_asking, 32)
        outbox.put(make_report(0))
        outbox.put(make_report(1))
        for _ in range(3):
            with pytest.raises(LedgerUnavailable):
                outbox.deliver()
            outbox._attempt()
        assert [r.levelno for r in caplog.records if r.name == "swarm.ledger"] == [logging.WARNING]
        assert [delivery.state for delivery in deliveries.all()] == ["queued", "queued"]
        chain.enter(ledger, 1)
        back = ledger.another()
        outbox = Outbox(
            deliveries, back, LedgerAccount(back, account, machine_dir), identities[2], ledger.now, 32
        )
        outbox.deliver()
        outbox.deliver()
        assert [delivery.state for delivery in deliveries.all()] == ["mined", "mined"]


def test_reports_that_nobody_can_take_any_more_fail_in_the_end(desk, chain, machine_dir):
    other = LedgerAccount(desk.ledger, chain.funded_account(), machine_dir)
    other.register(desk.identity, move=True)
    desk.outbox.put(make_report(0))
    chain.enter(desk.ledger, 10)
    with pytest.raises(ContractRefusal, match="NotPeersAccount"):
        desk.deliver()
    chain.enter(desk.ledger, 40)
    assert desk.deliver() == {0: "failed"}


def test_outbox_that_cannot_be_written_is_a_ledger_error_and_goes_on_later(desk, monkeypatch):
    desk.outbox.put(make_report(0))
    database = desk.deliveries._db
    database.execute("PRAGMA query_only = ON")  # as on a full disk: every write fails
    with pytest.raises(LedgerError, match="cannot be used"):
        desk.outbox.put(make_report(1))
    assert desk.outbox._attempt() > 0  # no exception: the thread lives on
    database.execute("PRAGMA query_only = OFF")
    assert desk.deliver(2) == {0: "mined"}


def test_outbox_that_cannot_even_be_read_is_a_warning_and_goes_on_later(desk, monkeypatch):
    desk.outbox.put(make_report(0))
    database = desk.deliveries._db
    monkeypatch.setattr(desk.deliveries, "_db", sqlite3.connect(":memory:"))  # no such table: every use fails
    assert desk.outbox._attempt() > 0  # no exception: the thread lives on
    monkeypatch.setattr(desk.deliveries, "_db", database)
    assert desk.deliver(2) == {0: "mined"}


def test_another_chain_at_the_same_url_is_noticed(ledger, tmp_path):
    facts = msgspec.structs.replace(ledger.facts, first_block="00" * 32)
    client = LedgerClient(ledger.rpc_url, ledger.address, facts)
    with pytest.raises(LedgerError, match="wrong chain"):
        client.check_chain()

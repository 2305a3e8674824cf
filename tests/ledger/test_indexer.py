"""The board's index against a real chain: complete, resumable, and true when the chain changes its mind."""

import sqlite3
import time
from contextlib import contextmanager

import pytest
from ledger_cast import make_report
from test_registry import Server, answers_logs, refuses_as_invalid, refuses_as_limit, refuses_by_status

from swarm.board import indexer as indexer_module
from swarm.board.index import Index
from swarm.board.index_reader import IndexReader
from swarm.board.indexer import Indexer
from swarm.errors import SwarmError
from swarm.ledger.account import LedgerAccount
from swarm.ledger.client import LedgerClient
from swarm.verde.standings import read_history

SECONDS = 20.0  # that an indexer gets to see what is on the chain


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(indexer_module, "MIN_POLL", 0.02)
    monkeypatch.setattr(indexer_module, "MAX_POLL", 0.02)
    monkeypatch.setattr(indexer_module, "MAX_BACKOFF", 0.05)


@pytest.fixture
def account(ledger, chain, machine_dir):
    return LedgerAccount(ledger, chain.funded_account(), machine_dir)


@pytest.fixture
def report(account, chain):
    def act(identity, *numbers, reward_micros=1_500_000):
        reports = [make_report(number, reward_micros=reward_micros) for number in numbers]
        account.carry(identity.peer, f"{numbers}{reward_micros}", reports)
        chain.settle()

    return act


@pytest.fixture(scope="module")
def one_server(chain):
    server = Server(chain.devnet.rpc_url)
    yield server
    server.close()


@pytest.fixture
def server(one_server):
    one_server.begin()
    one_server.spoil = None
    return one_server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "board.sqlite"


@contextmanager
def indexing(ledger, path, url=None):
    indexer = Indexer(LedgerClient(url or ledger.rpc_url, ledger.address, ledger.facts), path)
    indexer.start()
    try:
        yield indexer
    finally:
        indexer.stop()
        indexer.check()


def wait_until(condition, indexer):
    deadline = time.monotonic() + SECONDS
    while not condition():
        indexer.check()
        known = indexer.known
        assert time.monotonic() < deadline, (known.state, known.trouble, known.block)
        time.sleep(0.02)


def catch_up(indexer, chain):
    """Wait until everything on the chain is in the index."""
    chain.settle()
    head = int(chain.devnet.call("eth_blockNumber"), 16)
    known = indexer.known
    wait_until(lambda: known.state == "ok" and known.block == head == known.latest_block, indexer)
    seen_at = time.monotonic()  # the look that took in the last block may not be over
    wait_until(lambda: known.looked_at > seen_at, indexer)


def standings(indexer):
    with indexer.known.reputation() as reputation:
        return reputation.standings()


def rows(path):
    with IndexReaderAt(path) as index:
        return [(kept.report, kept.ranked) for kept in index.after(0)]


@contextmanager
def IndexReaderAt(path):
    index = IndexReader(path)
    yield index
    index.close()


def play_three_rounds(ledger, chain, account, report, identities):
    first, second, third = identities
    for identity in (first, second):
        account.register(identity)
    report(first, 0)
    chain.enter(ledger, 1)
    report(first, 1)
    report(second, 0, 1, reward_micros=700_000)
    chain.enter(ledger, 3)  # the ledger makes no block in round 2
    account.rotate(second, third)
    report(third, 3, reward_micros=900_000)
    chain.enter(ledger, 4)


def test_all_of_it_is_what_the_ledger_says(ledger, chain, account, report, identities, path):
    play_three_rounds(ledger, chain, account, report, identities)
    first, second, third = identities
    with indexing(ledger, path) as indexer:
        catch_up(indexer, chain)
        assert standings(indexer) == read_history(ledger, print)[0].standings()
        assert indexer.known.accounts == {
            first.peer: ledger.account_of(first.peer),
            third.peer: ledger.account_of(third.peer),
        }
    assert [kept for kept, _ in rows(path)] == ledger.reports()
    with IndexReaderAt(path) as index:
        never = (2**62, 2**62)
        of_second = [kept.report for kept in index.reports_of(second.peer, never, 10)]
        assert of_second == [kept.report for kept in index.reports_of(third.peer, never, 10)]
        assert [one.round for one in of_second] == [3, 1, 0]
        assert [(one.number, one.reports, one.mean) for one in index.rounds(2**62, -1)] == [
            (4, None, None),
            (3, 1, 900_000),
            (2, 0, 0),
            (1, 2, 1_100_000),
            (0, 1, 1_500_000),
        ]
        assert index.late_counts(0, 4) == {0: 1}
        assert [bound.peer for bound in index.bindings_of(third.peer)] == [second.peer, third.peer]
    sums = {record.peer: (record.rounds, record.all_reward_micros) for record in ledger.leaderboard()}
    assert sums == {first.peer: (2, 3_000_000), third.peer: (3, 2_300_000)}


def test_a_restart_reads_only_what_is_new(ledger, chain, account, report, identities, path, server):
    play_three_rounds(ledger, chain, account, report, identities)
    with indexing(ledger, path, server.url) as indexer:
        catch_up(indexer, chain)
        before = standings(indexer)
        block = indexer.known.block
    server.begin()
    with indexing(ledger, path, server.url) as indexer:
        catch_up(indexer, chain)
        assert standings(indexer) == before
        report(identities[2], 4)
        chain.enter(ledger, 5)
        catch_up(indexer, chain)
        assert standings(indexer) == read_history(ledger, print)[0].standings()
    assert min(first for first, _ in server.ranges) == block + 1
    assert [kept for kept, _ in rows(path)] == ledger.reports()


@pytest.mark.parametrize("refusal", [refuses_as_invalid, refuses_as_limit, refuses_by_status])
def test_a_server_that_allows_few_blocks_tells_everything(
    ledger, chain, account, report, identities, path, server, refusal
):
    chain.devnet.call("anvil_mine", hex(30), hex(1))
    play_three_rounds(ledger, chain, account, report, identities)
    server.refuses, server.refusal = lambda first, last: last - first >= 3, refusal
    with indexing(ledger, path, server.url) as indexer:
        catch_up(indexer, chain)
    assert [kept for kept, _ in rows(path)] == ledger.reports()


def test_what_the_chain_takes_back_is_forgotten(ledger, chain, account, report, identities, path):
    first, second, _ = identities
    account.register(first)
    report(first, 0)
    with indexing(ledger, path) as indexer:
        catch_up(indexer, chain)
        snapshot = chain.devnet.call("evm_snapshot")
        chain.enter(ledger, 1)
        report(first, 1, reward_micros=999)
        account.register(second)
        report(second, 1)
        chain.enter(ledger, 2)
        catch_up(indexer, chain)
        assert len(rows(path)) == 3 and second.peer in indexer.known.accounts
        assert chain.devnet.call("evm_revert", snapshot)
        chain.enter(ledger, 1, offset=5)
        LedgerAccount(ledger.another(), chain.funded_account(), path.parent / "other").register(identities[2])
        for _ in range(8):
            chain.devnet.call("evm_mine")
        chain.enter(ledger, 2, offset=7)
        catch_up(indexer, chain)
        fresh = read_history(LedgerClient(ledger.rpc_url, ledger.address), print)[0]
        assert standings(indexer) == fresh.standings()
        assert second.peer not in indexer.known.accounts and identities[2].peer in indexer.known.accounts
        assert indexer.known.trends()[first.peer] == {0: 1_500_000}
        with IndexReaderAt(path) as index:
            found = {one.number: one.first.hash for one in index.rounds(2**62, -1)}
        fresh_client = LedgerClient(ledger.rpc_url, ledger.address)
        assert found == {number: fresh_client.beacon(number) for number in range(3)}
    assert [kept.round for kept, _ in rows(path)] == [0]


def test_a_server_that_lags_is_waited_for(ledger, chain, account, report, identities, path, server):
    account.register(identities[0])
    report(identities[0], 0)
    with indexing(ledger, path, server.url) as indexer:
        catch_up(indexer, chain)
    with Reopened(path) as index:  # as if another of the server's machines had been read, which is ahead
        block, _ = index.checkpoint()
        index.add([], indexer_module.Block(block + 5, 0, b"\1" * 32))
    with indexing(ledger, path, server.url) as indexer:
        wait_until(lambda: indexer.known.state == "away" and "latest block" in indexer.known.trouble, indexer)
        assert len(rows(path)) == 1
        for _ in range(7):
            chain.devnet.call("evm_mine")
        catch_up(indexer, chain)
    assert [kept for kept, _ in rows(path)] == ledger.reports()


@contextmanager
def Reopened(path):
    index = Index(path)
    yield index
    index.close()


def test_a_ledger_that_is_away_is_said_and_caught_up_with(
    ledger, chain, account, report, identities, path, server
):
    account.register(identities[0])
    with indexing(ledger, path, server.url) as indexer:
        catch_up(indexer, chain)
        server.choose = lambda body: refuses_by_status
        wait_until(lambda: indexer.known.state == "away" and "HTTP 413" in indexer.known.trouble, indexer)
        report(identities[0], 0)
        server.begin()
        catch_up(indexer, chain)
        assert indexer.known.trouble == ""
    assert len(rows(path)) == 1


def test_taking_back_is_a_change_and_the_draw_stays_true(ledger, chain, account, report, identities, path):
    first, _, _ = identities
    account.register(first)
    chain.enter(ledger, 1)
    with indexing(ledger, path) as indexer:
        catch_up(indexer, chain)
        drawn = indexer.known.draw()
        snapshot = chain.devnet.call("evm_snapshot")
        report(first, 1)
        catch_up(indexer, chain)
        version = indexer.known.version
        assert indexer.known.trends() == {first.peer: {1: 1_500_000}}
        assert chain.devnet.call("evm_revert", snapshot)
        for _ in range(8):
            chain.devnet.call("evm_mine")
        catch_up(indexer, chain)
        assert indexer.known.trends() == {} and rows(path) == []
        assert indexer.known.version > version and indexer.known.draw() == drawn


def test_a_round_begins_with_another_block_after_a_reorganization(ledger, chain, account, identities, path):
    account.register(identities[0])
    with indexing(ledger, path) as indexer:
        catch_up(indexer, chain)
        snapshot = chain.devnet.call("evm_snapshot")
        chain.enter(ledger, 1)
        catch_up(indexer, chain)
        _, before = indexer.known.draw()
        assert chain.devnet.call("evm_revert", snapshot)
        for _ in range(3):
            chain.devnet.call("evm_mine")
        chain.enter(ledger, 1, offset=3)
        catch_up(indexer, chain)
        _, after = indexer.known.draw()
        fresh = LedgerClient(ledger.rpc_url, ledger.address)
        assert after.beacon == fresh.beacon(1) != before.beacon


def test_reports_of_a_key_that_was_rotated_are_ranked(ledger, chain, account, report, identities, path):
    first, second, _ = identities
    account.register(first)
    report(first, 0)
    account.rotate(first, second)
    chain.settle()
    with indexing(ledger, path) as indexer:
        catch_up(indexer, chain)
        assert [ranked for _, ranked in rows(path)] == [None]
        chain.enter(ledger, 1)
        catch_up(indexer, chain)
        assert [ranked for _, ranked in rows(path)] == [True]


def logged_reports(ledger, chain):
    query = {"address": ledger.address, "fromBlock": hex(0), "toBlock": "latest"}
    return [entry for entry in chain.devnet.call("eth_getLogs", query) if len(entry["data"]) == 2 + 2 * 256]


def test_a_server_that_contradicts_itself_is_read_again_and_nothing_is_there_twice(
    ledger, chain, account, report, identities, path, server
):
    account.register(identities[0])
    report(identities[0], 0)
    chain.enter(ledger, 1)
    report(identities[0], 1)
    first, second = logged_reports(ledger, chain)
    lie = {**second, "blockNumber": first["blockNumber"], "logIndex": "0x99"}
    server.choose = lambda body: answers_logs([first, lie]) if b"eth_getLogs" in body else None
    with indexing(ledger, path, server.url) as indexer:
        wait_until(lambda: "round 1 is in a block of round 0" in indexer.known.trouble, indexer)
        server.begin()
        catch_up(indexer, chain)
        assert standings(indexer) == read_history(ledger, print)[0].standings()
    assert [kept for kept, _ in rows(path)] == ledger.reports()


@pytest.mark.parametrize("data", ["0x", "0x" + "00" * 255, "0x" + "00" * 300, "0xzz"])
def test_a_report_that_is_cut_off_is_an_error_of_the_ledger(
    ledger, chain, account, report, identities, path, server, data
):
    account.register(identities[0])
    report(identities[0], 0)
    (logged,) = logged_reports(ledger, chain)
    server.choose = lambda body: answers_logs([{**logged, "data": data}]) if b"eth_getLogs" in body else None
    with indexing(ledger, path, server.url) as indexer:
        wait_until(lambda: indexer.known.state == "away" and "nonsense" in indexer.known.trouble, indexer)
        server.begin()
        catch_up(indexer, chain)


@pytest.mark.parametrize("method", ["add", "enter", "rank"])
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    ledger, chain, account, report, identities, path, monkeypatch, method
):
    account.register(identities[0])
    report(identities[0], 0)
    with indexing(ledger, path) as indexer:
        catch_up(indexer, chain)
        works, failures = getattr(Index, method), []

        def fails_twice(self, *arguments):
            if len(failures) < 2:
                failures.append(1)
                raise sqlite3.OperationalError("database or disk is full")
            return works(self, *arguments)

        monkeypatch.setattr(Index, method, fails_twice)
        chain.enter(ledger, 1)
        report(identities[0], 1)
        chain.enter(ledger, 2)
        wait_until(lambda: len(failures) == 2 and indexer.known.standings_round == 2, indexer)
        catch_up(indexer, chain)
        assert standings(indexer) == read_history(ledger, print)[0].standings()
    first, second = ledger.reports()  # which does not begin where the first one ended
    assert rows(path) == [(first, True), (second, False)]


def test_an_index_of_another_swarm_or_version_is_begun_anew(ledger, chain, account, report, identities, path):
    account.register(identities[0])
    report(identities[0], 0)
    with Reopened(path) as index:
        index.begin(b"another swarm's facts")
        index.add([], indexer_module.Block(10**6, 0, b"\1" * 32))
    with indexing(ledger, path) as indexer:
        catch_up(indexer, chain)
    assert len(rows(path)) == 1


def test_a_file_that_is_no_index_is_one_line(path):
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(SwarmError, match="delete it and start again"):
        Index(path)

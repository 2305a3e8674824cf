"""Reputation kept up to date in a thread, with a ledger that goes away, takes back, or has a long past."""

import logging
import time

import pytest
from ledger_cast import make_report
from test_follower import Proxy, drops_the_connection

from swarm.ledger.account import LedgerAccount
from swarm.ledger.client import LedgerClient
from swarm.ledger.creation import deploy
from swarm.ledger.devnet import Devnet
from swarm.manifest import succeed
from swarm.verde import standings as standings_module
from swarm.verde.standings import Standings, begin_reputation, read_history

WAIT_SECONDS = 30


@pytest.fixture
def report(ledger, chain, machine_dir):
    """Reports rounds of a peer; registers it before the first."""
    account = LedgerAccount(ledger, chain.funded_account(), machine_dir)

    def act(identity, *numbers):
        account.register(identity)
        account.carry(identity.peer, f"{numbers}", [make_report(number) for number in numbers])
        chain.settle()

    return act


@pytest.fixture(scope="module")
def one_proxy(chain):
    proxy = Proxy(chain.devnet.rpc_url)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(one_proxy, chain):
    one_proxy.spoil = one_proxy.choose = None
    one_proxy.url_of_chain = chain.devnet.rpc_url
    return one_proxy


@pytest.fixture
def follow(ledger, proxy):
    """Starts reading the ledger, through the proxy."""
    started = []

    def start(*listeners):
        started.append(Standings(LedgerClient(proxy.url, ledger.address, ledger.facts)))
        for listener in listeners:
            started[-1].on_round(listener)
        started[-1].start()
        return started[-1]

    yield start
    for standings in started:
        standings.stop()


def until(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_standings_are_ready_when_a_round_begins(follow, ledger, chain, report, identities):
    heard = []
    standings = follow(lambda number, settled: heard.append((number, settled)))
    assert standings.wait(0, WAIT_SECONDS) and not standings.ready_for(1)
    assert not standings.wait(1, 0.05)
    report(identities[0], 0)
    chain.enter(ledger, 1)
    assert standings.wait(1, WAIT_SECONDS)
    with standings.reading() as reputation:
        assert reputation.number == 1
        standing = reputation.standing(identities[0].peer)
    assert (standing.age, standing.verified_micros) == (1, 1_500_000)
    assert standing.account == ledger.account_of(identities[0].peer)
    until(lambda: heard == [(0, ()), (1, ())])


def test_a_long_past_is_read_with_lines_of_progress_and_told_of_once(
    follow, ledger, chain, report, identities, caplog, monkeypatch
):
    caplog.set_level("INFO", "swarm.verde")
    monkeypatch.setattr(standings_module, "PROGRESS_SECONDS", 0.05)
    for number in range(1, 12):
        chain.enter(ledger, number)
        report(identities[0], number)
    chain.enter(ledger, 40)
    heard = []
    standings = follow(lambda number, settled: heard.append((number, len(settled))))
    assert standings.wait(40, WAIT_SECONDS)
    until(lambda: heard)
    assert [number for number, _ in heard] == [40]
    assert heard[0][1] > 0  # cases that nobody could judge have lapsed
    lines = caplog.messages
    assert "history round=" in lines[0] and "of=40" in lines[0]
    until(lambda: "is read round=40" in caplog.messages[-1])
    with standings.reading() as reputation:
        assert reputation.standing(identities[0].peer).rounds == 11


def test_a_ledger_that_is_away_is_one_line_and_is_caught_up_with(
    follow, ledger, chain, report, identities, proxy, caplog
):
    standings = follow()
    assert standings.wait(0, WAIT_SECONDS)
    proxy.spoil = drops_the_connection
    report(identities[0], 0)
    chain.enter(ledger, 3)
    assert not standings.wait(1, 1.5)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    proxy.spoil = None
    assert standings.wait(3, WAIT_SECONDS)
    with standings.reading() as reputation:
        assert reputation.standing(identities[0].peer).rounds == 1
    assert len(caplog.records) == 1


def test_what_the_chain_takes_back_is_forgotten(follow, ledger, chain, report, identities, caplog):
    standings = follow()
    snapshot = chain.devnet.call("evm_snapshot")
    report(identities[0], 0)
    chain.enter(ledger, 1)
    assert standings.wait(1, WAIT_SECONDS)
    with standings.reading() as reputation:
        assert reputation.standing(identities[0].peer).rounds == 1
    assert chain.devnet.call("evm_revert", snapshot)
    chain.enter(ledger, 1, offset=7)
    chain.enter(ledger, 2)
    assert standings.wait(2, WAIT_SECONDS)
    with standings.reading() as reputation:
        assert reputation.standing(identities[0].peer).rounds == 0
    assert "anew" in caplog.text


def test_another_chain_at_the_same_url_is_not_believed(
    follow, ledger, chain, report, identities, proxy, caplog
):
    standings = follow()
    report(identities[0], 0)
    chain.enter(ledger, 1)
    assert standings.wait(1, WAIT_SECONDS)
    with Devnet(block_seconds=None, chain_id=4242) as other:
        other.call("evm_setNextBlockTimestamp", ledger.genesis + 50 * ledger.round_seconds)
        other.call("anvil_mine", hex(100))
        proxy.url_of_chain = other.rpc_url
        assert not standings.wait(2, 1.5)
        until(lambda: "wrong chain" in caplog.text)
        with standings.reading() as reputation:
            assert reputation.standing(identities[0].peer).rounds == 1
    proxy.url_of_chain = chain.devnet.rpc_url
    chain.enter(ledger, 2)
    assert standings.wait(2, WAIT_SECONDS)


def test_a_mistake_of_a_listener_reaches_whoever_asks(follow, ledger, monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)

    def fails(number, settled):
        raise ZeroDivisionError

    standings = follow(fails)
    with pytest.raises(RuntimeError, match="standings"):
        until(lambda: standings.wait(99, 0.1))


def test_successor_begins_with_the_scores_that_its_predecessor_had_then(
    ledger, chain, report, identities, manifest, machine_dir
):
    def successor(contract: str) -> LedgerClient:
        rules = succeed(manifest, ledger.swarm_id, contract)
        genesis = chain.time + 2 * manifest.round_seconds
        return deploy(chain.devnet.rpc_url, chain.funded_account(), rules, genesis, machine_dir)

    report(identities[0], 0)
    following, misled = successor(ledger.address), successor(f"0x{'1' * 40}")
    assert begin_reputation(following) is None  # the predecessor goes on until it begins
    chain.enter(ledger, 1)
    report(identities[1], 1)
    chain.enter(following, 0)
    report(identities[2], 2)  # in the predecessor, after its successor began
    chain.enter(following, 1)
    assert set(begin_reputation(following)._inherited) == {one.peer for one in identities[:2]}
    assert begin_reputation(misled)._inherited == {}
    reputation, _ = read_history(following, lambda what: None)
    assert reputation.number == 1

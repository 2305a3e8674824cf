"""The ledger read from its beginning, round by round, from servers that limit, forget and take back."""

import json

import pytest
from ledger_cast import make_report
from test_registry import Server, answers_logs, refuses_as_invalid, refuses_as_limit, refuses_by_status

from swarm.errors import LedgerError
from swarm.ledger.account import LedgerAccount
from swarm.ledger.client import LedgerClient
from swarm.ledger.history import History, HistoryChanged
from swarm.ledger.records import Dated, Registered, Rotated
from swarm.ledger.registry import ANSWERS_TO_GROW


@pytest.fixture
def account(ledger, chain, machine_dir):
    return LedgerAccount(ledger, chain.funded_account(), machine_dir)


@pytest.fixture
def register(account, chain):
    def act(identity):
        account.register(identity)
        chain.settle()

    return act


@pytest.fixture
def report(account, chain):
    def act(identity, *numbers):
        account.carry(identity.peer, f"{numbers}", [make_report(number) for number in numbers])
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
def history(ledger, server):
    return History(LedgerClient(server.url, ledger.address, ledger.facts))


def all_of(history):
    """The rounds that have begun."""
    return list(iter(history.next, None))


def persistently(history, tries):
    """The rounds that have begun, from a server that fails again and again, and how often it failed."""
    rounds, failures = [], 0
    for _ in range(tries):
        try:
            rounds.extend(iter(history.next, None))  # what came before an error stays
        except LedgerError:
            failures += 1
    return rounds, failures


def said(begun):
    """The events of a round in short."""
    words = []
    for event in begun.events:
        if isinstance(event, Dated):
            words.append((event.report.peer, event.report.round, event.report.late, event.clock_round))
        else:
            words.append(type(event))
    return words


def test_each_round_comes_with_its_beacon_and_what_happened_before_it(
    history, ledger, chain, account, register, report, identities
):
    first, second, third = identities
    register(first)
    register(second)
    report(first, 0)
    beacons = {0: ledger.beacon(0), 1: chain.enter(ledger, 1)}
    report(first, 1)
    report(second, 0, 1)
    beacons[3] = chain.enter(ledger, 3)  # the ledger makes no block in round 2
    account.rotate(second, third)
    chain.settle()
    report(third, 3)
    beacons[4] = chain.enter(ledger, 4)
    rounds = all_of(history)
    assert [begun.number for begun in rounds] == [0, 1, 2, 3, 4]
    assert {begun.number: begun.beacon for begun in rounds} == {**beacons, 2: None}
    assert [said(begun) for begun in rounds] == [
        [],
        [Registered, Registered, (first.peer, 0, False, 0)],
        [(first.peer, 1, False, 1), (second.peer, 0, True, 1), (second.peer, 1, False, 1)],
        [],
        [Rotated, (third.peer, 3, False, 3)],
    ]
    registered, rotated = rounds[1].events[0], rounds[4].events[0]
    assert (registered.peer, registered.account) == (first.peer, ledger.account_of(first.peer))
    assert (rotated.old, rotated.new) == (second.peer, third.peer)
    assert rounds[1].events[2].report == ledger.find_report(first.peer, 0)


def test_a_round_is_not_there_before_its_time_and_reading_goes_on(
    history, ledger, chain, register, report, identities
):
    register(identities[0])
    assert [begun.number for begun in all_of(history)] == [0]
    report(identities[0], 0)
    assert history.next() is None
    chain.enter(ledger, 1)
    (begun,) = all_of(history)
    assert begun.number == 1 and said(begun) == [Registered, (identities[0].peer, 0, False, 0)]
    chain.enter(ledger, 3)
    assert [begun.number for begun in all_of(history)] == [2, 3]


def test_a_round_costs_four_questions(history, ledger, chain, server, register, report, identities):
    register(identities[0])
    chain.enter(ledger, 1)
    all_of(history)
    report(identities[0], 1)
    chain.devnet.call("anvil_mine", hex(10), hex(1))
    chain.enter(ledger, 2)
    del server.asked[:]
    assert len(all_of(history)) == 1
    assert server.asked.count("eth_getLogs") == 1
    assert len(server.asked) < 12


def test_old_rounds_are_read_many_at_once(history, ledger, chain, server, register, report, identities):
    register(identities[0])
    for number in range(1, 20):
        chain.enter(ledger, number)
        report(identities[0], number)
    chain.devnet.call("anvil_mine", hex(40), hex(1))
    rounds = all_of(history)
    assert [said(begun) for begun in rounds[2:]] == [
        [(identities[0].peer, number, False, number)] for number in range(1, 19)
    ]
    assert server.asked.count("eth_getLogs") <= 2
    assert len(server.asked) < 5 * len(rounds)


@pytest.mark.parametrize("refusal", [refuses_as_invalid, refuses_as_limit, refuses_by_status])
def test_a_server_that_allows_few_blocks_tells_everything(
    history, ledger, chain, server, register, report, identities, refusal
):
    register(identities[0])
    chain.devnet.call("anvil_mine", hex(300), hex(1))
    report(identities[0], 0)
    chain.enter(ledger, 1)
    server.refuses, server.refusal = lambda first, last: last - first >= 20, refusal
    rounds, _ = persistently(history, 20)
    assert [said(begun) for begun in rounds] == [[], [Registered, (identities[0].peer, 0, False, 0)]]
    assert sorted(server.ranges) == server.ranges
    refused = server.asked.count("eth_getLogs") - len(server.ranges)
    assert refused < 12 + len(server.ranges) / ANSWERS_TO_GROW


def test_an_answer_that_fails_is_asked_for_again_and_nothing_comes_twice(
    history, ledger, chain, server, register, report, identities
):
    register(identities[0])
    report(identities[0], 0)
    chain.enter(ledger, 2)
    asked = []

    def each_fails_once(body):
        asked.append(json.loads(body)["method"])
        return refuses_by_status if asked.count(asked[-1]) == 1 or len(asked) % 7 == 0 else None

    server.choose = each_fails_once
    rounds, failures = persistently(history, 20)
    assert failures > 2
    assert [said(begun) for begun in rounds] == [[], [Registered, (identities[0].peer, 0, False, 0)], []]


def test_a_server_that_forgot_old_logs_is_an_error_and_not_an_empty_history(
    history, ledger, chain, server, register, identities
):
    register(identities[0])
    chain.enter(ledger, 1)
    server.refuses = lambda first, last: True
    assert history.next().number == 0
    for _ in range(3):
        with pytest.raises(LedgerError, match="refused events"):
            history.next()


def test_a_chain_that_takes_blocks_back_is_noticed(history, ledger, chain, server, register, identities):
    register(identities[0])
    snapshot = chain.devnet.call("evm_snapshot")
    chain.enter(ledger, 1)
    assert len(all_of(history)) == 2
    assert chain.devnet.call("evm_revert", snapshot)
    chain.enter(ledger, 1, offset=5)
    chain.enter(ledger, 2)
    with pytest.raises(HistoryChanged, match="another block"):
        history.next()
    again = History(LedgerClient(server.url, ledger.address, ledger.facts))
    assert [begun.beacon for begun in all_of(again)][1:] == [ledger.beacon(1), ledger.beacon(2)]


def test_a_report_in_a_block_where_it_cannot_be_is_noticed(
    history, ledger, chain, server, register, report, identities
):
    register(identities[0])
    report(identities[0], 0)
    chain.enter(ledger, 1)
    (logs,) = [
        chain.devnet.call(
            "eth_getLogs", {"address": ledger.address, "fromBlock": hex(0), "toBlock": "latest"}
        )
    ]
    late = int(chain.devnet.call("eth_blockNumber"), 16)
    moved = [{**entry, "blockNumber": hex(late)} for entry in logs if len(entry["topics"]) == 3][-1:]
    all_of(history)
    chain.enter(ledger, 2)
    server.choose = lambda body: answers_logs(moved) if b"eth_getLogs" in body else None
    with pytest.raises(HistoryChanged, match="round 0 is in a block of round 1"):
        history.next()


@pytest.mark.parametrize(
    "change", [{"blockNumber": "0x1"}, {"blockNumber": None}, {"logIndex": "0x" + "f" * 40}]
)
def test_events_that_cannot_be_are_an_error(ledger, chain, server, register, identities, change):
    register(identities[0])
    block = int(chain.devnet.call("eth_blockNumber"), 16)
    logs = chain.devnet.call(
        "eth_getLogs", {"address": ledger.address, "fromBlock": hex(block), "toBlock": hex(block)}
    )
    client = LedgerClient(server.url, ledger.address, ledger.facts)
    assert len(client.events(block, block)) == 1
    server.choose = lambda body: answers_logs([{**logs[0], **change}]) if b"eth_getLogs" in body else None
    with pytest.raises(LedgerError, match="events with nonsense"):
        client.events(block, block)

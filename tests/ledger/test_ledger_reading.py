"""What the client reads back is what was written."""

import pytest
from ledger_cast import make_report

from swarm.errors import LedgerError
from swarm.ledger.account import LedgerAccount
from swarm.ledger.client import LedgerClient
from swarm.ledger.refusals import ContractRefusal


@pytest.fixture
def account(ledger, chain, identities, machine_dir):
    """Speaks for every identity."""
    account = LedgerAccount(ledger, chain.funded_account(), machine_dir)
    for identity in identities:
        account.register(identity)
    return account


@pytest.fixture
def send(account, chain):
    """Reports a round and waits for the block."""

    def act(identity, number, **content):
        account.carry(identity.peer, f"{number} {content}", [make_report(number, **content)])
        chain.settle()

    return act


def test_a_report_comes_back_as_it_was_sent(account, ledger, chain, identities):
    report = make_report(0)
    carried = account.carry(identities[0].peer, "0", [report])
    chain.settle()
    (found,) = ledger.reports()
    assert all(getattr(found, name) == getattr(report, name) for name in report.__struct_fields__)
    assert (found.peer, found.tx, found.late) == (identities[0].peer, carried.tx, False)


def test_a_parcel_is_sent_once(account, ledger, chain, identities):
    first = account.carry(identities[0].peer, "0", [make_report(0)])
    chain.settle()
    account.follow()
    again = account.carry(identities[0].peer, "0", [make_report(0)])
    assert (first.tx, again.state) == (again.tx, "mined")
    assert len(ledger.reports()) == 1
    with pytest.raises(ContractRefusal, match=r"already reported round 0 \(AlreadyReported\)"):
        account.carry(identities[0].peer, "another", [make_report(0)])


def test_totals_are_the_sums_of_the_reports(send, ledger, chain, identities):
    chain.enter(ledger, 300)
    for number, (who, round) in enumerate([(0, 300), (1, 300), (0, 299), (1, 290), (1, 289)]):
        send(identities[who], round, reward_micros=10**number)
    chain.enter(ledger, 301)
    send(identities[0], 301, reward_micros=700_000)
    reports = ledger.reports()
    assert [report.reward_micros for report in reports] == [1, 10, 100, 1000, 10000, 700_000]
    for record in ledger.leaderboard():
        own = [report for report in reports if report.peer == record.peer]
        on_time = [report for report in own if not report.late]
        assert (record.rounds, record.ranked_rounds) == (len(own), len(on_time))
        assert record.all_reward_micros == sum(report.reward_micros for report in own)
        assert record.total_reward_micros == sum(report.reward_micros for report in on_time)
        assert ledger.peer_record(record.peer) == record
    # The third one never reported: the leaderboard has only those who did.
    assert [record.peer for record in ledger.leaderboard()] == [identities[0].peer, identities[1].peer]
    assert [report.round for report in ledger.reports(from_round=300)] == [300, 300, 301]
    assert ledger.reports(from_round=400) == []


def test_active_counts_the_on_time_reporters_two_rounds_before(send, ledger, chain, identities):
    chain.enter(ledger, 5)
    send(identities[0], 5)
    send(identities[1], 5)
    chain.enter(ledger, 7)
    assert ledger.active(7) == 2
    send(identities[2], 5)  # late: a count that still grew would split the cells
    assert ledger.active(7) == 2
    reader = LedgerClient(chain.devnet.rpc_url, ledger.address)
    assert [reader.active(round) for round in (0, 1, 2, 7, 8)] == [0, 0, 0, 2, 0]


def test_an_account_without_money_is_told_so(ledger, chain, identities, machine_dir):
    from eth_account import Account

    poor = Account.create()
    with pytest.raises(LedgerError, match=f"no funds for registration 1 of Qm.* by {poor.address}"):
        LedgerAccount(ledger, poor, machine_dir).register(identities[0])

"""What the contract lets happen, seen through the client on a real chain."""

import pytest
from eth_account import Account
from ledger_cast import make_report, other_account

from swarm.errors import LedgerError
from swarm.ledger.client import LedgerClient
from swarm.ledger.refusals import ContractRefusal


def refused(name, action, *arguments):
    with pytest.raises(ContractRefusal) as caught:
        action(*arguments)
    assert caught.value.name == name
    assert "\n" not in str(caught.value) and name in str(caught.value)
    return str(caught.value)


def record_of(ledger, identity):
    return next(record for record in ledger.leaderboard() if record.peer == identity.peer)


def balance(chain, ledger):
    return chain.devnet.call("eth_getBalance", ledger.account.address, "latest")


def proof(identity, chain_id, contract, account):
    """A registration proof, written out independently of the client."""
    message = b"swarm/1/register" + chain_id.to_bytes(32, "big")
    return identity.sign(message + bytes.fromhex(contract[2:]) + bytes.fromhex(account[2:]))


def send_register(ledger, modulus, signature):
    function = ledger._contract.functions.register(modulus, signature)
    return ledger._rpc.send(ledger.account, function, "registration")


def test_registration_gives_the_peer_id_of_its_key(ledger, identities):
    assert ledger.register(identities[0]).startswith("0x")
    record = record_of(ledger, identities[0])
    assert record.account == ledger.account.address
    assert [entry.peer for entry in ledger.leaderboard()] == [identities[0].peer]


def test_registering_again_is_no_transaction(ledger, chain, identities):
    ledger.register(identities[0])
    before = balance(chain, ledger)
    assert ledger.register(identities[0]) is None
    assert balance(chain, ledger) == before


def test_one_account_may_hold_many_peers(ledger, identities):
    for identity in identities:
        ledger.register(identity)
    assert {record.account for record in ledger.leaderboard()} == {ledger.account.address}


def test_a_peer_has_one_account_for_ever(ledger, chain, identities):
    ledger.register(identities[0])
    message = refused("AlreadyRegistered", other_account(ledger, chain).register, identities[0])
    assert identities[0].peer_id in message and ledger.account.address.lower() in message.lower()


def test_a_proof_for_another_account_contract_or_chain_is_refused(ledger, identities):
    me, other = ledger.account.address, Account.create().address
    modulus = identities[0].public_key.modulus
    for chain_id, contract, account in (
        (ledger.chain_id, ledger.address, other),
        (ledger.chain_id, other, me),
        (ledger.chain_id + 1, ledger.address, me),
    ):
        signature = proof(identities[0], chain_id, contract, account)
        refused("BadProof", send_register, ledger, modulus, signature)
    send_register(ledger, modulus, proof(identities[0], ledger.chain_id, ledger.address, me))


def test_a_proof_by_another_key_is_refused(ledger, identities):
    signature = proof(identities[1], ledger.chain_id, ledger.address, ledger.account.address)
    refused("BadProof", send_register, ledger, identities[0].public_key.modulus, signature)
    refused("BadProof", send_register, ledger, identities[0].public_key.modulus, signature[:-1])
    refused("BadProof", send_register, ledger, identities[0].public_key.modulus, b"")


def test_a_modulus_that_is_not_rsa_2048_is_refused(ledger, identities):
    modulus = identities[0].public_key.modulus
    for bad in (modulus[1:], modulus + b"\1", b"\x7f" + modulus[1:], modulus[:-1] + b"\2", b""):
        refused("BadModulus", send_register, ledger, bad, bytes(256))


def test_a_report_in_its_round_is_on_time(ledger, chain, identities):
    ledger.register(identities[0])
    chain.enter(ledger, 3)
    receipt = ledger.report(make_report(identities[0], 3))
    assert not receipt.late and receipt.tx.startswith("0x") and receipt.gas_used > 21_000
    assert ledger._read("hasReported", identities[0].peer, 3)
    assert not ledger._read("hasReported", identities[0].peer, 2)


def test_a_round_is_reported_once(ledger, chain, identities):
    ledger.register(identities[0])
    chain.enter(ledger, 1)
    first = ledger.report(make_report(identities[0], 1))
    message = refused("AlreadyReported", ledger.report, make_report(identities[0], 1, note=b"another"))
    who = ledger.account.address
    assert message == f"the ledger refused report by {who}: already reported round 1 (AlreadyReported)"
    again = ledger.report(make_report(identities[0], 1))  # as after a crash that lost the answer
    assert again == first
    assert record_of(ledger, identities[0]).rounds == 1


def test_a_repeated_late_report_finds_the_first_one(ledger, chain, identities):
    ledger.register(identities[0])
    chain.enter(ledger, 4)
    first = ledger.report(make_report(identities[0], 2))
    chain.enter(ledger, 6)
    assert ledger.report(make_report(identities[0], 2)) == first and first.late


def test_nobody_reports_or_announces_for_another(ledger, chain, identities):
    ledger.register(identities[0])
    stranger = other_account(ledger, chain)
    refused("NotPeersAccount", stranger.report, make_report(identities[0], 0))
    refused("NotPeersAccount", stranger.announce_bootnode, identities[0], "/ip4/127.0.0.1/tcp/1")
    refused("NotRegistered", stranger.report, make_report(identities[1], 0))


def test_a_report_within_the_window_is_late_and_after_it_refused(ledger, chain, identities):
    ledger.register(identities[0])
    assert ledger.acceptance_window == 32
    chain.enter(ledger, 40)
    assert ledger.report(make_report(identities[0], 39)).late
    assert ledger.report(make_report(identities[0], 8)).late
    refused("TooLate", ledger.report, make_report(identities[0], 7))
    refused("FutureRound", ledger.report, make_report(identities[0], 41))


def test_before_genesis_nothing_is_reported(chain, manifest, identities):
    from swarm.ledger.client import deploy

    ledger = deploy(chain.devnet.rpc_url, chain.funded_account(), manifest, chain.time + 5000)
    ledger.register(identities[0])
    refused("BeforeGenesis", ledger.report, make_report(identities[0], 0))


def test_totals_are_the_sums_of_the_reports(ledger, chain, identities):
    for identity in identities[:2]:
        ledger.register(identity)
    chain.enter(ledger, 300)  # past a word of the bitmap of reported rounds
    for number, (who, round) in enumerate([(0, 300), (1, 300), (0, 299), (1, 290), (1, 289)]):
        ledger.report(make_report(identities[who], round, reward_micros=10**number))
    chain.enter(ledger, 301)
    ledger.report(make_report(identities[0], 301, reward_micros=700_000))

    reports = ledger.reports()
    assert [report.reward_micros for report in reports] == [1, 10, 100, 1000, 10000, 700_000]
    for record in ledger.leaderboard():
        own = [report for report in reports if report.peer == record.peer]
        on_time = [report for report in own if not report.late]
        assert (record.rounds, record.ranked_rounds) == (len(own), len(on_time))
        assert record.all_reward_micros == sum(report.reward_micros for report in own)
        assert record.total_reward_micros == sum(report.reward_micros for report in on_time)
    assert [record.peer for record in ledger.leaderboard()] == [identities[0].peer, identities[1].peer]
    assert [report.round for report in ledger.reports(from_round=300)] == [300, 300, 301]
    assert ledger.reports(from_round=400) == []


def test_a_report_comes_back_as_it_was_sent(ledger, chain, identities):
    ledger.register(identities[0])
    report = make_report(identities[0], 0)
    receipt = ledger.report(report)
    (found,) = ledger.reports()
    assert all(getattr(found, name) == getattr(report, name) for name in report.__struct_fields__)
    assert (found.tx, found.block_number, found.late) == (receipt.tx, receipt.block_number, False)


def test_active_counts_the_on_time_reporters_two_rounds_before(ledger, chain, identities):
    for identity in identities:
        ledger.register(identity)
    chain.enter(ledger, 5)
    ledger.report(make_report(identities[0], 5))
    ledger.report(make_report(identities[1], 5))
    chain.enter(ledger, 7)
    assert ledger.active(7) == 2
    ledger.report(make_report(identities[2], 5))  # late: a count that still grew would split the cells
    assert ledger.active(7) == 2
    reader = LedgerClient(chain.devnet.rpc_url, ledger.address)
    assert [reader.active(round) for round in (0, 1, 2, 7, 8)] == [0, 0, 0, 2, 0]


def test_bootnodes_are_the_latest_one_of_each_peer(ledger, identities):
    assert ledger.bootnodes() == []
    a, b, c = identities
    for identity in identities:
        ledger.register(identity)
    for identity, multiaddr in ((a, "/a/1"), (b, "/b/1"), (c, "/c/1"), (b, "/b/2"), (b, "/b/3"), (a, "/a/2")):
        assert ledger.announce_bootnode(identity, multiaddr).startswith("0x")
    assert ledger.bootnodes() == ["/a/2", "/b/3", "/c/1"]
    assert ledger.bootnodes(max=2) == ["/a/2", "/b/3"]
    ledger.announce_bootnode(c, "/c/2")
    assert ledger.bootnodes() == ["/c/2", "/a/2", "/b/3"]


def test_a_multiaddr_that_readers_could_trip_over_is_refused(ledger, identities):
    ledger.register(identities[0])
    for bad in ("", "ip4", "/ip4 /x", "/é", "/a\n", "/" + "x" * 256):
        refused("BadMultiaddr", ledger.announce_bootnode, identities[0], bad)
    ledger.announce_bootnode(identities[0], "/" + "x" * 255)


def test_a_client_without_an_account_only_reads(ledger, chain, identities):
    reader = LedgerClient(chain.devnet.rpc_url, ledger.address)
    assert reader.swarm_id == ledger.swarm_id
    with pytest.raises(LedgerError, match="account"):
        reader.register(identities[0])


def test_an_account_without_money_is_told_so(ledger, chain, identities):
    poor = LedgerClient(chain.devnet.rpc_url, ledger.address, Account.create())
    with pytest.raises(LedgerError, match="no funds for registration by 0x"):
        poor.register(identities[0])

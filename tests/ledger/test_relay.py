"""The relay: peers without gas take part, nothing is paid twice, and neither side believes the other."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from ledger_cast import Chain, make_report
from relay_cast import Guest, RelayProcess, RunningRelay, eventually, lying_relay, running_relay

from identity import Identity, IdentityError
from swarm.errors import LedgerError, LedgerUnavailable, UsageError
from swarm.ledger import relay_budget, relay_sending, relay_server, sponsor, typed
from swarm.ledger.client import LedgerClient
from swarm.ledger.deliveries import Deliveries
from swarm.ledger.outbox import Outbox
from swarm.ledger.refusals import ContractRefusal, artifact
from swarm.ledger.relay import Relay
from swarm.ledger.relay_invites import Invites
from swarm.ledger.relay_rules import Quotas
from swarm.ledger.relay_store import RelayStore
from swarm.ledger.relay_wire import Answer, content_digest
from swarm.ledger.sponsor import Sponsor
from swarm.ledger.transactions import AccountQueue, Submitted

needs_bootnodes = pytest.mark.skipif(
    "announceBootnodeFor" not in str(artifact("SwarmCoordinator")["abi"]),
    reason="the contract has no announceBootnodeFor yet",
)


@pytest.fixture
def guest(ledger: LedgerClient, identities: list[Identity]) -> Guest:
    return Guest.new(ledger, identities[0])


@pytest.fixture
def relay(ledger: LedgerClient, chain: Chain, tmp_path: Path) -> Iterator[RunningRelay]:
    with running_relay(ledger, chain.funded_account(), tmp_path / "relay") as running:
        yield running


@pytest.fixture
def slow_chain(chain: Chain) -> Iterator[Chain]:
    """No blocks but those that the test asks for."""
    chain.devnet.call("evm_setAutomine", False)
    try:
        yield chain
    finally:
        chain.devnet.call("evm_setAutomine", True)
        chain.devnet.call("evm_mine")


def sponsored(guest: Guest, relay: RunningRelay, invite: str | None = None) -> Sponsor:
    return Sponsor(guest.ledger.another(), relay.url, guest.account, invite)


def on_ledger(guest: Guest, *rounds: int) -> Callable[[], bool]:
    return lambda: all(guest.ledger.entry(guest.identity.peer, number) for number in rounds)


# ---- what it is for ----


def test_peer_without_gas_registers_and_reports(guest: Guest, relay: RunningRelay, chain: Chain) -> None:
    carrier = sponsored(guest, relay)

    assert carrier.register(guest.identity) is True
    assert guest.ledger.account_of(guest.identity.peer) == guest.account.address
    assert carrier.register(guest.identity) is False

    chain.enter(guest.ledger, 3)
    assert carrier.carry(guest.identity.peer, "3-3x1", [make_report(3)]).state == "sent"
    eventually(on_ledger(guest, 3), "a report")
    batch = [make_report(1), make_report(2)]
    carrier.carry(guest.identity.peer, "1-2x2", batch)
    eventually(on_ledger(guest, 1, 2), "a batch")

    logged = guest.ledger.find_report(guest.identity.peer, 2)
    assert logged is not None and logged.commitment == batch[1].commitment and logged.late
    assert guest.balance == 0


def test_the_outbox_delivers_through_a_relay(
    guest: Guest, relay: RunningRelay, chain: Chain, tmp_path: Path
) -> None:
    deliveries = Deliveries(tmp_path / "outbox.sqlite")
    client = guest.ledger.another()
    client.find_facts()
    carrier = Sponsor(client, relay.url, guest.account)
    carrier.register(guest.identity)
    chain.enter(guest.ledger, 2)
    with Outbox(deliveries, client, carrier, guest.identity, lambda: chain.time, window=4) as outbox:
        outbox.put(make_report(1))
        outbox.put(make_report(2))
        assert outbox.drain(20) == 0
        assert [delivery.state for delivery in deliveries.all()] == ["mined", "mined"]


def test_posting_again_pays_once(guest: Guest, relay: RunningRelay, chain: Chain) -> None:
    sponsored(guest, relay).register(guest.identity)
    request = guest.reports(0)
    assert relay.post("reports", request).status_code == 202
    eventually(on_ledger(guest, 0), "a report")
    nonce = relay.spent[0]

    # Signed anew by a peer that forgot what it sent.
    carried = eventually(
        lambda: (
            (c := sponsored(guest, relay).carry(guest.identity.peer, "p", [make_report(0)])).state == "mined"
            and c
        ),
        "the relay knows",
    )
    assert guest.ledger.rpc.receipt(carried.tx) is not None
    assert relay.post("reports", request).status_code == 200
    assert relay.post("register", guest.registration(binding=0)).status_code == 200
    assert relay.spent[0] == nonce


def test_requests_do_not_wait_for_one_anothers_blocks(
    ledger: LedgerClient, identities: list[Identity], relay: RunningRelay, slow_chain: Chain
) -> None:
    guests = [Guest.new(ledger, identity) for identity in identities]
    for guest in guests:
        assert relay.post("register", guest.registration()).status_code == 202
    nonces = relay.spent[0]
    eventually(lambda: relay.spent[0] >= nonces and _pending(slow_chain) >= len(guests), "all are under way")
    slow_chain.devnet.call("evm_mine")
    for guest in guests:
        assert ledger.account_of(guest.identity.peer) == guest.account.address


def _pending(chain: Chain) -> int:
    return int(chain.devnet.call("txpool_status")["pending"], 16)


@needs_bootnodes
def test_bootnode_is_announced(guest: Guest, relay: RunningRelay) -> None:
    carrier = sponsored(guest, relay)
    carrier.register(guest.identity)
    carrier.announce_bootnode(guest.identity.peer, "/ip4/10.0.0.1/tcp/1")
    eventually(lambda: guest.ledger.bootnodes() == ["/ip4/10.0.0.1/tcp/1"], "the bootnode")
    assert guest.balance == 0


def test_info_names_the_swarm_and_the_rules(guest: Guest, relay: RunningRelay) -> None:
    info = relay.info()
    assert info["contract"] == guest.ledger.address and info["chain_id"] == guest.ledger.chain_id
    assert info["account"] == relay.account.address
    assert info["accepting"] and not info["invite_needed"] and info["quotas"]["verdict_bytes"] == 1024


# ---- crashes and ends ----


@pytest.mark.parametrize("fault", ["before sending", "after sending"])
def test_killed_relay_goes_on_where_it_was(guest: Guest, chain: Chain, tmp_path: Path, fault: str) -> None:
    guest.register(chain)
    account, home = chain.funded_account(), tmp_path / "relay"
    with RelayProcess(guest.ledger, account, home, fault) as process:
        running = RunningRelay(process.url, account, home, guest.ledger)
        assert running.post("reports", guest.reports(0)).status_code == 202
        assert process.dead() == -signal.SIGKILL
    assert on_ledger(guest, 0)() is (fault == "after sending")

    with running_relay(guest.ledger, account, home) as running:
        eventually(on_ledger(guest, 0), "the report")
        eventually(lambda: running.post("reports", guest.reports(0)).json()["state"] == "mined", "it knows")
        assert running.spent[0] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it(ledger: LedgerClient, chain: Chain, tmp_path: Path, number: signal.Signals) -> None:
    account = chain.funded_account()
    with RelayProcess(ledger, account, tmp_path) as process:
        assert process.line == f"relay at {process.url} pays as {account.address} (10.0000 ether)"
        with socket.create_connection(("127.0.0.1", int(process.url.rsplit(":")[-1]))):  # says nothing
            assert process.end(number) == 0


def test_two_relays_do_not_share_a_home(relay: RunningRelay) -> None:
    again = running_relay(relay.ledger, relay.account, relay.home)
    with pytest.raises(LedgerError, match="another relay runs"), again:
        pass


def test_a_home_belongs_to_one_swarm(
    relay: RunningRelay, chain: Chain, tmp_path: Path, identities: list[Identity]
) -> None:
    RelayStore(tmp_path / "relay.sqlite").belong_to("another")
    wrong = running_relay(relay.ledger, relay.account, tmp_path)
    with pytest.raises(LedgerError, match="another swarm"), wrong:
        pass


# ---- what is refused without a transaction ----


def test_unsigned_or_foreign_requests_cost_nothing(guest: Guest, relay: RunningRelay, chain: Chain) -> None:
    guest.register(chain)
    stranger = Guest.new(guest.ledger, guest.identity)
    other = Account.create().address
    before = relay.spent
    for path, request, words in [
        ("reports", stranger.reports(0), "the signature is not by"),
        ("reports", guest.reports(0, signature=bytes(65)), "the signature is none"),
        ("reports", msgspec.structs.replace(guest.reports(0), reports=guest.reports(1).reports), "not by"),
        ("reports", guest.reports(0, contract=other), "this relay is for contract"),
        ("reports", guest.reports(0, chain_id=1), "this relay is for contract"),
        ("register", guest.registration(consent=stranger.registration().consent), "the consent is not by"),
        ("register", guest.registration(proof=bytes(256)), "the proof is not by this key"),
        ("register", guest.registration(account=other), "the proof is not by this key"),
        ("register", guest.registration(modulus=bytes(256)), "RSA-2048"),
        ("bootnode", stranger.bootnode("/ip4/1.2.3.4", 5), "the signature is not by"),
    ]:
        answer = relay.post(path, request)
        assert answer.status_code == 400, words
        assert answer.json()["code"] == "request" and words in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    assert relay.spent == before


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("reports", b"", 400),
        ("reports", b"\xff\x00garbage", 400),
        ("reports", b"[" * 50_000, 400),
        ("reports", b'{"chain_id": ' + b"9" * 5000 + b"}", 400),
        ("reports", gzip.compress(b" " * 1_000_000), 400),
        ("register", b" " * (64 * 1024 + 1), 413),
        ("bootnode", b" " * (64 * 1024 + 1), 413),
        ("reports", b" " * (512 * 1024 + 1), 413),
        ("nothing", b"{}", 404),
    ],
)
def test_garbage_costs_nothing(relay: RunningRelay, path: str, body: bytes, status: int) -> None:
    before = relay.spent
    assert relay.post(path, body).status_code == status
    assert relay.spent == before


def test_streamed_body_is_limited_too(relay: RunningRelay) -> None:
    host, port = relay.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /register HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        assert b" 413 " in connection.recv(1000).partition(b"\r\n")[0]


def test_slow_talkers_are_cut_off(relay: RunningRelay, monkeypatch: pytest.MonkeyPatch, guest: Guest) -> None:
    monkeypatch.setattr(relay_server, "CONNECTION_SECONDS", 0.5)
    host, port = relay.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /register HT")
        assert connection.recv(100) == b""
    assert relay.info()["accepting"]


def test_contract_refusal_reaches_the_peer(guest: Guest, relay: RunningRelay, chain: Chain) -> None:
    carrier = sponsored(guest, relay)
    peer = guest.identity.peer
    with pytest.raises(ContractRefusal) as unregistered:
        carrier.carry(peer, "0", [make_report(0)])
    assert (unregistered.value.name, unregistered.value.arguments) == ("NotRegistered", {"peer": peer})

    carrier.register(guest.identity)
    carrier.carry(peer, "0", [make_report(0)])
    eventually(on_ledger(guest, 0), "a report")
    before = relay.spent
    with pytest.raises(ContractRefusal) as again:
        carrier.carry(peer, "0b", [make_report(0, note=b"other")])
    assert (again.value.name, again.value.arguments) == ("AlreadyReported", {"peer": peer, "round": 0})

    window = guest.ledger.manifest().acceptance_window
    chain.enter(guest.ledger, window + 2)
    with pytest.raises(ContractRefusal) as late:
        carrier.carry(peer, "1", [make_report(1)])
    assert (late.value.name, late.value.arguments) == ("TooLate", {"round": 1, "currentRound": window + 2})
    answer = relay.post("reports", guest.reports(1))
    assert answer.status_code == 409 and "(TooLate)" in answer.json()["error"]
    assert relay.spent == before


def test_report_that_is_mined_too_late_fails_for_the_peer(
    guest: Guest, relay: RunningRelay, slow_chain: Chain
) -> None:
    guest.register(slow_chain)
    slow_chain.devnet.call("evm_mine")
    assert relay.post("reports", guest.reports(0)).status_code == 202
    eventually(lambda: _pending(slow_chain) == 1, "it is sent")
    slow_chain.enter(guest.ledger, guest.ledger.manifest().acceptance_window + 1)
    eventually(lambda: relay.post("reports", guest.reports(0)).status_code == 409, "the relay saw it fail")
    with pytest.raises(ContractRefusal, match="TooLate"):
        sponsored(guest, relay).carry(guest.identity.peer, "0", [make_report(0)])


# ---- quotas and invites ----


def test_registrations_are_counted(
    ledger: LedgerClient, identities: list[Identity], chain: Chain, tmp_path: Path
) -> None:
    first, second, third = (Guest.new(ledger, identity) for identity in identities)
    with running_relay(
        ledger, chain.funded_account(), tmp_path, quotas=Quotas(registrations_per_client=2)
    ) as relay:
        for guest in (first, second):
            sponsored(guest, relay).register(guest.identity)
        before = relay.spent
        answer = relay.post("register", third.registration())
        assert answer.status_code == 429
        assert "2 registrations from 127.0.0.1 a day" in answer.json()["error"]
        assert "00:00 UTC" in answer.json()["error"]
        with pytest.raises(LedgerError, match=r"refused the registration .* 2 registrations") as refused:
            sponsored(third, relay).register(third.identity)
        assert not isinstance(refused.value, LedgerUnavailable)
        assert relay.spent == before
    with (
        running_relay(ledger, relay.account, tmp_path, quotas=Quotas(registrations_per_day=2)) as relay,
        pytest.raises(LedgerError, match="2 registrations a day"),
    ):
        sponsored(third, relay).register(third.identity)


def test_a_round_is_paid_for_once(guest: Guest, chain: Chain, slow_chain: Chain, tmp_path: Path) -> None:
    guest.register(chain)
    chain.devnet.call("evm_mine")
    with running_relay(guest.ledger, chain.funded_account(), tmp_path, quotas=Quotas(retries=1)) as relay:
        request = guest.reports(0)
        assert relay.post("reports", request).status_code == 202
        eventually(lambda: _pending(chain) == 1, "it is sent")
        answer = relay.post("reports", guest.reports(make_report(0, note=b"other")))
        assert answer.status_code == 429 and "round 0 is under way" in answer.json()["error"]

        # As if its transaction had failed, which it may twice.
        store = RelayStore(tmp_path / "relay.sqlite")
        eventually(lambda: relay.post("reports", request).json()["state"] == "sent", "the relay knows")
        store.failed(content_digest(request), "it reverted")
        assert relay.post("reports", request).status_code == 202
        eventually(lambda: relay.post("reports", request).json()["state"] == "sent", "the relay knows")
        store.failed(content_digest(request), "it reverted again")
        answer = relay.post("reports", request)
        assert answer.status_code == 429
        assert answer.json()["error"].startswith(
            "round 0 failed 2 times, this relay tries no more: it reverted"
        )
        store.close()
        assert relay.spent[0] == 1


def test_a_peer_registers_once_at_a_time(guest: Guest, slow_chain: Chain, tmp_path: Path) -> None:
    with running_relay(guest.ledger, slow_chain.funded_account(), tmp_path) as relay:
        assert relay.post("register", guest.registration()).status_code == 202
        answer = relay.post("register", Guest.new(guest.ledger, guest.identity).registration())
        assert answer.status_code == 429 and "another registration" in answer.json()["error"]


def test_verdicts_are_limited(guest: Guest, chain: Chain, tmp_path: Path) -> None:
    guest.register(chain)
    with running_relay(
        guest.ledger, chain.funded_account(), tmp_path, quotas=Quotas(verdict_bytes=10)
    ) as relay:
        long = msgspec.structs.replace(make_report(0), verdicts=bytes(11))
        carrier = sponsored(guest, relay)
        with pytest.raises(LedgerError, match="11 bytes of verdicts, this relay pays for 10"):
            carrier.carry(guest.identity.peer, "0", [long])
        carrier.carry(guest.identity.peer, "0", [msgspec.structs.replace(long, verdicts=bytes(10))])
        eventually(on_ledger(guest, 0), "the report")


def test_poor_relay_says_so(guest: Guest, chain: Chain, tmp_path: Path) -> None:
    guest.register(chain)
    with running_relay(
        guest.ledger, chain.funded_account(), tmp_path, quotas=Quotas(min_balance_ether=11)
    ) as relay:
        assert relay.info()["accepting"] is False
        assert "10.0000 ether left and stops below 11" in relay.info()["reason"]
        assert relay.post("reports", guest.reports(0)).status_code == 503
        with pytest.raises(LedgerUnavailable, match=r"takes nothing now: .* stops below 11"):
            sponsored(guest, relay).carry(guest.identity.peer, "0", [make_report(0)])


def test_invites(ledger: LedgerClient, identities: list[Identity], chain: Chain, tmp_path: Path) -> None:
    first, second, third = (Guest.new(ledger, identity) for identity in identities)
    invites = tmp_path / "invites"
    invites.write_text("# friends\nwelcome-one\n\nwelcome-two 2\n")
    invites.chmod(0o600)
    account, home = chain.funded_account(), tmp_path / "relay"
    with running_relay(ledger, account, home, invites=invites) as relay:
        assert relay.info()["invite_needed"]
        for invite, words in [(None, "ask its operator"), ("welcome-six", "does not know the invite")]:
            with pytest.raises(LedgerError, match=words):
                sponsored(first, relay, invite).register(first.identity)
        sponsored(first, relay, "welcome-one").register(first.identity)
    with running_relay(ledger, account, home, invites=invites) as relay:  # it remembers
        with pytest.raises(LedgerError, match="used up"):
            sponsored(second, relay, "welcome-one").register(second.identity)
        # The same peer and account again, after its answer was lost: nothing is spent.
        assert relay.post("register", first.registration(invite="welcome-one")).status_code == 409
        sponsored(second, relay, "welcome-two").register(second.identity)

        # Registered elsewhere: served once it brings an invite, and then without.
        third.register(chain)
        with pytest.raises(LedgerError, match="peers that it registered"):
            sponsored(third, relay).carry(third.identity.peer, "0", [make_report(0)])
        sponsored(third, relay, "welcome-two").carry(third.identity.peer, "0", [make_report(0)])
        eventually(on_ledger(third, 0), "a report")
        chain.enter(ledger, 1)
        sponsored(third, relay).carry(third.identity.peer, "1", [make_report(1)])
        sponsored(first, relay).carry(first.identity.peer, "1", [make_report(1)])
        eventually(on_ledger(third, 1), "a report")
        eventually(on_ledger(first, 1), "a report")


def test_repeated_registration_spends_one_invite(guest: Guest, slow_chain: Chain, tmp_path: Path) -> None:
    invites = tmp_path / "invites"
    invites.write_text("welcome-one 1")
    invites.chmod(0o600)
    with running_relay(
        guest.ledger, slow_chain.funded_account(), tmp_path / "relay", invites=invites
    ) as relay:
        request = guest.registration(invite="welcome-one")
        assert relay.post("register", request).status_code == 202
        assert relay.post("register", request).status_code == 202
        eventually(lambda: relay.post("register", request).json()["state"] == "sent", "it is sent")
        store = RelayStore(tmp_path / "relay" / "relay.sqlite")
        store.failed(content_digest(request), "it reverted")
        store.close()
        assert relay.post("register", request).status_code == 202
        eventually(lambda: _pending(slow_chain) == 1, "it is sent")


def test_invites_file_is_private_and_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "invites"
    path.write_text("welcome-one")
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        Invites(path).read()
    path.chmod(0o600)
    assert list(Invites(path).read().values()) == [1]
    for text, words in [
        ("short", "8 characters"),
        ("welcome-one two", "line 1"),
        ("welcome-one 2 3", "line 1"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError, match=words) as bad:
            Invites(path).read()
        assert "welcome" not in str(bad.value)


@needs_bootnodes
def test_bootnodes_are_counted(guest: Guest, chain: Chain, tmp_path: Path) -> None:
    guest.register(chain)
    quotas = Quotas(bootnodes_per_day=1)
    with running_relay(guest.ledger, chain.funded_account(), tmp_path, quotas=quotas) as relay:
        carrier = sponsored(guest, relay)
        carrier.announce_bootnode(guest.identity.peer, "/ip4/10.0.0.1/tcp/1")
        eventually(lambda: guest.ledger.bootnodes(), "the bootnode")
        chain.mine_at(chain.time + 10)
        with pytest.raises(LedgerError, match="1 announcements of this peer a day"):
            carrier.announce_bootnode(guest.identity.peer, "/ip4/10.0.0.2/tcp/1")


# ---- what it costs ----


def test_late_reports_are_counted(guest: Guest, chain: Chain, tmp_path: Path) -> None:
    guest.register(chain)
    chain.enter(guest.ledger, 5)
    account, quotas = chain.funded_account(), Quotas(late_reports_per_day=2)
    with running_relay(guest.ledger, account, tmp_path, quotas=quotas) as relay:
        assert relay.post("reports", guest.reports(0, 1, 2)).status_code == 429
        assert relay.post("reports", guest.reports(0, 1)).status_code == 202
    with running_relay(guest.ledger, account, tmp_path, quotas=quotas) as relay:  # it remembers
        answer = relay.post("reports", guest.reports(2))
        assert answer.status_code == 429
        assert "2 late reports of this peer a day" in answer.json()["error"]
        assert "00:00 UTC" in answer.json()["error"]
        assert relay.post("reports", guest.reports(5)).status_code == 202
        eventually(on_ledger(guest, 0, 1, 5), "the others")


def test_what_a_day_costs_is_limited(
    ledger: LedgerClient, identities: list[Identity], chain: Chain, tmp_path: Path
) -> None:
    guests = [Guest.new(ledger, identity) for identity in identities]
    account = chain.funded_account()
    with running_relay(ledger, account, tmp_path) as relay:
        assert relay.post("register", guests[0].registration()).status_code == 202
        spent = relay.info()["ether_today"]
        assert relay.info()["quotas"]["ether_per_day"] == 0.1 and 0 < spent < 0.05
        eventually(lambda: relay.spent[0] == 1, "it is sent")
        assert 10 - relay.spent[1] / 10**18 <= spent
    with running_relay(ledger, account, tmp_path, quotas=Quotas(ether_per_day=1.2 * spent)) as relay:
        assert relay.info()["ether_today"] == spent
        answer = relay.post("register", guests[1].registration())
        assert answer.status_code == 429 and answer.json()["code"] == "quota"
        assert "ether of gas a day; the next day begins at 00:00 UTC" in answer.json()["error"]
        assert relay.spent[0] == 1


def test_what_is_promised_counts_as_spent(
    ledger: LedgerClient, identities: list[Identity], slow_chain: Chain, tmp_path: Path
) -> None:
    first, second, _ = (Guest.new(ledger, identity) for identity in identities)
    account, quotas = slow_chain.funded_account(), Quotas(min_balance_ether=10.0)
    with running_relay(ledger, account, tmp_path, quotas=quotas) as relay:
        assert relay.info()["accepting"]
        assert relay.post("register", first.registration()).status_code == 202
        assert not relay.info()["accepting"]
        answer = relay.post("register", second.registration())
        assert answer.status_code == 503 and "stops below 10" in answer.json()["error"]


def test_relay_promises_nothing_it_cannot_pay(guest: Guest, chain: Chain, tmp_path: Path) -> None:
    account = Account.create()
    chain.devnet.call("anvil_setBalance", account.address, hex(10**12))
    with running_relay(guest.ledger, account, tmp_path, quotas=Quotas(min_balance_ether=0)) as relay:
        answer = relay.post("register", guest.registration())
        assert answer.status_code == 503 and "0.0000 ether left and this may cost" in answer.json()["error"]
        assert relay.post("register", guest.registration()).status_code == 503


def test_requests_under_way_are_limited(
    ledger: LedgerClient,
    identities: list[Identity],
    slow_chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_budget, "MAX_UNDER_WAY", 1)
    first, second, _ = (Guest.new(ledger, identity) for identity in identities)
    with running_relay(ledger, slow_chain.funded_account(), tmp_path) as relay:
        assert relay.post("register", first.registration()).status_code == 202
        eventually(lambda: _pending(slow_chain) == 1, "it is sent")
        answer = relay.post("register", second.registration())
        assert answer.status_code == 503 and "busy with 1 requests" in answer.json()["error"]
        slow_chain.devnet.call("evm_mine")
        eventually(lambda: relay.post("register", second.registration()).status_code == 202, "there is room")


# ---- one request is in no other's way ----


@pytest.mark.parametrize("trouble", [LedgerError("no funds"), LedgerUnavailable("HTTP 413"), ValueError("x")])
def test_request_that_cannot_be_sent_holds_up_no_other(
    guest: Guest,
    identities: list[Identity],
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Exception,
) -> None:
    guest.register(chain)
    second = Guest.new(guest.ledger, identities[1])
    second.register(chain)
    stuck, send = guest.reports(0), AccountQueue.submit

    def submit(queue: AccountQueue, key: str, function: object) -> Submitted:
        if content_digest(stuck) in key:
            raise trouble
        return send(queue, key, function)

    monkeypatch.setattr(AccountQueue, "submit", submit)
    monkeypatch.setattr(relay_sending, "HELD_UP_SECONDS", 0.1)
    monkeypatch.setattr(relay_sending, "FOLLOW_SECONDS", 0.1)
    monkeypatch.setattr(relay_server, "MAX_BACKOFF", 0.1)
    monkeypatch.setattr(relay_server, "FIRST_BACKOFF", 0.1)
    with running_relay(guest.ledger, chain.funded_account(), tmp_path) as relay:
        assert relay.post("reports", stuck).status_code == 202
        assert relay.post("reports", second.reports(0)).status_code == 202
        state = eventually(
            lambda: relay.post("reports", second.reports(0)).status_code == 200, "the other one is followed"
        )
        assert state and relay.post("reports", stuck).json()["state"] == "accepted"
        monkeypatch.undo()
        eventually(on_ledger(guest, 0), "the first one, once it can be sent")


def test_numbers_that_cannot_be_do_not_end_it(
    guest: Guest, relay: RunningRelay, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.register(chain)
    lies: list[str] = []

    def lie(queue: AccountQueue, key: str) -> Submitted:
        lies.append(key)
        return Submitted(key, 0, "0x" + "ab" * 32, "mined", 2**70, 1, None, None)

    monkeypatch.setattr(AccountQueue, "state", lie)
    monkeypatch.setattr(relay_server, "FIRST_BACKOFF", 0.02)
    monkeypatch.setattr(relay_sending, "FOLLOW_SECONDS", 0.02)
    assert relay.post("reports", guest.reports(0)).status_code == 202
    eventually(lambda: len(lies) > 2, "the relay goes on")
    monkeypatch.undo()
    eventually(lambda: relay.post("reports", guest.reports(0)).status_code == 200, "it is mined")


def test_store_reports_numbers_that_do_not_fit(tmp_path: Path) -> None:
    store = RelayStore(tmp_path / "relay.sqlite")
    with pytest.raises(LedgerError, match="cannot be written"):
        store.settle(2**70)
    with pytest.raises(LedgerError, match="cannot be read"):
        store.round(b"peer", 2**70)
    store.close()


def test_each_client_has_a_share(guest: Guest, relay: RunningRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Semaphore(0), threading.Event()

    def take(*_: object) -> Answer:
        entered.release()
        assert go_on.wait(20)
        return Answer("accepted")

    client = ["greedy"]
    monkeypatch.setattr(relay_server, "caller", lambda _: client[0])
    monkeypatch.setattr(Relay, "take", take)
    request = guest.registration()
    with ThreadPoolExecutor(8) as pool:
        try:
            waiting = [pool.submit(relay.post, "register", request)]
            assert entered.acquire(timeout=20)
            waiting += [pool.submit(relay.post, "register", request) for _ in range(5)]
            refused = [post.result() for post in itertools.islice(as_completed(waiting, 20), 2)]
            assert [answer.status_code for answer in refused] == [503, 503]
            assert "other requests from greedy" in refused[0].json()["error"]
            client[0] = "modest"
            other = pool.submit(relay.post, "register", request)
        finally:
            go_on.set()
        assert other.result().status_code == 202
        assert sorted(post.result().status_code for post in waiting) == [202] * 4 + [503] * 2


def test_what_nobody_signed_waits_for_no_ledger(
    guest: Guest, relay: RunningRelay, identities: list[Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Relay, "take", lambda *_: pytest.fail("it was queued"))
    high_s = guest.reports(0).signature[:32] + b"\xee" * 32 + b"\x1b"
    for path, request in [
        ("reports", guest.reports(0, signature=bytes(65))),
        ("reports", guest.reports(0, signature=high_s)),
        ("bootnode", guest.bootnode("/ip4/1.2.3.4", 5, signature=bytes(64) + b"\x1b")),
        ("register", guest.registration(consent=bytes(65))),
        ("register", guest.registration(proof=bytes(256))),
        ("rotate", guest.rotation(identities[1], old_signature=bytes(256))),
        ("rotate", guest.rotation(identities[1], new_signature=bytes(256))),
        ("rotate", guest.rotation(identities[1], new_modulus=identities[2].public_key.modulus)),
        ("rotate", guest.rotation(identities[1], new_modulus=bytes(256))),
    ]:
        answer = relay.post(path, request)
        assert answer.status_code == 400 and answer.json()["code"] == "request"


def test_ipv6_clients_are_counted_by_site() -> None:
    name = relay_server.caller
    assert name("2001:db8:1:2::3") == name("2001:db8:1:ffff::4") == "2001:db8:1::/48"
    assert name("::ffff:10.0.0.1") == name("10.0.0.1") == "10.0.0.1"


def test_registering_waits_for_a_busy_relay(
    guest: Guest, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sponsor, "ASK_SECONDS", 0.05)
    asked: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(1)
        if len(asked) < 3:
            return _say(503, b'{"code": "unavailable", "error": "the relay is busy"}')(handler)
        if len(asked) == 3:
            guest.register(chain)
        return _say(202, b'{"state": "sent"}')(handler)

    with lying_relay(answer) as url:
        assert Sponsor(guest.ledger.another(), url, guest.account).register(guest.identity) is True
    assert len(asked) >= 3


# ---- rotation ----


def test_peer_without_gas_rotates(
    guest: Guest, relay: RunningRelay, identities: list[Identity], chain: Chain
) -> None:
    carrier, new = sponsored(guest, relay), identities[1]
    with pytest.raises(ContractRefusal) as unregistered:
        carrier.rotate(guest.identity, new)
    assert unregistered.value.name == "NotRegistered"

    carrier.register(guest.identity)
    carrier.rotate(guest.identity, new)
    assert guest.ledger.successor_of(guest.identity.peer) == new.peer
    assert guest.ledger.account_of(new.peer) == guest.account.address
    spent = relay.spent
    carrier.rotate(guest.identity, new)
    assert relay.spent == spent
    with pytest.raises(ContractRefusal) as retired:
        carrier.rotate(guest.identity, identities[2])
    assert retired.value.name == "Retired"
    heir = Guest(guest.ledger, new, guest.account)
    sponsored(heir, relay).carry(new.peer, "0", [make_report(0)])
    eventually(on_ledger(heir, 0), "a report of the new peer")
    assert guest.balance == 0


def test_rotation_made_by_a_try_whose_answer_was_lost(
    guest: Guest, identities: list[Identity], chain: Chain
) -> None:
    guest.register(chain)
    new = identities[1]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if guest.ledger.another().successor_of(guest.identity.peer) is None:
            guest.rotate(chain, new)
        _say(409, b'{"code": "contract", "error": "Retired"}')(handler)

    with lying_relay(answer) as url:
        Sponsor(guest.ledger.another(), url, guest.account).rotate(guest.identity, new)


def test_rotations_are_counted_for_the_successor_too(
    guest: Guest, identities: list[Identity], chain: Chain, tmp_path: Path
) -> None:
    guest.register(chain)
    with running_relay(
        guest.ledger, chain.funded_account(), tmp_path, quotas=Quotas(rotations_per_day=1)
    ) as relay:
        carrier = sponsored(guest, relay)
        carrier.rotate(guest.identity, identities[1])
        with pytest.raises(LedgerError, match="1 rotations of this peer a day"):
            carrier.rotate(identities[1], identities[2])


def test_membership_passes_to_the_successor(
    guest: Guest, identities: list[Identity], chain: Chain, tmp_path: Path
) -> None:
    invites = tmp_path / "invites"
    invites.write_text("welcome-one 1")
    invites.chmod(0o600)
    account, home, (old, new, _) = chain.funded_account(), tmp_path / "relay", identities
    guest.register(chain)
    heir = Guest(guest.ledger, new, guest.account)
    with running_relay(guest.ledger, account, home, invites=invites) as relay:
        with pytest.raises(LedgerError, match="ask its operator"):
            sponsored(guest, relay).rotate(old, new)
        carrier = sponsored(guest, relay, "welcome-one")
        carrier.carry(old.peer, "0", [make_report(0)])
        eventually(on_ledger(guest, 0), "a report")
        assert relay.post("reports", heir.reports(1)).status_code == 403
        sponsored(guest, relay).rotate(old, new)
        chain.enter(guest.ledger, 1)
        eventually(lambda: relay.post("reports", heir.reports(1)).status_code == 202, "the heir is served")
        eventually(on_ledger(heir, 1), "the heir's report")


# ---- relays that lie ----


def _say(status: int, body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def _drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            _say(200, b'{"state": "mined", "tx": null}' + b" " * 10_000_000),
            LedgerUnavailable,
            "says too much",
        ),
        (_say(200, b"<html>"), LedgerUnavailable, "is not a relay"),
        (_say(200, b"[" * 60_000), LedgerUnavailable, "is not a relay"),
        (_say(202, b'{"state": "mined", "tx": "0xdead"}'), LedgerUnavailable, "is not a relay"),
        (_say(200, b""), LedgerUnavailable, "is not a relay"),
        (lambda handler: None, LedgerUnavailable, "cannot be reached"),
        (lambda handler: time.sleep(2), LedgerUnavailable, "did not answer in time"),
        (_drip, LedgerUnavailable, "did not answer in time"),
        (_say(502, b"<html>"), LedgerUnavailable, "HTTP 502"),
        (_say(429, b"slow down"), LedgerUnavailable, "HTTP 429"),
        (_say(404, b"<html>"), LedgerError, "HTTP 404"),
        (_say(302, b""), LedgerError, "HTTP 302"),
        (
            _say(409, b'{"code": "contract", "error": "TooLate"}'),
            LedgerUnavailable,
            "the ledger would take it",
        ),
        (
            _say(403, json.dumps({"code": "x", "error": "a\n\x1b[2Jb" + "c" * 5000}).encode()),
            LedgerError,
            r"rounds \[0\]: a \[2Jbccc",
        ),
    ],
)
def test_lying_relay_is_a_clean_error(
    guest: Guest,
    chain: Chain,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[BaseHTTPRequestHandler], None],
    kind: type[LedgerError],
    words: str,
) -> None:
    guest.register(chain)
    monkeypatch.setattr(sponsor, "REQUEST_SECONDS", 0.5)
    with lying_relay(answer) as url:
        carrier = Sponsor(guest.ledger.another(), url, guest.account)
        with pytest.raises(LedgerError, match=words) as error:
            carrier.carry(guest.identity.peer, "0", [make_report(0)])
    assert type(error.value) is kind
    assert "token" not in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 500


def test_lie_of_a_mined_report_is_found_out(
    guest: Guest, chain: Chain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guest.register(chain)
    client = guest.ledger.another()
    client.find_facts()
    deliveries = Deliveries(tmp_path / "outbox.sqlite")
    deliveries.put(make_report(0))
    with lying_relay(_say(200, b'{"state": "mined", "tx": "0x' + b"ab" * 32 + b'"}')) as url:
        carrier = Sponsor(client, url, guest.account)
        outbox = Outbox(deliveries, client, carrier, guest.identity, lambda: chain.time, window=4)
        outbox.deliver()
        assert deliveries.all()[0].state != "mined"
        monkeypatch.setattr(sponsor, "DOUBT_SECONDS", 0.0)
        monkeypatch.setattr(sponsor, "ASK_SECONDS", 0.0)
        chain.enter(guest.ledger, guest.ledger.manifest().acceptance_window + 1)
        eventually(lambda: outbox.deliver() or deliveries.all()[0].state == "failed", "the outbox gives up")
    deliveries.close()


def test_lie_of_a_registration_is_found_out(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sponsor, "REGISTER_SECONDS", 0.4)
    monkeypatch.setattr(sponsor, "LINE_SECONDS", 0.1)
    lines: list[str] = []
    with (
        lying_relay(_say(200, b'{"state": "mined"}')) as url,
        pytest.raises(LedgerUnavailable, match=r"not on the ledger after 0 s, though .* says 'mined'"),
    ):
        Sponsor(guest.ledger.another(), url, guest.account).register(guest.identity, lines.append)
    assert lines and "mined by the relay at 127.0.0.1" in lines[0]


def test_absent_relay_is_a_clean_error(guest: Guest) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        carrier = Sponsor(
            guest.ledger, f"http://user:token@127.0.0.1:{unused.getsockname()[1]}/", guest.account
        )
        with pytest.raises(
            LedgerUnavailable, match=r"the relay at 127\.0\.0\.1:\d+ cannot be reached"
        ) as error:
            carrier.carry(guest.identity.peer, "0", [make_report(0)])
    assert "token" not in str(error.value)


# ---- what is signed ----


def test_signatures_are_over_the_whole_typed_message() -> None:
    account, contract, peer = Account.from_key(b"\x01" * 32), "0x" + "42" * 20, b"\x07" * 32
    report = msgspec.structs.replace(make_report(5), verdicts=b"seen")
    message = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Reports": [{"name": "peer", "type": "bytes32"}, {"name": "reports", "type": "Report[]"}],
            "Report": [
                {"name": "round", "type": "uint64"},
                {"name": "groups", "type": "uint32"},
                {"name": "rewardMicros", "type": "uint64"},
                {"name": "commitment", "type": "bytes32"},
                {"name": "stateBefore", "type": "bytes32"},
                {"name": "stateAfter", "type": "bytes32"},
                {"name": "verdicts", "type": "bytes"},
            ],
        },
        "primaryType": "Reports",
        "domain": {
            "name": "SwarmCoordinator",
            "version": "1",
            "chainId": 31337,
            "verifyingContract": contract,
        },
        "message": {
            "peer": peer,
            "reports": [
                {
                    "round": 5,
                    "groups": report.groups,
                    "rewardMicros": report.reward_micros,
                    "commitment": report.commitment,
                    "stateBefore": report.state_before,
                    "stateAfter": report.state_after,
                    "verdicts": b"seen",
                }
            ],
        },
    }
    signature = typed.reports_signature(account, 31337, contract, peer, [report])
    assert signature == bytes(account.sign_message(encode_typed_data(full_message=message)).signature)
    assert typed.signer_of_reports(31337, contract, peer, [report], signature) == account.address
    assert typed.signer_of_reports(31338, contract, peer, [report], signature) != account.address
    high_s = (typed._ORDER - int.from_bytes(signature[32:64], "big")).to_bytes(32, "big")
    twin = signature[:32] + high_s + bytes([55 - signature[64]])  # the contract takes one of the two
    for broken in (b"", signature[:-1], bytes(65), signature[:64] + b"\x05", b"\xff" * 65, twin):
        assert typed.signer_of_reports(31337, contract, peer, [report], broken) is None


def test_nothing_secret_is_logged(
    ledger: LedgerClient,
    identities: list[Identity],
    chain: Chain,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    guest = Guest.new(ledger, identities[0])
    invites = tmp_path / "invites"
    invites.write_text("welcome-one")
    invites.chmod(0o600)
    account = chain.funded_account()
    with (
        caplog.at_level(logging.INFO),
        running_relay(ledger, account, tmp_path / "relay", invites=invites) as relay,
    ):
        sponsored(guest, relay, "welcome-one").register(guest.identity)
    assert "accepted kind=registration" in caplog.text
    assert "welcome" not in caplog.text and account.key.hex() not in caplog.text
    assert b"welcome-one" not in (tmp_path / "relay" / "relay.sqlite").read_bytes()

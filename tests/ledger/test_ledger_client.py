"""Joining, the clock and the beacon; and a ledger that is not there."""

import http.server
import itertools
import socket
import subprocess
import sys
import threading
import types

import msgspec
import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from ledger_cast import make_report

from swarm.errors import LedgerError, LedgerUnavailable, UsageError
from swarm.ledger.account import LedgerAccount
from swarm.ledger.blocks import BlockSearch
from swarm.ledger.client import LedgerClient, connect, parse_join_line
from swarm.ledger.clock import RESYNC_SECONDS, LedgerClock
from swarm.ledger.creation import deploy
from swarm.ledger.records import Block
from swarm.ledger.refusals import ContractRefusal
from swarm.ledger.rpc import Rpc


@pytest.fixture
def closed_url():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def serve():
    """Start HTTP servers that give every request one answer."""
    servers = []

    def start(status, body):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_join_line_leads_back_to_the_swarm(ledger, manifest):
    joined = connect(ledger.join_line)
    assert joined.join_line == ledger.join_line
    assert joined.manifest() == manifest
    assert joined.swarm_id == manifest.swarm_id
    assert (joined.genesis, joined.round_seconds) == (ledger.genesis, manifest.round_seconds)
    assert connect(ledger.join_line.lower()).address == ledger.address


def test_a_malformed_join_line_is_a_usage_error(ledger):
    address, url = ledger.join_line.split("@")
    flipped = address[:2] + address[2:].swapcase()
    for line in ("", "demo", address, f"{address}@", f"{address[:-1]}@{url}", f"{address}@localhost:8545"):
        with pytest.raises(UsageError, match=r"is not a swarm|is not an RPC URL"):
            connect(line)
    for line in (
        f"{address}@{url}#ftp://relay",
        f"{address}@http://a b",
        f"{address}@http://x:99999",
        f"{address}@ftp://x",
        f"{address}@http://[",
    ):
        with pytest.raises(UsageError, match=r"is not an RPC URL|is not a relay's URL"):
            connect(line)
    with pytest.raises(UsageError, match="checksum"):
        connect(f"{flipped}@{url}")


def test_an_address_without_or_with_another_contract_is_named(chain, ledger):
    url = chain.devnet.rpc_url
    with pytest.raises(LedgerError, match="no contract at"):
        connect(f"{Account.create().address}@{url}")
    other = Account.create().address
    # Contracts that answer nothing, revert, and answer every question with one zero word.
    for code in ("0x00", "0x60006000fd", "0x60206000f3"):
        chain.devnet.call("anvil_setCode", other, code)
        with pytest.raises(LedgerError, match="not a SwarmCoordinator"):
            connect(f"{other}@{url}")


def test_a_genesis_in_milliseconds_is_refused(chain, manifest, machine_dir):
    with pytest.raises(LedgerError, match="more than a year"):
        deploy(chain.devnet.rpc_url, chain.funded_account(), manifest, chain.time * 1000, machine_dir)


RULES = ("round_seconds", "acceptance_window", "max_groups", "max_reward_micros")


@pytest.mark.parametrize("rule", [*RULES, "stage_ends_millionths", "canonical"])
def test_a_manifest_that_contradicts_its_contract_is_not_joined(chain, manifest, machine_dir, rule):
    rules = {name: getattr(manifest, name) for name in (*RULES, "stage_ends_millionths", "canonical")}
    lies = {"stage_ends_millionths": (1,), "canonical": b"name: ["}
    lying = types.SimpleNamespace(**rules | {rule: lies.get(rule) or rules[rule] + 1})
    ledger = deploy(chain.devnet.rpc_url, chain.funded_account(), lying, chain.time, machine_dir)
    with pytest.raises(LedgerError, match=r"contradicts|JSON is malformed"):
        ledger.manifest()


def test_a_manifest_that_the_user_has_replaces_logs_that_a_server_dropped(ledger, manifest, monkeypatch):
    other = msgspec.structs.replace(manifest, seed=manifest.seed + 1)
    monkeypatch.setattr(LedgerClient, "_logged_manifest", lambda _: pytest.fail("asked for logs"))
    client = LedgerClient(ledger.rpc_url, ledger.address)
    with pytest.raises(LedgerError, match="you gave is not the one"):
        client.manifest(other)
    assert client.find_facts(manifest).manifest == manifest.canonical
    assert client.another().manifest() == manifest


def test_a_server_without_the_deployment_is_named(ledger, chain, monkeypatch):
    client = LedgerClient(ledger.rpc_url, ledger.address)
    read = client._read
    monkeypatch.setattr(client, "_read", lambda name, *a: 1 if name == "deploymentBlock" else read(name, *a))
    with pytest.raises(LedgerError, match=r"does not serve the deployment .* --manifest FILE"):
        client.manifest()


def test_the_beacon_is_the_first_block_of_the_round(ledger, chain):
    assert ledger.beacon(1) is None
    chain.enter(ledger, 1, offset=-1)
    first = chain.enter(ledger, 1, offset=0)
    chain.enter(ledger, 1, offset=5)
    third = chain.enter(ledger, 3, offset=-1 + ledger.round_seconds)
    assert ledger.beacon(1) == first
    assert ledger.beacon(2) is None  # it passed without a block
    assert ledger.beacon(3) == third
    assert ledger.beacon(4) is None  # not yet
    fourth = chain.enter(ledger, 4)
    assert ledger.beacon(4) == fourth
    assert LedgerClient(chain.devnet.rpc_url, ledger.address).beacon(1) == first


def test_a_beacon_on_a_long_chain_takes_few_calls(ledger, chain, monkeypatch):
    chain.enter(ledger, 10)
    chain.devnet.call("anvil_mine", hex(1500), hex(4))
    calls = []
    fetch = ledger._blocks._fetch
    ledger._blocks._fetch = lambda number: calls.append(number) or fetch(number)
    beacons = [ledger.beacon(round) for round in (15, 11, 12, 12)]
    assert None not in beacons and len(set(beacons)) == 3
    assert len(calls) <= 30


@given(
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    targets=st.lists(st.integers(-5, 2000), min_size=1, max_size=8),
)
def test_a_block_search_agrees_with_a_linear_one(gaps, targets):
    times = list(itertools.accumulate(gaps))
    blocks = [Block(number, moment, bytes([number])) for number, moment in enumerate(times)]
    search = BlockSearch(lambda number: blocks[-1 if number is None else number])
    for target in targets:
        assert search.first_at(target) == next((block for block in blocks if block.timestamp >= target), None)


class SteadyChain:
    """Blocks every `interval` seconds on a clock that the test moves; can be away."""

    def __init__(self, interval: float) -> None:
        self.interval, self.moment, self.calls, self.away = interval, 0.0, 0, False

    def latest(self) -> Block:
        self.calls += 1
        if self.away:
            raise LedgerUnavailable("away")
        number = int(self.moment / self.interval)
        return Block(number, int(1000 + number * self.interval), bytes(32))


def test_the_clock_is_never_ahead_and_behind_by_at_most_a_block_and_a_second():
    chain = SteadyChain(interval=3.0)
    clock = LedgerClock(chain.latest, lambda: 50 + chain.moment)
    seen = []
    for step in range(400):
        chain.moment = step * 0.37
        seen.append(clock.now())
        assert 1000 + chain.moment - 4.0 <= seen[-1] <= 1000 + chain.moment + 1e-6
    assert seen == sorted(seen)
    assert chain.calls <= chain.moment / RESYNC_SECONDS + 1


def test_the_clock_goes_on_while_the_ledger_is_away():
    chain = SteadyChain(interval=1.0)
    clock = LedgerClock(chain.latest, lambda: chain.moment)
    chain.away = True
    with pytest.raises(LedgerUnavailable):
        clock.now()
    chain.away = False
    before = clock.now()
    chain.away, chain.moment = True, 600.0
    assert clock.now() == pytest.approx(before + 600)
    chain.away, chain.moment = False, 700.0
    assert clock.now() == pytest.approx(before + 700, abs=1)


def test_the_clients_clock_is_the_chains(ledger, chain):
    chain.enter(ledger, 20)
    assert ledger.genesis + 20 * ledger.round_seconds <= ledger.now() <= chain.time + 5


def test_the_clock_begins_with_an_assumed_time_and_then_believes_the_ledger():
    chain = SteadyChain(interval=1.0)
    chain.away = True
    clock = LedgerClock(chain.latest, lambda: chain.moment)
    clock.assume(5000.0)
    assert clock.now() == 5000.0
    chain.away, chain.moment = False, 10.0
    assert clock.now() == pytest.approx(1010.0)


def test_a_ledger_that_is_away_is_unavailable(ledger, identities, closed_url, tmp_path):
    away = LedgerClient(closed_url, ledger.address)
    writer = LedgerAccount(LedgerClient(closed_url, ledger.address, ledger.facts), Account.create(), tmp_path)
    peer = identities[0].peer
    for action in (
        away.check,
        away.manifest,
        away.now,
        lambda: away.beacon(0),
        lambda: away.active(5),
        lambda: writer.register(identities[0]),
        lambda: writer.carry(peer, "0-0x1", [make_report(0)]),
        lambda: writer.announce_bootnode(peer, "/ip4/127.0.0.1"),
        lambda: away.entry(peer, 0),
        away.reports,
        away.leaderboard,
    ):
        with pytest.raises(LedgerUnavailable, match=r"cannot be reached") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_bad_http_and_bad_json_are_unavailable(ledger, serve):
    for status, body in (
        (502, b"bad gateway"),
        (200, b"<html>"),
        (200, b"{}"),
        (200, b"[1]"),
        (200, b"\xff"),
    ):
        with pytest.raises(LedgerUnavailable) as caught:
            LedgerClient(serve(status, body), ledger.address).check()
        assert "\n" not in str(caught.value)


def test_an_answer_of_nonsense_is_a_ledger_error(ledger, serve):
    for result in (b'"zz"', b"{}", b"7", b'"0x"', b"null", b'"0x12"'):
        url = serve(200, b'{"jsonrpc": "2.0", "id": 0, "result": ' + result + b"}")
        with pytest.raises(LedgerError):
            connect(f"{ledger.address}@{url}")


def test_a_ledger_that_hangs_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        rpc = Rpc(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_seconds=0.2)
        with pytest.raises(LedgerUnavailable, match="in time"):
            rpc.block(None)


def test_an_api_key_in_the_url_is_not_shown(ledger, serve):
    url = serve(502, b"") + "/v3/secret-key"
    with pytest.raises(LedgerUnavailable) as caught:
        LedgerClient(url, ledger.address).check()
    assert "secret-key" not in str(caught.value)


def test_the_join_line_may_name_a_relay(ledger):
    line = parse_join_line(f"{ledger.join_line}#http://127.0.0.1:8650")
    assert line == (ledger.address, ledger.rpc_url, "http://127.0.0.1:8650")
    assert parse_join_line(ledger.join_line).relay_url is None


def test_registration_is_done_once_and_can_move_to_another_account(ledger, chain, identities, machine_dir):
    first = LedgerAccount(ledger, chain.funded_account(), machine_dir)
    second = LedgerAccount(ledger, chain.funded_account(), machine_dir)
    assert first.register(identities[0])
    assert not first.register(identities[0])
    with pytest.raises(LedgerError, match="bound to account"):
        second.register(identities[0])
    assert second.register(identities[0], move=True)  # a lost wallet loses nothing: the key moves the peer
    assert first.register(identities[0], move=True)
    assert ledger.bindings(identities[0].peer) == 3


def test_rotation_hands_over_once(ledger, chain, identities, machine_dir):
    account = LedgerAccount(ledger, chain.funded_account(), machine_dir)
    account.register(identities[0])
    account.carry(identities[0].peer, "0-0x1", [make_report(0)])
    chain.settle()
    for _ in range(2):  # again, as after a crash
        account.rotate(identities[0], identities[1])
    assert ledger.successor_of(identities[0].peer) == identities[1].peer
    (record,) = ledger.leaderboard()
    assert (record.peer, record.rounds) == (identities[1].peer, 1)
    with pytest.raises(ContractRefusal, match="AlreadyReported"):
        account.carry(identities[1].peer, "again", [make_report(0)])
    with pytest.raises(ContractRefusal, match="Retired"):
        account.register(identities[0])


def test_bootnode_that_was_announced_is_listed_until_it_expires(ledger, chain, identities, machine_dir):
    account = LedgerAccount(ledger, chain.funded_account(), machine_dir)
    account.register(identities[0])
    account.announce_bootnode(identities[0].peer, "/ip4/127.0.0.1/tcp/1")
    chain.settle()
    multiaddr, expires_at = ledger.bootnode_of(identities[0].peer)
    assert ledger.bootnodes() == [multiaddr] == ["/ip4/127.0.0.1/tcp/1"]
    chain.mine_at(expires_at + 1)
    assert ledger.bootnodes() == []


def test_storage_says_when_a_round_was_reported(ledger, chain, identities, machine_dir):
    account = LedgerAccount(ledger, chain.funded_account(), machine_dir)
    account.register(identities[0])
    for number in range(3):
        chain.enter(ledger, number + 1)
        account.carry(identities[0].peer, str(number), [make_report(number)])
    chain.settle()
    entry = ledger.entry(identities[0].peer, 1)
    assert (entry.reward_micros, entry.late_rounds) == (make_report(1).reward_micros, 1)
    assert entry.block_number == ledger.find_report(identities[0].peer, 1).block_number
    assert ledger.entry(identities[0].peer, 7) is None
    assert ledger.peer_record(identities[0].peer).head != bytes(32)


def test_the_client_imports_no_web3():
    command = "import sys, swarm.ledger.client; sys.exit('web3' in sys.modules or 'hivemind' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0

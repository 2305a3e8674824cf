"""Who is registered, known without asking; on servers that limit, forget or garble what they are asked."""

import json
import time
from math import inf

import msgspec
import pytest
from eth_utils import keccak
from ledger_cast import make_report
from test_follower import Proxy

from swarm.ledger import follower as follower_module
from swarm.ledger import registry as registry_module
from swarm.ledger.account import LedgerAccount
from swarm.ledger.client import LedgerClient
from swarm.ledger.follower import Follower
from swarm.ledger.registry import ANSWERS_TO_GROW, MAX_BACKOFF, MIN_READING_SECONDS, STEP_SECONDS, Registry

WAIT_SECONDS = 30
STRANGER = bytes(32)
REGISTERED = "0x" + keccak(text="Registered(bytes32,address)").hex()
ROUND_READING = ["eth_getBlockByNumber", "eth_getLogs"]


@pytest.fixture(scope="session")
def manifest(manifest):
    return msgspec.structs.replace(manifest, round_seconds=100)  # so that readings may be 2 seconds apart


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
    def act(identity, number):
        account.carry(identity.peer, f"{number}", [make_report(number)])
        chain.settle()

    return act


class Server(Proxy):
    """The chain behind a proxy that counts what it is asked, and refuses logs as told."""

    def __init__(self, url):
        super().__init__(url)
        self.begin()

    def begin(self):
        """Be a new one, for the next test."""
        self.asked = []  # names of methods
        self.ranges = []  # of blocks, answered
        self.refuses = lambda first, last: False
        self.refusal = refuses_as_invalid
        self.choose = self._choose

    def _choose(self, body):
        request = json.loads(body)
        self.asked.append(request["method"])
        if request["method"] != "eth_getLogs":
            return None
        first, last = (int(request["params"][0][end], 16) for end in ("fromBlock", "toBlock"))
        if self.refuses(first, last):
            return self.refusal
        self.ranges.append((first, last))
        return None


def refuses(code, message):
    error = {"code": code, "message": message}
    body = json.dumps({"jsonrpc": "2.0", "id": 0, "error": error}).encode()
    return lambda handler: handler.answer(200, body)


def answers_logs(result):
    body = json.dumps({"jsonrpc": "2.0", "id": 0, "result": result}).encode()
    return lambda handler: handler.answer(200, body)


refuses_as_invalid = refuses(-32602, "range exceeds limit")
refuses_as_limit = refuses(-32005, "query returned more than 10000 results")  # the code of "ask less often"


def refuses_by_status(handler):
    handler.answer(413, b"eth_getLogs is limited")


@pytest.fixture(scope="session")
def one_server(chain):
    server = Server(chain.devnet.rpc_url)
    yield server
    server.close()


@pytest.fixture
def server(one_server):
    one_server.begin()
    return one_server


class Clock:
    """The registry's, which stands still."""

    def __init__(self):
        self.moment = 0.0

    def monotonic(self):
        return self.moment


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(registry_module, "time", clock)
    return clock


class Reader:
    """A registry and the one who calls it, in place of the follower."""

    def __init__(self, ledger, clock):
        self.clock = clock
        self.wakes = 0
        self.registry = Registry(ledger, self.wake)
        self.registered = self.registry.registered

    def wake(self):
        self.wakes += 1

    def read(self, number, until=inf):
        """Come again whenever wanted, until nothing or only what is `until` seconds away is wanted."""
        while (pause := self.registry.look(number)) < until:
            self.clock.moment += pause

    def look(self, number, times):
        """Come so many times, when wanted."""
        for _ in range(times):
            self.clock.moment += self.registry.look(number)


@pytest.fixture
def new_reader(ledger, server, clock):
    return lambda: Reader(LedgerClient(server.url, ledger.address, ledger.facts), clock)


def test_everyone_is_known_and_nobody_is_asked_about(
    new_reader, register, report, ledger, chain, server, identities
):
    register(identities[0])
    register(identities[1])
    report(identities[0], 0)
    chain.enter(ledger, 1)
    reader = new_reader()
    assert reader.registered(identities[0].peer, 0) is None
    reader.read(1)
    assert server.asked.count("eth_call") == 2 and server.asked.count("eth_getLogs") == 1
    del server.asked[:]
    for round in (0, 1, 2) * 1000:
        assert reader.registered(identities[0].peer, round) is True
        assert reader.registered(identities[1].peer, round) is True
    assert reader.registered(identities[2].peer, 1) is False
    assert server.asked == []


def test_a_round_costs_one_question_about_logs(
    new_reader, register, ledger, chain, server, identities, clock
):
    reader = new_reader()
    reader.read(0)
    register(identities[0])
    chain.enter(ledger, 1)
    clock.moment += 100
    del server.asked[:]
    reader.read(1)
    reader.read(1)
    assert server.asked == ROUND_READING
    assert reader.registered(identities[0].peer, 1) is True
    first, last = server.ranges[-1]
    assert last - first < 50  # and not from the deployment again


def test_a_newcomer_is_known_after_the_reading_that_it_causes(
    new_reader, register, ledger, chain, server, identities
):
    chain.enter(ledger, 2)
    reader = new_reader()
    reader.read(2)
    register(identities[0])
    del server.asked[:]
    assert reader.registered(identities[0].peer, 2) is False
    assert (reader.wakes, server.asked) == (1, [])
    reader.read(2)
    assert reader.registered(identities[0].peer, 2) is True
    assert server.asked == ROUND_READING


def test_five_thousand_strangers_cause_one_reading(new_reader, ledger, chain, server, clock):
    chain.enter(ledger, 2)
    reader = new_reader()
    reader.read(2)
    del server.asked[:]
    for number in range(5000):
        assert reader.registered(number.to_bytes(32, "big"), 2) is False
        if number % 100 == 0:
            assert 0 < reader.registry.look(2) <= MIN_READING_SECONDS
    assert (reader.wakes, server.asked) == (1, [])
    clock.moment += MIN_READING_SECONDS
    reader.read(2)
    assert server.asked == ROUND_READING


def test_strangers_cost_no_more_than_a_hundredth_of_a_long_round(ledger, server, clock):
    long = msgspec.structs.replace(ledger.manifest(), round_seconds=1000)
    facts = msgspec.structs.replace(ledger.facts, manifest=long.canonical)
    reader = Reader(LedgerClient(server.url, ledger.address, facts), clock)
    reader.read(0)
    assert reader.registered(STRANGER, 0) is False
    assert 9 < reader.registry.look(0) <= 10


def test_a_rotated_peer_hands_over(new_reader, register, account, ledger, chain, identities, monkeypatch):
    register(identities[0])
    before = new_reader()
    before.read(0)
    assert before.registered(identities[0].peer, 0) is True
    account.rotate(identities[0], identities[1])
    chain.enter(ledger, 1)
    monkeypatch.setattr(registry_module, "LOG_BLOCKS", 1)  # the rotation is read before the registration
    for reader in (before, new_reader()):
        reader.clock.moment += 100
        reader.read(1)
        assert reader.registered(identities[0].peer, 1) is False
        assert reader.registered(identities[1].peer, 1) is True
        assert reader.wakes == 0  # for a peer that never comes back


def test_a_registration_that_a_reorganization_brings_is_seen(
    new_reader, ledger, chain, machine_dir, identities, clock
):
    account = LedgerAccount(ledger, chain.funded_account(), machine_dir)
    chain.settle()
    snapshot = chain.devnet.call("evm_snapshot")
    chain.devnet.call("anvil_mine", hex(20), hex(0))
    reader = new_reader()
    reader.read(0)
    assert chain.devnet.call("evm_revert", snapshot)
    account.register(identities[0])  # in a block of a number that was read already
    chain.devnet.call("anvil_mine", hex(30), hex(0))
    chain.enter(ledger, 1)
    clock.moment += 100
    reader.read(1)
    assert reader.registered(identities[0].peer, 1) is True


def test_nothing_is_said_of_a_round_that_the_ledger_has_not_shown(new_reader, register, ledger, identities):
    register(identities[0])
    reader = new_reader()
    assert reader.registered(STRANGER, 0) is None
    reader.read(0)
    assert reader.registered(STRANGER, 0) is False
    reader.look(7, times=10)  # by our clock, but the ledger stands still
    assert reader.registered(STRANGER, 7) is None
    assert reader.registered(STRANGER, 1) is None
    assert reader.registered(identities[0].peer, 7) is True


def test_a_ledger_that_lags_is_read_again(new_reader, ledger, chain, server, clock):
    reader = new_reader()
    reader.look(1, times=10)  # another of the server's machines showed the round's first block
    assert reader.registered(STRANGER, 1) is None
    chain.enter(ledger, 1)
    clock.moment += MIN_READING_SECONDS
    reader.read(1)
    assert reader.registered(STRANGER, 1) is False


@pytest.mark.parametrize("refusal", [refuses_as_invalid, refuses_as_limit, refuses_by_status])
def test_a_server_that_allows_few_blocks_tells_everything(
    new_reader, register, ledger, chain, server, identities, caplog, refusal
):
    server.refuses, server.refusal = lambda first, last: last - first >= 20, refusal
    register(identities[0])
    chain.devnet.call("anvil_mine", hex(600), hex(0))
    register(identities[1])
    chain.enter(ledger, 1)
    reader = new_reader()
    reader.read(1)
    assert [reader.registered(identity.peer, 1) for identity in identities] == [True, True, False]
    newest = [last for _, last in server.ranges]
    assert newest == sorted(newest, reverse=True)  # newcomers first
    assert caplog.records == []
    refused = server.asked.count("eth_getLogs") - len(server.ranges)
    assert refused < 12 + len(server.ranges) / ANSWERS_TO_GROW


def test_a_server_without_old_logs_knows_newcomers_and_reporters(
    new_reader, register, report, ledger, chain, server, identities, caplog, clock
):
    reporter, silent, newcomer = identities
    register(reporter)
    report(reporter, 0)
    register(silent)
    chain.devnet.call("anvil_mine", hex(200), hex(0))
    oldest = int(chain.devnet.call("eth_blockNumber"), 16)
    server.refuses, server.refusal = lambda first, last: first < oldest, refuses(-32000, "history was pruned")
    register(newcomer)
    chain.enter(ledger, 1)
    reader = new_reader()
    reader.read(1)
    assert [reader.registered(peer.peer, 1) for peer in (reporter, silent, newcomer)] == [True, False, True]
    assert min(server.ranges)[0] == oldest
    (line,) = caplog.messages
    assert f"up to block {oldest - 1} are unknown until they report" in line and "pruned" in line
    report(silent, 1)
    chain.enter(ledger, 2)
    clock.moment += 100
    reader.read(2)
    assert reader.registered(silent.peer, 2) is True
    assert len(caplog.messages) == 1


def test_a_server_without_logs_knows_the_reporters(
    new_reader, register, report, ledger, chain, server, identities, caplog, clock
):
    server.refuses, server.refusal = lambda first, last: True, refuses(-32601, "eth_getLogs is disabled")
    for identity in identities:
        register(identity)
    chain.devnet.call("anvil_mine", hex(60), hex(0))
    report(identities[0], 0)
    reader = new_reader()
    reader.read(0, until=MAX_BACKOFF)
    assert [reader.registered(identity.peer, 0) for identity in identities] == [True, None, None]
    del server.asked[:]
    assert 0 < reader.registry.look(0) <= MAX_BACKOFF and server.asked == []
    report(identities[1], 0)
    chain.enter(ledger, 1)
    clock.moment += 100
    reader.read(1, until=MAX_BACKOFF)
    assert [reader.registered(identity.peer, 1) for identity in identities] == [True, True, None]
    assert ["cannot read who is registered" in line for line in caplog.messages] == [True]
    server.refuses = lambda first, last: False
    clock.moment += 100
    reader.read(1)
    assert reader.registered(identities[2].peer, 1) is True
    assert reader.registered(STRANGER, 1) is False


@pytest.mark.parametrize("refusal", [refuses_as_invalid, refuses_as_limit, refuses_by_status])
def test_a_server_that_is_overtaxed_for_a_moment_loses_nothing(
    new_reader, register, chain, server, identities, caplog, refusal
):
    register(identities[0])
    chain.devnet.call("anvil_mine", hex(100), hex(0))
    reader = new_reader()
    server.refuses, server.refusal = lambda first, last: last - first >= 5, refusal
    reader.look(0, times=20)
    server.refuses = lambda first, last: True
    reader.look(0, times=8)
    server.refuses = lambda first, last: False
    answered = len(server.ranges)
    reader.read(0)
    sizes = [last - first for first, last in server.ranges[answered:]]
    assert sizes[0] < max(sizes)  # more are tried again
    assert [reader.registered(identity.peer, 0) for identity in identities[:2]] == [True, False]
    assert caplog.messages == []


def test_a_scan_without_end_is_given_up(new_reader, register, chain, server, identities, caplog, monkeypatch):
    monkeypatch.setattr(registry_module, "MAX_LOG_QUESTIONS", 5)
    monkeypatch.setattr(registry_module, "LOG_BLOCKS", 4)
    register(identities[0])
    chain.devnet.call("anvil_mine", hex(100), hex(0))
    register(identities[1])
    reader = new_reader()
    reader.read(0)
    assert [reader.registered(identity.peer, 0) for identity in identities] == [False, True, False]
    assert len(server.ranges) == 5
    (line,) = caplog.messages
    assert "5 questions were not enough" in line


def test_newcomers_are_known_while_old_blocks_are_read(
    new_reader, register, ledger, chain, server, identities, clock
):
    server.refuses = lambda first, last: last - first >= 20
    chain.devnet.call("anvil_mine", hex(600), hex(0))
    reader = new_reader()
    reader.look(0, times=15)
    assert len(server.ranges) > 1 and reader.registered(STRANGER, 0) is None
    register(identities[0])
    chain.enter(ledger, 1)
    clock.moment += MIN_READING_SECONDS
    for _ in range(3):  # reporters, and at most two ranges
        assert reader.registry.look(1) == STEP_SECONDS
    assert reader.registered(identities[0].peer, 1) is True
    assert reader.registered(STRANGER, 0) is None  # not yet
    reader.read(1)
    assert reader.registered(STRANGER, 1) is False


@pytest.mark.parametrize(
    "answer",
    [
        "0x",
        [{}],
        ["0x"],
        [{"topics": []}],
        [{"topics": ["0x" + "11" * 32]}],
        [{"topics": [7], "data": None}],
        [{"topics": [REGISTERED]}],
        [{"topics": [REGISTERED], "data": "0x"}],
        [{"topics": [REGISTERED, STRANGER.hex(), "0x" + "ff" * 32], "data": "0x"}],
        [{"topics": [REGISTERED, "0x12", "0x"], "data": "0x"}],
        [{"topics": {}}],
        [{"topics": None}],
        {"topics": []},
        [None],
        7,
    ],
)
def test_nonsense_for_logs_is_a_refusal(new_reader, server, answer):
    server.refuses, server.refusal = lambda first, last: True, answers_logs(answer)
    reader = new_reader()
    reader.read(0, until=10)
    assert reader.registered(STRANGER, 0) is None
    server.refuses = lambda first, last: False
    reader.clock.moment += 100
    reader.read(0)
    assert reader.registered(STRANGER, 0) is False


# In the follower's thread.


@pytest.fixture
def follower(ledger, server):
    client = LedgerClient(server.url, ledger.address, ledger.facts)
    client.assume_time(ledger.now())
    follower = Follower(client)
    yield follower
    follower.stop()


def eventually(holds):
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_beacons_come_during_a_long_first_scan(follower, register, ledger, chain, server, identities):
    chain.devnet.call("anvil_mine", hex(600), hex(0))
    register(identities[0])
    server.refuses = lambda first, last: last - first >= 1
    chain.enter(ledger, 1)
    follower.start()
    eventually(lambda: follower.registry.registered(identities[0].peer, 1))
    for number in (2, 3, 4):
        asked = len(server.ranges)
        eventually(lambda asked=asked: len(server.ranges) > asked)
        beacon = chain.enter(ledger, number)
        assert follower.await_round(number, follower.now() + WAIT_SECONDS).beacon == beacon
    assert follower.registry.registered(STRANGER, 1) is None  # the scan goes on


def test_the_end_of_a_round_is_left_to_the_next_beacon(follower, ledger, chain, server):
    chain.enter(ledger, 2, offset=91)
    follower.start()
    for _ in range(5):
        asked = len(server.asked)
        assert follower.await_round(2, follower.now() + 5) is not None  # has it look again
        eventually(lambda asked=asked: len(server.asked) > asked)
    assert "eth_getLogs" not in server.asked
    chain.enter(ledger, 3)
    assert follower.await_round(3, follower.now() + WAIT_SECONDS) is not None
    eventually(lambda: follower.registry.registered(STRANGER, 3) is False)


def test_a_newcomer_wakes_the_follower(follower, register, ledger, chain, identities, monkeypatch):
    monkeypatch.setattr(follower_module, "MAX_IDLE", inf)
    monkeypatch.setattr(follower_module, "MIN_IDLE", 10 * WAIT_SECONDS)
    chain.enter(ledger, 1)
    follower.start()
    eventually(lambda: follower.registry.registered(STRANGER, 1) is False)
    assert follower.registry.registered(identities[0].peer, 1) is False
    register(identities[0])
    eventually(lambda: follower.registry.registered(identities[0].peer, 1))


def test_a_ledger_that_is_away_leaves_what_is_known(follower, register, ledger, chain, server, identities):
    register(identities[0])
    chain.enter(ledger, 1)
    follower.start()
    eventually(lambda: follower.registry.registered(identities[0].peer, 1))
    server.choose = lambda body: lambda handler: handler.connection.close()
    chain.enter(ledger, 2)
    assert follower.await_round(2, follower.now() + 0.3) is None
    assert follower.registry.registered(identities[0].peer, 2) is True
    assert follower.registry.registered(STRANGER, 2) is None

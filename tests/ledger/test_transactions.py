"""The account's queue on a real chain: what is sent once stays sent once, whatever breaks."""

import http.client
import http.server
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import stat
import threading
import time

import pytest
from eth_account import Account
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from sending_process import COUNTER, COUNTER_CODE, count, send

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger import fees, queue_store
from swarm.ledger.broadcast import broadcast
from swarm.ledger.devnet import Devnet
from swarm.ledger.fees import Fees
from swarm.ledger.refusals import ContractRefusal
from swarm.ledger.rpc import Rpc
from swarm.ledger.settling import REORG_BLOCKS, REPRICE_BLOCKS
from swarm.ledger.transactions import MAX_KEY_CHARACTERS, AccountQueue

processes = multiprocessing.get_context("forkserver")  # starts in milliseconds, with web3 imported
processes.set_forkserver_preload(["sending_process", "web3"])


@pytest.fixture(scope="module")
def module_devnet():
    with Devnet(block_seconds=None) as devnet:
        devnet.call("anvil_setCode", COUNTER, COUNTER_CODE)
        yield devnet


@pytest.fixture
def devnet(module_devnet):
    """A chain that makes a block for each transaction, until told otherwise."""
    yield module_devnet
    module_devnet.call("anvil_setCode", COUNTER, COUNTER_CODE)
    module_devnet.call("evm_setAutomine", True)
    module_devnet.call("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    module_devnet.call("evm_mine")


@pytest.fixture
def account(devnet):
    """Funded and, unlike a counter's slots, new in each test."""
    account = Account.create()
    devnet.fund(account.address, 1)
    return account


@pytest.fixture
def rpc(devnet):
    return Rpc(devnet.rpc_url)


@pytest.fixture
def queue(rpc, account, tmp_path):
    return AccountQueue(rpc, account, tmp_path)


@pytest.fixture
def numbers():
    """Numbers that no other test counts."""
    first = random.getrandbits(128)
    return [first + i for i in range(200)]


class NoAnswer(Exception):
    """Raised in a proxy's hook: the connection is closed without a word."""


class Proxy:
    """Stands between a queue and anvil.

    `before(method, parameters)` may return an answer in the chain's place, `after(method, parameters,
    answer)` another one than the chain's; both may raise `NoAnswer`.
    """

    def __init__(self, devnet):
        self.devnet = devnet
        self.before = lambda method, parameters: None
        self.after = lambda method, parameters, answer: answer
        self.methods = []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    answer = proxy._answer(request)
                except NoAnswer:
                    return
                body = json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True  # its client was killed

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, request):
        method, parameters = request["method"], request["params"]
        self.methods.append(method)
        answer = self.before(method, parameters)
        if answer is None:
            connection = http.client.HTTPConnection("127.0.0.1", int(self.devnet.rpc_url.split(":")[2]))
            connection.request("POST", "/", json.dumps(request), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            connection.close()
            answer = {part: answer[part] for part in ("result", "error") if part in answer}
        return self.after(method, parameters, answer)


@pytest.fixture
def proxy(devnet):
    proxy = Proxy(devnet)
    yield proxy
    proxy.server.shutdown()
    proxy.server.server_close()


def hold(devnet):
    """From now on, blocks are made only on request."""
    devnet.call("evm_setAutomine", False)


def mine(devnet, blocks=1):
    for _ in range(blocks):
        devnet.call("evm_mine")


def counted(devnet, number):
    return int(devnet.call("eth_getStorageAt", COUNTER, hex(number), "latest"), 16)


def nonces_used(devnet, account):
    return int(devnet.call("eth_getTransactionCount", account.address, "latest"), 16)


def receipt(devnet, tx):
    return devnet.call("eth_getTransactionReceipt", tx)


def send_from_outside(devnet, account, nonce, gwei=100):
    """As another program with the same key would, with a fee that replaces what waits."""
    fields = {"to": account.address, "value": 0, "gas": 21000, "nonce": nonce, "chainId": devnet.chain_id}
    signed = account.sign_transaction(fields | {"gasPrice": gwei * 10**9})
    return devnet.call("eth_sendRawTransaction", "0x" + bytes(signed.raw_transaction).hex())


# One process.


def test_a_key_is_sent_once(devnet, account, rpc, queue, numbers, tmp_path):
    assert queue.state("one") is None
    sent = queue.submit("one", count(rpc, numbers[0]))
    assert (sent.key, sent.nonce, sent.state, sent.block_number) == ("one", 0, "sent", None)
    assert queue.submit("one", count(rpc, numbers[0])) == sent == queue.state("one")
    mined = queue.wait("one")
    assert (mined.state, mined.tx, mined.error) == ("mined", sent.tx, None)
    assert receipt(devnet, mined.tx)["blockNumber"] == hex(mined.block_number)
    assert receipt(devnet, mined.tx)["gasUsed"] == hex(mined.gas_used)
    later = AccountQueue(Rpc(devnet.rpc_url), account, tmp_path)
    assert later.submit("one", count(rpc, numbers[0])) == mined == later.wait("one")
    assert later.submit("two", count(rpc, numbers[1])).nonce == 1
    assert later.wait("two").state == "mined"
    assert [counted(devnet, number) for number in numbers[:2]] == [1, 1]
    assert nonces_used(devnet, account) == 2


def test_a_constructor_is_sent_too(devnet, rpc, queue):
    contract = rpc.web3.eth.contract(abi=[], bytecode="0x6001600c60003960016000f300")  # code: STOP
    queue.submit("deployment", contract.constructor())
    deployed = queue.wait("deployment")
    assert devnet.call("eth_getCode", deployed.contract_address, "latest") == "0x00"
    assert queue.state("deployment") == deployed


def test_several_wait_for_a_block_at_once(devnet, account, rpc, queue, numbers):
    hold(devnet)
    for number in numbers[:5]:
        queue.submit(f"{number}", count(rpc, number))
    queue.follow()
    assert {queue.state(f"{number}").state for number in numbers[:5]} == {"sent"}
    mine(devnet)
    queue.follow()
    assert [queue.state(f"{number}").nonce for number in numbers[:5]] == [0, 1, 2, 3, 4]
    assert {queue.state(f"{number}").state for number in numbers[:5]} == {"mined"}


def test_waiting_tells_what_happens_and_ends(devnet, rpc, queue, numbers):
    hold(devnet)
    sent = queue.submit("one", count(rpc, numbers[0]))
    lines = []
    with pytest.raises(LedgerUnavailable, match=f"one: no block took {sent.tx} in 0 s; it stays queued"):
        queue.wait("one", 0, lines.append)
    assert lines == [f"one: waiting for a block to take {sent.tx}"]
    mine(devnet)
    assert queue.wait("one", 0).state == "mined"
    with pytest.raises(LedgerError, match="never sent"):
        queue.wait("two")


def test_a_key_has_a_bounded_length(rpc, queue, numbers):
    for key in ("", "x" * (MAX_KEY_CHARACTERS + 1)):
        with pytest.raises(ValueError, match="a key has"):
            queue.submit(key, count(rpc, numbers[0]))


def test_what_the_contract_refuses_is_not_sent(devnet, account, rpc, queue, numbers):
    with pytest.raises(ContractRefusal, match="the ledger refused nothing by 0x"):
        queue.submit("nothing", count(rpc, 0))
    assert queue.state("nothing") is None
    assert queue.submit("one", count(rpc, numbers[0])).nonce == 0
    assert queue.wait("one").state == "mined"


def test_what_reverts_in_its_block_says_why_and_can_be_sent_again(devnet, rpc, queue, numbers):
    hold(devnet)
    queue.submit("one", count(rpc, numbers[0]))
    # revert(Error("no!")), put together in memory
    words = "08c379a0" + (32).to_bytes(32).hex() + (3).to_bytes(32).hex() + b"no!".ljust(32, b"\0").hex()
    size = len(words) // 2
    devnet.call("anvil_setCode", COUNTER, f"0x60{size:02x}600c60003960{size:02x}6000fd{words}")
    mine(devnet)
    queue.follow()
    reverted = queue.state("one")
    assert (reverted.state, receipt(devnet, reverted.tx)["status"]) == ("reverted", "0x0")
    assert "no!" in reverted.error and "one by 0x" in reverted.error
    devnet.call("anvil_setCode", COUNTER, COUNTER_CODE)
    again = queue.submit("one", count(rpc, numbers[0]))
    assert (again.state, again.nonce) == ("sent", 1)
    mine(devnet)
    assert queue.wait("one").tx == again.tx
    assert counted(devnet, numbers[0]) == 1


def test_without_funds_nothing_is_sent_and_the_account_is_named(devnet, account, rpc, queue, numbers):
    devnet.call("anvil_setBalance", account.address, "0x1")
    with pytest.raises(LedgerError, match=f"no funds for one by {account.address}: send that account"):
        queue.submit("one", count(rpc, numbers[0]))
    assert queue.state("one") is None
    devnet.fund(account.address, 1)
    assert queue.submit("one", count(rpc, numbers[0])).nonce == 0
    assert queue.wait("one").state == "mined"


def test_nothing_is_asked_while_nothing_is_open(devnet, account, proxy, numbers, tmp_path):
    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    assert proxy.methods == []
    queue.follow()
    assert proxy.methods == ["eth_chainId", "eth_getBlockByNumber"]  # which chain, once
    queue.submit("one", count(rpc, numbers[0]))
    queue.wait("one")
    queue.follow()
    proxy.methods.clear()
    queue.follow()
    assert proxy.methods == ["eth_getBlockByNumber"]  # a reorganization needs a new block
    mine(devnet, REORG_BLOCKS)
    queue.follow()
    proxy.methods.clear()
    queue.follow()
    assert queue.submit("one", count(rpc, numbers[0])) == queue.state("one")
    assert proxy.methods == []


def test_a_chain_without_a_base_fee_is_paid_by_gas_price(devnet, account, proxy, numbers, tmp_path):
    def without_base_fee(method, parameters, answer):
        if method == "eth_getBlockByNumber":
            answer["result"].pop("baseFeePerGas", None)
        return answer

    proxy.after = without_base_fee
    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path, reprice_seconds=0)
    hold(devnet)
    first = queue.submit("one", count(rpc, numbers[0]))
    old = devnet.call("eth_getTransactionByHash", first.tx)
    assert old["type"] == "0x0"
    for _ in range(REPRICE_BLOCKS):
        devnet.call("anvil_setNextBlockBaseFeePerGas", hex(2 * int(old["gasPrice"], 16)))
        mine(devnet)
    queue.follow()
    mine(devnet)
    mined = queue.wait("one", 0)
    assert (mined.state, receipt(devnet, mined.tx)["type"]) == ("mined", "0x0")
    assert mined.tx != first.tx


# Several processes.


def test_processes_that_are_killed_anywhere_send_each_key_once(devnet, account, proxy, numbers, tmp_path):
    numbers = numbers[:40]
    chance = random.Random(7)
    for run in range(16):
        # Kill it a moment after one of its requests, which reaches the chain or not, answered or not.
        point = 3 + chance.randrange(45)
        moment = chance.choice([0.0, 0.0, 0.001, 0.003])
        lost = chance.choice(["request", "answer", "nothing"])
        seen = []
        process = processes.Process(
            target=send, args=(proxy.url, account.key, tmp_path, numbers, run % 2 == 0)
        )

        def strike(which, seen=seen, process=process, point=point, moment=moment, lost=lost):
            if which == "request":
                seen.append(1)
            if len(seen) < point or (lost == "answer") != (which == "answer"):
                return
            time.sleep(moment)
            process.kill()
            if lost == "request":
                raise NoAnswer

        proxy.before = lambda method, parameters, strike=strike: strike("request")
        proxy.after = lambda method, parameters, answer, strike=strike: strike("answer") or answer
        devnet.call("evm_setAutomine", run % 3 != 0)
        process.start()
        process.join(30)
        assert process.exitcode in (0, -signal.SIGKILL)
        mine(devnet)
    proxy.before = lambda method, parameters: None
    proxy.after = lambda method, parameters, answer: answer
    devnet.call("evm_setAutomine", True)
    send(proxy.url, account.key, tmp_path, numbers, wait=True)
    assert [counted(devnet, number) for number in numbers] == [1] * len(numbers)
    assert nonces_used(devnet, account) == len(numbers)


def test_four_processes_share_an_account(devnet, account, rpc, queue, numbers):
    folder = queue._folder.parent
    shares = [numbers[i : i + 25] for i in range(0, 100, 25)]
    running = [
        processes.Process(target=send, args=(devnet.rpc_url, account.key, folder, share, True))
        for share in shares
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0, 0]
    rows = [queue.state(f"count {number}") for number in numbers[:100]]
    assert sorted(row.nonce for row in rows) == list(range(100))
    assert {row.state for row in rows} == {"mined"}
    assert [counted(devnet, number) for number in numbers[:100]] == [1] * 100
    assert nonces_used(devnet, account) == 100


def test_what_a_dead_process_wrote_down_is_sent_by_another(
    devnet, account, proxy, rpc, queue, numbers, tmp_path
):
    process = processes.Process(target=send, args=(proxy.url, account.key, tmp_path, numbers[:1], True))

    def kill_before_broadcast(method, parameters):
        if method == "eth_sendRawTransaction":
            process.kill()
            raise NoAnswer

    proxy.before = kill_before_broadcast
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    left = queue.state(f"count {numbers[0]}")
    assert (left.state, left.nonce) == ("sent", 0)
    assert counted(devnet, numbers[0]) == 0
    queue.follow()
    assert queue.wait(left.key).tx == left.tx
    assert counted(devnet, numbers[0]) == 1


def test_an_account_that_another_process_holds_is_unavailable(rpc, account, queue, numbers, tmp_path):
    queue.submit("one", count(rpc, numbers[0]))
    other = AccountQueue(rpc, account, tmp_path, lock_seconds=0)
    with (
        FileLock(f"{queue._path}.lock"),
        pytest.raises(LedgerUnavailable, match=f"another process is using account {account.address}"),
    ):
        other.submit("two", count(rpc, numbers[1]))
    assert other.submit("two", count(rpc, numbers[1])).nonce == 1


# Servers that break.


def test_an_unanswered_broadcast_is_sent_again(devnet, account, proxy, numbers, tmp_path):
    def silent(method, parameters):
        if method == "eth_sendRawTransaction":
            raise NoAnswer

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    proxy.before = silent
    sent = queue.submit("one", count(rpc, numbers[0]))
    assert sent.state == "sent" and "cannot be reached" in queue.state("one").error
    with pytest.raises(LedgerUnavailable, match="cannot be reached"):
        queue.follow()
    with pytest.raises(LedgerUnavailable, match=r"no block took .* cannot be reached"):
        queue.wait("one", 0)
    assert queue.submit("two", count(rpc, numbers[1])).nonce == 1
    proxy.before = lambda method, parameters: None
    assert queue.wait("one").tx == sent.tx
    assert queue.wait("two").state == "mined"
    assert [counted(devnet, number) for number in numbers[:2]] == [1, 1]


def test_a_broadcast_whose_answer_is_lost_counts_once(devnet, account, proxy, numbers, tmp_path):
    def swallow(method, parameters, answer):
        if method == "eth_sendRawTransaction":
            raise NoAnswer
        return answer

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    proxy.after = swallow
    sent = queue.submit("one", count(rpc, numbers[0]))
    assert queue.wait("one").tx == sent.tx
    assert (counted(devnet, numbers[0]), nonces_used(devnet, account)) == (1, 1)


def test_a_server_that_is_away_is_unavailable_and_what_was_sent_settles_later(
    devnet, account, proxy, numbers, tmp_path
):
    def away(method, parameters):
        raise NoAnswer

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    proxy.before = away
    for ask in (
        lambda: queue.submit("one", count(rpc, numbers[0])),
        lambda: queue.state("one"),
        queue.follow,
    ):
        with pytest.raises(LedgerUnavailable, match="cannot be reached"):
            ask()
    proxy.before = lambda method, parameters: None
    sent = queue.submit("one", count(rpc, numbers[0]))
    proxy.before = away
    with pytest.raises(LedgerUnavailable, match="cannot be reached"):
        queue.follow()
    with pytest.raises(LedgerUnavailable, match="cannot be reached"):
        queue.submit("two", count(rpc, numbers[1]))
    assert queue.state("two") is None
    assert queue.submit("one", count(rpc, numbers[0])) == sent == queue.state("one")
    proxy.before = lambda method, parameters: None
    queue.follow()
    assert queue.state("one").state == "mined"


def test_a_refusal_that_may_pass_keeps_the_transaction(devnet, account, proxy, numbers, tmp_path):
    def busy(method, parameters):
        if method == "eth_sendRawTransaction":
            return {"error": {"code": -32005, "message": "rate limit exceeded by the load balancer"}}
        return None

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    proxy.before = busy
    sent = queue.submit("one", count(rpc, numbers[0]))
    with pytest.raises(LedgerUnavailable, match="rate limit exceeded"):
        queue.follow()
    assert queue.state("one").tx == sent.tx and "rate limit exceeded" in queue.state("one").error
    proxy.before = lambda method, parameters: None
    assert queue.wait("one").tx == sent.tx


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        ("already known", "accepted"),  # geth
        ("AlreadyKnown", "accepted"),  # Nethermind
        ("INTERNAL_ERROR: existing tx with same hash", "accepted"),  # Erigon
        ("nonce too low: next nonce 5, tx nonce 4", "nonce taken"),  # geth
        ("replacement transaction underpriced", "nonce taken"),  # geth, reth
        ("OldNonce, Current nonce: 5, nonce of rejected tx: 4", "nonce taken"),  # Nethermind
        ("insufficient funds for gas * price + value: balance 0", "refused"),  # geth
        ("Upfront cost exceeds account balance", "refused"),  # Besu
        ("transaction underpriced: tip needed 1, tip permitted 0", "refused"),  # geth
        ("tx fee (2.00 ether) exceeds the configured cap (1.00 ether)", "refused"),  # geth
        ("exceeds block gas limit", "refused"),  # geth
        ("txpool is full", "unclear"),  # geth
        ("nonce too high", "unclear"),  # hardhat
        ("unknown transaction server", "unclear"),
        ("Internal error", "unclear"),
    ],
)
def test_a_servers_words_are_understood(proxy, words, outcome):
    proxy.before = lambda method, parameters: {"error": {"code": -32000, "message": words}}
    assert broadcast(Rpc(proxy.url), b"\x02", "one").outcome == outcome


def test_a_server_that_lags_does_not_make_a_transaction_displaced(devnet, account, proxy, numbers, tmp_path):
    def without_receipts(method, parameters):
        return {"result": None} if method == "eth_getTransactionReceipt" else None

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    queue.submit("one", count(rpc, numbers[0]))
    proxy.before = without_receipts
    for _ in range(3):  # three looks at one block are no more than one
        queue.follow()
    assert queue.state("one").state == "sent"
    mine(devnet)
    queue.follow()
    assert queue.state("one").state == "displaced"  # misled for longer than a block
    proxy.before = lambda method, parameters: None
    assert queue.submit("one", count(rpc, numbers[0])).state == "mined"  # but not into sending twice
    assert (counted(devnet, numbers[0]), nonces_used(devnet, account)) == (1, 1)


def test_a_stale_count_of_nonces_does_no_harm(devnet, account, proxy, numbers, tmp_path):
    def stale(method, parameters):
        return (
            {"result": "0x0"} if method == "eth_getTransactionCount" and parameters[1] == "pending" else None
        )

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    proxy.before = stale
    for number in numbers[:2]:
        queue.submit(f"{number}", count(rpc, number))
        assert queue.wait(f"{number}").state == "mined"
    send_from_outside(devnet, account, 2)
    third = queue.submit("three", count(rpc, numbers[2]))  # the server calls nonce 2 too low
    assert third.nonce == 3
    assert queue.wait("three").state == "mined"
    for nonce in range(4, 20):
        send_from_outside(devnet, account, nonce)
    with pytest.raises(LedgerError, match="used from outside this machine"):
        queue.submit("four", count(rpc, numbers[3]))
    assert queue.state("four") is None


def test_another_chain_is_noticed_before_anything_is_signed(devnet, account, numbers, tmp_path):
    with Devnet(block_seconds=None) as first:
        first.call("anvil_setCode", COUNTER, COUNTER_CODE)
        first.fund(account.address, 1)
        port = int(first.rpc_url.split(":")[2])
        rpc = Rpc(first.rpc_url)
        queue = AccountQueue(rpc, account, tmp_path)
        hold(first)
        queue.submit("one", count(rpc, numbers[0]))
        began = int(first.call("eth_getBlockByNumber", "0x0", False)["timestamp"], 16)
    while time.time() < began + 1:  # blocks 0 of anvil differ only in their second
        time.sleep(0.02)
    with Devnet(block_seconds=None, port=port) as second:  # same id, another chain
        second.call("anvil_setCode", COUNTER, COUNTER_CODE)
        second.fund(account.address, 1)
        with pytest.raises(LedgerError, match=r"wrong chain: 127\.0\.0\.1:\d+ serves chain 31337 \(first"):
            queue.follow()
        with pytest.raises(LedgerError, match="wrong chain"):
            queue.submit("two", count(rpc, numbers[1]))
        assert queue.state("one").state == "sent" and queue.state("two") is None
        fresh = AccountQueue(Rpc(second.rpc_url), account, tmp_path)
        assert fresh.state("one") is None
        assert fresh.submit("one", count(rpc, numbers[0])).nonce == 0
    with Devnet(block_seconds=None, port=port, chain_id=5) as third:
        with pytest.raises(LedgerError, match=r"wrong chain: .* serves chain 5 "):
            queue.follow()
        assert int(third.call("eth_getTransactionCount", account.address, "latest"), 16) == 0
    assert len(list((tmp_path / "accounts").glob("*.sqlite"))) == 2


# Pools and blocks.


def test_a_stuck_transaction_is_sent_again_at_a_higher_price(devnet, account, rpc, numbers, tmp_path):
    queue = AccountQueue(rpc, account, tmp_path, reprice_seconds=0)
    hold(devnet)
    first = queue.submit("one", count(rpc, numbers[0]))
    behind = queue.submit("two", count(rpc, numbers[1]))
    offered = int(devnet.call("eth_getTransactionByHash", first.tx)["maxFeePerGas"], 16)
    for _ in range(REPRICE_BLOCKS):
        devnet.call("anvil_setNextBlockBaseFeePerGas", hex(3 * offered))
        queue.follow()
        assert queue.state("one").tx == first.tx  # it has waited for too few blocks
        mine(devnet)
    queue.follow()
    second = queue.state("one")
    assert second.tx != first.tx and (second.state, second.nonce) == ("sent", 0)
    assert queue.state("two").tx == behind.tx  # only the first one in line can be stuck
    queue.follow()
    assert queue.state("one").tx == second.tx
    mine(devnet)
    mined = queue.wait("one", 0)
    assert (mined.state, mined.tx) == ("mined", second.tx)
    assert receipt(devnet, first.tx) is None
    assert counted(devnet, numbers[0]) == 1


def test_the_version_that_is_mined_counts_also_if_it_is_an_old_one(devnet, account, rpc, numbers, tmp_path):
    queue = AccountQueue(rpc, account, tmp_path, reprice_seconds=0)
    hold(devnet)
    first = queue.submit("one", count(rpc, numbers[0]))
    devnet.call("anvil_dropTransaction", first.tx)
    mine(devnet, REPRICE_BLOCKS)
    queue.follow()
    second = queue.state("one")
    assert second.tx != first.tx
    devnet.call("anvil_dropTransaction", second.tx)
    raw = queue._store.find("one").versions[0].raw
    devnet.call("eth_sendRawTransaction", "0x" + raw.hex())
    mine(devnet)
    assert (queue.wait("one", 0).state, queue.state("one").tx) == ("mined", first.tx)


def test_a_server_that_hides_what_waits_hears_it_once_a_block_and_a_stuck_one_is_re_priced(
    devnet, account, proxy, numbers, tmp_path
):
    def hide(method, parameters):
        return {"result": None} if method == "eth_getTransactionByHash" else None

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path, reprice_seconds=0)
    hold(devnet)
    proxy.before = hide
    first = queue.submit("one", count(rpc, numbers[0]))
    offered = queue._store.find("one").versions[0].fees.max_fee
    for _ in range(3):
        queue.follow()
    assert proxy.methods.count("eth_sendRawTransaction") == 2
    for _ in range(REPRICE_BLOCKS):
        devnet.call("anvil_setNextBlockBaseFeePerGas", hex(3 * offered))
        mine(devnet)
    queue.follow()
    assert queue.state("one").tx != first.tx
    mine(devnet)
    assert queue.wait("one", 0).state == "mined"


def test_a_price_is_raised_no_higher_than_the_balance_allows(devnet, account, rpc, numbers, tmp_path):
    queue = AccountQueue(rpc, account, tmp_path, reprice_seconds=0)
    hold(devnet)
    first = queue.submit("one", count(rpc, numbers[0]))
    waiting = devnet.call("eth_getTransactionByHash", first.tx)
    cost = int(waiting["gas"], 16) * int(waiting["maxFeePerGas"], 16)
    devnet.call("anvil_setBalance", account.address, hex(cost * 11 // 10))
    for _ in range(REPRICE_BLOCKS):
        devnet.call("anvil_setNextBlockBaseFeePerGas", hex(3 * int(waiting["maxFeePerGas"], 16)))
        mine(devnet)
    queue.follow()
    stuck = queue.state("one")
    assert stuck.tx == first.tx
    assert stuck.error == (
        f"no block takes it, and a higher fee is more than the balance of {account.address} allows"
    )
    queue.follow()
    assert queue.state("one") == stuck
    devnet.fund(account.address, 1)
    for _ in range(REPRICE_BLOCKS):
        devnet.call("anvil_setNextBlockBaseFeePerGas", hex(3 * int(waiting["maxFeePerGas"], 16)))
        mine(devnet)
    queue.follow()
    mine(devnet)
    mined = queue.wait("one", 0)
    assert mined.tx != first.tx and mined.error is None


def test_a_transaction_dropped_from_the_pool_is_sent_again(devnet, rpc, queue, numbers):
    hold(devnet)
    first = queue.submit("one", count(rpc, numbers[0]))
    second = queue.submit("two", count(rpc, numbers[1]))
    devnet.call("anvil_dropTransaction", first.tx)
    devnet.call("anvil_dropTransaction", second.tx)
    mine(devnet)
    queue.follow()
    mine(devnet)
    queue.follow()
    assert [queue.state(key).tx for key in ("one", "two")] == [first.tx, second.tx]
    assert [queue.state(key).state for key in ("one", "two")] == ["mined", "mined"]


def test_a_transaction_that_a_reorganization_drops_is_sent_again(devnet, account, rpc, queue, numbers):
    mined = []
    for key, number in zip(("one", "two", "three"), numbers[:3], strict=True):
        queue.submit(key, count(rpc, number))
        mined.append(queue.wait(key))
        mine(devnet)
    hold(devnet)
    devnet.call("anvil_reorg", 4, [])  # "one" stays
    assert nonces_used(devnet, account) == 1
    queue.follow()
    assert [queue.state(key).state for key in ("one", "two", "three")] == ["mined", "sent", "sent"]
    assert queue.state("two").block_number is None
    assert queue.submit("two", count(rpc, numbers[1])).tx == mined[1].tx
    assert queue.submit("four", count(rpc, numbers[3])).nonce == 3
    mine(devnet)
    queue.follow()
    again = [queue.state(key) for key in ("one", "two", "three")]
    assert [row.tx for row in again] == [row.tx for row in mined]
    assert {row.state for row in again} == {"mined"} and again[1].block_number > mined[1].block_number
    assert [counted(devnet, number) for number in numbers[:4]] == [1, 1, 1, 1]


def test_a_transaction_that_moves_to_another_block_stays_mined(devnet, rpc, queue, numbers):
    queue.submit("one", count(rpc, numbers[0]))
    mined = queue.wait("one")
    mine(devnet)
    hold(devnet)
    raw = "0x" + queue._store.find("one").versions[0].raw.hex()
    devnet.call("anvil_reorg", 2, [[raw, 1]])
    queue.follow()
    moved = queue.state("one")
    assert (moved.state, moved.block_number) == ("mined", mined.block_number + 1)
    assert receipt(devnet, mined.tx)["blockHash"] == "0x" + queue._store.find("one").block_hash.hex()


def test_a_nonce_used_from_outside_displaces_and_the_key_can_be_sent_again(
    devnet, account, rpc, queue, numbers
):
    hold(devnet)
    queue.submit("one", count(rpc, numbers[0]))
    behind = queue.submit("two", count(rpc, numbers[1]))
    send_from_outside(devnet, account, 0)
    mine(devnet)
    queue.follow()
    assert queue.state("one").state == "sent"  # one look may be a server that lags
    assert queue.state("two").state == "mined"
    mine(devnet)
    queue.follow()
    displaced = queue.state("one")
    assert displaced.state == "displaced"
    assert displaced.error == f"a transaction from outside this machine used nonce 0 of {account.address}"
    again = queue.submit("one", count(rpc, numbers[0]))
    assert (again.state, again.nonce) == ("sent", 2)
    mine(devnet)
    assert queue.wait("one").state == "mined"
    assert queue.state("two").tx == behind.tx
    assert [counted(devnet, number) for number in numbers[:2]] == [1, 1]


def test_a_hole_that_an_outsider_left_is_filled(devnet, account, rpc, queue, numbers):
    hold(devnet)
    outside = send_from_outside(devnet, account, 0)
    assert queue.submit("one", count(rpc, numbers[0])).nonce == 1
    devnet.call("anvil_dropTransaction", outside)
    assert queue.submit("two", count(rpc, numbers[1])).nonce == 0
    mine(devnet)
    queue.follow()
    mine(devnet)
    assert {queue.wait(key).state for key in ("one", "two")} == {"mined"}


# Servers that lie.


def test_an_offer_made_on_a_lie_is_mended(devnet, account, proxy, numbers, tmp_path):
    lies = {"eth_maxPriorityFeePerGas": hex(100 * 10**9), "eth_sendRawTransaction": "0x" + "11" * 32}

    def free(method, parameters, answer):
        if method == "eth_getBlockByNumber" and parameters[0] == "latest":
            answer["result"] |= {"baseFeePerGas": "0x0", "number": hex(2**62)}
        return answer

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path, reprice_seconds=0)
    hold(devnet)
    proxy.before = lambda method, parameters: {"result": lies[method]} if method in lies else None
    proxy.after = free
    for number in numbers[:2]:
        queue.submit(f"{number}", count(rpc, number))
    proxy.before = lambda method, parameters: None
    proxy.after = lambda method, parameters, answer: answer
    for _ in range(2):
        devnet.call("anvil_setNextBlockBaseFeePerGas", hex(300 * 10**9))
        mine(devnet, REPRICE_BLOCKS)
        queue.follow()
        queue.follow()
        devnet.call("anvil_setNextBlockBaseFeePerGas", hex(300 * 10**9))
        mine(devnet)
        queue.follow()
    assert [queue.state(f"{number}").state for number in numbers[:2]] == ["mined", "mined"]


def test_a_price_follows_a_market_that_rises_thirtyfold(devnet, account, rpc, numbers, tmp_path):
    queue = AccountQueue(rpc, account, tmp_path, reprice_seconds=0)
    hold(devnet)
    queue.submit("one", count(rpc, numbers[0]))
    base_fee = 30 * queue._store.find("one").versions[0].fees.max_fee
    devnet.call("anvil_setNextBlockBaseFeePerGas", hex(base_fee))
    mine(devnet, REPRICE_BLOCKS)
    queue.follow()
    devnet.call("anvil_setNextBlockBaseFeePerGas", hex(base_fee))
    mine(devnet)
    assert queue.wait("one", 0).state == "mined"


def dear(method, value):
    """A hook for a server that says this of its fees."""

    def after(asked, parameters, answer):
        if asked == "eth_getBlockByNumber":
            if method == "eth_gasPrice":
                answer["result"].pop("baseFeePerGas", None)
            elif method == "baseFeePerGas":
                answer["result"]["baseFeePerGas"] = hex(value)
        return {"result": hex(value)} if asked == method else answer

    return after


@pytest.mark.parametrize(
    ("method", "gwei", "words"),
    [
        ("eth_maxPriorityFeePerGas", 101, "asks a tip of 101 gwei per gas for one by .* at most 100 is paid"),
        (
            "eth_maxPriorityFeePerGas",
            6.5e6,
            "asks 6,500,00.* gwei per gas .* SWARM_MAX_FEE_GWEI allows 1,000:",
        ),
        ("baseFeePerGas", 1000, "asks 1,00.* gwei per gas .* SWARM_MAX_FEE_GWEI allows 1,000:"),
        ("eth_gasPrice", 1001, "asks 1,001 gwei per gas .* SWARM_MAX_FEE_GWEI allows 1,000: set it higher"),
        ("eth_gasPrice", 2.0**200, "nonsense"),
    ],
)
def test_more_than_the_highest_fee_is_not_paid(
    devnet, account, proxy, numbers, tmp_path, method, gwei, words
):
    devnet.fund(account.address, 10**6)
    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path, reprice_seconds=0)
    proxy.after = dear(method, int(gwei * 10**9))
    with pytest.raises(LedgerError, match=words):
        queue.submit("one", count(rpc, numbers[0]))
    assert queue.state("one") is None and "eth_sendRawTransaction" not in proxy.methods
    proxy.after = lambda asked, parameters, answer: answer
    hold(devnet)
    sent = queue.submit("one", count(rpc, numbers[0]))
    mine(devnet)
    devnet.call("anvil_reorg", 1, [])  # it waits again
    devnet.call("anvil_dropTransaction", sent.tx)
    proxy.after = dear(method, int(gwei * 10**9))
    mine(devnet, REPRICE_BLOCKS)
    queue.follow()
    stuck = queue.state("one")
    assert (stuck.state, stuck.tx) == ("sent", sent.tx)
    assert stuck.error.startswith("no block takes it, and the ledger at") and "\n" not in stuck.error
    mine(devnet)
    assert queue.wait("one", 0).tx == sent.tx


def test_the_highest_fee_can_be_set(rpc, queue, numbers, monkeypatch):
    for text in ("much", "-1", "0", "nan", "1e99"):
        monkeypatch.setenv("SWARM_MAX_FEE_GWEI", text)
        with pytest.raises(LedgerError, match=f"SWARM_MAX_FEE_GWEI is a number of gwei per gas.*'{text}'"):
            queue.submit("one", count(rpc, numbers[0]))
    monkeypatch.setenv("SWARM_MAX_FEE_GWEI", "0.000001")
    with pytest.raises(LedgerError, match=r"SWARM_MAX_FEE_GWEI allows 0\.000001: set it higher"):
        queue.submit("one", count(rpc, numbers[0]))
    assert queue.state("one") is None
    monkeypatch.setenv("SWARM_MAX_FEE_GWEI", "2000.5")
    assert fees.cap() == 2000_500_000_000
    assert queue.submit("one", count(rpc, numbers[0])).nonce == 0


@pytest.mark.parametrize(
    "lie", [{"blockNumber": hex(2**70)}, {"blockNumber": hex(2**40)}, {"blockHash": "0x" + "11" * 32}]
)
def test_a_receipt_from_a_block_that_is_not_there_is_not_believed(
    devnet, account, proxy, numbers, tmp_path, lie
):
    def lying(method, parameters, answer):
        if method == "eth_getTransactionReceipt" and answer["result"]:
            answer["result"] |= lie
        if method == "eth_getBlockByNumber" and parameters[0] == lie.get("blockNumber"):
            answer["result"] = {"number": parameters[0], "hash": receipt(devnet, sent.tx)["blockHash"]}
        return answer

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    sent = queue.submit("one", count(rpc, numbers[0]))
    proxy.after = lying
    queue.follow()
    assert queue.state("one").state == "sent"
    proxy.after = lambda method, parameters, answer: answer
    assert hex(queue.wait("one").block_number) == receipt(devnet, sent.tx)["blockNumber"]


def test_a_false_block_in_the_file_hides_no_reorganization(devnet, account, rpc, queue, numbers):
    mined = []
    for key, number in zip(("one", "two"), numbers[:2], strict=True):
        queue.submit(key, count(rpc, number))
        mined.append(queue.wait(key))
    false = replace(queue._store.find("one"), block_number=2**40, watch_until=2**40 + REORG_BLOCKS)
    queue._store.save(false)
    hold(devnet)
    devnet.call("anvil_reorg", 1, [])  # "two" is dropped
    queue.submit("three", count(rpc, numbers[2]))
    queue.follow()
    assert queue.state("one") == mined[0] and queue.state("two").state == "sent"
    mine(devnet)
    queue.follow()
    assert {queue.state(key).state for key in ("one", "two", "three")} == {"mined"}


def test_what_is_open_is_looked_after_while_what_is_settled_cannot_be(
    devnet, account, proxy, numbers, tmp_path
):
    def broken(method, parameters):
        if method == "eth_getBlockByNumber" and parameters[0] not in ("latest", "0x0"):
            return {"error": {"code": -32000, "message": "missing trie node"}}
        return None

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    queue.submit("one", count(rpc, numbers[0]))
    queue.wait("one")
    hold(devnet)
    second = queue.submit("two", count(rpc, numbers[1]))
    devnet.call("anvil_dropTransaction", second.tx)
    mine(devnet)
    proxy.before = broken
    with pytest.raises(LedgerError, match="missing trie node"):
        queue.follow()
    assert devnet.call("eth_getTransactionByHash", second.tx) is not None


def test_a_nonce_far_ahead_is_not_taken(devnet, account, proxy, numbers, tmp_path):
    def ahead(method, parameters):
        pending = method == "eth_getTransactionCount" and parameters[1] == "pending"
        return {"result": hex(nonce)} if pending else None

    rpc = Rpc(proxy.url)
    queue = AccountQueue(rpc, account, tmp_path)
    hold(devnet)
    proxy.before = ahead
    for nonce in (65, 100_000):
        with pytest.raises(LedgerUnavailable, match=f"says nonce {nonce} is next for .* sent 0 transactions"):
            queue.submit("one", count(rpc, numbers[0]))
    nonce = 2**63
    with pytest.raises(LedgerError, match="nonsense"):
        queue.submit("one", count(rpc, numbers[0]))
    assert queue.state("one") is None
    nonce = 0
    assert [queue.submit(key, count(rpc, 1)).nonce for key in ("one", "two")] == [0, 1]
    nonce = 2 + 64
    assert queue.submit("three", count(rpc, 1)).nonce == nonce


# The file.


def test_only_the_owner_can_read_the_file(rpc, queue, numbers):
    before = os.umask(0)
    try:
        queue.submit("one", count(rpc, numbers[0]))
    finally:
        os.umask(before)
    folder = queue._path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert len(list(folder.glob("*.sqlite-wal"))) == 1


def test_a_broken_file_is_one_line(rpc, account, queue, numbers, tmp_path):
    queue.submit("one", count(rpc, numbers[0]))
    path = queue._path
    queue.close()
    assert queue.state("one").key == "one"  # opened again
    queue.close()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match=r"the queue of transactions .* cannot be used: file is not a"):
        queue.state("one")
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="written by another version"):
        queue.state("one")


def test_old_rows_are_forgotten_but_none_that_is_open(rpc, queue, numbers, monkeypatch):
    queue.submit("one", count(rpc, numbers[0]))
    store = queue._store
    row = store.find("one")
    store.delete(row)
    monkeypatch.setattr(queue_store, "KEPT_ROWS", 3)
    states = ["sent", "mined", "displaced", "reverted", "mined", "mined", "mined"]
    for number, state in enumerate(states):
        changes = {"key": str(number), "nonce": number, "state": state}
        changes["watch_until"] = 10 if number == 1 else None
        store.insert(replace(row, **changes))
    store.prune()
    assert [key for key in "0123456" if store.find(key)] == ["0", "1", "4", "5", "6"]
    assert store.held_nonces(1) == {1, 4, 5, 6}


@given(
    max_fee=st.integers(1, 10**15),
    tip=st.none() | st.integers(0, 10**15),
    market=st.integers(0, 10**15),
    limit=st.integers(0, 10**16),
)
def test_a_raised_price_replaces_meets_the_market_and_keeps_its_limit(max_fee, tip, market, limit):
    offer = Fees(max_fee, None if tip is None else min(tip, max_fee))
    raised = fees.raised(offer, Fees(market, None if tip is None else market // 2), limit)
    if raised is None:
        assert limit < max(max_fee * 9 / 8, max_fee + 1)
        return
    assert 8 * raised.max_fee >= 9 * max_fee and raised.max_fee <= limit
    assert raised.max_fee >= min(market, limit)
    assert (raised.tip is None) == (tip is None)
    if raised.tip is not None:
        assert offer.tip < raised.tip <= raised.max_fee and 8 * raised.tip >= 9 * offer.tip

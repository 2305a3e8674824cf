"""Whatever a server answers leaves as a `LedgerError` of one line, in bounded time and memory."""

import gzip
import json
import re
import socket
import threading
import time
from contextlib import suppress

import pytest
from eth_account import Account
from sending_process import count

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.http import MAX_MEBIBYTES
from swarm.ledger.queue_store import QueueStore
from swarm.ledger.rpc import MAX_LOG_QUESTIONS, Rpc
from swarm.ledger.transactions import AccountQueue

TIMEOUT = 0.1  # seconds; a whole answer may take three times as long
HASH = "0x" + "11" * 32
BLOCK = {"number": "0x10", "timestamp": "0x10", "hash": HASH, "baseFeePerGas": "0x1"}
RECEIPT = {"blockNumber": "0x10", "blockHash": HASH, "status": "0x1", "gasUsed": "0x1"}


class Server:
    """Reads requests, and leaves the connection to `answer(connection, request)` each time."""

    def __init__(self, answer):
        self.answer = answer
        self.requests = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with suppress(OSError), connection:
            while request := connection.recv(2**16):
                head, _, body = request.partition(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
                while len(body) < length:
                    body += connection.recv(2**16)
                self.requests.append(head)
                self.answer(connection, json.loads(body))


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def http(body, *headers):
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answers(**results):
    """Answers each method with its result here: a value, or JSON in bytes."""

    def answer(connection, request):
        result = results[request["method"]]
        text = result if isinstance(result, bytes) else json.dumps(result).encode()
        connection.sendall(http(b'{"jsonrpc": "2.0", "id": %d, "result": %s}' % (request["id"], text)))

    return answer


def pieces(*beginning, again, pause=TIMEOUT / 2):
    """Sends the beginning, and then `again` for ever."""

    def answer(connection, request):
        connection.sendall(b"".join(beginning))
        while True:
            time.sleep(pause)
            connection.sendall(again)

    return answer


# Bytes.


def test_requests_share_a_connection_and_ask_for_no_compression(serve):
    server = serve(answers(eth_chainId="0x5"))
    rpc = Rpc(server.url)
    assert [rpc.ask_chain_id() for _ in range(3)] == [5, 5, 5]
    assert server.connections == 1
    assert all(b"accept-encoding: identity" in head.lower() for head in server.requests)


@pytest.mark.parametrize(
    "headers", ["", "Content-Length: 100000000000\r\n", "Transfer-Encoding: chunked\r\n"]
)
def test_an_answer_without_end_is_cut(serve, headers):
    zeros = b"0" * 2**20
    piece = b"%x\r\n%s\r\n" % (len(zeros), zeros) if "chunked" in headers else zeros
    server = serve(pieces(b"HTTP/1.1 200 OK\r\n%s\r\n" % headers.encode(), again=piece, pause=0))
    with pytest.raises(LedgerUnavailable, match=f"answered eth_chainId with more than {MAX_MEBIBYTES} MiB"):
        Rpc(server.url).ask_chain_id()


def test_an_answer_of_some_size_is_read(serve):
    balance = b'"0x%s1"' % (b"0" * (MAX_MEBIBYTES - 1) * 2**20)
    assert Rpc(serve(answers(eth_getBalance=balance)).url).balance(Account.create().address) == 1


def test_a_compressed_answer_is_not_unpacked(serve):
    bomb = gzip.compress(bytes(2**28), 1)
    server = serve(lambda connection, request: connection.sendall(http(bomb, "Content-Encoding: gzip")))
    with pytest.raises(LedgerUnavailable):
        Rpc(server.url).ask_chain_id()


@pytest.mark.parametrize(
    ("beginning", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"H"),
    ],
)
def test_an_answer_that_drips_is_cut(serve, beginning, again):
    server = serve(pieces(beginning, again=again))
    began = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="did not answer eth_chainId in time"):
        Rpc(server.url, timeout_seconds=TIMEOUT).ask_chain_id()
    assert time.monotonic() - began < 10 * TIMEOUT + 1


def test_after_a_bad_answer_the_next_is_read(serve):
    server = serve(pieces(b"HTTP/1.1 200 OK\r\n\r\n", again=b" "))
    rpc = Rpc(server.url, timeout_seconds=TIMEOUT)
    with pytest.raises(LedgerUnavailable):
        rpc.ask_chain_id()
    server.answer = answers(eth_chainId="0x5")
    assert rpc.ask_chain_id() == 5


# Numbers.

NONSENSE = [
    hex(2**63),
    hex(2**256),
    "0x" + "f" * 100_000,
    "-0x1",
    "five",
    -1,
    1.5,
    None,
    [],
    {},
    b"9" * 5_000,
    b"Infinity",
    b"NaN",
    b"[" * 100_000,
]
ADDRESS = Account.create().address


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: str(value)[:12])
def test_a_number_that_cannot_be_is_nonsense(serve, value):
    asked = {
        "eth_chainId": lambda rpc: rpc.ask_chain_id(),
        "eth_getTransactionCount": lambda rpc: rpc.nonces_used(ADDRESS),
        "eth_getBlockByNumber": lambda rpc: rpc.block(None),
    }
    for method, ask in asked.items():
        with pytest.raises(LedgerError) as caught:
            ask(Rpc(serve(answers(**{method: value})).url))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    if isinstance(value, bytes):
        return
    for field in ("number", "timestamp"):
        with pytest.raises(LedgerError):
            Rpc(serve(answers(eth_getBlockByNumber=BLOCK | {field: value})).url).block(None)
    results = {"eth_getBlockByNumber": BLOCK, "eth_getTransactionReceipt": RECEIPT | {"gasUsed": value}}
    with pytest.raises(LedgerError):
        Rpc(serve(answers(**results)).url).receipt(HASH)


def test_another_block_than_was_asked_for_is_nonsense(serve):
    with pytest.raises(LedgerError, match="nonsense"):
        Rpc(serve(answers(eth_getBlockByNumber=BLOCK)).url).block(17)


@pytest.mark.parametrize("topics", [[], ["0x" + "11" * 32]], ids=["no topics", "another event's"])
def test_an_event_that_was_not_asked_for_is_a_refusal(serve, topics):
    log = {"address": ADDRESS, "topics": topics, "data": "0x", "blockNumber": "0x1", "logIndex": "0x0"}
    log |= {"transactionHash": HASH, "transactionIndex": "0x0", "blockHash": HASH, "removed": False}
    rpc = Rpc(serve(answers(eth_getBlockByNumber=BLOCK | {"number": "0x1"}, eth_getLogs=[log])).url)
    event = rpc.web3.eth.contract(
        address=ADDRESS, abi=[{"type": "event", "name": "Happened", "anonymous": False, "inputs": []}]
    ).events.Happened
    with pytest.raises(LedgerError):
        list(rpc.logs(event, 0))


@pytest.mark.parametrize("method", ["eth_chainId", "eth_estimateGas", "eth_getTransactionCount"])
@pytest.mark.parametrize("value", [hex(2**63), "0x" + "f" * 10_000, "-0x1", -1, None])
def test_no_nonsense_is_signed_or_written_down(serve, tmp_path, method, value):
    honest = {
        "eth_chainId": "0x5",
        "eth_getBlockByNumber": BLOCK | {"number": "0x0"},
        "eth_estimateGas": "0x5208",
        "eth_maxPriorityFeePerGas": "0x1",
        "eth_getTransactionCount": "0x0",
    }
    rpc = Rpc(serve(answers(**honest | {method: value})).url)
    queue = AccountQueue(rpc, Account.create(), tmp_path)
    with pytest.raises(LedgerError):
        queue.submit("one", count(rpc, 1))
    for file in tmp_path.rglob("*.sqlite"):
        assert QueueStore(file).unsettled() == []


def test_a_number_that_the_file_cannot_hold_is_one_line(tmp_path):
    with pytest.raises(LedgerError, match=r"the queue of transactions .* cannot be used"):
        QueueStore(tmp_path / "queue.sqlite").held_nonces(2**63)


# Logs.


def test_events_of_a_chain_too_long_are_not_searched(serve):
    server = serve(answers(eth_getBlockByNumber=BLOCK | {"number": hex(2**60)}, eth_getLogs=[]))
    rpc = Rpc(server.url)
    event = rpc.web3.eth.contract(
        address=ADDRESS, abi=[{"type": "event", "name": "Happened", "anonymous": False, "inputs": []}]
    ).events.Happened
    with pytest.raises(LedgerError, match=f"takes over {MAX_LOG_QUESTIONS} questions"):
        list(rpc.logs(event, 0))
    assert len(server.requests) == 1
    server.answer = answers(eth_getBlockByNumber=BLOCK | {"number": hex(95_000)}, eth_getLogs=[])
    assert list(rpc.logs(event, 0)) == [] and len(server.requests) == 1 + 1 + 10

"""The node's view of a ledger that is slow, limits its callers, goes away or becomes another."""

import http.client
import http.server
import json
import logging
import threading
import time

import msgspec
import pytest

from swarm.ledger.client import LedgerClient
from swarm.ledger.devnet import Devnet
from swarm.ledger.follower import Follower

WAIT_SECONDS = 30


class Proxy:
    """Stands between a client and its chain, and spoils the answers as told."""

    def __init__(self, url: str) -> None:
        self.spoil = None  # a function of the handler that answers, instead of the chain
        self.choose = None  # a function of the request that gives such a one
        self.url_of_chain = url
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                spoil = proxy.choose(body) if proxy.choose else proxy.spoil
                if spoil is not None:
                    return spoil(self)
                chain = http.client.HTTPConnection(proxy.url_of_chain.removeprefix("http://"))
                chain.request("POST", "/", body, {"Content-Type": "application/json"})
                self.answer(200, chain.getresponse().read())

            def answer(self, status, body):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def limits_by_status(handler):
    handler.answer(429, b"slow down")


def limits_by_message(handler):
    error = {"code": -32005, "message": "limit exceeded"}
    handler.answer(200, json.dumps({"jsonrpc": "2.0", "id": 0, "error": error}).encode())


def drops_the_connection(handler):
    handler.connection.close()


@pytest.fixture
def proxy(chain):
    proxy = Proxy(chain.devnet.rpc_url)
    yield proxy
    proxy.close()


@pytest.fixture
def follow(ledger, proxy):
    """Starts following the ledger, through the proxy."""
    followers = []

    def start(facts=ledger.facts):
        client = LedgerClient(proxy.url, ledger.address, facts)
        client.assume_time(ledger.now())
        followers.append(Follower(client))
        followers[-1].start()
        return followers[-1]

    yield start
    for follower in followers:
        follower.stop()


def limits_calls_of_contracts(body: bytes):
    return limits_by_message if b"eth_call" in body else None


def in_a_moment(follower, seconds=0.3):
    return follower.now() + seconds


def test_a_rounds_beacon_and_bootnodes_are_there_when_it_begins(follow, ledger, chain):
    follower = follow()
    assert follower.await_round(2, in_a_moment(follower)) is None
    beacon = chain.enter(ledger, 2)
    seen = follower.await_round(2, in_a_moment(follower, WAIT_SECONDS))
    assert seen == (beacon, 0)
    assert follower.bootnodes() == []


@pytest.mark.parametrize("spoil", [limits_by_status, limits_by_message, drops_the_connection])
def test_a_ledger_that_is_away_is_one_line_and_is_caught_up_with(follow, ledger, chain, proxy, caplog, spoil):
    caplog.set_level("INFO", "swarm.ledger")
    follower = follow()
    chain.enter(ledger, 2)
    assert follower.await_round(2, in_a_moment(follower, WAIT_SECONDS)) is not None
    proxy.spoil = spoil
    third = chain.enter(ledger, 3)
    assert follower.await_round(3, in_a_moment(follower, 3)) is None
    assert follower.trouble != ""
    proxy.spoil = None
    deadline = time.monotonic() + WAIT_SECONDS
    while (seen := follower.await_round(3, in_a_moment(follower))) is None:
        assert time.monotonic() < deadline
    assert seen.beacon == third
    while "ledger back" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [r.levelno for r in caplog.records] == [logging.WARNING, logging.INFO]
    assert "rounds of our own" in caplog.text


def test_a_ledger_that_hangs_holds_nobody_up(follow, ledger, chain, proxy):
    follower = follow()
    chain.enter(ledger, 2)
    assert follower.await_round(2, in_a_moment(follower, WAIT_SECONDS)) is not None
    hanging, release = threading.Event(), threading.Event()

    def hang(handler):
        hanging.set()
        release.wait(WAIT_SECONDS)

    proxy.spoil = hang
    chain.enter(ledger, 3)
    assert hanging.wait(WAIT_SECONDS)
    before = follower.now()
    assert follower.await_round(3, before + 0.5) is None  # and not only after the request's ten seconds
    assert before + 0.5 <= follower.now() < before + 5
    release.set()


def test_a_server_that_refuses_only_some_calls_is_one_line_and_asked_less_and_less(
    follow, ledger, chain, proxy, caplog
):
    caplog.set_level("INFO", "swarm.ledger")
    follower = follow()
    chain.enter(ledger, 2)
    assert follower.await_round(2, in_a_moment(follower, WAIT_SECONDS)) is not None
    asked = []
    proxy.choose = lambda body: asked.append(body) or limits_calls_of_contracts(body)
    chain.enter(ledger, 3)
    assert follower.await_round(3, in_a_moment(follower, 4)) is None
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert len(asked) < 60


def test_a_look_at_another_chain_moves_neither_clock_nor_round(follow, ledger, chain, proxy):
    follower = follow()
    chain.enter(ledger, 2)
    assert follower.await_round(2, in_a_moment(follower, WAIT_SECONDS)) is not None
    with Devnet(block_seconds=None, chain_id=4242) as other:
        other.call("evm_setNextBlockTimestamp", ledger.genesis + 50 * ledger.round_seconds)
        other.call("evm_mine")
        proxy.url_of_chain = other.rpc_url
        assert follower.await_round(3, in_a_moment(follower, 2)) is None
        assert "wrong chain" in follower.trouble
        assert follower.now() < ledger.genesis + 3 * ledger.round_seconds
    proxy.url_of_chain = chain.devnet.rpc_url
    third = chain.enter(ledger, 3)
    deadline = time.monotonic() + WAIT_SECONDS
    while (seen := follower.await_round(3, in_a_moment(follower))) is None:
        assert time.monotonic() < deadline, follower.trouble
    assert seen.beacon == third


def test_another_chain_is_not_believed(follow, ledger, chain):
    other = msgspec.structs.replace(ledger.facts, first_block="11" * 32)
    follower = follow(other)
    chain.enter(ledger, 2)
    assert follower.await_round(2, in_a_moment(follower, 3)) is None
    assert "wrong chain" in follower.trouble


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_the_thread_reaches_the_node(follow, monkeypatch):
    follower = follow()
    monkeypatch.setattr(follower, "_look", lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="follower thread failed"):
        follower.await_round(99, in_a_moment(follower, WAIT_SECONDS))

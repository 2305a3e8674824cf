"""Relays for the tests: real ones in a thread or a process of their own, and one that lies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from eth_account import Account
from eth_account.signers.local import LocalAccount
from ledger_cast import Chain, make_report

from identity import Identity, registration_message, rotation_message
from swarm.ledger import typed
from swarm.ledger.client import LedgerClient, Report
from swarm.ledger.relay import RelayOptions
from swarm.ledger.relay_rules import Quotas
from swarm.ledger.relay_server import serve_relay
from swarm.ledger.relay_wire import Bootnode, Registration, Reports, Rotation, WireReport, contract_call

WAIT_SECONDS = 20.0


def eventually(check: Callable[[], Any], what: str) -> Any:
    """The first value of `check` that is true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS} s: {what}"
        time.sleep(0.02)
    return found


@dataclass
class RunningRelay:
    """A relay, and the account that it pays with."""

    url: str
    account: LocalAccount
    home: Path
    ledger: LedgerClient

    @property
    def spent(self) -> tuple[int, int]:
        """What changes with every transaction: the account's nonce and balance."""
        rpc = self.ledger.rpc
        return rpc.nonces_used(self.account.address, pending=True), rpc.balance(self.account.address)

    def post(self, path: str, body: Any) -> requests.Response:
        import msgspec

        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return requests.post(f"{self.url}/{path}", data=data, timeout=WAIT_SECONDS)

    def info(self) -> Any:
        return requests.get(self.url, timeout=WAIT_SECONDS).json()


@contextlib.contextmanager
def running_relay(
    ledger: LedgerClient,
    account: LocalAccount,
    home: Path,
    *,
    invites: Path | None = None,
    quotas: Quotas | None = None,
) -> Iterator[RunningRelay]:
    """A relay in a thread of this process."""
    options = RelayOptions(
        swarm=ledger.join_line, account=account, home=home, port=0, invites=invites, quotas=quotas or Quotas()
    )
    url: Future[str] = Future()
    stops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        stops.append((asyncio.get_running_loop(), stop))
        await serve_relay(options, stop, lambda found, line: url.set_result(found))

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if url.done():
                raise
            url.set_exception(error)

    before = set(threading.enumerate())
    thread = threading.Thread(target=run, name="test-relay")
    thread.start()
    try:
        yield RunningRelay(url.result(WAIT_SECONDS), account, home, ledger)
    finally:
        loop, stop = stops[0]
        with contextlib.suppress(RuntimeError):  # it could not start, and is gone
            loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
        assert set(threading.enumerate()) <= before


_SCRIPT = """
import os, signal, sys
from pathlib import Path
from eth_account import Account
from swarm.ledger import relay, relay_sending
from swarm.ledger.relay_server import run_relay
swarm, key, home, fault = sys.argv[1:]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if fault == "before sending":
    relay_sending.Sending._send = die
if fault == "after sending":
    relay_sending.Sending._note = die
options = relay.RelayOptions(swarm=swarm, account=Account.from_key(key), home=Path(home), port=0)
run_relay(options, lambda line: print(line, flush=True))
"""


class RelayProcess:
    """A relay in a process of its own. `fault`: when it kills itself, "before sending" or "after sending"."""

    def __init__(self, ledger: LedgerClient, account: LocalAccount, home: Path, fault: str = "") -> None:
        arguments = [ledger.join_line, account.key.hex(), str(home), fault]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        assert self._process.stdout is not None
        self.line = self._process.stdout.readline().strip()
        self.url = self.line.split()[2] if self.line else ""

    def __enter__(self) -> RelayProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(WAIT_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def end(self, number: signal.Signals) -> int:
        """Its exit code after a signal."""
        self._process.send_signal(number)
        return self._process.wait(WAIT_SECONDS)

    def dead(self) -> int:
        """Its exit code once it is gone."""
        return self._process.wait(WAIT_SECONDS)


@contextlib.contextmanager
def lying_relay(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The URL of a server that answers every POST with `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/s3cret-token"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Guest:
    """A peer whose account has nothing, and the requests that it could make."""

    ledger: LedgerClient
    identity: Identity
    account: LocalAccount

    @classmethod
    def new(cls, ledger: LedgerClient, identity: Identity) -> Guest:
        return cls(ledger, identity, Account.create())

    def registration(self, **other: Any) -> Registration:
        peer, address, chain_id = self.identity.peer, self.account.address, self.ledger.chain_id
        contract = self.ledger.address
        binding = self.ledger.bindings(peer)
        message = registration_message(
            chain_id, bytes.fromhex(contract[2:]), bytes.fromhex(address[2:]), binding
        )
        fields: dict[str, Any] = {
            "chain_id": chain_id,
            "contract": contract,
            "account": address,
            "modulus": self.identity.public_key.modulus,
            "proof": self.identity.sign(message),
            "binding": binding,
            "consent": typed.registration_consent(self.account, chain_id, contract, peer, binding),
        }
        return Registration(**(fields | other))

    def reports(self, *reports: Report | int, **other: Any) -> Reports:
        made = [make_report(report) if isinstance(report, int) else report for report in reports]
        chain_id, contract, peer = self.ledger.chain_id, self.ledger.address, self.identity.peer
        fields: dict[str, Any] = {
            "chain_id": chain_id,
            "contract": contract,
            "peer": peer,
            "reports": [
                WireReport(**{name: getattr(report, name) for name in WireReport.__struct_fields__})
                for report in made
            ],
            "signature": typed.reports_signature(self.account, chain_id, contract, peer, made),
        }
        return Reports(**(fields | other))

    def bootnode(self, multiaddr: str, announced_at: int, **other: Any) -> Bootnode:
        chain_id, contract, peer = self.ledger.chain_id, self.ledger.address, self.identity.peer
        fields: dict[str, Any] = {
            "chain_id": chain_id,
            "contract": contract,
            "peer": peer,
            "multiaddr": multiaddr,
            "announced_at": announced_at,
            "signature": typed.bootnode_signature(
                self.account, chain_id, contract, peer, multiaddr, announced_at
            ),
        }
        return Bootnode(**(fields | other))

    def register(self, chain: Chain) -> None:
        """Past any relay."""
        request = self.registration()
        function = self.ledger.function(
            "registerFor", self.account.address, request.modulus, request.proof, request.consent
        )
        self._send(chain, function)

    def rotate(self, chain: Chain, new: Identity) -> None:
        """Past any relay."""
        self._send(chain, contract_call(self.ledger, self.rotation(new)))

    def _send(self, chain: Chain, function: Any) -> None:
        payer = chain.funded_account()
        gas = {"from": payer.address, "nonce": 0, "gas": 1_000_000, "gasPrice": 10**10}
        built = function.build_transaction(gas | {"chainId": self.ledger.chain_id})
        self.ledger.rpc.web3.eth.send_raw_transaction(payer.sign_transaction(built).raw_transaction)

    def rotation(self, new: Identity, **other: Any) -> Rotation:
        chain_id, contract = self.ledger.chain_id, self.ledger.address
        message = rotation_message(chain_id, bytes.fromhex(contract[2:]), self.identity.peer, new.peer)
        fields: dict[str, Any] = {
            "chain_id": chain_id,
            "contract": contract,
            "old_modulus": self.identity.public_key.modulus,
            "new_modulus": new.public_key.modulus,
            "old_signature": self.identity.sign(message),
            "new_signature": new.sign(message),
        }
        return Rotation(**(fields | other))

    @property
    def balance(self) -> int:
        return self.ledger.rpc.balance(self.account.address)

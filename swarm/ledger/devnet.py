"""A local EVM chain for demos and tests: one `anvil` process that this module starts and stops."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from swarm.errors import LedgerError
from swarm.ledger import toolchain

HOST = "127.0.0.1"
START_SECONDS = 30.0  # anvil answers after 0.1–0.3 s; a machine with every core busy needs longer
STOP_SECONDS = 5.0
REQUEST_SECONDS = 10.0
PORT_ATTEMPTS = 5  # a free port can be taken by another process before anvil binds it
KEPT_STATES = 64  # anvil would write one state per block to disk; nothing here asks for old ones
WEI_PER_ETHER = 10**18

# The first account of the mnemonic "test test … junk", which every devnet funds: publicly known, worth
# nothing.
FUNDED_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"


class Devnet:
    """`with Devnet() as devnet:` runs a chain at `devnet.rpc_url`, and leaves no process behind.

    `block_seconds` is the time between blocks; an idle chain's clock stands still without it. None makes a
    block for each transaction and on request (`evm_mine`), which is for tests. `log_path` is appended to.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        chain_id: int = 31337,
        block_seconds: int | None = 1,
        log_path: Path | None = None,
    ) -> None:
        self.chain_id = chain_id
        self.funded_key = FUNDED_KEY
        self._given_port = port
        self._port = port or 0
        self._block_seconds = block_seconds
        self._given_log = log_path
        self._log = log_path or Path(os.devnull)
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = 0

    @property
    def rpc_url(self) -> str:
        """Where the chain answers."""
        return f"http://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of anvil, also its process group; `LedgerError` if it does not run."""
        if self._process is None:
            raise LedgerError("the devnet is not running")
        return self._process.pid

    def start(self) -> Self:
        """Start anvil and wait until it answers. `LedgerError` with anvil's last words if it does not."""
        binary = toolchain.anvil()
        self._open_log()
        attempts = 1 if self._given_port else PORT_ATTEMPTS
        for attempt in range(attempts):
            self._port = self._given_port or _free_port()
            self._launch(binary)
            try:
                self._wait_until_it_answers()
                self.call("evm_mine")  # until its first block, anvil estimates gas as of the year 1970
                return self
            except LedgerError as error:
                self.stop()
                if attempt + 1 == attempts or "in use" not in str(error):
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stop(self) -> None:
        """End anvil: ask, and after five seconds kill. Does nothing if it is not running."""
        process, self._process = self._process, None
        atexit.unregister(self.stop)
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            try:
                process.wait(STOP_SECONDS)
                return
            except subprocess.TimeoutExpired:
                continue

    def fund(self, address: str, ether: float) -> None:
        """Add `ether` to the balance of `address`, out of nothing."""
        balance = int(self.call("eth_getBalance", address, "latest"), 16)
        self.call("anvil_setBalance", address, hex(balance + int(ether * WEI_PER_ETHER)))

    def call(self, method: str, *parameters: Any) -> Any:
        """One JSON-RPC call, past every proxy setting; `LedgerError` if anvil refuses it or is gone."""
        return self._call(method, parameters, REQUEST_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _call(self, method: str, parameters: tuple[Any, ...], timeout_seconds: float) -> Any:
        self._requests += 1
        body = {"jsonrpc": "2.0", "id": self._requests, "method": method, "params": parameters}
        connection = http.client.HTTPConnection(HOST, self._port, timeout=timeout_seconds)
        try:
            connection.request("POST", "/", json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LedgerError(f"the devnet on port {self._port} does not answer {method}: {error}") from error
        finally:
            connection.close()
        if "error" in answer:
            raise LedgerError(f"the devnet refused {method}: {answer['error'].get('message')}")
        return answer["result"]

    def _open_log(self) -> None:
        if self._given_log is None:
            handle, name = tempfile.mkstemp(prefix="swarm-devnet-", suffix=".log")
            os.close(handle)
            self._log = Path(name)
        else:
            self._given_log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self._log.stat().st_size if self._log.exists() else 0

    def _launch(self, binary: Path) -> None:
        command = [str(binary), "--host", HOST, "--port", str(self._port), "--chain-id", str(self.chain_id)]
        command += ["--accounts", "1", "--balance", "1000000", "--prune-history", str(KEPT_STATES)]
        command += ["--quiet", "--no-cors"]  # else any web page could drive the chain
        if self._block_seconds is not None:
            command += ["--block-time", str(self._block_seconds)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: we end the peers first, then the chain
            )
        atexit.register(self.stop)

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise LedgerError(f"anvil ended with code {code} at its start: {self._last_words()}")
            try:
                answered = int(self._call("eth_chainId", (), 1.0), 16)
            except LedgerError:
                time.sleep(0.05)
                continue
            if answered == self.chain_id and self._process.poll() is None:
                return
            time.sleep(0.05)  # another chain has the port, and anvil is about to say so
        raise LedgerError(
            f"anvil does not answer on port {self._port} after {START_SECONDS:.0f} s; see {self._log}"
        )

    def _last_words(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"see {self._log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])

"""A `swarm board` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

from benchmarks.synthetic_ledger import SyntheticLedger, join_line

SECONDS = 60.0  # to begin, or to see what is on the ledger


class Board:
    """A running board; `url` once it serves."""

    def __init__(self, line: str, home: Path, *arguments: str) -> None:
        self.log_path = home / "board.log"
        home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "swarm", "board", line, "--home", str(home)]
        if "--listen" not in arguments:
            command += ["--listen", "127.0.0.1:0"]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                # A shell that runs the tests in the background makes its children deaf to Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def url(self) -> str:
        """Where it is; waits until it serves."""
        self.wait_until(lambda: "board at http" in self.log)
        return next(line for line in self.log.splitlines() if line.startswith("board at ")).split()[-1]

    def get(self, path: str, **keywords: object) -> requests.Response:
        return requests.get(f"{self.url}/api/v1{path}", timeout=30, **keywords)

    def pulse(self) -> dict:
        return self.get("/pulse").json()

    def wait_until(self, condition, seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def stop(self) -> int:
        """As Ctrl-C does; the exit code. Fails if a process is left."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=20)
        _, left = psutil.wait_procs(children, timeout=5)
        assert not left, left
        return code

    def kill(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.kill()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def boarding(line: str, home: Path, *arguments: str) -> Iterator[Board]:
    board = Board(line, home, *arguments)
    try:
        yield board
    finally:
        if board.process.poll() is None:
            board.kill()


@contextmanager
def synthetic(
    peers: int, rounds: int, *, begins_in: int | None = None
) -> Iterator[tuple[SyntheticLedger, str]]:
    """A ledger that is served, and its join line."""
    ledger = SyntheticLedger(peers, rounds)
    if begins_in is not None:
        ledger.genesis = int(time.time()) + begins_in
    server = ledger.serve()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield ledger, join_line(server)
    finally:
        server.shutdown()
        server.server_close()

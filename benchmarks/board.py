"""The board at the size of a large swarm: how fast it reads a ledger, and how fast it answers.

`index`: a million reports from a synthetic ledger (`synthetic_ledger.py`, a process of its own) into the
index, with and without the standings that follow from them; beside it web3's decoder on the same answers.
`answers`: `swarm board` on one core over such an index, asked for its leaderboard by 16 connections from the
other core. `page`: how soon its page can be used in a headless Chromium, and how much the layout jumps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.synthetic_ledger import BLOCKS_PER_ROUND
from swarm.board.index import Index
from swarm.board.indexer import Indexer
from swarm.ledger.client import LedgerClient, connect
from swarm.ledger.event_reader import EventReader
from swarm.ledger.logs import decode_logs, topics
from swarm.ledger.records import Reported

DECODED_REPORTS = 20_000
CONNECTIONS = 16
ROUND_SECONDS = 20_000  # so that none begins while we measure


@contextmanager
def synthetic(peers: int, rounds: int) -> Iterator[str]:
    """The join line of a synthetic ledger in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.synthetic_ledger", "--peers", str(peers)]
    command += ["--rounds", str(rounds), "--round-seconds", str(ROUND_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def decoders(ledger: LedgerClient) -> tuple[float, float]:
    """Reports a second, decoded by web3 and by us, from the same answer, in turns."""
    first = 3 + BLOCKS_PER_ROUND
    answers = [
        ledger.rpc.raw_logs(ledger.address, topics(["Reported"]), block, block)
        for block in range(first, first + BLOCKS_PER_ROUND)
    ]
    answers = [logs for logs in answers for _ in range(max(1, DECODED_REPORTS // 10_000))]
    event = ledger._contract.events.Reported
    ours = theirs = 0.0
    count = 0
    for logs in answers:
        began = time.perf_counter()
        decoded = decode_logs(logs, 0, 2**62)
        ours += time.perf_counter() - began
        formatted = [_formatted(log) for log in logs]
        began = time.perf_counter()
        compared = [event.process_log(log) for log in formatted]
        theirs += time.perf_counter() - began
        count += len(logs)
        assert isinstance(decoded[0], Reported) and compared[0]["args"]["peer"] == decoded[0].peer
    return count / theirs, count / ours


def _formatted(log: dict[str, object]) -> object:
    """As web3's middleware hands logs to its decoder; not counted in its time."""
    from web3._utils.method_formatters import log_entry_formatter

    return log_entry_formatter(log)


def index_alone(ledger: LedgerClient, path: Path, blocks: int) -> float:
    """Seconds to read and keep all events."""
    index, reader = Index(path), EventReader(ledger, ledger.deployment_block)
    index.begin(msgspec.json.encode(ledger.facts))
    began = time.perf_counter()
    while reader.next <= blocks:
        if (found := reader.read(blocks)) is not None:
            index.add(found, ledger.rpc.block(reader.next - 1))
    seconds = time.perf_counter() - began
    index.close()
    return seconds


def with_standings(ledger: LedgerClient, path: Path, rounds: int) -> float:
    """Seconds until an indexer has it all, with the leaderboard as of the running round."""
    indexer = Indexer(ledger.another(), path)
    began = time.perf_counter()
    indexer.start()
    while indexer.known.state != "ok" or indexer.known.standings_round < rounds:
        indexer.check()
        time.sleep(0.2)
        if sys.stderr.isatty():
            print(f"\rround {indexer.known.standings_round}", end="", file=sys.stderr)
    seconds = time.perf_counter() - began
    indexer.stop()
    return seconds


def measure_index(peers: int, rounds: int) -> dict[str, float]:
    """All of the first half."""
    with synthetic(peers, rounds) as line, tempfile.TemporaryDirectory() as folder:
        ledger = connect(line)
        web3, ours = decoders(ledger)
        blocks = 2 + rounds * BLOCKS_PER_ROUND
        alone = index_alone(ledger, Path(folder) / "alone.sqlite", blocks)
        whole = with_standings(ledger, Path(folder) / "board.sqlite", rounds)
        reports = peers * rounds
        size = sum(file.stat().st_size for file in Path(folder).glob("board.sqlite*"))
        return {
            "reports": reports,
            "web3_decoded_per_second": web3,
            "decoded_per_second": ours,
            "indexed_per_second": reports / alone,
            "with_standings_per_second": reports / whole,
            "index_mib": size / 2**20,
        }


async def _ask(host: str, port: int, request: bytes, until: float, taken: list[float]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length
        await reader.readexactly(int(length[1]))
        taken.append(time.perf_counter() - began)
    writer.close()


def load(port: int, path: str, seconds: float) -> dict[str, float]:
    """Requests a second of 16 connections, and how long one takes."""
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n".encode()
    taken: list[float] = []

    async def all_of_them() -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*[_ask("127.0.0.1", port, request, until, taken) for _ in range(CONNECTIONS)])

    asyncio.run(all_of_them())
    taken.sort()
    return {
        "per_second": len(taken) / seconds,
        "median_ms": 1000 * taken[len(taken) // 2],
        "p99_ms": 1000 * taken[len(taken) * 99 // 100],
    }


@contextmanager
def board_of(peers: int, rounds: int) -> Iterator[tuple[int, int]]:
    """The port and the process id of a board that has read a synthetic ledger."""
    with synthetic(peers, rounds) as line, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "swarm", "board", line, "--home", folder, "--per-minute", "0"]
        command += ["--listen", "127.0.0.1:0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as board:
            try:
                assert board.stdout is not None
                port = int(board.stdout.readline().rpartition(":")[2])
                _wait_for_standings(port, rounds)
                yield port, board.pid
            finally:
                board.terminate()


def measure_answers(peers: int, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """All of the second part."""
    paths = ("/leaderboard", "/leaderboard?offset=5000&limit=100", "/peers?search=ab", "/pulse")
    with board_of(peers, rounds) as (port, pid):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {0})
        os.sched_setaffinity(0, {1})
        return {path: load(port, f"/api/v1{path}", seconds) for path in paths}


def measure_page(peers: int, rounds: int) -> list[dict[str, float]]:
    """All of the third part: five visits, each with an empty cache."""
    from tests.board.browser import launched
    from tests.board.test_page import CLS, WATCH

    visits = []
    with board_of(peers, rounds) as (port, _), launched() as browser:
        for _ in range(5):
            page = browser.new_page()
            page.add_init_script(WATCH)
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector("body[data-ready] tr[data-peer]")
            ready = page.evaluate("performance.now()")
            page.wait_for_timeout(3000)
            nodes = page.evaluate("document.querySelectorAll('*').length")
            visits.append({"ready_ms": ready, "layout_shift": page.evaluate(CLS), "elements": nodes})
            page.close()
    return visits


def _wait_for_standings(port: int, rounds: int) -> None:
    from urllib.request import urlopen

    while True:
        with urlopen(f"http://127.0.0.1:{port}/api/v1/pulse") as answer:
            pulse = json.load(answer)
        if pulse["ledger"] == "ok" and pulse["standings_round"] >= rounds:
            return
        time.sleep(0.5)


def main() -> None:
    """Print what was measured, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("index", "answers", "page"))
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=0, help="100; 3 for answers and page")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    if arguments.what == "index":
        measured: object = measure_index(arguments.peers, arguments.rounds or 100)
    elif arguments.what == "page":
        measured = measure_page(arguments.peers, arguments.rounds or 3)
    else:
        measured = measure_answers(arguments.peers, arguments.rounds or 3, arguments.seconds)
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()

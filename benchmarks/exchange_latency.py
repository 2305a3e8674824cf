"""How long announcing and gathering take in a cell, against values put whole into the DHT; see `exchange.py`.

Every peer is a process of its own with a p2pd of its own, forked from a server that has imported everything.
All of them announce at once, and when all are done, all of them gather at once.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import psutil
from hivemind import DHT
from hivemind.dht import DHTNode
from hivemind.utils import get_dht_time

from identity import Identity, Journal, Slot
from swarm.exchange import wire
from swarm.exchange.service import Exchange
from swarm.exchange.validator import SwarmRules

SWARM_ID = b"\x01" * 32
ROUND_SECONDS = 3600  # by the swarm's clock, which each repetition turns by one round
COMPLETIONS, TOKENS, CHARS_PER_TOKEN = 8, 256, 5  # of a group, of a completion: 18.6 kB a group
ANSWER_SECONDS = 45.0  # after which a peer is taken for stuck
GATHER_SECONDS = 30.0


@dataclass(frozen=True)
class Plan:
    """What one peer is told."""

    way: str
    identity: Path
    folder: Path
    genesis: int
    peers: int
    groups: int
    bootstrap: tuple[str, ...] = ()


class Way(Protocol):
    """One way to show the others what one has made."""

    address: str  # at which the next peer joins

    def announce(self, repetition: int, data: bytes) -> None:
        """Make the data known to the cell."""

    def gather(self, repetition: int) -> int:
        """Fetch what the cell has made; of how many peers it came."""

    def stop(self) -> None:
        """End all processes."""


class Announced:
    """Ours: a signed announcement in the DHT, the data as a blob. Decodes the groups, too."""

    def __init__(self, plan: Plan) -> None:
        identity = Identity.load(plan.identity)
        journal = Journal.create(plan.folder / "journal.sqlite", identity.peer)
        self._round = 2
        self._groups = plan.groups
        self._rules = SwarmRules(
            swarm_id=SWARM_ID,
            genesis=plan.genesis,
            round_seconds=ROUND_SECONDS,
            now=lambda: plan.genesis + self._round * ROUND_SECONDS + 1,
            registered=lambda _peer, _round: None,
        )

        def signer(number: int, stage: int, message: bytes) -> bytes:
            return journal.sign(identity, Slot("benchmark", number, stage), message)

        self._exchange = Exchange(identity, signer, self._rules, plan.folder, initial_peers=plan.bootstrap)
        self._exchange.start()
        self.address = self._exchange.multiaddrs[0]

    def announce(self, repetition: int, data: bytes) -> None:
        self._round = 3 + repetition
        self._exchange.enter(self._round, lambda _peer: 0)
        self._exchange.announce(
            wire.Announcement(
                swarm=SWARM_ID,
                round=self._round,
                stage=0,
                cell=0,
                expiration=self._rules.expiration(self._round),
                groups=self._groups,
                root=b"r" * 32,
                blob=self._exchange.put_blob(data),
                blob_bytes=len(data),
            )
        )

    def gather(self, repetition: int) -> int:
        return len(self._exchange.collect(self._round, 0, 0, timeout=GATHER_SECONDS, max_peers=64))

    def stop(self) -> None:
        self._exchange.stop()


class WholeInNode:
    """The data whole as a DHT value, by a `DHTNode` in this process."""

    def __init__(self, plan: Plan) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._node = self._run(
            DHTNode.create(initial_peers=list(plan.bootstrap), identity_path=str(plan.identity))
        )
        self.address = str(self._run(self._node.get_visible_maddrs())[0])

    def announce(self, repetition: int, data: bytes) -> None:
        subkey = str(self._node.peer_id)
        self._run(self._node.store(str(repetition), data, get_dht_time() + 600, subkey=subkey))

    def gather(self, repetition: int) -> int:
        found = self._run(self._node.get(str(repetition), latest=True))
        return 0 if found is None else len(found.value)

    def stop(self) -> None:
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._node.shutdown(), self._loop).result(5)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_SECONDS)


class WholeInDHT:
    """The same by `hivemind.DHT`, in a process of its own, as RL Swarm calls it."""

    def __init__(self, plan: Plan) -> None:
        self._dht = DHT(
            initial_peers=list(plan.bootstrap), identity_path=str(plan.identity), start=True
        )
        self.address = str(self._dht.get_visible_maddrs()[0])

    def announce(self, repetition: int, data: bytes) -> None:
        self._dht.store(
            str(repetition),
            data,
            get_dht_time() + 600,
            subkey=str(self._dht.peer_id),
            return_future=True,  # the call that does not return it waits for ever if the process dies
        ).result(ANSWER_SECONDS)

    def gather(self, repetition: int) -> int:
        found = self._dht.get(str(repetition), latest=True, return_future=True).result(ANSWER_SECONDS)
        return 0 if found is None else len(found.value)

    def stop(self) -> None:
        self._dht.shutdown()


WAYS: dict[str, Callable[[Plan], Way]] = {
    "announce + blob": Announced,
    "whole, DHTNode": WholeInNode,
    "whole, hivemind.DHT": WholeInDHT,
}


def make_groups(count: int) -> bytes:
    """A blob of groups that no other peer has."""
    groups = []
    for index in range(count):
        text = random.randbytes(COMPLETIONS * TOKENS).hex()
        completions = tuple(
            wire.Completion.of(
                random.choices(range(150_000), k=TOKENS),
                (text[2 * TOKENS * n :] * CHARS_PER_TOKEN)[: TOKENS * CHARS_PER_TOKEN],
            )
            for n in range(COMPLETIONS)
        )
        groups.append(wire.Group(index=index, completions=completions))
    return wire.encode(wire.GroupsBlob(groups=tuple(groups)))


def play(plan: Plan, pipe: Connection) -> None:
    """A peer's process: does what it is told and says how long it took."""
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hivemind's dying processes print their last words
    way = WAYS[plan.way](plan)
    pipe.send(way.address)
    try:
        while (told := pipe.recv()) != "stop":
            pipe.send(_act(way, plan, *told))
    finally:
        way.stop()
        os._exit(0)


def _act(way: Way, plan: Plan, what: str, repetition: int) -> tuple[float, int] | None:
    """The seconds it took, and how often it had to be tried; None if it failed."""
    data = make_groups(plan.groups) if what == "announce" else b""
    started = time.perf_counter()
    try:
        if what == "announce":
            way.announce(repetition, data)
            return time.perf_counter() - started, 1
        for tries in range(1, 1000):
            if way.gather(repetition) >= plan.peers:
                return time.perf_counter() - started, tries
            if time.perf_counter() - started > GATHER_SECONDS:
                return None
    except Exception:  # noqa: BLE001 - whatever hivemind raises: it failed
        return None
    return None


@dataclass
class Measured:
    """The seconds of all peers and repetitions."""

    announce: list[float] = field(default_factory=list)
    gather: list[float] = field(default_factory=list)
    asked: int = 0  # peers times repetitions, announcing and gathering
    again: int = 0  # gathers that did not see all at the first look


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["exchange_latency"])


@contextmanager
def cell(way: str, identities: list[Identity], groups: int, folder: Path) -> Iterator[list[Connection]]:
    """Peers that have joined each other; a pipe to each."""
    pipes: list[Connection] = []
    processes = []
    bootstrap: tuple[str, ...] = ()
    genesis = int(time.time())
    try:
        for number, identity in enumerate(identities):
            home = folder / str(number)
            home.mkdir()
            plan = Plan(way, identity.path, home, genesis, len(identities), groups, bootstrap)
            ours, theirs = _context.Pipe()
            process = _context.Process(target=play, args=(plan, theirs))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
            address = ours.recv()
            bootstrap = bootstrap or (address,)
        yield pipes
    finally:
        for pipe in pipes:
            with suppress(OSError):
                pipe.send("stop")
        for process in processes:
            process.join(15)
            if process.is_alive():
                _kill_all(process.pid)


def _kill_all(pid: int) -> None:
    """A peer that is stuck, and what it started."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                one.kill()


def measure(way: str, identities: list[Identity], groups: int, repetitions: int) -> Measured:
    """Let a cell announce and gather; the first repetition does not count."""
    measured = Measured()
    with tempfile.TemporaryDirectory(prefix="swarm-latency-", ignore_cleanup_errors=True) as folder:
        with cell(way, identities, groups, Path(folder)) as pipes:
            for repetition in range(repetitions + 1):
                announced = _tell(pipes, ("announce", repetition))
                gathered = _tell(pipes, ("gather", repetition)) if all(announced) else [None] * len(pipes)
                if repetition or not all(gathered):
                    measured.asked += 2 * len(pipes)
                    measured.announce += [said[0] for said in announced if said]
                    measured.gather += [said[0] for said in gathered if said]
                    measured.again += sum(said[1] > 1 for said in gathered if said)
                if not all(gathered):
                    break  # somebody is stuck; so is the cell
    return measured


def _tell(pipes: list[Connection], told: tuple[str, int]) -> list[tuple[float, int] | None]:
    """What each peer says; None for those that fail or say nothing in time."""
    for pipe in pipes:
        pipe.send(told)
    said: dict[Connection, tuple[float, int] | None] = {}
    deadline = time.monotonic() + ANSWER_SECONDS + 5
    while len(said) < len(pipes) and (left := deadline - time.monotonic()) > 0:
        for pipe in wait([pipe for pipe in pipes if pipe not in said], left):
            try:
                said[pipe] = pipe.recv()
            except (EOFError, OSError):
                said[pipe] = None
    return [said.get(pipe) for pipe in pipes]


def main(sizes: list[int], groups: list[int], repetitions: int, ways: list[str]) -> None:
    """Print the table that stands in benchmarks/README.md."""
    with tempfile.TemporaryDirectory(prefix="swarm-keys-") as folder:
        with ThreadPoolExecutor() as pool:
            paths = [Path(folder) / f"{n}.pem" for n in range(max(sizes))]
            identities = list(pool.map(Identity.create, paths))
        for count in groups:
            for size in sizes:
                for way in ways:
                    m = measure(way, identities[:size], count, repetitions)
                    def f(x): return f"{median(x)*1e3:6.0f} {max(x)*1e3:6.0f}" if x else "-"
                    print(size, len(make_groups(count)), f"{way:20}", "announce", f(m.announce), "gather", f(m.gather), f"ok {len(m.announce)+len(m.gather)} of {m.asked} again {m.again} load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    import sys
    main([int(n) for n in sys.argv[1].split(",")], [int(n) for n in sys.argv[2].split(",")], 5, list(WAYS))

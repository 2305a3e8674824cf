"""How long announcing and gathering take in a cell, against values put whole into the DHT; see `exchange.py`.

Every peer is a process of its own with a p2pd of its own, forked from a server that has imported everything.
The swarm is the cell. In half of the repetitions all announce at once and, when all are done, gather at
once: they share the machine's cores. In the other half one acts after the other, as on machines of their own.
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
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

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
COMPLETIONS, CHARS_PER_TOKEN = 8, 5
SHAPES = ((1, 100), (1, 256), (11, 256))  # groups, and tokens of each completion: 7, 18 and 203 kB
STUCK_SECONDS, STOP_SECONDS = 20.0, 4.0
EXPIRES_SECONDS = 600.0


@dataclass(frozen=True)
class Plan:
    """What one peer is told."""

    way: str
    identity: Path
    folder: Path
    genesis: int
    peers: int
    groups: int
    tokens: int
    bootstrap: tuple[str, ...] = ()


class Way(Protocol):
    """One way to show a cell what one has made."""

    address: str  # at which others join

    def announce(self, repetition: int, data: bytes) -> None:
        """Make the data known to the cell."""

    def gather(self, repetition: int) -> int:
        """Fetch what the cell has made; of how many peers it came."""

    def stop(self) -> None:
        """End what was started."""


class Announced:
    """Ours: a signed announcement in the DHT, and the data as a blob. Gathering checks and decodes, too."""

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
            registered=lambda _peer: None,
        )

        def signer(number: int, stage: int, message: bytes) -> bytes:
            return journal.sign(identity, Slot("benchmark", number, stage), message)

        self._exchange = Exchange(identity, signer, self._rules, plan.folder, initial_peers=plan.bootstrap)
        self._exchange.start()
        self.address = self._exchange.multiaddrs[0]

    def announce(self, repetition: int, data: bytes) -> None:
        """`put_blob` and `announce`."""
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
        """`collect`."""
        return len(self._exchange.collect(self._round, 0, 0, timeout=STUCK_SECONDS, max_peers=64))

    def stop(self) -> None:
        """End the exchange."""
        self._exchange.stop()


class WholeInNode:
    """The data whole as a DHT value, by hivemind's `DHTNode` in this process."""

    def __init__(self, plan: Plan) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._node: DHTNode = self._run(
            DHTNode.create(initial_peers=list(plan.bootstrap), identity_path=str(plan.identity))
        )
        self.address = str(self._run(self._node.get_visible_maddrs())[0])

    def announce(self, repetition: int, data: bytes) -> None:
        """Store the data under the peer's subkey."""
        subkey = str(self._node.peer_id)
        self._run(self._node.store(str(repetition), data, get_dht_time() + EXPIRES_SECONDS, subkey=subkey))

    def gather(self, repetition: int) -> int:
        """Get the cell's dictionary."""
        found = self._run(self._node.get(str(repetition), latest=True))
        return 0 if found is None else len(found.value)

    def stop(self) -> None:
        """End the node and its p2pd."""
        with suppress(TimeoutError):
            self._run(self._node.shutdown())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(STUCK_SECONDS)


class WholeInDHT:
    """The same by `hivemind.DHT`, whose node has a process of its own: RL Swarm's way.

    Its calls are made with `return_future`, because without it they wait for ever once that process is dead.
    """

    def __init__(self, plan: Plan) -> None:
        self._dht = DHT(initial_peers=list(plan.bootstrap), identity_path=str(plan.identity), start=True)
        self.address = str(self._dht.get_visible_maddrs()[0])
        self._subkey = str(self._dht.peer_id)

    def announce(self, repetition: int, data: bytes) -> None:
        """As `WholeInNode.announce`."""
        expires = get_dht_time() + EXPIRES_SECONDS
        self._dht.store(str(repetition), data, expires, self._subkey, return_future=True).result(
            STUCK_SECONDS
        )

    def gather(self, repetition: int) -> int:
        """As `WholeInNode.gather`."""
        found = self._dht.get(str(repetition), latest=True, return_future=True).result(STUCK_SECONDS)
        return 0 if found is None else len(found.value)

    def stop(self) -> None:
        """End the process."""
        self._dht.shutdown()


WAYS: dict[str, Callable[[Plan], Way]] = {
    "announcement and blob": Announced,
    "whole, `DHTNode`": WholeInNode,
    "whole, `hivemind.DHT`": WholeInDHT,
}
OURS = "announcement and blob"


def make_groups(count: int, tokens: int) -> bytes:
    """An encoded blob of groups that no other peer has."""
    groups = []
    for index in range(count):
        completions = []
        for _ in range(COMPLETIONS):
            text = random.randbytes(tokens * CHARS_PER_TOKEN // 2 + 1).hex()[: tokens * CHARS_PER_TOKEN]
            completions.append(wire.Completion.of(random.choices(range(150_000), k=tokens), text))
        groups.append(wire.Group(index=index, completions=tuple(completions)))
    return wire.encode(wire.GroupsBlob(groups=tuple(groups)))


Act = Literal["announce", "gather"]


@dataclass(frozen=True)
class Done:
    """What a peer says after it did something."""

    seconds: float
    looks: int = 1  # how often it had to gather until it had the whole cell


def play(plan: Plan, pipe: Connection) -> None:
    """A peer's process: does what it is told and says how long it took."""
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # for the last words of hivemind's processes
    way = WAYS[plan.way](plan)
    pipe.send(way.address)
    try:
        while (told := pipe.recv()) != "stop":
            pipe.send(_act(way, plan, *told))
    finally:
        way.stop()
        os._exit(0)  # whatever threads are still waiting


def _act(way: Way, plan: Plan, what: Act, repetition: int) -> Done | None:
    """None if it failed."""
    data = make_groups(plan.groups, plan.tokens) if what == "announce" else b""
    started = time.perf_counter()
    try:
        if what == "announce":
            way.announce(repetition, data)
            return Done(time.perf_counter() - started)
        looks = 1
        while way.gather(repetition) < plan.peers:  # as RL Swarm does
            if time.perf_counter() - started > STUCK_SECONDS:
                return None
            looks += 1
        return Done(time.perf_counter() - started, looks)
    except Exception:  # noqa: BLE001 - whatever hivemind raises: it failed
        return None


@dataclass
class Times:
    """The seconds of all peers and repetitions, of one kind of repetition."""

    announce: list[float] = field(default_factory=list)
    gather: list[float] = field(default_factory=list)


@dataclass
class Measured:
    """What one way took."""

    together: Times = field(default_factory=Times)
    alone: Times = field(default_factory=Times)
    asked: int = 0  # how often a peer was told to announce or gather
    done: int = 0
    again: int = 0  # gathers that took more than one look


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["exchange_latency"])


@contextmanager
def cell(
    way: str, identities: Sequence[Identity], shape: tuple[int, int], folder: Path
) -> Iterator[list[Connection]]:
    """Peers that have joined each other; a pipe to each."""
    pipes: list[Connection] = []
    processes: list[Any] = []
    bootstrap: tuple[str, ...] = ()
    genesis = int(time.time())
    try:
        for number, identity in enumerate(identities):
            home = folder / str(number)
            home.mkdir()
            plan = Plan(way, identity.path, home, genesis, len(identities), *shape, bootstrap)
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
            process.join(STOP_SECONDS)
            if process.is_alive():
                _kill_with_children(process.pid)


def _kill_with_children(pid: int) -> None:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                one.kill()


def measure(way: str, identities: Sequence[Identity], shape: tuple[int, int], repetitions: int) -> Measured:
    """Let a cell announce and gather, until somebody fails; the first repetition does not count."""
    measured = Measured()
    with (
        tempfile.TemporaryDirectory(prefix="swarm-latency-", ignore_cleanup_errors=True) as folder,
        cell(way, identities, shape, Path(folder)) as pipes,
    ):
        for repetition in range(1 + 2 * repetitions):
            together = repetition % 2 == 0
            times = measured.together if together else measured.alone
            for what, seconds in (("announce", times.announce), ("gather", times.gather)):
                said = _tell(pipes, (what, repetition), together)
                done = [one for one in said if one is not None]
                measured.asked += len(said)
                measured.done += len(done)
                measured.again += sum(one.looks > 1 for one in done)
                if repetition:
                    seconds += [one.seconds for one in done]
                if len(done) < len(pipes):
                    return measured
    return measured


def _tell(pipes: list[Connection], told: tuple[str, int], together: bool) -> list[Done | None]:
    """What each peer says; None for those that fail or say nothing in time."""
    if not together:
        return [said for pipe in pipes for said in _tell([pipe], told, together=True)]
    for pipe in pipes:
        pipe.send(told)
    said: dict[Connection, Done | None] = {}
    deadline = time.monotonic() + STUCK_SECONDS + STOP_SECONDS
    while len(said) < len(pipes) and (left := deadline - time.monotonic()) > 0:
        for pipe in wait([pipe for pipe in pipes if pipe not in said], left):
            assert isinstance(pipe, Connection)
            try:
                said[pipe] = pipe.recv()
            except (EOFError, OSError):
                said[pipe] = None
    return [said.get(pipe) for pipe in pipes]


def main(identities: Sequence[Identity], sizes: Sequence[int], repetitions: int) -> None:
    """Print the table that stands in benchmarks/README.md."""
    print(f"\nMilliseconds, median and worst; {repetitions} repetitions of each kind.\n")
    print("| blob | peers | way | announce, together | gather, together | announce, alone | gather, alone |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for shape in SHAPES:
        blob = f"{len(make_groups(*shape)) / 1e3:.0f} kB"
        for size in sizes:
            ours: Measured | None = None
            for way in WAYS:
                measured = measure(way, identities[:size], shape, repetitions)
                ours = ours or measured
                print(
                    f"| {blob} | {size} | {way}{_failures(measured)} | {_cells(measured, ours)} |", flush=True
                )
    print(f"\nload after: {os.getloadavg()[0]:.1f}, most of it the benchmark's own")


def _failures(measured: Measured) -> str:
    again = f", {measured.again} gathers took several looks" if measured.again else ""
    failed = f", broke: {measured.done} of {measured.asked}" if measured.done < measured.asked else ""
    return again + failed


def _cells(measured: Measured, ours: Measured) -> str:
    """The four figures, each but for our own with how many times ours its median is."""
    cells = []
    for times, reference in ((measured.together, ours.together), (measured.alone, ours.alone)):
        for seconds, our_seconds in ((times.announce, reference.announce), (times.gather, reference.gather)):
            cell = f"{median(seconds) * 1e3:,.0f}, {max(seconds) * 1e3:,.0f}" if seconds else "–"
            if seconds and our_seconds and measured is not ours:
                cell += f" (×{median(seconds) / median(our_seconds):.1f})"
            cells.append(cell)
    return " | ".join(cells)

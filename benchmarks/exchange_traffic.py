"""What a round costs a peer in messages and bytes, for swarms of several sizes; see `exchange.py`.

The peers of a swarm share one process and one event loop, and act one after the other: else they would wait
for the CPU until calls time out. Real nodes have a p2pd each; `memory_network` stands in for more of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

import psutil
from memory_network import CountedP2P, MemoryHost, Tally

from identity import Identity
from swarm.draw import Draw
from swarm.exchange import host as host_module
from swarm.exchange import peer as peer_module
from swarm.exchange import wire
from swarm.exchange.addresses import ADDRESSES_FILE, AddressBook
from swarm.exchange.gossip import GOSSIP_FILE, Gossip
from swarm.exchange.peer import Peer, Place
from swarm.exchange.reach import LOOPBACK_LISTEN, Reach
from swarm.exchange.store import BlobStore
from swarm.exchange.validator import SwarmRules

SWARM_ID = b"\x01" * 32
CELL_SIZE, STAGES = 16, 3
ROUND_SECONDS = 3600  # by the swarm's clock, which is turned by hand
BOOTNODES = 3
BLOB_BYTES = 20_000
SETTLE_SECONDS = 1.0  # for what goes on in the background: further replicas, hand-overs
DHT_CALLS = ("rpc_find", "rpc_store", "rpc_ping")


@dataclass
class Clock:
    """The swarm's time: a whole number of rounds."""

    genesis: int = field(default_factory=lambda: int(time.time()))
    round: int = 2

    def now(self) -> float:
        """Unix seconds; ahead of this machine's clock, so that nothing expires by that."""
        return float(self.genesis + self.round * ROUND_SECONDS + 1)


@dataclass
class Cost:
    """What a swarm's peers sent and received; each list by peer."""

    joining: list[Tally]
    rounds: list[list[Tally]] = field(default_factory=list)  # those that count
    all_in_all: list[Tally] = field(default_factory=list)
    wire_bytes: list[float] = field(default_factory=list)  # of a round and peer, on the loopback device
    missing: int = 0  # contributions of cell mates that were not collected


class Swarm:
    """Peers in one process and one event loop."""

    def __init__(self, identities: Sequence[Identity], folder: Path) -> None:
        self.clock = Clock()
        self.rules = SwarmRules(SWARM_ID, self.clock.genesis, ROUND_SECONDS, self.clock.now, lambda *_: None)
        self.peers = {
            identity.peer: self._peer(identity, folder / identity.peer.hex()) for identity in identities
        }
        self.missing = 0  # contributions of cell mates that were not collected
        self._before = [Tally() for _ in identities]

    def _peer(self, identity: Identity, folder: Path) -> Peer:
        folder.mkdir()
        return Peer(
            identity,
            lambda _round, _stage, message: identity.sign(message),
            self.rules,
            BlobStore(folder / "blobs", 2**30, ROUND_SECONDS),
            Gossip(folder / GOSSIP_FILE, current_round=lambda: self.rules.current_round),
            AddressBook(folder / ADDRESSES_FILE),
            Reach(listen=(LOOPBACK_LISTEN,)),
        )

    async def join(self) -> None:
        """Start the peers one after the other, each through the first few."""
        bootnodes: list[str] = []
        for peer in self.peers.values():
            await peer.start(bootnodes)
            if len(bootnodes) < BOOTNODES:
                bootnodes += await peer.multiaddrs()
        await asyncio.sleep(SETTLE_SECONDS)

    async def play(self) -> None:
        """Play a round of all stages."""
        self.clock.round += 1
        number = self.clock.round
        beacon = hashlib.sha256(number.to_bytes(8, "big")).digest()
        draw = Draw(SWARM_ID, beacon, len(self.peers), CELL_SIZE)
        for peer in self.peers.values():
            await peer.enter(number, draw.cell)
        sizes = Counter(draw.cell(peer) for peer in self.peers)
        self.missing += STAGES * sum(size * (size - 1) for size in sizes.values())
        for stage in range(STAGES):
            for act in (self._announce, self._collect):
                for peer in random.sample(list(self.peers), len(self.peers)):
                    await act(peer, Place(number, stage, draw.cell(peer)))
                await asyncio.sleep(SETTLE_SECONDS)

    async def stop(self) -> None:
        """End all peers."""
        await asyncio.gather(*(peer.stop() for peer in self.peers.values()))

    def tallies(self) -> list[Tally]:
        """What each peer sent and received since this was last asked."""
        now = [Tally() + self._tally(peer) for peer in self.peers]
        grown = [after - before for before, after in zip(self._before, now, strict=True)]
        self._before = now
        return grown

    async def _announce(self, peer: bytes, place: Place) -> None:
        completion = wire.Completion(packed=random.randbytes(BLOB_BYTES - 20), text="")
        data = wire.encode(wire.GroupsBlob(groups=(wire.Group(index=0, completions=(completion,)),)))
        await self.peers[peer].announce(
            wire.Announcement(
                swarm=SWARM_ID,
                round=place.round,
                stage=place.stage,
                cell=place.cell,
                expiration=self.rules.expiration(place.round),
                groups=1,
                root=b"r" * 32,
                blob=self.peers[peer].store.put(data, own=True),
                blob_bytes=len(data),
            )
        )

    async def _collect(self, peer: bytes, place: Place) -> None:
        collecting = self.peers[peer].collect(place, 60.0, 64, lambda heard: heard.peer, wire.GroupsLimit())
        for one in await collecting:
            if one.heard.peer != peer:
                self.missing -= 1
                for end in (peer, one.heard.peer):
                    self._tally(end).bytes[wire.BLOB_STREAM] += one.heard.announcement.blob_bytes

    def _tally(self, peer: bytes) -> Tally:
        p2p: Any = self.peers[peer]._running().p2p
        return p2p.tally


async def measure(identities: Sequence[Identity], rounds: int) -> Cost:
    """Let a swarm join and play. The first round does not count: peers still meet."""
    with tempfile.TemporaryDirectory(prefix="swarm-traffic-") as folder:
        swarm = Swarm(identities, Path(folder))
        try:
            await swarm.join()
            cost = Cost(swarm.tallies())
            await swarm.play()
            cost.all_in_all = [a + b for a, b in zip(cost.joining, swarm.tallies(), strict=True)]
            for _ in range(rounds):
                before = _loopback_bytes()
                await swarm.play()
                cost.wire_bytes.append(2 * (_loopback_bytes() - before) / len(identities))
                played = swarm.tallies()
                cost.rounds.append(played)
                cost.all_in_all = [a + b for a, b in zip(cost.all_in_all, played, strict=True)]
            cost.missing = swarm.missing
            return cost
        finally:
            await swarm.stop()


def _loopback_bytes() -> int:
    """What went over the loopback device so far, of whatever process."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def network(real: bool) -> AbstractContextManager[Any]:
    """Lets all peers that are started meanwhile be counted, with their own p2pds or without."""
    if real:
        return patch.object(host_module, "P2P", CountedP2P)
    return patch.object(peer_module, "Host", MemoryHost)


def main(identities: Sequence[Identity], real: Sequence[int], memory: Sequence[int], rounds: int) -> None:
    """Print the tables that stand in benchmarks/README.md."""
    costs = []
    for size, is_real in [*((size, True) for size in real), *((size, False) for size in memory)]:
        with network(is_real):
            cost = asyncio.run(measure(identities[:size], rounds))
        costs.append((f"| {size} | {'real' if is_real else 'in memory'} ", is_real, cost))
    print(f"\nA round, {rounds} of them; mean, median and worst of all peers and rounds:\n")
    print("| peers | nodes | DHT messages | DHT kB | blobs kB | all, on the wire kB | not collected |")
    print("|---|---|---|---|---|---|---|")
    for begin, is_real, cost in costs:
        of_round = [tally for played in cost.rounds for tally in played]
        blobs = mean(tally.bytes[wire.BLOB_STREAM] for tally in of_round) / 1e3
        on_wire = f"{median(cost.wire_bytes) / 1e3:,.0f}" if is_real else ""
        print(f"{begin}| {_dht(of_round)} | {blobs:,.0f} | {on_wire} | {cost.missing} |")
    print("\nJoining, and hellos (streams opened and answered) until the end:\n")
    print("| peers | nodes | DHT messages | DHT kB | hellos |\n|---|---|---|---|---|")
    for begin, _, cost in costs:
        hellos = [tally.messages[wire.HELLO_STREAM] for tally in cost.all_in_all]
        print(f"{begin}| {_dht(cost.joining)} | {_spread(hellos)} |")
    print("\nOf a round's DHT traffic, mean:\n")
    print("| peers | nodes | find: messages, kB | store: messages, kB | ping: messages, kB |")
    print("|---|---|---|---|---|")
    for begin, _, cost in costs:
        of_round = [tally for played in cost.rounds for tally in played]
        kinds = (
            f"{mean(t.messages[k] for t in of_round):.1f}, {mean(t.bytes[k] for t in of_round) / 1e3:.1f}"
            for k in DHT_CALLS
        )
        print(f"{begin}| {' | '.join(kinds)} |")


def _dht(tallies: Sequence[Tally]) -> str:
    messages = [sum(tally.messages[call] for call in DHT_CALLS) for tally in tallies]
    sizes = [sum(tally.bytes[call] for call in DHT_CALLS) / 1e3 for tally in tallies]
    return f"{_spread(messages)} | {_spread(sizes)}"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):,.0f}, {median(values):,.0f}, {max(values):,.0f}"

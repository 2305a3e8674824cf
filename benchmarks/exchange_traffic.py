"""What a round costs a peer in messages and bytes, for swarms of several sizes; see `exchange.py`."""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from unittest.mock import patch

import psutil
from memory_network import CountedP2P, MemoryHost, Tally

from identity import Identity
from swarm.draw import Draw
from swarm.exchange import host as host_module
from swarm.exchange import peer as peer_module
from swarm.exchange import wire
from swarm.exchange.addresses import AddressBook
from swarm.exchange.gossip import Gossip
from swarm.exchange.peer import Peer, Place
from swarm.exchange.reach import LOOPBACK_LISTEN, Reach
from swarm.exchange.service import _quiet_hivemind
from swarm.exchange.store import BlobStore
from swarm.exchange.validator import SwarmRules

SWARM_ID = b"\x01" * 32
CELL_SIZE, STAGES = 16, 3
ROUND_SECONDS = 3600  # by the swarm's clock, which is turned by hand
BOOTNODES = 3
BLOB_BYTES = 20_000
AT_ONCE = 8  # peers that do something at the same time: more would wait for the CPU, until calls time out
DHT_CALLS = ("rpc_find", "rpc_store", "rpc_ping")


@dataclass
class Clock:
    """The swarm's time: a whole number of rounds."""

    genesis: int = field(default_factory=lambda: int(time.time()))
    round: int = 2

    def now(self) -> float:
        """Unix seconds; ahead of this machine's clock, so nothing expires by that."""
        return float(self.genesis + self.round * ROUND_SECONDS + 1)


@dataclass(frozen=True)
class Sample:
    """What one peer sent and received in one round, or to join."""

    messages: Counter[str]
    bytes: Counter[str]


class Swarm:
    """Peers in one process and one event loop."""

    def __init__(self, identities: list[Identity], folder: Path) -> None:
        self.identities = identities
        self.clock = Clock()
        self.rules = SwarmRules(SWARM_ID, self.clock.genesis, ROUND_SECONDS, self.clock.now, lambda *_: None)
        self.peers = [self._peer(identity, folder / identity.peer.hex()) for identity in identities]
        self.expected = self.collected = 0  # contributions of cell mates
        self._before: list[Sample] = []

    def _peer(self, identity: Identity, folder: Path) -> Peer:
        folder.mkdir()
        return Peer(
            identity,
            lambda _round, _stage, message: identity.sign(message),
            self.rules,
            BlobStore(folder / "blobs", 2**30, ROUND_SECONDS),
            Gossip(folder / "gossip.sqlite", current_round=lambda: self.rules.current_round),
            AddressBook(folder / "addresses.json"),
            Reach(listen=(LOOPBACK_LISTEN,)),
        )

    async def join(self) -> list[Sample]:
        """Start the peers one after the other, each through the first few; what it cost each in all."""
        bootnodes: list[str] = []
        for peer in self.peers:
            await peer.start(bootnodes)
            if len(bootnodes) < BOOTNODES:
                bootnodes += await peer.multiaddrs()
        await asyncio.sleep(2)  # for the last to be told what they should hold, and for first hellos
        self._before = [Sample(Counter(), Counter()) for _ in self.peers]
        return self._since_last_time()

    async def play(self) -> list[Sample]:
        """Play a round of all stages; what it cost each peer."""
        self.clock.round += 1
        number = self.clock.round
        beacon = hashlib.sha256(number.to_bytes(8, "big")).digest()
        draw = Draw(SWARM_ID, beacon, len(self.peers), CELL_SIZE)
        for peer in self.peers:
            await peer.enter(number, draw.cell)
        sizes = Counter(draw.cell(identity.peer) for identity in self.identities)
        self.expected += STAGES * sum(size * (size - 1) for size in sizes.values())
        for stage in range(STAGES):
            places = [Place(number, stage, draw.cell(identity.peer)) for identity in self.identities]
            await self._each(self._announce, places)
            await asyncio.sleep(1)  # the other replicas are written in the background
            await self._each(self._collect, places)
        await asyncio.sleep(1)
        return self._since_last_time()

    async def stop(self) -> None:
        """End all peers."""
        await asyncio.gather(*(peer.stop() for peer in self.peers))

    async def _announce(self, peer: Peer, place: Place) -> None:
        completion = wire.Completion(packed=random.randbytes(BLOB_BYTES - 20), text="")
        data = wire.encode(wire.GroupsBlob(groups=(wire.Group(index=0, completions=(completion,)),)))
        await peer.announce(
            wire.Announcement(
                swarm=SWARM_ID,
                round=place.round,
                stage=place.stage,
                cell=place.cell,
                expiration=self.rules.expiration(place.round),
                groups=1,
                root=b"r" * 32,
                blob=peer.store.put(data, own=True),
                blob_bytes=len(data),
            )
        )

    async def _collect(self, peer: Peer, place: Place) -> None:
        own = peer._identity.peer
        by_digest = {identity.peer: index for index, identity in enumerate(self.identities)}
        for one in await peer.collect(place, 60.0, 64, lambda heard: heard.peer, wire.GroupsLimit()):
            if one.heard.peer != own:
                self.collected += 1
                for end in (own, one.heard.peer):
                    tally(self.peers[by_digest[end]]).bytes[wire.BLOB_STREAM] += (
                        one.heard.announcement.blob_bytes
                    )

    async def _each(self, act: Callable[[Peer, Place], Awaitable[None]], places: Iterable[Place]) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(peer: Peer, place: Place) -> None:
            async with gate:
                await act(peer, place)

        pairs = list(zip(self.peers, places, strict=True))
        random.shuffle(pairs)
        await asyncio.gather(*(one(peer, place) for peer, place in pairs))

    def _since_last_time(self) -> list[Sample]:
        now = [Sample(tally(peer).messages.copy(), tally(peer).bytes.copy()) for peer in self.peers]
        grown = [
            Sample(after.messages - before.messages, after.bytes - before.bytes)
            for before, after in zip(self._before, now, strict=True)
        ]
        self._before = now
        return grown


def tally(peer: Peer) -> Tally:
    """What a peer counted so far."""
    return peer._running().p2p.tally


def make_keys(count: int, folder: Path) -> list[Identity]:
    """New peers' keys."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda n: Identity.create(folder / f"{n}.pem"), range(count)))


async def measure(identities: list[Identity], real: bool, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="swarm-traffic-") as folder:
        started = time.monotonic()
        swarm = Swarm(identities, Path(folder))
        joined = await swarm.join()
        print(f"# {len(identities)} {real=} joined in {time.monotonic() - started:.0f} s")
        show("join", joined)
        for _ in range(rounds):
            started = time.monotonic()
            lo = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
            played = await swarm.play()
            lo = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - lo
            show(f"round {swarm.clock.round} {time.monotonic() - started:.0f} s wire {2*lo/len(identities)/1e3:.0f} kB", played)
        print("collected", swarm.collected, swarm.expected, sum((p.gossip.totals for p in swarm.peers), Counter()))
        print("table", [len(p._host.peers) for p in swarm.peers][:20], "records", max(len(p._storage) for p in swarm.peers))
        await swarm.stop()


def show(what, samples):
    print(what)
    for kind in sorted({k for s in samples for k in s.messages}):
        m = [s.messages[kind] for s in samples]
        b = [s.bytes[kind] / 1e3 for s in samples]
        print(f"   {kind:20} messages mean {mean(m):7.1f} median {median(m):7.1f} max {max(m):6}   kB mean {mean(b):7.1f} median {median(b):7.1f} max {max(b):8.1f}")


def main(sizes, real, rounds):
    _quiet_hivemind()
    with tempfile.TemporaryDirectory(prefix="swarm-keys-") as folder:
        identities = make_keys(max(sizes), Path(folder))
        for size in sizes:
            seam = patch.object(host_module, "P2P", CountedP2P) if real else patch.object(peer_module, "Host", MemoryHost)
            with seam:
                asyncio.run(measure(identities[:size], real, rounds))

if __name__ == "__main__":
    import sys
    main([int(n) for n in sys.argv[2].split(",")], sys.argv[1] == "real", int(sys.argv[3]))

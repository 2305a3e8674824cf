"""The exchange's inside: one libp2p host, one DHT node, one blob server, all in one asyncio thread."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from hivemind.dht import DHTNode
from hivemind.p2p import P2P

from identity import Identity, IdentityError
from swarm.errors import ExchangeError, WireError
from swarm.exchange import blobs, dht, wire
from swarm.exchange.validator import ROUND_TOLERANCE, AnnouncementValidator, key_hash, reason

log = logging.getLogger(__name__)

P2PD_START_SECONDS = 30.0
P2PD_STOP_SECONDS = 1.5
STORE_TIMEOUT_SECONDS = 12.0  # a few rounds of the DHT's 3-second calls to dead peers
READ_TIMEOUT_SECONDS = 12.0
REJOIN_SECONDS = 15.0
MAX_FETCHES = 8  # at once, in one collect: bounds memory to that many blobs


class Slot(NamedTuple):
    """Where exactly one announcement of a peer belongs."""

    round: int
    stage: int
    cell: int


@dataclass(frozen=True)
class Reach:
    """How this peer listens, and which of libp2p's means to be reached through a NAT it uses."""

    listen: tuple[str, ...]
    announce_addresses: tuple[str, ...]
    nat_port_map: bool
    auto_nat: bool
    use_relay: bool


@dataclass(frozen=True)
class Collected:
    """One peer's contribution to a stage: its announcement, and the groups in its blob."""

    heard: wire.Heard
    groups: tuple[wire.Group, ...]


class Peer:
    """All coroutines here run in the exchange's own thread; `store` and the counters may be read from any."""

    def __init__(
        self,
        identity: Identity,
        signer: wire.Signer,
        validator: AnnouncementValidator,
        store: blobs.BlobStore,
        reach: Reach,
    ) -> None:
        self.validator = validator
        self.store = store
        self.dropped: Counter[str] = Counter()
        self.copies: set[Slot] = set()  # in which somebody else spoke with our key
        self._identity = identity
        self._signer = signer
        self._reach = reach
        self._p2p: P2P | None = None
        self._node: DHTNode | None = None
        self._known: list[str] = []  # bootstrap addresses
        self._announced: dict[Slot, bytes] = {}  # own envelopes, for as long as they are of use
        self._rejoining: asyncio.Task[None] | None = None

    async def start(self, initial_peers: Iterable[str]) -> None:
        """Start p2pd, the DHT node and the blob server, then join."""
        for address in self._reach.listen:
            _check_free(address)
        try:
            self._p2p = await P2P.create(
                identity_path=str(self._identity.path),
                host_maddrs=list(self._reach.listen),
                announce_maddrs=list(self._reach.announce_addresses) or None,
                nat_port_map=self._reach.nat_port_map,
                auto_nat=self._reach.auto_nat,
                use_relay=self._reach.use_relay,
                startup_timeout=P2PD_START_SECONDS,
                check_if_identity_free=False,  # starts a second p2pd; the journal guards against copies
            )
        except Exception as error:  # hivemind raises many kinds; one boundary
            raise ExchangeError(
                f"libp2p cannot start on {', '.join(self._reach.listen)}: {' '.join(str(error).split())}"
            ) from error
        self._node = await dht.create_node(self._p2p, self.validator)
        await blobs.BlobServer(self.store).start(self._p2p)
        await self.join(initial_peers)
        self._rejoining = asyncio.create_task(self._rejoin_when_alone())

    async def stop(self) -> None:
        """End p2pd, whatever state it is in."""
        node, p2p, self._node, self._p2p = self._node, self._p2p, None, None
        if node is not None:
            node.is_alive = False  # its shutdown() would only tell p2pd, which ends anyway
        if p2p is None:
            return
        child = p2p._child
        try:
            await asyncio.wait_for(p2p.shutdown(), P2PD_STOP_SECONDS)
        except TimeoutError:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def multiaddrs(self) -> list[str]:
        p2p, _ = self._running()
        return list(dict.fromkeys(str(address) for address in await p2p.get_visible_maddrs(latest=True)))

    async def peer_count(self) -> int:
        _, node = self._running()
        return len(node.protocol.routing_table.peer_id_to_uid)

    async def join(self, addresses: Iterable[str]) -> None:
        p2p, node = self._running()
        addresses = list(addresses)
        self._known = list(dict.fromkeys([*self._known, *addresses]))
        failed = await dht.join(node, p2p, addresses)
        if failed:
            log.warning("peers_unreachable count=%d of=%d first=%s", len(failed), len(addresses), failed[0])

    async def announce(self, announcement: wire.Announcement) -> None:
        _, node = self._running()
        slot = Slot(announcement.round, announcement.stage, announcement.cell)
        key = wire.dht_key(announcement.swarm, *slot)
        try:  # in a thread: the signer makes sure, on disk, that there is never a second one
            envelope = await asyncio.to_thread(
                wire.sign, self._identity.public_key, announcement, self._signer
            )
        except IdentityError as error:
            raise ExchangeError(f"not announced: {error}") from error
        try:
            self.validator.open(key_hash(key), self._identity.peer, envelope, announcement.expiration)
        except WireError as error:
            raise ExchangeError(f"announcement of round {slot.round} is not one to send: {error}") from error
        self._forget_old(announcement.round)
        self._announced[slot] = envelope
        stored = False
        with suppress(TimeoutError):
            async with asyncio.timeout(STORE_TIMEOUT_SECONDS):
                stored = await node.store(
                    key,
                    envelope,
                    float(announcement.expiration),
                    subkey=self._identity.peer,
                    await_all_replicas=False,  # the others are written while the round goes on
                )
        # store() reports the last node's word only; another, or this one, may have kept it.
        if not stored and self._identity.peer not in await self._from_dht(slot, READ_TIMEOUT_SECONDS):
            raise ExchangeError(f"no node stored the announcement of round {slot.round} stage {slot.stage}")

    async def heard(
        self, round_number: int, stage: int, cell: int, timeout: float = READ_TIMEOUT_SECONDS
    ) -> list[wire.Heard]:
        slot = Slot(round_number, stage, cell)
        by_peer = await self._from_dht(slot, timeout)
        self._look_for_copies(slot, by_peer.get(self._identity.peer))
        if slot in self._announced:  # even when the nodes that stored it are gone
            own = wire.open_envelope(self._announced[slot])
            by_peer[own.peer] = own
        return [by_peer[peer] for peer in sorted(by_peer)]

    def _look_for_copies(self, slot: Slot, ours: wire.Heard | None) -> None:
        """An announcement signed with our key and not by us means that the key is in use elsewhere."""
        if ours is None:
            return
        said = self._announced.get(slot)
        if said is None or wire.open_envelope(said) != ours:
            self.copies.add(slot)

    async def fetch(self, peer: bytes, digest: bytes, size_bytes: int, timeout: float) -> bytes:
        p2p, _ = self._running()
        held = await self._held(digest, size_bytes)
        if held is not None:
            return held
        if peer == self._identity.peer:
            raise ExchangeError("own blob is not in the store")
        data = await blobs.fetch(p2p, peer, digest, size_bytes, timeout)
        try:
            await asyncio.to_thread(self.store.put, data)
        except (OSError, ExchangeError):  # a full disk or quota: the data is good all the same
            self.dropped["fetched blob could not be kept"] += 1
        return data

    async def _held(self, digest: bytes, size_bytes: int) -> bytes | None:
        held = await asyncio.to_thread(self.store.get, digest)
        return held if held is not None and len(held) == size_bytes else None

    async def collect(
        self,
        round_number: int,
        stage: int,
        cell: int,
        timeout: float,
        max_peers: int,
        order: Callable[[wire.Heard], bytes],
        max_bytes: int,
    ) -> list[Collected]:
        deadline = asyncio.get_running_loop().time() + timeout
        # Silent nodes must not eat the time for fetching from those that were heard.
        senders = await self.heard(round_number, stage, cell, min(timeout / 2, READ_TIMEOUT_SECONDS))
        senders = sorted(senders, key=order)[:max_peers]
        gate = asyncio.Semaphore(MAX_FETCHES)
        # Each fetch gets its share of the time: silent peers must not hold the gate against the others.
        limit = (deadline - asyncio.get_running_loop().time()) / max(1, -(-len(senders) // MAX_FETCHES))
        tasks = [
            asyncio.create_task(self._contribution(heard, deadline, limit, gate, max_bytes))
            for heard in senders
        ]
        results = await asyncio.gather(*tasks)
        return [collected for collected in results if collected is not None]

    async def _contribution(
        self, heard: wire.Heard, deadline: float, limit: float, gate: asyncio.Semaphore, max_bytes: int
    ) -> Collected | None:
        """One sender's groups, or None (counted) for whatever reason they cannot be had by the deadline."""
        announced = heard.announcement
        try:
            if announced.blob_bytes > max_bytes:
                raise WireError("blob is larger than the stage allows")
            async with asyncio.timeout_at(deadline):
                data = await self._held(announced.blob, announced.blob_bytes)
                if data is None:
                    async with gate:
                        data = await self.fetch(heard.peer, announced.blob, announced.blob_bytes, limit)
                groups = wire.decode(wire.GroupsBlob, data, wire.MAX_GROUPS_BLOB_BYTES).groups
            if len(groups) != announced.groups:
                raise WireError("blob has another number of groups than announced")
        except TimeoutError:
            self.dropped["blob did not come in time"] += 1
        except ExchangeError as error:
            self.dropped[reason(error)] += 1
        else:
            return Collected(heard, groups)
        return None

    async def _from_dht(self, slot: Slot, timeout: float) -> dict[bytes, wire.Heard]:
        """The slot's announcements by peer. When the search takes too long, what this node holds itself."""
        _, node = self._running()
        key = wire.dht_key(self.validator.swarm_id, *slot)
        try:
            async with asyncio.timeout(timeout):
                found = await node.get(key, latest=True)
            records = found.value if found is not None and isinstance(found.value, dict) else {}
        except TimeoutError:
            self.dropped["DHT did not answer in time"] += 1
            records = dht.held_locally(node, key_hash(key))
        opened = {}
        for peer, (envelope, expiration) in records.items():
            try:
                opened[peer] = self.validator.open(key_hash(key), peer, envelope, expiration)
            except WireError as error:
                self.dropped[reason(error)] += 1
        return opened

    async def _rejoin_when_alone(self) -> None:
        while True:
            await asyncio.sleep(REJOIN_SECONDS)
            if self._known and not await self.peer_count():
                p2p, node = self._running()
                await dht.join(node, p2p, self._known)

    def _forget_old(self, current_round: int) -> None:
        oldest = current_round - 2 * ROUND_TOLERANCE
        self._announced = {slot: value for slot, value in self._announced.items() if slot.round >= oldest}

    def _running(self) -> tuple[P2P, DHTNode]:
        if self._p2p is None or self._node is None:
            raise ExchangeError("exchange is not running")
        return self._p2p, self._node


def _check_free(address: str) -> None:
    """`ExchangeError` if the port is taken. p2pd would not say: it shares ports (SO_REUSEPORT) silently."""
    host, port = dht.split_listen_address(address)
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = (
                "is taken by another process"
                if error.errno == errno.EADDRINUSE
                else f"fails: {error.strerror}"
            )
            raise ExchangeError(f"cannot listen on {address}: it {why}; choose another port") from error

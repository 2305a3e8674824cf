"""The exchange's inside: what a peer says and hears, over a libp2p host that may die and is built anew."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P
from hivemind.utils import MSGPackSerializer

from identity import Identity, IdentityError
from swarm.errors import ExchangeDown, ExchangeError, WireError
from swarm.exchange import blobs, dht, hello, wire
from swarm.exchange.addresses import AddressBook
from swarm.exchange.dht import LIBP2P_ERRORS
from swarm.exchange.file_fetcher import FileFetcher
from swarm.exchange.gossip import Gossip
from swarm.exchange.health import Health
from swarm.exchange.host import Host
from swarm.exchange.multiaddr import check_free, tcp_ports
from swarm.exchange.reach import Reach, Reachability, ReachServer, reachability
from swarm.exchange.serving import BlobServer
from swarm.exchange.storage import RecordStorage
from swarm.exchange.store import BlobStore
from swarm.exchange.validator import (
    ROUND_TOLERANCE,
    AnnouncementValidator,
    SwarmRules,
    key_hash,
    reason,
)

log = logging.getLogger(__name__)

STORE_TIMEOUT_SECONDS = 12.0  # a few rounds of the DHT's 3-second calls to dead peers
READ_TIMEOUT_SECONDS = 12.0
RESTART_SECONDS, MAX_RESTART_SECONDS = 0.5, 30.0  # between tries to start libp2p again, doubling
FLUSH_SECONDS = 1.0
MEET_SECONDS = 15.0  # between looks at who is new, and at whether we are alone
ALONE_SECONDS = 1.0  # the same while we are, doubling
GREETED_AT_ONCE = 16
MAX_KNOWN = 64  # bootstrap addresses, the ones learned last
REACH_SECONDS = 3600.0
BOOK_DIALS = 16  # addresses from the address book that a lonely peer dials at once
# What one stage may bring in all, however much the cell announces: bounds memory.
MAX_STAGE_BYTES = 64 * 2**20


class Place(NamedTuple):
    """Where the announcements of one stage of one cell are."""

    round: int
    stage: int
    cell: int


@dataclass(frozen=True)
class Collected:
    """One peer's contribution to a stage: its announcement, and the groups in its blob."""

    heard: wire.Heard
    groups: tuple[wire.Group, ...]


class Peer:
    """All coroutines here run in the exchange's own thread; plain attributes may be read from any.

    It is the validator's witness: what is refused goes into the gossip log.
    """

    def __init__(
        self,
        identity: Identity,
        signer: wire.Signer,
        rules: SwarmRules,
        store: BlobStore,
        gossip: Gossip,
        book: AddressBook,
        reach: Reach,
        bootnodes: Callable[[], Sequence[str]],
        others_bytes_per_day: int,
    ) -> None:
        self.store = store
        self.blob_server = BlobServer(store, rules.registered, others_bytes_per_day)
        self.gossip = gossip
        self.copies: set[tuple[int, int]] = set()  # (round, stage) in which somebody else spoke with our key
        self.restarts = 0  # of libp2p
        self.reachability: Reachability | None = None
        self._identity = identity
        self._signer = signer
        self._rules = rules
        self._validator = AnnouncementValidator(rules, self)
        self._storage = RecordStorage(
            identity.peer,
            rules.now,
            rules.registered,
            lambda why, peer: self._validator.drop(why, peer, blame=False),
        )
        self._book = book
        self._reach = reach
        self._bootnodes = bootnodes
        self._fetcher = blobs.Fetcher(store)
        self._file_fetcher = FileFetcher(self.blob_server.open)
        self._reach_server = ReachServer()
        self._host: Host | None = None
        self._known: list[str] = []  # bootstrap addresses
        self._announced: dict[Place, bytes] = {}  # own envelopes, for as long as they are of use
        self._first_round: int | None = None  # of this life
        self._oldest_own: float = inf  # from this round on, whatever we announced is in `_announced`
        self._greeted: dict[bytes, tuple[str, ...]] = {}  # what peers said of their addresses, in this life
        self._chores: list[asyncio.Task[None]] = []
        self._heard_count = 0

    @property
    def health(self) -> Health:
        """How things are; may be asked from any thread."""
        host = self._host
        peers = len(host.peers) if host is not None else 0
        return Health(
            peers=peers,
            restarts=self.restarts,
            reach=self.reachability,
            heard=self._heard_count,
            fetched_bytes=self._fetcher.fetched_bytes + self._file_fetcher.fetched_bytes,
            served_bytes=self.blob_server.served_bytes,
        )

    # What the validator's witness is told

    def dropped(self, reason: str, *, peer: bytes | None = None, via: bytes | None = None) -> None:
        """Called by the validator for each refused record."""
        self.gossip.dropped(reason, peer=peer, via=via)

    def equivocated(self, peer: bytes, round: int, stage: int, first: bytes, second: bytes) -> None:
        """Called by the validator when a peer signed two different announcements for one slot."""
        if peer == self._identity.peer:
            self.copies.add((round, stage))
        self.gossip.equivocated(peer, round, stage, first, second)

    # Life

    async def start(self, initial_peers: Iterable[str]) -> None:
        """Start libp2p, join, and keep both going from then on. `ExchangeError` if it cannot listen."""
        self._know(initial_peers)
        self._host = await self._start_host()
        await self._join(self._host, self._acquaintances())
        chores: tuple[Coroutine[Any, Any, None], ...] = (
            self._keep_alive(),
            self._keep_log(),
            self._keep_company(),
            self._look_from_outside(),
        )
        self._chores = [asyncio.create_task(chore) for chore in chores]

    def check(self) -> None:
        """Raise the mistake that ended a chore, if one did; from any thread."""
        for chore in self._chores:
            if chore.done() and not chore.cancelled() and chore.exception() is not None:
                raise RuntimeError("the exchange failed") from chore.exception()

    async def stop(self) -> None:
        """End p2pd, whatever state it is in, and write down what is worth keeping."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        host, self._host = self._host, None
        if host is not None:
            await host.stop()
        await asyncio.to_thread(self._book.save)
        await asyncio.to_thread(self.gossip.close)

    async def _start_host(self) -> Host:
        """Start p2pd; where any port would do, on the one of last time, if that is still free."""
        reach, port = self._reach, self._book.own_port
        if port is not None and (again := reach.on_port(port)):
            with suppress(ExchangeError):
                for address in again.listen:
                    check_free(address)
                reach = again
        return await Host.start(self._identity.path, reach, self._validator, self._storage, self._serve)

    async def _serve(self, p2p: P2P) -> None:
        """Called by `Host.start`: answer what others ask a peer beside the DHT."""
        await self.blob_server.start(p2p)
        await self._reach_server.start(p2p)
        await hello.serve(p2p)
        # From now on the same port is listened on, in this life and the next: others remember it.
        ports = tcp_ports(str(address) for address in await p2p.get_visible_maddrs(latest=True))
        if ports:
            self._book.own_port = ports[0]

    async def _keep_alive(self) -> None:
        """Build libp2p anew whenever it dies, with the same key, port, records and acquaintances."""
        coming_back: asyncio.Task[None] | None = None
        while True:
            assert self._host is not None
            why = await self._host.died()
            if coming_back is not None:
                coming_back.cancel()
                self._chores.remove(coming_back)
            dead, self._host = self._host, None
            log.warning("libp2p %s, starting it again", why)
            peers = dead.peers
            try:
                await dead.stop()
            except asyncio.CancelledError:
                self._host = dead  # stop() ends it
                raise
            pause = RESTART_SECONDS
            while self._host is None:
                try:
                    self._host = await self._start_host()
                except (ExchangeError, OSError) as error:  # the latter of a system without files or room
                    log.warning("libp2p not started, next try in seconds=%.0f error=%r", pause, str(error))
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, MAX_RESTART_SECONDS)
            self.restarts += 1
            # On its own, because libp2p may die again meanwhile.
            coming_back = asyncio.create_task(self._come_back(self._host, peers))
            self._chores.append(coming_back)

    async def _come_back(self, host: Host, peers: list[bytes]) -> None:
        """Find the peers again that the last host knew, and tell them what was announced meanwhile."""
        addresses = [address for peer in peers for address in self._greeted.get(peer, ())]
        with suppress(ExchangeError, *LIBP2P_ERRORS):
            await self._join(host, [*addresses, *self._acquaintances()])
            for place, envelope in list(self._announced.items()):
                await self._store(host, place, envelope)
            log.info("libp2p is back peers=%d", len(host.peers))

    async def _keep_log(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await asyncio.to_thread(self.gossip.flush)

    async def _keep_company(self) -> None:
        """Remember where the peers are that we meet; look for some while there are none."""
        pause = ALONE_SECONDS
        while True:
            host, acquaintances = self._host, self._acquaintances()
            if host is not None:
                host.node.protocol.forget_strangers()
                with suppress(ExchangeError, *LIBP2P_ERRORS):
                    if not host.peers:
                        await dht.join(host.node, host.p2p, acquaintances)
                    await self._greet(host)
            alone = host is None or not host.peers
            await asyncio.sleep(min(pause, MEET_SECONDS) if alone else MEET_SECONDS)
            pause = min(2 * pause, MEET_SECONDS) if alone else ALONE_SECONDS

    async def _greet(self, host: Host) -> None:
        """Ask the new ones where they can be reached, and one of the others again: it may have moved."""
        peers = host.peers
        asked = [peer for peer in peers if peer not in self._greeted][:GREETED_AT_ONCE]
        asked += random.sample(list(self._greeted), min(1, len(self._greeted)))
        said = await asyncio.gather(*(hello.ask(host.p2p, peer) for peer in asked))
        known = self._greeted | {peer: heard for peer, heard in zip(asked, said, strict=True) if heard}
        self._greeted = {peer: addresses for peer, addresses in known.items() if peer in peers}
        for peer, addresses in self._greeted.items():
            self._book.remember(peer, addresses)
        await asyncio.to_thread(self._book.save)

    def _acquaintances(self) -> list[str]:
        """Addresses at which there may be peers."""
        return list(dict.fromkeys([*self._known, *self._bootnodes(), *self._book.multiaddrs(BOOK_DIALS)]))

    def _know(self, addresses: Iterable[str]) -> None:
        self._known = list(dict.fromkeys([*self._known, *addresses]))[-MAX_KNOWN:]

    async def _look_from_outside(self) -> None:
        """Find out, from other peers, whether others can reach us."""
        while True:
            with suppress(ExchangeError, *LIBP2P_ERRORS):
                host = self._running()
                self.reachability = await reachability(
                    host.p2p, host.peers, tcp_ports(await host.multiaddrs())
                )
            known = self.reachability is not None and self.reachability.asked > 0
            await asyncio.sleep(REACH_SECONDS if known else MEET_SECONDS)

    # Others

    async def multiaddrs(self) -> list[str]:
        return await self._running().multiaddrs()

    async def peer_count(self) -> int:
        return len(self._running().peers)

    async def join(self, addresses: Iterable[str]) -> None:
        addresses = list(addresses)
        self._know(addresses)
        await self._join(self._running(), addresses)

    async def _join(self, host: Host, addresses: Sequence[str]) -> None:
        failed = await dht.join(host.node, host.p2p, addresses)
        if failed:
            log.warning("peers_unreachable count=%d of=%d first=%s", len(failed), len(addresses), failed[0])

    async def enter(self, round_number: int, cell_of: Callable[[bytes], int] | None) -> None:
        self._fetcher.forgive()
        if self._first_round is None:
            self._first_round = round_number
        self._oldest_own = max(self._first_round, round_number - ROUND_TOLERANCE)
        self._announced = {
            place: envelope
            for place, envelope in self._announced.items()
            if place.round >= round_number - ROUND_TOLERANCE
        }
        self._validator.enter(round_number, cell_of)

    # Announcements

    async def announce(self, announcement: wire.Announcement) -> None:
        place = Place(announcement.round, announcement.stage, announcement.cell)
        key = self._rules.key(*place)
        try:  # in a thread: the signer makes sure, on disk, that there is never a second one
            envelope = await asyncio.to_thread(
                wire.sign, self._identity.public_key, announcement, self._signer
            )
        except IdentityError as error:
            raise ExchangeError(f"not announced: {error}") from error
        try:
            self._validator.open(key_hash(key), self._identity.peer, envelope, announcement.expiration)
        except WireError as error:
            raise ExchangeError(f"announcement of round {place.round} is not one to send: {error}") from error
        # Held here in any case: others may find it with us, and a libp2p that is built anew announces it.
        self._announced[place] = envelope
        self._storage.store_subkey(
            DHTID.generate(source=key),
            self._identity.peer,
            MSGPackSerializer.dumps(envelope),
            float(announcement.expiration),
        )
        if self._host is not None:
            await self._store(self._host, place, envelope)

    async def _store(self, host: Host, place: Place, envelope: bytes) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(STORE_TIMEOUT_SECONDS):
                expiration = float(self._rules.expiration(place.round))
                await dht.store(host.node, self._rules.key(*place), self._identity.peer, envelope, expiration)

    async def heard(
        self, round_number: int, stage: int, cell: int, timeout: float = READ_TIMEOUT_SECONDS
    ) -> list[wire.Heard]:
        place = Place(round_number, stage, cell)
        by_peer = await self._from_dht(place, timeout)
        # Signed with our key, and not by us. Audits look at older rounds too, in which we may have spoken.
        is_own = place in self._announced or round_number < self._oldest_own
        if self._identity.peer in by_peer and not is_own:
            self.copies.add((round_number, stage))
        for one in by_peer.values():
            self.gossip.heard(one)
        self._heard_count += len(by_peer.keys() - {self._identity.peer})
        return [by_peer[peer] for peer in sorted(by_peer)]

    async def _from_dht(self, place: Place, timeout: float) -> dict[bytes, wire.Heard]:
        """The announcements of a place by peer; those that this node holds, if the search takes too long."""
        key = self._rules.key(*place)
        host = self._host
        if host is None:
            records = dht.held(self._storage, key)
        else:
            records, complete = await dht.read(host.node, key, timeout)
            if not complete:
                self.gossip.dropped("DHT did not answer in time")
        opened = {}
        for peer, (envelope, expiration) in records.items():
            try:
                opened[peer] = self._validator.open(key_hash(key), peer, envelope, expiration)
            except WireError as error:
                self.gossip.dropped(reason(error), peer=peer)
        return opened

    # Blobs

    async def fetch(self, peer: bytes, digest: bytes, size_bytes: int, timeout: float) -> bytes:
        held = await self._held(digest, size_bytes)
        if held is not None:
            return held
        if peer == self._identity.peer:
            raise ExchangeError("own blob is not in the store")
        data = await self._fetcher.fetch(self._running().p2p, peer, digest, size_bytes, timeout=timeout)
        if self.store.size(digest) is None:  # a full disk or quota: the data is good all the same
            self.gossip.dropped("fetched blob could not be kept", peer=peer)
        return data

    async def fetch_to(self, peer: bytes, digest: bytes, size_bytes: int, path: Path, timeout: float) -> None:
        await self._file_fetcher.fetch(self._running().p2p, peer, digest, size_bytes, path, timeout=timeout)

    async def _held(self, digest: bytes, size_bytes: int) -> bytes | None:
        held = await asyncio.to_thread(self.store.get, digest)
        return held if held is not None and len(held) == size_bytes else None

    async def collect(
        self,
        place: Place,
        timeout: float,
        max_peers: int,
        order: Callable[[wire.Heard], bytes],
        limit: wire.GroupsLimit,
    ) -> list[Collected]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        # Silent nodes must not eat the time for fetching from those that were heard.
        heard = await self.heard(place.round, place.stage, place.cell, min(timeout / 2, READ_TIMEOUT_SECONDS))
        senders = self._affordable(sorted(heard, key=order), max_peers, limit)
        gate = asyncio.Semaphore(blobs.MAX_FETCHES)
        # Each fetch gets its share of the time: silent peers must not hold the gate against the others.
        share = (deadline - loop.time()) / max(1, -(-len(senders) // blobs.MAX_FETCHES))
        results = await asyncio.gather(
            *(self._contribution(one, deadline, share, gate, limit) for one in senders)
        )
        return [collected for collected in results if collected is not None]

    def _affordable(
        self, heard: list[wire.Heard], max_peers: int, limit: wire.GroupsLimit
    ) -> list[wire.Heard]:
        """Those whose blobs are taken, in the same order: so many of a crowded cell, so many bytes in all."""
        taken: list[wire.Heard] = []
        total_bytes = 0
        for one in heard:
            size_bytes = one.announcement.blob_bytes
            if size_bytes > limit.max_bytes:
                self.gossip.dropped("blob is larger than the stage allows", peer=one.peer)
            elif len(taken) == max_peers:
                self.gossip.dropped("cell is crowded", peer=one.peer)
            elif total_bytes + size_bytes > MAX_STAGE_BYTES:
                self.gossip.dropped("cell announces more bytes than a reader takes", peer=one.peer)
            else:
                taken.append(one)
                total_bytes += size_bytes
        return taken

    async def _contribution(
        self,
        heard: wire.Heard,
        deadline: float,
        share: float,
        gate: asyncio.Semaphore,
        limit: wire.GroupsLimit,
    ) -> Collected | None:
        """One sender's groups, or None (counted) for whatever reason they cannot be had by the deadline."""
        announced = heard.announcement
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                seconds = 0.0
                data = await self._held(announced.blob, announced.blob_bytes)
                if data is None:
                    async with gate:
                        started = loop.time()
                        data = await self.fetch(heard.peer, announced.blob, announced.blob_bytes, share)
                        seconds = loop.time() - started
                groups = await asyncio.to_thread(wire.decode_groups, data, announced.groups, limit)
        except TimeoutError:
            self.gossip.dropped("blob did not come in time", peer=heard.peer)
        except ExchangeError as error:
            self.gossip.dropped(reason(error), peer=heard.peer)
        else:
            self.gossip.fetched(heard, len(data), seconds)
            return Collected(heard, groups)
        return None

    def _running(self) -> Host:
        if self._host is None:
            raise ExchangeDown("libp2p does not answer: it is being started")
        return self._host

"""`Exchange`: a peer's DHT node and blob server, behind calls that block and may come from any thread.

hivemind lives in one asyncio thread of our own, in this process and on the stock event loop (DESIGN.md,
section 5, has the measurements). Every public method hands a coroutine to that thread and waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from identity import Identity
from swarm.errors import ExchangeDown, ExchangeError
from swarm.exchange import wire
from swarm.exchange.addresses import ADDRESSES_FILE, AddressBook
from swarm.exchange.dht import LIBP2P_ERRORS
from swarm.exchange.gossip import GOSSIP_FILE, Gossip
from swarm.exchange.health import Health
from swarm.exchange.peer import Collected, Peer, Place
from swarm.exchange.reach import LOOPBACK_LISTEN, Reach
from swarm.exchange.store import BlobStore
from swarm.exchange.validator import SwarmRules

log = logging.getLogger(__name__)

KEEP_ROUNDS = 16  # DESIGN.md, section 7: so long auditors may ask
OTHERS_BYTES_PER_DAY = 2 * 2**30  # of shared files: one state of a 0.5B model, or 5 hours of 1 Mbit/s
START_TIMEOUT_SECONDS = 45.0  # p2pd's own limit is 30
CALL_TIMEOUT_SECONDS = 30.0  # nothing below takes as long; a dead p2pd must not hold a caller for ever
STOP_TIMEOUT_SECONDS = 3.0

T = TypeVar("T")


def _digest_order(heard: wire.Heard) -> bytes:
    return heard.peer


class Exchange:
    """What a peer says and hears: announcements through the DHT, blobs over libp2p streams.

    `signer` signs announcements; it must refuse a second, different one for a round and stage. What `rules`
    calls is asked for every record that arrives: it must neither block nor raise. `folder` gets the blobs,
    the gossip log and the address book. `reach` says how to be reached; the default is right for one machine.
    `initial_peers` and what `bootnodes` answers, from memory, again and again while this peer is alone, are
    multiaddresses with `/p2p/<peer id>`. Own blobs stay for `keep_rounds` rounds: so long others may audit
    what is in them. Of the files that are shared beside the blobs, others than auditors get no more than
    `others_bytes_per_day` together.

    Who only wants to fetch needs no registered identity: a new key, a folder of its own and one address of
    any peer do. As a stranger it is served last.
    """

    def __init__(
        self,
        identity: Identity,
        signer: wire.Signer,
        rules: SwarmRules,
        folder: Path,
        *,
        reach: Reach = Reach(listen=(LOOPBACK_LISTEN,)),  # noqa: B008 - frozen
        initial_peers: Sequence[str] = (),
        bootnodes: Callable[[], Sequence[str]] = tuple,
        max_blob_bytes: int = 2**30,
        keep_rounds: int = KEEP_ROUNDS,
        others_bytes_per_day: int = OTHERS_BYTES_PER_DAY,
    ) -> None:
        self._initial_peers = tuple(initial_peers)
        self._peer = Peer(
            identity,
            signer,
            rules,
            BlobStore(folder / "blobs", max_blob_bytes, keep_rounds * rules.round_seconds),
            Gossip(folder / GOSSIP_FILE, current_round=lambda: rules.current_round),
            AddressBook(folder / ADDRESSES_FILE),
            reach,
            bootnodes,
            others_bytes_per_day,
        )
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start libp2p and join the initial peers. Blocks; unreachable peers cost seconds, not the start.

        Raises `ExchangeError` if it cannot listen or libp2p does not start, and if already started.
        """
        with self._lock:
            if self._loop is not None:
                raise ExchangeError("exchange is already started")
            _quiet_hivemind()
            # Not asyncio.new_event_loop(): that asks the process's policy, which some library may have
            # set to uvloop.
            self._loop = asyncio.DefaultEventLoopPolicy().new_event_loop()
            self._thread = threading.Thread(
                target=_run_loop, args=(self._loop,), name="exchange", daemon=True
            )
            self._thread.start()
        try:
            self._call(self._peer.start(self._initial_peers), START_TIMEOUT_SECONDS)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop serving, end libp2p's process and the thread; within 3 seconds. Again is no error."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        stopping = asyncio.run_coroutine_threadsafe(_stop_all(self._peer), loop)
        stopping.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
        thread.join(STOP_TIMEOUT_SECONDS)

    def __enter__(self) -> Exchange:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def multiaddrs(self) -> list[str]:
        """Where others reach this peer, each ending in `/p2p/<peer id>`."""
        return self._call(self._peer.multiaddrs())

    @property
    def dropped(self) -> Counter[str]:
        """How much was refused or dropped so far, by reason (a copy)."""
        return self._peer.gossip.totals

    @property
    def copies(self) -> int:
        """In how many slots somebody else spoke with this peer's key; any at all means that a copy runs."""
        return len(self._peer.copies)

    @property
    def health(self) -> Health:
        """How the exchange is; never blocks."""
        return self._peer.health

    def peer_count(self) -> int:
        """How many peers this one's routing table lists."""
        return self._call(self._peer.peer_count())

    def connect(self, multiaddrs: Sequence[str]) -> None:
        """Join through more peers, and remember them for when all are lost. Unreachable ones are logged."""
        self._call(self._peer.join(multiaddrs))

    def enter(self, round_number: int, cell_of: Callable[[bytes], int] | None) -> None:
        """Call at each round's beginning, with the draw's cell of each peer (digest) if the ledger gave it.

        From then on announcements in a wrong cell are refused; who failed us last round gets a new chance.
        """
        self._call(self._peer.enter(round_number, cell_of))

    def put_blob(self, data: bytes) -> bytes:
        """Keep an own blob and serve it; returns its SHA-256. `ExchangeError` if it is over the quota."""
        return self._peer.store.put(data, own=True)

    def share(self, files: Mapping[bytes, Path]) -> None:
        """Serve these files, by their SHA-256, beside the blobs; those of the last call no more.

        They stay where they are, outside of the quota, and are served as long as they are as they are now:
        one that is missing, changed or replaced is unknown. Whether a digest is right, nobody checks here.
        """
        self._peer.blob_server.shared.replace(files)

    def set_auditors(self, peers: Collection[bytes]) -> None:
        """Call whenever it changes who (digests) is assigned to audit this peer: they come before others."""
        self._peer.blob_server.set_auditors(peers)

    def keep(self, digests: Collection[bytes]) -> None:
        """Keep fetched blobs as long as own ones: what was heard has to be shown to auditors."""
        self._peer.store.keep(digests)

    def announce(self, announcement: wire.Announcement) -> None:
        """Sign the announcement and store it in the DHT. The same one again is stored again, harmlessly.

        While libp2p is being started again it is kept, and goes out then. Raises `ExchangeError` if this peer
        announced something else in the slot before, or if nodes would not accept it.
        """
        self._call(self._peer.announce(announcement))

    def heard(self, round_number: int, stage: int, cell: int) -> list[wire.Heard]:
        """The cell's announcements, own one included, ordered by peer digest.

        Bad ones are counted, never raised. Without reachable peers this is what this node itself holds.
        """
        return self._call(self._peer.heard(round_number, stage, cell))

    def fetch(self, peer: bytes, digest: bytes, size_bytes: int, timeout: float) -> bytes:
        """A blob of exactly `size_bytes` from the own store, else from the peer within `timeout` seconds.

        Raises `ExchangeError` with the reason: unreachable, unknown blob, wrong size or digest, stalled.
        """
        return self._call(self._peer.fetch(peer, digest, size_bytes, timeout), timeout + CALL_TIMEOUT_SECONDS)

    def fetch_to(self, peer: bytes, digest: bytes, size_bytes: int, path: Path, timeout: float) -> None:
        """As `fetch`, but a blob of any size into a file, and little of it in memory.

        What size is too much, the caller knows. Goes on where an earlier attempt ended, with the same or
        another peer: what came then is in a hidden file beside `path`, or at `path` itself. `ExchangeError`
        with the reason: unreachable, unknown blob, quota spent, wrong size or digest, stalled, late, no room
        on the disk; nothing is at `path` then. A peer that fails here is not shunned.
        """
        fetching = self._peer.fetch_to(peer, digest, size_bytes, path, timeout)
        self._call(fetching, timeout + CALL_TIMEOUT_SECONDS)

    def collect(
        self,
        round_number: int,
        stage: int,
        cell: int,
        *,
        timeout: float,
        max_peers: int,
        order: Callable[[wire.Heard], bytes] = _digest_order,
        limit: wire.GroupsLimit = wire.GroupsLimit(),  # noqa: B008 - frozen
    ) -> list[Collected]:
        """What the cell made in a stage: `heard`, the first `max_peers` by `order`, each one's blob decoded.

        Takes at most `timeout` seconds, at most half of them for the DHT. Who fails or is late is dropped
        and counted, as is who keeps not to the `limit`. The result is in the same order.
        """
        place = Place(round_number, stage, cell)
        collecting = self._peer.collect(place, timeout, max_peers, order, limit)
        return self._call(collecting, timeout + CALL_TIMEOUT_SECONDS)

    def _call(self, work: Coroutine[Any, Any, T], timeout: float = CALL_TIMEOUT_SECONDS) -> T:
        self._peer.check()
        with self._lock:  # what is handed over before a stop is cancelled by it, not lost with the loop
            if self._loop is None:
                work.close()
                raise ExchangeDown("exchange is not running: call start() first")
            future = asyncio.run_coroutine_threadsafe(_limited(work, timeout), self._loop)
        try:
            return future.result(timeout + 1)
        except TimeoutError:
            raise ExchangeDown(f"libp2p did not answer within {timeout:.0f} seconds") from None
        except LIBP2P_ERRORS as error:
            raise ExchangeDown(f"libp2p's process does not answer: {error}") from error
        except CancelledError:
            raise ExchangeDown("exchange was stopped meanwhile") from None


async def _limited(work: Coroutine[Any, Any, T], timeout: float) -> T:
    async with asyncio.timeout(timeout):
        return await work


async def _stop_all(peer: Peer) -> None:
    await peer.stop()
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    # Bounded, because a task of hivemind's that ignores its cancellation must not hold the thread.
    if rest:
        await asyncio.wait(rest, timeout=0.5)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_log_stray)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _log_stray(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # hivemind leaves tasks behind whose failures nobody awaits (a peer that left, mostly).
    log.debug("stray message=%r error=%r", context.get("message"), context.get("exception"))


def _quiet_hivemind() -> None:
    """hivemind and p2pd report every peer that leaves, and p2pd its own end; errors that matter are raised.

    `HIVEMIND_LOGLEVEL` brings their words back.
    """
    if "HIVEMIND_LOGLEVEL" not in os.environ:
        logging.getLogger("hivemind").setLevel(logging.CRITICAL)
        os.environ.setdefault("GOLOG_LOG_LEVEL", "ERROR")  # hivemind hands this to p2pd

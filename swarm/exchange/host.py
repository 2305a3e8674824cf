"""One life of libp2p's process, `p2pd`, and of the DHT node on it: begun, watched, ended without a trace."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psutil
from hivemind.dht import DHTNode
from hivemind.p2p import P2P
from hivemind.proto.p2pd_pb2 import CallUnaryRequest

from swarm.errors import ExchangeError
from swarm.exchange import dht
from swarm.exchange.multiaddr import check_free
from swarm.exchange.protocol import peer_digest
from swarm.exchange.reach import Reach
from swarm.exchange.storage import RecordStorage
from swarm.exchange.validator import AnnouncementValidator

START_SECONDS = 30.0
STOP_SECONDS = 1.5
# A p2pd that is alive answers in milliseconds, on a machine that is busy training in tenths of a second.
# Silent twice in a row counts as dead, so that it is built anew within 10 seconds.
LOOK_SECONDS, SILENCE_SECONDS, SILENCES = 1.0, 3.0, 2
_FOLDER_PREFIX = "swarm-p2pd-"


class Host:
    """A running p2pd and its DHT node; made by `start`, of no use after `stop`."""

    def __init__(self, p2p: P2P, node: DHTNode, folder: Path) -> None:
        self.p2p = p2p
        self.node = node
        self._folder = folder

    @classmethod
    async def start(
        cls,
        identity_path: Path,
        reach: Reach,
        validator: AnnouncementValidator,
        storage: RecordStorage,
        serve: Callable[[P2P], Awaitable[None]],
    ) -> Host:
        """Start p2pd as `reach` says, with the peer's key; `ExchangeError` if it cannot listen or start.

        `serve` is called before anybody else learns of the new p2pd, to answer what others may ask it.
        """
        for address in reach.listen:
            check_free(address)
        if not identity_path.is_file():  # hivemind would put a new key there
            raise ExchangeError(f"libp2p cannot start: {identity_path} is not there any more")
        _remove_leftovers()
        # hivemind puts its sockets into /tmp and leaves them there when killed; here they have a folder that
        # tells whose they are, and that is for this user alone.
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
        except OSError as error:
            raise ExchangeError(
                f"libp2p cannot start: no folder in {tempfile.gettempdir()}: {error.strerror}"
            ) from error
        begun: list[P2P] = []  # a `create` that is cancelled, or fails half-way, leaves its p2pd running

        class ContainedP2P(P2P):
            _UNIX_SOCKET_PREFIX = f"/unix{folder}/"

            def __init__(self) -> None:
                super().__init__()
                begun.append(self)

        try:
            # Around all of it: where p2pd dies or freezes meanwhile, hivemind waits for ever.
            async with asyncio.timeout(START_SECONDS):
                p2p = await ContainedP2P.create(
                    identity_path=str(identity_path),
                    host_maddrs=list(reach.listen),
                    announce_maddrs=list(reach.announce_addresses) or None,
                    nat_port_map=reach.nat_port_map,
                    auto_nat=reach.auto_nat,
                    use_relay=reach.use_relay,
                    use_auto_relay=reach.use_auto_relay,
                    trusted_relays=list(reach.trusted_relays) or None,
                    force_reachability=reach.force_reachability,
                    startup_timeout=START_SECONDS,
                    check_if_identity_free=False,  # starts a second p2pd; the journal guards against copies
                )
                _forget_ended_requests(p2p)
                node = await dht.create_node(p2p, validator, storage)
                await serve(p2p)
                return cls(p2p, node, folder)
        except BaseException as error:
            for p2p in begun:
                await _end(p2p)
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, Exception):
                raise
            why = " ".join(str(error).split()) or f"no answer within {START_SECONDS:.0f} seconds"
            raise ExchangeError(  # hivemind raises many kinds; one boundary
                f"libp2p cannot start on {', '.join(reach.listen)}: {why}"
            ) from error

    async def died(self) -> str:
        """Wait until p2pd is of no use any more; why."""
        control = self.p2p._client.control
        exited = asyncio.ensure_future(self.p2p._child.wait())
        silent = asyncio.ensure_future(self._falls_silent())
        try:
            # hivemind's own two tasks end when p2pd's socket closes, and then every call waits for ever.
            done, _ = await asyncio.wait(
                {exited, silent, control._read_task, control._write_task}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            exited.cancel()
            silent.cancel()
        if exited in done:
            return f"ended with code {self.p2p._child.returncode}"
        return "does not answer" if silent in done else "closed its connection"

    async def _falls_silent(self) -> None:
        silences = 0
        while silences < SILENCES:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await asyncio.wait_for(self.p2p._client.identify(), SILENCE_SECONDS)
                silences = 0
            except dht.LIBP2P_ERRORS:
                silences += 1

    async def multiaddrs(self) -> list[str]:
        """Where others reach this peer, each ending in `/p2p/<peer id>`."""
        return list(dict.fromkeys(str(address) for address in await self.p2p.get_visible_maddrs(latest=True)))

    @property
    def peers(self) -> list[bytes]:
        """The peers (digests) that the routing table lists."""
        listed = self.node.protocol.routing_table.peer_id_to_uid
        return [digest for peer in list(listed) if (digest := peer_digest(peer))]

    async def stop(self) -> None:
        """End p2pd, whatever state it is in."""
        self.node.is_alive = False  # its shutdown() would only tell p2pd, which ends anyway
        await _end(self.p2p)
        shutil.rmtree(self._folder, ignore_errors=True)


def _forget_ended_requests(p2p: P2P) -> None:
    """hivemind keeps the task, and so the answer, of a request that was cancelled or answered too large."""
    control = p2p._client.control
    handle = control._handle_persistent_request

    async def handle_and_forget(call_id: UUID, request: CallUnaryRequest) -> None:
        try:
            await handle(call_id, request)
        finally:
            control._handler_tasks.pop(call_id, None)

    control._handle_persistent_request = handle_and_forget


async def _end(p2p: P2P) -> None:
    child = p2p._child
    if child is None:
        return  # not even begun, or ended by asyncio, which was cancelled while it began
    try:
        await asyncio.wait_for(p2p.shutdown(), STOP_SECONDS)
    except TimeoutError:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    finally:
        child._transport.close()  # kills it, if this was cancelled; and closes its pipe while there is a loop


def _remove_leftovers() -> None:
    """Remove the sockets of our processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*-*"):
        with suppress(OSError, ValueError):
            owner = int(folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0])
            if folder.stat().st_uid == os.getuid() and not psutil.pid_exists(owner):
                shutil.rmtree(folder, ignore_errors=True)

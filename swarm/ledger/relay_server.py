"""`run_relay`: a relay on HTTP, until it is told to stop.

The event loop reads requests, decodes them, and answers for those it knows; everything that needs the ledger
goes to one thread, which also sends. For peers on other machines, put a reverse proxy with TLS in front:
nothing here encrypts. A client's address is the proxy's then; what a client says of its own is not believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from filelock import FileLock, Timeout

from swarm.callers import caller, url_of
from swarm.errors import LedgerError
from swarm.ledger.client import connect
from swarm.ledger.relay import Relay, RelayOptions
from swarm.ledger.relay_budget import WEI_PER_ETHER
from swarm.ledger.relay_rules import Refused, unavailable
from swarm.ledger.relay_wire import (
    MAX_BODY_BYTES,
    MAX_REPORTS_BODY_BYTES,
    Answer,
    Bootnode,
    Problem,
    Registration,
    Reports,
    Request,
    Rotation,
    content_digest,
)
from swarm.settings import machine_dir

log = logging.getLogger("swarm.ledger")

BODY_SECONDS = 10.0  # a body that takes longer is not waited for
CONNECTION_SECONDS = 30.0  # a connection is for one request, and no longer open
MAX_CONNECTIONS = 512  # the oldest ones are closed when there are more
SWEEP_SECONDS = 1.0
MAX_WAITING = 64  # requests that wait for the ledger's thread: about five seconds' worth
STOP_SECONDS = 2.0  # for answers under way
FIRST_BACKOFF, MAX_BACKOFF = 1.0, 30.0  # seconds, doubling, while the ledger is away

T = TypeVar("T")
R = TypeVar("R", bound=Request)


def run_relay(options: RelayOptions, say: Callable[[str], None] = print) -> None:
    """Serve until SIGINT or SIGTERM; call from the main thread. `say` gets one line once it serves.

    `LedgerError`, `UsageError` or `IdentityError` if it cannot begin.
    """

    async def until_signal() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve_relay(options, stop, lambda _, line: say(line))

    asyncio.run(until_signal())


async def serve_relay(
    options: RelayOptions, stop: asyncio.Event, started: Callable[[str, str], None]
) -> None:
    """Serve until `stop` is set. `started` is told the URL, and a line for the operator."""
    options.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(options.home / "relay.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LedgerError(f"another relay runs with {options.home}: stop it, or use another home") from error
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relay")
    try:
        opening = asyncio.get_running_loop().run_in_executor(worker, _open, options)
        relay, balance = await opening
        try:
            await _Server(relay, worker, options.quotas.waiting_per_client).run(
                options, balance, stop, started
            )
        finally:
            relay.sending.stopping = True
            worker.shutdown(wait=True, cancel_futures=True)
            relay.close()
    finally:
        worker.shutdown(wait=True, cancel_futures=True)
        lock.release()


def _open(options: RelayOptions) -> tuple[Relay, float]:
    ledger = connect(options.swarm)
    relay = Relay(options, ledger, machine_dir())
    return relay, ledger.rpc.balance(relay.address) / WEI_PER_ETHER


class _Server:
    """The HTTP side of a relay."""

    def __init__(self, relay: Relay, worker: ThreadPoolExecutor, waiting_per_client: int) -> None:
        self._relay = relay
        self._worker = worker
        self._waiting_per_client = waiting_per_client
        self._waiting: Counter[str] = Counter()  # by client
        self._wake = asyncio.Event()

    async def run(
        self, options: RelayOptions, balance: float, stop: asyncio.Event, started: Callable[[str, str], None]
    ) -> None:
        app = web.Application(client_max_size=MAX_REPORTS_BODY_BYTES)
        app.add_routes(
            [
                web.get("/", self._info),
                web.post("/register", partial(self._post, Registration, MAX_BODY_BYTES)),
                web.post("/reports", partial(self._post, Reports, MAX_REPORTS_BODY_BYTES)),
                web.post("/bootnode", partial(self._post, Bootnode, MAX_BODY_BYTES)),
                web.post("/rotate", partial(self._post, Rotation, MAX_BODY_BYTES)),
            ]
        )
        app.on_response_prepare.append(_one_request_each)
        runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,  # a small body must stay small
            lingering_time=1.0,
            shutdown_timeout=STOP_SECONDS,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, options.host, options.port, backlog=128)
            try:
                await site.start()
            except OSError as error:
                reason = error.strerror or error
                raise LedgerError(
                    f"cannot listen on {options.host}, port {options.port}: {reason}"
                ) from error
            url = url_of(options.host, runner.addresses[0][1])
            started(url, f"relay at {url} pays as {self._relay.address} ({balance:.4f} ether)")
            await self._until(stop, runner)
        finally:
            await runner.cleanup()

    async def _until(self, stop: asyncio.Event, runner: web.AppRunner) -> None:
        tasks = [asyncio.create_task(self._pump()), asyncio.create_task(_sweep(runner))]
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # neither of the two ends by itself, unless it is broken
        finally:
            self._relay.sending.stopping = True
            for task in (*tasks, stopped):
                task.cancel()
            await asyncio.gather(*tasks, stopped, return_exceptions=True)

    async def _pump(self) -> None:
        """Keep the relay at work."""
        backoff, told = FIRST_BACKOFF, ""
        while True:
            self._wake.clear()
            pause: float | None
            try:
                pause = await self._in_worker(self._relay.sending.work)
                backoff, told = FIRST_BACKOFF, ""
            except LedgerError as error:
                if str(error) != told:
                    log.warning("relay waits error=%r", str(error))
                told = str(error)
                pause, backoff = backoff, min(2 * backoff, MAX_BACKOFF)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)

    async def _info(self, request: web.Request) -> web.Response:
        try:
            return _json(200, await self._queued(caller(request.remote), self._relay.info))
        except Refused as refused:
            return _json(refused.status, refused.problem)

    async def _post(self, kind: type[R], limit: int, request: web.Request) -> web.Response:
        try:
            asked = _decoded(await _body(request, limit), kind)
            self._relay.check_swarm(asked)
            digest = content_digest(asked)
            answer = self._relay.present(digest)
            if answer is None:
                self._relay.check_proofs(asked)
                client = caller(request.remote)
                answer = await self._queued(client, self._relay.take, asked, digest, client)
                self._wake.set()
        except Refused as refused:
            return _json(refused.status, refused.problem)
        except LedgerError as error:
            log.error("relay cannot answer error=%r", str(error))
            return _json(503, Problem("unavailable", "the relay has a problem that its operator must solve"))
        return _json(200 if answer.state == "mined" else 202, answer)

    async def _queued(self, client: str, function: Callable[..., T], *arguments: Any) -> T:
        """Run in the ledger's thread, unless too many wait for it, of this client or of all."""
        if self._waiting[client] >= self._waiting_per_client:
            raise unavailable(f"the relay is busy with other requests from {client}")
        if self._waiting.total() >= MAX_WAITING:
            raise unavailable("the relay is busy")
        self._waiting[client] += 1
        try:
            return await self._in_worker(function, *arguments)
        finally:
            self._waiting[client] -= 1
            self._waiting += Counter()  # forgets those at 0

    async def _in_worker(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)


async def _one_request_each(_: web.Request, response: web.StreamResponse) -> None:
    response.force_close()


async def _sweep(runner: web.AppRunner) -> None:
    """Close connections of those who talk too slowly or too much."""
    born: dict[Any, float] = {}
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        server = runner.server
        connections = server.connections if server is not None else []
        born = {connection: born.get(connection, loop.time()) for connection in connections}
        connections.sort(key=lambda connection: born[connection])
        excess = max(0, len(connections) - MAX_CONNECTIONS)
        for index, connection in enumerate(connections):
            if index < excess or loop.time() - born[connection] > CONNECTION_SECONDS:
                connection.force_close()


async def _body(request: web.Request, limit: int) -> bytes:
    if (request.content_length or 0) > limit:
        raise Refused(413, "request", f"the body is larger than {limit} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise Refused(413, "request", f"the body is larger than {limit} bytes")
    except TimeoutError:
        raise Refused(408, "request", f"the body took longer than {BODY_SECONDS:.0f} s") from None
    return bytes(body)


def _decoded(body: bytes, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "request", f"the body is not a {kind.__name__.lower()}: {error}") from error


def _json(status: int, contents: Answer | Problem | Any) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(contents), content_type="application/json")

"""`swarm board`: the page and its API, over an index of one swarm's ledger, until it is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from filelock import FileLock, Timeout

from identity import Identity, IdentityError, peer_digest
from swarm.board import view
from swarm.board.api import make_app
from swarm.board.index import Index
from swarm.board.indexer import Indexer
from swarm.board.listening import Listening
from swarm.board.source import Source
from swarm.callers import url_of
from swarm.errors import SwarmError, UsageError
from swarm.exchange.addresses import ADDRESSES_FILE, AddressBook
from swarm.exchange.peer import BOOK_DIALS
from swarm.ledger.client import LedgerClient
from swarm.settings import Settings

log = logging.getLogger("swarm.board")

INDEX_FILE, LOCK_FILE, LISTENER_FOLDER = "board.sqlite", "board.lock", "board-listener"
STOP_SECONDS = 1  # for answers under way


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    home: Path
    host: str
    port: int  # 0: any free one
    per_minute: int  # requests of one caller; 0: any number
    pins: tuple[str, ...]  # ids of peers that everybody sees on top
    public_line: str | None  # the join line that the page shows


def run_board(options: Options, ledger: LedgerClient, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; call from the main thread. `say` gets the URL once it is served.

    `SwarmError` in one line if it cannot begin. `ledger` answered just now; it may go away later.
    """
    settings = Settings(home=options.home)
    folder = settings.swarm_dir(ledger.swarm_id, ledger.address, ledger.genesis)
    own, pins = _own_peers(settings, folder), [_peer_of(pin) for pin in options.pins]
    with ExitStack() as stack:
        stack.enter_context(_hold(folder))
        listener = stack.enter_context(_listen(options.host, options.port))
        Index(folder / INDEX_FILE).close()  # whether it can be used is said here
        facts = view.swarm_facts(ledger, options.public_line)
        indexer = Indexer(ledger.another(), folder / INDEX_FILE)
        known = indexer.known
        listening = Listening(
            known.manifest,
            ledger.genesis,
            now=lambda: known.clock(),  # it may be another one later
            current=known.draw,
            bootnodes=lambda: known.bootnodes,
            registered=known.registered,
            own_peer=next(iter([*own, *pins]), None),
            initial_peers=AddressBook(folder / ADDRESSES_FILE).multiaddrs(BOOK_DIALS),
            folder=folder / LISTENER_FOLDER,
        )
        source = Source(indexer, folder / INDEX_FILE, facts, listening, own, pins)
        listening.on_change(source.news.tell_gossip)
        indexer.start()
        stack.callback(indexer.stop)
        listening.start()
        stack.callback(listening.stop)
        say(f"board at {url_of(*listener.getsockname()[:2])}")
        _serve(make_app(source, options.per_minute), listener, source, indexer)
        indexer.check()


class _Server(uvicorn.Server):
    """Ends its streams when it is told to stop, and stops when the indexer has failed."""

    def __init__(self, config: uvicorn.Config, source: Source, indexer: Indexer) -> None:
        super().__init__(config)
        self._source, self._indexer = source, indexer

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGINT and SIGTERM, in the main thread between two instructions of the loop."""
        self._source.news.is_over = True
        self._source.news.tell()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether to stop."""
        return self._indexer.has_failed or await super().on_tick(counter)


def _serve(app: FastAPI, listener: socket.socket, source: Source, indexer: Indexer) -> None:
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="asyncio",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # what a stranger writes there is not where it comes from
        timeout_graceful_shutdown=STOP_SECONDS,
        limit_concurrency=1024,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    asyncio.run(_Server(config, source, indexer).serve(sockets=[listener]))


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except Timeout:
        raise SwarmError(f"another board of this swarm runs with {folder}: use another --home") from None
    except OSError as error:
        raise SwarmError(f"cannot make {folder}: {error.strerror}; choose another --home") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise SwarmError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; --listen names another"
        ) from error
    with contextlib.closing(listener):
        # What is accepted inherits it. asyncio sets it only where the protocol's number is named, and an
        # answer is two writes: without it each waits 40 ms for the other side's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener


def _own_peers(settings: Settings, folder: Path) -> dict[bytes, Path]:
    """The peer that lives in this home, with its record of itself."""
    if not settings.identity_path.exists():
        return {}
    return {Identity.load(settings.identity_path).peer: folder / "state.sqlite"}


def _peer_of(pin: str) -> bytes:
    try:
        return peer_digest(pin)
    except IdentityError as error:
        raise UsageError(f"--pin: {error}") from error

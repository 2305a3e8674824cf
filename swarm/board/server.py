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

import uvicorn
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

INDEX_FILE, LOCK_FILE = "board.sqlite", "board.lock"
STOP_SECONDS = 1  # for answers under way


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    home: Path
    host: str
    port: int  # 0: any free one
    per_minute: int  # requests of one caller; 0: any number
    pins: tuple[str, ...]  # ids of peers that are the user's too
    public_line: str | None  # the join line that the page shows


def run_board(options: Options, ledger: LedgerClient, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; call from the main thread. `say` gets the URL once it is served.

    `SwarmError` in one line if it cannot begin. `ledger` answered just now; it may go away later.
    """
    settings = Settings(home=options.home)
    folder = settings.swarm_dir(ledger.swarm_id, ledger.address, ledger.genesis)
    own = _own_peers(settings, options.pins, folder)
    with ExitStack() as stack:
        stack.enter_context(_hold(folder))
        listener = stack.enter_context(_listen(options.host, options.port))
        Index(folder / INDEX_FILE).close()  # whether it can be used is said here
        facts = view.swarm_facts(ledger, options.public_line)
        indexer = Indexer(ledger.another(), folder / INDEX_FILE)
        listening = Listening(
            indexer.manifest,
            ledger.genesis,
            now=indexer.now,
            current=indexer.draw,
            bootnodes=indexer.bootnodes,
            registered=indexer.registered,
            own_peer=next(iter(own), None),
            initial_peers=AddressBook(folder / ADDRESSES_FILE).multiaddrs(BOOK_DIALS),
        )
        source = Source(indexer, folder / INDEX_FILE, facts, listening, own)
        listening.on_change(source.news.tell_gossip)
        indexer.start()
        stack.callback(indexer.stop)
        listening.start()
        stack.callback(listening.stop)
        say(f"board at {url_of(*listener.getsockname()[:2])}")
        _serve(make_app(source, options.per_minute), listener)
        indexer.check()


def _serve(app: object, listener: socket.socket) -> None:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="httptools",
        loop="asyncio",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        limit_concurrency=1024,
        h11_max_incomplete_event_size=64 * 1024,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


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


def _own_peers(settings: Settings, pins: tuple[str, ...], folder: Path) -> dict[bytes, Path | None]:
    """The user's peers, each with its record of itself if it lives here."""
    own: dict[bytes, Path | None] = {}
    if settings.identity_path.exists():
        own[Identity.load(settings.identity_path).peer] = folder / "state.sqlite"
    for pin in pins:
        try:
            own.setdefault(peer_digest(pin), None)
        except IdentityError as error:
            raise UsageError(f"--pin: {error}") from error
    return own

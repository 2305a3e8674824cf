"""The board's HTTP side: the API under /api/v1, its stream of events, and the page.

Answers are made once for each state of the index and then served from memory. Nobody can make the board ask
the ledger or write anything.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import resources
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from swarm.board import schema, view
from swarm.board.guard import Guarded
from swarm.board.source import Source
from swarm.board.view import NEVER
from swarm.callers import caller
from swarm.ledger.rpc import LOOPBACK

PREFIX = "/api/v1"
MAX_LIMIT = 500
MAX_KEPT_BYTES = 64 * 2**20  # of answers, of all kinds together
GZIP_BYTES = 1024  # what is shorter is sent as it is
STREAM_SECONDS = 1.0  # between two pulses of one stream, at least
QUIET_SECONDS = 5.0  # after so long without news a pulse is sent all the same

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
Before = Annotated[int | None, Query(ge=0, lt=NEVER)]
Cursor = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,18}\.[0-9]{1,18}$", description="`next` of the page before.")
]
Number = Annotated[int, InPath(ge=0, lt=NEVER)]
PeerName = Annotated[str, InPath(max_length=128, description="A peer's id, its name, or its account.")]

Key = tuple[object, ...]

_TOO_MANY: dict[int | str, dict[str, Any]] = {
    429: {"model": schema.Problem, "description": "Too many requests: see Retry-After."},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": schema.Problem}}


class _Kept(NamedTuple):
    stamp: object  # of what it was made
    tag: str
    body: bytes
    packed: bytes  # gzip


class Answers:
    """The answers that were made last. `current` says of which version of the index one would be now."""

    def __init__(self, current: Callable[[], int]) -> None:
        self._current = current
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._size = 0  # bytes
        self._lock = threading.Lock()  # handlers run in several threads
        self._made = itertools.count()
        self._life = secrets.token_hex(4)  # the count begins anew with the process

    def get(
        self, request: Request, key: Key, make: Callable[[], BaseModel], stamp: object = None
    ) -> Response:
        """The kept answer, or the one that `make` makes now.

        `key` is all that the request asked for. `stamp` is the thing that is shown, if not the index; another
        thing is another answer.
        """
        stamp = self._current() if stamp is None else stamp
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or (kept.stamp is not stamp and kept.stamp != stamp):
            kept = self._make(key, make, stamp)
        headers = {"ETag": kept.tag, "Vary": "Accept-Encoding, Origin"}
        if request.headers.get("if-none-match") == kept.tag:
            return Response(status_code=304, headers=headers)
        if kept.packed and "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(kept.packed, media_type="application/json", headers=headers)
        return Response(kept.body, media_type="application/json", headers=headers)

    def _make(self, key: Key, make: Callable[[], BaseModel], stamp: object) -> _Kept:
        body = make().model_dump_json().encode()
        packed = gzip.compress(body, compresslevel=5) if len(body) > GZIP_BYTES else b""
        with self._lock:
            kept = _Kept(stamp, f'W/"{self._life}-{next(self._made)}"', body, packed)
            if (old := self._kept.pop(key, None)) is not None:
                self._size -= len(old.body) + len(old.packed)
            self._kept[key] = kept
            self._size += len(body) + len(packed)
            while self._size > MAX_KEPT_BYTES and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._size -= len(old.body) + len(old.packed)
        return kept


def make_app(source: Source, per_minute: int) -> FastAPI:
    """The whole application. `per_minute`: requests of one caller; 0: any number."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        source.news.attach()
        yield
        source.news.detach()

    app = FastAPI(
        title="swarm board",
        version="1",
        summary="One swarm, read from its ledger: leaderboard, peers, rounds, audits, gossip.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    answers = Answers(lambda: source.ranks.version)
    for routes in (_swarm_routes, _peer_routes, _round_routes, _live_routes):
        app.include_router(routes(source, answers))
    app.mount("/", StaticFiles(directory=str(resources.files("swarm.board") / "page"), html=True))
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["GET"])
    app.add_middleware(Guarded, per_minute=per_minute)
    return app


def _router() -> APIRouter:
    return APIRouter(prefix=PREFIX, responses=_TOO_MANY)


def _is_user(request: Request) -> bool:
    """Whether a page of this board asks, from this machine: only its user may know which peers are his.

    Not somebody else's page in the same browser (it has another origin, or another host name for us), nor
    anybody behind a proxy (who asked for a public name).
    """
    host = urlsplit(f"//{request.headers.get('host', '')}")
    origin = request.headers.get("origin")
    return host.hostname in LOOPBACK and origin in (None, f"http://{host.netloc}")


def _swarm_routes(source: Source, answers: Answers) -> APIRouter:
    router = _router()

    @router.get("/swarm", response_model=schema.SwarmFacts)
    async def swarm(request: Request) -> Response:
        """What never changes about the swarm."""
        return answers.get(request, ("swarm",), lambda: source.facts)

    @router.get("/leaderboard", response_model=schema.Leaderboard)
    async def leaderboard(request: Request, offset: Offset = 0, limit: Limit = 100) -> Response:
        """Peers that reported, the highest verified contribution times score squared first."""
        own = source.marked_for(_is_user(request))
        key = ("leaderboard", own, offset, limit)
        return answers.get(request, key, lambda: view.leaderboard(source.ranks, own, offset, limit))

    @router.get("/verdicts", response_model=schema.Verdicts)
    def verdicts(request: Request, before: Before = None, limit: Limit = 50) -> Response:
        """Settled audits of all peers, the newest first."""
        key = ("verdicts", before, limit)
        return answers.get(request, key, lambda: _verdicts(source, before, limit, None))

    return router


def _peer_routes(source: Source, answers: Answers) -> APIRouter:
    router = _router()

    def key_of(peer: str) -> bytes:
        key = source.find(peer)
        if key is None:
            raise HTTPException(404, "no peer of this swarm has this id, name or account")
        return key

    @router.get("/peers", response_model=schema.Leaderboard)
    def peers(
        request: Request,
        search: Annotated[str, Query(max_length=128, description="In names, ids and accounts.")] = "",
        peer: Annotated[
            list[Annotated[str, Query(max_length=128)]], Query(max_length=100, description="Just these.")
        ] = [],  # noqa: B006 - FastAPI copies it
        own: Annotated[bool, Query(description="Just those of this board's user.")] = False,
        offset: Offset = 0,
        limit: Limit = 100,
    ) -> Response:
        """Registered peers by rank, those that never reported last."""
        ranks, marked = source.ranks, source.marked_for(_is_user(request))
        if own or peer:
            keys = marked if own else frozenset(key for name in peer if (key := source.find(name)))
            return answers.get(request, ("these", marked, keys), lambda: view.these(ranks, marked, keys))
        asked = ("peers", marked, search, offset, limit)
        return answers.get(request, asked, lambda: view.search(ranks, marked, search, offset, limit))

    @router.get("/peers/{peer}", response_model=schema.PeerPage, responses=_NOT_FOUND)
    def peer_page(request: Request, peer: PeerName) -> schema.PeerPage:
        """One peer."""
        ranks, key = source.ranks, key_of(peer)
        if key not in ranks.place:
            raise HTTPException(404, "this peer is new: ask again in a moment")
        is_user = _is_user(request)
        line = view.line_of(ranks, source.marked_for(is_user), key)
        file = source.file_of(key) if is_user else None
        return view.peer_page(source.index, source.known, line, key, file)

    @router.get("/peers/{peer}/reports", response_model=schema.Reports, responses=_NOT_FOUND)
    def reports_of(request: Request, peer: PeerName, before: Cursor = None, limit: Limit = 50) -> Response:
        """A peer's reports, under all the keys it had, the latest round first."""
        key = key_of(peer)
        asked = ("reports of", key, before, limit)
        return answers.get(request, asked, lambda: _reports_of(source, key, before, limit))

    @router.get("/peers/{peer}/verdicts", response_model=schema.Verdicts, responses=_NOT_FOUND)
    def verdicts_of(request: Request, peer: PeerName, before: Before = None, limit: Limit = 50) -> Response:
        """Settled audits of a peer, the newest first."""
        key = key_of(peer)
        asked = ("verdicts of", key, before, limit)
        return answers.get(request, asked, lambda: _verdicts(source, before, limit, key))

    return router


def _round_routes(source: Source, answers: Answers) -> APIRouter:
    router = _router()

    @router.get("/rounds", response_model=schema.Rounds)
    def rounds(request: Request, before: Before = None, limit: Limit = 50) -> Response:
        """The rounds that have begun, the newest first."""
        return answers.get(request, ("rounds", before, limit), lambda: _rounds(source, before, limit))

    @router.get("/rounds/{number}/reports", response_model=schema.Reports)
    def reports_in(request: Request, number: Number, before: Cursor = None, limit: Limit = 100) -> Response:
        """The reports of a round, those that came last first; none, if there is no such round."""
        asked = ("reports in", number, before, limit)
        return answers.get(request, asked, lambda: _reports_in(source, number, before, limit))

    @router.get("/curve", response_model=schema.Curve)
    def curve(request: Request, points: Annotated[int, Query(ge=2, le=1000)] = 200) -> Response:
        """The swarm's rewards over time."""
        found = partial(source.index.rounds, NEVER, -1)
        return answers.get(request, ("curve", points), lambda: view.curve(found(), points))

    return router


def _live_routes(source: Source, answers: Answers) -> APIRouter:
    router = _router()

    @router.get("/pulse", response_model=schema.Pulse)
    async def pulse() -> schema.Pulse:
        """The swarm right now."""
        return view.pulse(source.known, source.ranks.version)

    @router.get("/health", response_model=schema.Health)
    async def health() -> schema.Health:
        """Whether the board works."""
        return view.health(source.known)

    @router.get("/gossip", response_model=schema.Conversation)
    def gossip(
        request: Request,
        cell: Annotated[
            int | None, Query(ge=0, lt=2**31, description="By default an own peer's, or the first.")
        ] = None,
    ) -> Response:
        """What a cell of the running round says, as far as it was heard; of the last one until then."""
        said = source.overhears.conversation(cell)
        return answers.get(request, ("gossip", cell), lambda: said, stamp=said)

    @router.get(
        "/events",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
                "description": "Server-sent events: `pulse` (as /pulse) when something changed, at most once "
                "a second; `gossip` ({round, cell}) when that cell said something.",
            },
            503: {"model": schema.Problem, "description": "Too many streams."},
        },
    )
    async def events(request: Request) -> StreamingResponse:
        """What happens, as it happens."""
        who = caller(request.client and request.client.host)
        if not source.news.has_room(who):
            raise HTTPException(503, "too many streams: use /pulse")
        return StreamingResponse(_stream(source, who), media_type="text/event-stream")

    return router


async def _stream(source: Source, who: str) -> AsyncIterator[bytes]:
    news, now = source.news, asyncio.get_running_loop().time
    heard, _ = news.heard_since(0)
    with news.waiting(who) as event:
        while not news.is_over:
            event.clear()
            pulse = view.pulse(source.known, source.ranks.version)
            yield format_sse_event(data_str=pulse.model_dump_json(), event="pulse")
            heard, said = news.heard_since(heard)
            for number, cell in said:
                words = json.dumps({"round": number, "cell": cell})
                yield format_sse_event(data_str=words, event="gossip")
            began = now()
            quiet = min(QUIET_SECONDS, max(STREAM_SECONDS, pulse.stage_ends_at - source.known.clock()))
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), quiet)
            if not news.is_over:
                await asyncio.sleep(STREAM_SECONDS - (now() - began))


def _verdicts(source: Source, before: int | None, limit: int, key: bytes | None) -> schema.Verdicts:
    found = source.index.verdicts(NEVER if before is None else before, limit + 1, key)
    more = str(found[limit - 1][0]) if len(found) > limit else None
    return view.verdicts(found[:limit], more)


def _reports_of(source: Source, key: bytes, before: str | None, limit: int) -> schema.Reports:
    index = source.index
    found = index.reports_of(key, _cursor(before), limit + 1)
    more = f"{found[limit - 1].report.round}.{found[limit - 1].seq}" if len(found) > limit else None
    rows = view.reports(index, source.known, found, limit, are_one_peers=True)
    return schema.Reports(reports=rows, next=more)


def _reports_in(source: Source, number: int, before: str | None, limit: int) -> schema.Reports:
    index = source.index
    found = index.reports_in(number, _cursor(before)[1], limit + 1)
    more = f"{number}.{found[limit - 1].seq}" if len(found) > limit else None
    rows = view.reports(index, source.known, found, limit, are_one_peers=False)
    return schema.Reports(reports=rows, next=more)


def _cursor(before: str | None) -> tuple[int, int]:
    """(round, seq) below which a page is."""
    if before is None:
        return NEVER, NEVER
    number, _, seq = before.partition(".")
    return int(number), int(seq)


def _rounds(source: Source, before: int | None, limit: int) -> schema.Rounds:
    found = source.index.rounds(NEVER if before is None else before, limit + 1)
    more = found[limit - 1].number if len(found) > limit else None
    return view.rounds(source.index, source.known, found[:limit], more)

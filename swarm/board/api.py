"""The board's HTTP side: the API under /api/v1, its stream of events, and the page.

Answers are made once for each state of the index and then served from memory. Nobody can make the board ask
the ledger or write anything.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib import resources
from typing import Annotated, Any, NamedTuple

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

PREFIX = "/api/v1"
MAX_LIMIT = 500
MAX_KEPT_ANSWERS = 1024
GZIP_BYTES = 1024  # what is shorter is sent as it is
MAX_STREAMS = 256  # at once, of all
STREAM_SECONDS = 1.0  # between two pulses of one stream, at least
QUIET_SECONDS = 10.0  # after so long without news a pulse is sent all the same

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
Before = Annotated[int | None, Query(ge=0, lt=NEVER)]
Cursor = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,18}\.[0-9]{1,18}$", description="`next` of the page before.")
]
Number = Annotated[int, InPath(ge=0, lt=NEVER)]
PeerName = Annotated[str, InPath(max_length=128, description="A peer's id, its name, or its account.")]

_TOO_MANY: dict[int | str, dict[str, Any]] = {
    429: {"model": schema.Problem, "description": "Too many requests: see Retry-After."},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": schema.Problem}}


class _Kept(NamedTuple):
    version: int
    body: bytes
    packed: bytes  # gzip


class Answers:
    """The answers that were made last, each with the version of the index that it is of."""

    def __init__(self, current: Callable[[], int]) -> None:
        self._current = current
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()  # handlers run in several threads
        self._life = secrets.token_hex(4)  # versions begin anew with the process

    def get(self, request: Request, make: Callable[[], BaseModel]) -> Response:
        """The kept answer to this request, or the one that `make` makes now."""
        key = f"{request.url.path}?{request.url.query}"
        version = self._current()
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or kept.version != version:
            body = make().model_dump_json().encode()
            packed = gzip.compress(body, compresslevel=5) if len(body) > GZIP_BYTES else b""
            kept = _Kept(version, body, packed)
            with self._lock:
                self._kept[key] = kept
                self._kept.move_to_end(key)
                while len(self._kept) > MAX_KEPT_ANSWERS:
                    self._kept.popitem(last=False)
        headers = {"ETag": f'W/"{self._life}-{version}"', "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        if kept.packed and "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(kept.packed, media_type="application/json", headers=headers)
        return Response(kept.body, media_type="application/json", headers=headers)


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
    app.include_router(_swarm_routes(source))
    app.include_router(_peer_routes(source))
    app.include_router(_round_routes(source))
    app.include_router(_live_routes(source))
    app.mount("/", StaticFiles(directory=str(resources.files("swarm.board") / "page"), html=True))
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["GET"])
    app.add_middleware(Guarded, per_minute=per_minute)
    return app


def _router() -> APIRouter:
    return APIRouter(prefix=PREFIX, responses=_TOO_MANY)


def _swarm_routes(source: Source) -> APIRouter:
    router, answers = _router(), Answers(lambda: source.ranks.version)

    @router.get("/swarm", response_model=schema.SwarmFacts)
    async def swarm(request: Request) -> Response:
        """What never changes about the swarm."""
        return answers.get(request, lambda: source.facts)

    @router.get("/leaderboard", response_model=schema.Leaderboard)
    async def leaderboard(request: Request, offset: Offset = 0, limit: Limit = 100) -> Response:
        """Peers that reported, the highest verified contribution times score squared first."""
        return answers.get(request, lambda: view.leaderboard(source.ranks, offset, limit))

    @router.get("/verdicts", response_model=schema.Verdicts)
    def verdicts(request: Request, before: Before = None, limit: Limit = 50) -> Response:
        """Settled audits of all peers, the newest first."""
        return answers.get(request, lambda: _verdicts(source, before, limit, None))

    return router


def _peer_routes(source: Source) -> APIRouter:
    router, answers = _router(), Answers(lambda: source.ranks.version)

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
        ranks = source.ranks
        if own:
            return answers.get(request, lambda: view.these(ranks, source.own))
        if peer:
            keys = [key for name in dict.fromkeys(peer) if (key := source.find(name)) is not None]
            return answers.get(request, lambda: view.these(ranks, keys))
        return answers.get(request, lambda: view.search(ranks, search, offset, limit))

    @router.get("/peers/{peer}", response_model=schema.PeerPage, responses=_NOT_FOUND)
    def peer_page(peer: PeerName) -> schema.PeerPage:
        """One peer."""
        key = key_of(peer)
        ranks = source.ranks
        rank = ranks.rows[ranks.place[key]]
        return view.peer_page(source.index, source.indexer, rank, key, source.own.get(key))

    @router.get("/peers/{peer}/reports", response_model=schema.Reports, responses=_NOT_FOUND)
    def reports_of(request: Request, peer: PeerName, before: Cursor = None, limit: Limit = 50) -> Response:
        """A peer's reports, under all the keys it had, the latest round first."""
        key = key_of(peer)
        return answers.get(request, lambda: _reports_of(source, key, before, limit))

    @router.get("/peers/{peer}/verdicts", response_model=schema.Verdicts, responses=_NOT_FOUND)
    def verdicts_of(request: Request, peer: PeerName, before: Before = None, limit: Limit = 50) -> Response:
        """Settled audits of a peer, the newest first."""
        key = key_of(peer)
        return answers.get(request, lambda: _verdicts(source, before, limit, key))

    return router


def _round_routes(source: Source) -> APIRouter:
    router, answers = _router(), Answers(lambda: source.ranks.version)

    @router.get("/rounds", response_model=schema.Rounds)
    def rounds(request: Request, before: Before = None, limit: Limit = 50) -> Response:
        """The rounds that have begun, the newest first."""
        return answers.get(request, lambda: _rounds(source, before, limit))

    @router.get("/rounds/{number}/reports", response_model=schema.Reports)
    def reports_in(request: Request, number: Number, before: Cursor = None, limit: Limit = 100) -> Response:
        """The reports of a round, those that came last first; none, if there is no such round."""
        return answers.get(request, lambda: _reports_in(source, number, before, limit))

    @router.get("/curve", response_model=schema.Curve)
    def curve(request: Request, points: Annotated[int, Query(ge=2, le=1000)] = 200) -> Response:
        """The swarm's rewards over time."""
        return answers.get(request, lambda: view.curve(source.index.rounds(NEVER, -1), points))

    return router


def _live_routes(source: Source) -> APIRouter:
    router = _router()

    @router.get("/pulse", response_model=schema.Pulse)
    async def pulse() -> schema.Pulse:
        """The swarm right now."""
        return view.pulse(source.indexer)

    @router.get("/health", response_model=schema.Health)
    async def health() -> schema.Health:
        """Whether the board works."""
        return view.health(source.indexer)

    @router.get("/gossip", response_model=schema.Conversation)
    def gossip(
        cell: Annotated[
            int | None, Query(ge=0, lt=2**31, description="Null: an own peer's, or the first.")
        ] = None,
    ) -> schema.Conversation:
        """What a cell of the running round says, as far as it was heard; of the last one until then."""
        return source.overhears.conversation(cell)

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
        if source.news.streams >= MAX_STREAMS:
            raise HTTPException(503, "too many streams: use /pulse")
        return StreamingResponse(_stream(source), media_type="text/event-stream")

    return router


async def _stream(source: Source) -> AsyncIterator[bytes]:
    news = source.news
    event = news.event()
    heard = news.heard
    try:
        while True:
            event.clear()
            pulse = view.pulse(source.indexer)
            yield format_sse_event(data_str=pulse.model_dump_json(), event="pulse")
            if news.heard != heard and news.gossip is not None:
                heard = news.heard
                said = json.dumps(dict(zip(("round", "cell"), news.gossip, strict=True)))
                yield format_sse_event(data_str=said, event="gossip")
            await asyncio.sleep(STREAM_SECONDS)
            quiet = min(QUIET_SECONDS, max(0.0, pulse.stage_ends_at - source.indexer.now()))
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), quiet)
    finally:
        news.forget(event)


def _verdicts(source: Source, before: int | None, limit: int, key: bytes | None) -> schema.Verdicts:
    found = source.index.verdicts(NEVER if before is None else before, limit + 1, key)
    more = str(found[limit - 1][0]) if len(found) > limit else None
    return view.verdicts(found[:limit], more)


def _reports_of(source: Source, key: bytes, before: str | None, limit: int) -> schema.Reports:
    index = source.index
    found = index.reports_of(key, _cursor(before), limit + 1)
    more = f"{found[limit - 1].report.round}.{found[limit - 1].seq}" if len(found) > limit else None
    rows = view.reports(index, source.indexer, found, limit, are_one_peers=True)
    return schema.Reports(reports=rows, next=more)


def _reports_in(source: Source, number: int, before: str | None, limit: int) -> schema.Reports:
    index = source.index
    found = index.reports_in(number, _cursor(before)[1], limit + 1)
    more = f"{number}.{found[limit - 1].seq}" if len(found) > limit else None
    rows = view.reports(index, source.indexer, found, limit, are_one_peers=False)
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
    return view.rounds(source.index, source.indexer, found[:limit], more)

"""A board without a swarm: the page's files, and answers that a test makes up, by the models of the API.

`Scene` holds what the API answers and can be changed while a browser looks on; `Stage` serves it on a port of
its own, pushes events to whoever listens, and can go away and come back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mimetypes
import queue
import random
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel

import swarm.board
from swarm.board import schema as api

PAGE = Path(swarm.board.__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ROUND_SECONDS = 20
STAGES = [("answer", 0.25), ("critique", 0.4), ("revise", 0.55), ("learn", 0.92), ("report", 1.0)]
_WORDS = [
    "amber",
    "brisk",
    "cedar",
    "delta",
    "ember",
    "fable",
    "grove",
    "hazel",
    "ivory",
    "jolly",
    "karma",
    "lemon",
    "mango",
    "noble",
    "ocean",
    "pearl",
    "quilt",
    "river",
    "sable",
    "tulip",
    "urban",
    "vivid",
    "willow",
    "xenon",
    "yodel",
    "zebra",
]
_SPOKEN = ("answers", "critiques", "revisions")


def digest(*of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()


def peer_id(n: int) -> str:
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    number = int(digest("peer", n), 16)
    letters = []
    for _ in range(42):
        number, k = divmod(number, len(alphabet))
        letters.append(alphabet[k])
    return "QmPe" + "".join(letters)


def rank(n: int, *, own: bool = False, reported: bool = True, name: str | None = None) -> api.Rank:
    """The line of the peer that is number `n` of its swarm, counted from 0."""
    dice = random.Random(n)
    rounds = 40 + dice.randrange(20)
    score = max(20_000, 960_000 - 7_000 * n + dice.randrange(30_000))
    trend = [
        None if dice.random() < 0.12 else 600_000 + k * 40_000 + dice.randrange(500_000) for k in range(24)
    ]
    failed = dice.randrange(4) == 0
    return api.Rank(
        rank=n + 1 if reported else None,
        peer=peer_id(n),
        name=name or " ".join(dice.sample(_WORDS, 3)),
        account="0x" + digest("account", n)[:40],
        rounds=rounds if reported else 0,
        ranked_rounds=rounds - failed - dice.randrange(4) if reported else 0,
        verified_reward=max(1, 98_765_432 - 9_000 * n - dice.randrange(8_000)) if reported else 0,
        claimed_reward=99_765_432 - 9_000 * n if reported else 0,
        score=score if reported else 0,
        value=0,
        audits_passed=dice.randrange(5, 40) if reported else 0,
        audits_failed=int(failed) if reported else 0,
        eligible=not failed,
        trend=trend if reported else [],
        last_round=56 if reported else None,
        own=own,
    )


def report(line: api.Rank, round_number: int, **changes: object) -> api.Report:
    dice = random.Random(f"{line.peer} {round_number}")
    facts: dict[str, object] = {
        "peer": line.peer,
        "round": round_number,
        "at": int(time.time()) - ROUND_SECONDS * (57 - round_number),
        "reward": 500_000 + 20_000 * round_number + dice.randrange(400_000),
        "groups": 12,
        "late": round_number % 17 == 5,
        "ranked": None if round_number > 54 else round_number % 17 != 5,
        "outcome": "passed" if round_number % 5 == 0 else None,
        "commitment": digest("commitment", line.peer, round_number),
        "state_before": digest("state", line.peer, round_number),
        "state_after": digest("state", line.peer, round_number + 1),
        "follows": None if round_number == 0 else round_number % 23 != 7,
        "tx": "0x" + digest("tx", line.peer, round_number),
        "block": 1000 + 10 * round_number,
    }
    return api.Report.model_validate({**facts, **changes})


def verdict(line: api.Rank, round_number: int, outcome: str = "passed", detail: str = "") -> api.Verdict:
    voices = [
        api.Voice.model_validate(
            {
                "peer": peer_id(70 + k),
                "name": f"auditor {k}",
                "outcome": "passed" if outcome == "undecided" else outcome,
                "counted": True,
            }
        )
        for k in range(2)
    ]
    faults = [
        api.Fault(
            check="provenance", count=3, detail=detail or "tokens 4, 9 and 12 are not what its model samples"
        )
    ]
    return api.Verdict.model_validate(
        {
            "peer": line.peer,
            "name": line.name,
            "round": round_number,
            "settled_in": round_number + 2,
            "outcome": outcome,
            "audit_class": "tolerant",
            "faults": faults if outcome == "failed" else [],
            "planted": outcome == "failed" and round_number % 2 == 0,
            "voices": voices,
        }
    )


def conversation(
    lines: list[api.Rank], round_number: int = 57, *, cells: int = 1, cell: int = 0
) -> api.Conversation:
    """Eight peers of a cell, on three sums."""
    dice = random.Random(f"{round_number} {cell}")
    peers = lines[cell * 8 : cell * 8 + 8]

    def spoken(stage: str, truth: int) -> list[api.Said]:
        said = []
        for line in peers:
            skill = dice.random() * 0.6 + (0.35 if stage == "revisions" else 0.15)
            shown = (
                [] if stage == "answers" else [other.name for other in dice.sample(peers, min(4, len(peers)))]
            )
            completions = []
            for _ in range(8):
                right = dice.random() < skill
                answer = truth if right else truth + dice.choice([-10, -1, 1, 10])
                names = None if not shown else dice.choice(["A", "A", "B", "C", "none", None])
                text = (
                    f"{names}: the tens do not carry"
                    if stage == "critiques"
                    else f"I carry the one and get {answer}."
                )
                completions.append(api.Completion(text=text, cut=False, score=float(right), names=names))
            said.append(api.Said(peer=line.peer, name=line.name, shown=shown, completions=completions))
        return said

    threads = []
    for _ in range(3):
        a, b = dice.randrange(10, 99), dice.randrange(10, 99)
        parts = {stage: spoken(stage, a + b) for stage in _SPOKEN}
        threads.append(api.Thread(question=f"What is {a} + {b}?", answer=str(a + b), proposed_by="", **parts))
    return api.Conversation(
        round=round_number,
        cell=cell,
        cells=cells,
        heard=["answer", "critique", "revise"],
        peers=len(peers),
        threads=threads,
        left_out={"late": 2},
        trouble="",
    )


class Scene:
    """What the API answers right now. Change it under `lock`, then `Stage.push`."""

    def __init__(
        self, peers: int = 40, *, silent: int = 0, own: tuple[int, ...] = (3,), rounds: int = 57
    ) -> None:
        self.lock = threading.RLock()
        self.began = time.time()
        self.rounds = rounds
        self.genesis = int(self.began) - ROUND_SECONDS * max(0, rounds) - 3
        self.lines = [rank(n, own=n in own) for n in range(peers)]
        self.silent = [rank(peers + n, reported=False) for n in range(silent)]
        self.ledger = "ok"
        self.trouble = ""
        self.version = 1
        self.cells = max(1, -(-peers // 16))
        self.verdicts = [
            verdict(
                self.lines[n % peers], 55 - n, ("passed", "passed", "failed", "passed", "undecided")[n % 5]
            )
            for n in range(30 if peers else 0)
        ]
        self.talk = {0: conversation(self.lines)} if peers else {}
        self.reports: dict[str, list[api.Report]] = {}
        self.asked: list[str] = []

    def facts(self) -> api.SwarmFacts:
        return api.SwarmFacts(
            swarm=digest("swarm"),
            name="morning sums",
            address="0x" + digest("contract")[:40],
            chain_id=31337,
            deployment_block=1,
            genesis=self.genesis,
            round_seconds=ROUND_SECONDS,
            stages=[api.StageTime(name=name, ends_at=end) for name, end in STAGES],
            cell_size=16,
            group_size=8,
            rewards={"answer": 1.0, "critique": 0.5, "revise": 1.0},
            tasks=["arithmetic"],
            models=["tiny"],
            join="0x" + digest("contract")[:40] + "@http://127.0.0.1:8545",
        )

    def pulse(self) -> api.Pulse:
        now = time.time()
        number = int((now - self.genesis) // ROUND_SECONDS)
        start = self.genesis + number * ROUND_SECONDS
        stage, end = next(((s, e) for s, e in STAGES if now < start + e * ROUND_SECONDS), STAGES[-1])
        return api.Pulse.model_validate(
            {
                "at": now,
                "round": number,
                "stage": stage,
                "stage_ends_at": start + end * ROUND_SECONDS,
                "round_ends_at": start + ROUND_SECONDS,
                "alive": len(self.lines) * 9 // 10,
                "reported": len(self.lines) * 4 // 10,
                "cells": self.cells,
                "peers": len(self.lines) + len(self.silent),
                "ledger": self.ledger,
                "trouble": self.trouble,
                "block": 1570,
                "latest_block": 1570,
                "standings_round": number if self.lines else -1,
                "version": self.version,
            }
        )

    def answer(self, path: str, query: dict[str, list[str]]) -> BaseModel | None:
        """None: there is no such thing."""
        parts = path.strip("/").split("/")
        first = lambda key, default: query.get(key, [default])[0]  # noqa: E731
        limit, offset = int(first("limit", "100")), int(first("offset", "0"))
        match parts:
            case ["swarm"]:
                return self.facts()
            case ["pulse"]:
                return self.pulse()
            case ["health"]:
                behind = 0.0 if self.ledger == "ok" else 125.0
                return api.Health.model_validate(
                    {"status": self.ledger, "behind_seconds": behind, "version": "0.1.0"}
                )
            case ["leaderboard"]:
                return self._board(self.lines, offset, limit)
            case ["peers"]:
                found = [*self.lines, *self.silent]
                if "peer" in query:
                    found = [line for line in found if line.peer in query["peer"]]
                if "own" in query:
                    found = [line for line in found if line.own]
                words = first("search", "").lower()
                found = [
                    line
                    for line in found
                    if any(words in t.lower() for t in (line.name, line.peer, line.account))
                ]
                return self._board(found, offset, limit)
            case ["peers", who]:
                line = self._find(who)
                return line and self._peer_page(line)
            case ["peers", who, "reports"]:
                line = self._find(who)
                return line and self._page(
                    api.Reports, "reports", self._reports(line), first("before", None), limit
                )
            case ["peers", who, "verdicts"]:
                found = [v for v in self.verdicts if v.peer == who]
                return self._page(api.Verdicts, "verdicts", found, first("before", None), limit)
            case ["verdicts"]:
                return self._page(api.Verdicts, "verdicts", self.verdicts, first("before", None), limit)
            case ["rounds"]:
                return self._rounds(first("before", None), limit)
            case ["rounds", number, "reports"]:
                reports = [
                    r for line in self.lines[:60] for r in self._reports(line) if r.round == int(number)
                ]
                return self._page(api.Reports, "reports", reports, first("before", None), limit)
            case ["curve"]:
                return self._curve()
            case ["gossip"]:
                cell = int(first("cell", "0"))
                silent = api.Conversation(
                    round=-1,
                    cell=cell,
                    cells=self.cells,
                    heard=[],
                    peers=0,
                    threads=[],
                    left_out={},
                    trouble="",
                )
                return self.talk.get(cell, silent)
        return None

    def _find(self, who: str) -> api.Rank | None:
        return next((line for line in [*self.lines, *self.silent] if who in (line.peer, line.name)), None)

    def _board(self, lines: list[api.Rank], offset: int, limit: int) -> api.Leaderboard:
        as_of = self.rounds if self.lines else -1
        return api.Leaderboard(
            round=as_of, total=len(lines), offset=offset, rows=lines[offset : offset + limit]
        )

    def _reports(self, line: api.Rank) -> list[api.Report]:
        if line.peer not in self.reports:
            numbers = range(self.rounds - 1, self.rounds - 1 - line.rounds, -1)
            self.reports[line.peer] = [report(line, n) for n in numbers if n >= 0]
        return self.reports[line.peer]

    def _peer_page(self, line: api.Rank) -> api.PeerPage:
        reports = self._reports(line)
        return api.PeerPage(
            rank=line,
            age=line.rounds,
            probation_until=5,
            rooted=line.audits_failed == 0,
            state=reports[0].state_after if reports else "",
            commitment=reports[0].commitment if reports else "",
            bindings=[
                api.Binding(
                    block=12, account=line.account, peer=line.peer, tx="0x" + digest("bind", line.peer)
                )
            ],
            doing="sampling answers" if line.own else "",
        )

    def _page(
        self, model: type[BaseModel], key: str, items: list, before: str | None, limit: int
    ) -> BaseModel:
        start = int(before or 0)
        end = start + limit
        return model.model_validate({key: items[start:end], "next": str(end) if end < len(items) else None})

    def _rounds(self, before: str | None, limit: int) -> api.Rounds:
        last = int(before) if before else self.rounds
        numbers = range(last - 1, max(-1, last - 1 - limit), -1)
        found = [
            api.Round(
                round=n,
                began_at=self.genesis + n * ROUND_SECONDS,
                beacon=digest("beacon", n),
                block=10 * n,
                reports=len(self.lines) - n % 3,
                late=n % 3,
                mean_reward=500_000 + 20_000 * n,
                best_reward=900_000 + 21_000 * n,
            )
            for n in numbers
        ]
        return api.Rounds(rounds=found, next=numbers[-1] if numbers and numbers[-1] > 0 else None)

    def _curve(self) -> api.Curve:
        dice = random.Random(1)
        points = []
        for n in range(self.rounds if self.lines else 0):
            mean = int(600_000 + 1_000_000 * (1 - 0.96**n) + dice.randrange(90_000))
            points.append(
                api.Point(
                    round=n, mean=mean, low=int(mean * 0.62), high=int(mean * 1.31), reports=len(self.lines)
                )
            )
        return api.Curve(rounds_per_point=1, points=points)


class Stage:
    """Serves a scene on 127.0.0.1."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.port = 0
        self._listeners: list[queue.Queue[bytes | None]] = []
        self._server: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def open(self) -> None:
        """Starts, on the same port as before if it ran already."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def close(self) -> None:
        """Goes away: nothing is answered and every stream ends."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._connections):  # else those kept alive would go on to be answered
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.hang_up()

    def hang_up(self) -> None:
        """Ends every stream."""
        for listener in self._listeners:
            listener.put(None)
        self._listeners.clear()

    def push(self, changed: bool = True) -> None:
        """Sends a pulse; `changed`: of a new version."""
        with self.scene.lock:
            self.scene.version += changed
            self._send("pulse", self.scene.pulse().model_dump_json())

    def push_gossip(self, cell: int = 0) -> None:
        self._send("gossip", json.dumps({"round": self.scene.talk[cell].round, "cell": cell}))

    def _send(self, event: str, data: str) -> None:
        for listener in list(self._listeners):
            listener.put(f"event: {event}\ndata: {data}\n\n".encode())

    def listen(self) -> Iterator[bytes]:
        listener: queue.Queue[bytes | None] = queue.Queue()
        self._listeners.append(listener)
        with self.scene.lock:
            yield f"event: pulse\ndata: {self.scene.pulse().model_dump_json()}\n\n".encode()
        while (event := listener.get()) is not None:
            yield event


@contextlib.contextmanager
def staged(scene: Scene) -> Iterator[Stage]:
    stage = Stage(scene)
    stage.open()
    try:
        yield stage
    finally:
        stage.close()


def _handler(stage: Stage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            stage._connections.add(self.connection)

        def finish(self) -> None:
            stage._connections.discard(self.connection)
            with contextlib.suppress(OSError):
                super().finish()

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            path = unquote(address.path)
            if path == "/api/v1/events":
                self._stream()
            elif path.startswith("/api/v1/"):
                with stage.scene.lock:
                    stage.scene.asked.append(self.path)
                    answer = stage.scene.answer(path.removeprefix("/api/v1/"), parse_qs(address.query))
                found = answer or api.Problem(detail="there is no such thing")
                self._send(200 if answer else 404, "application/json", found.model_dump_json().encode())
            else:
                file = PAGE / (path.lstrip("/") or "index.html")
                if file.parent != PAGE or not file.is_file():
                    self._send(404, "text/plain", b"no such file")
                else:
                    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
                    self._send(200, kind, file.read_bytes())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def _stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                for event in stage.listen():
                    self.wfile.write(event)
                    self.wfile.flush()
            except OSError:
                pass  # the browser went away

        def log_message(self, *_: object) -> None:
            pass

    return Handler

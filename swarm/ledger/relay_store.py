"""`relay.sqlite`: what a relay has promised to send, how far that is, and what its quotas count."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from swarm.errors import LedgerError

State = Literal["accepted", "sent", "mined", "failed"]
Kind = Literal["registration", "reports", "bootnode", "rotation"]

DAY_SECONDS = 86_400
KEPT_DAYS = 30  # of requests that are done with; the contract itself refuses what is older or repeated
BUSY_SECONDS = 10.0
_SCHEMA_VERSION = 1
# All or nothing, so that a process killed in the middle leaves version 0 and no half of it.
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS swarm (name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
    digest TEXT PRIMARY KEY, kind TEXT NOT NULL, peer BLOB NOT NULL, body BLOB NOT NULL,
    accepted_at REAL NOT NULL, state TEXT NOT NULL, tx TEXT, block INTEGER, error TEXT,
    watched INTEGER NOT NULL DEFAULT 1, cost REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS requests_under_way ON requests (state, watched);
CREATE TABLE IF NOT EXISTS rounds (
    peer BLOB NOT NULL, round INTEGER NOT NULL, digest TEXT NOT NULL, tries INTEGER NOT NULL,
    PRIMARY KEY (peer, round)
);
CREATE INDEX IF NOT EXISTS rounds_of_request ON rounds (digest);
CREATE TABLE IF NOT EXISTS acceptances (
    day INTEGER NOT NULL, kind TEXT NOT NULL, peer BLOB NOT NULL, client TEXT NOT NULL,
    cost REAL NOT NULL DEFAULT 0, late INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS acceptances_of_day ON acceptances (day, kind);
CREATE TABLE IF NOT EXISTS members (
    peer BLOB NOT NULL, account TEXT NOT NULL, invite TEXT, PRIMARY KEY (peer, account)
);
CREATE INDEX IF NOT EXISTS members_of_invite ON members (invite);
PRAGMA user_version = {_SCHEMA_VERSION};
COMMIT;
"""
_ACCEPT = """
INSERT INTO requests (digest, kind, peer, body, accepted_at, cost, state)
VALUES (?, ?, ?, ?, ?, ?, 'accepted')
ON CONFLICT (digest) DO UPDATE SET body = excluded.body, accepted_at = excluded.accepted_at,
    cost = excluded.cost, state = 'accepted', tx = NULL, block = NULL, error = NULL, watched = 1
"""
_COUNT = "INSERT INTO acceptances (day, kind, peer, client, cost, late) VALUES (?, ?, ?, ?, ?, ?)"
_ACCEPT_ROUND = """
INSERT INTO rounds VALUES (?, ?, ?, 1)
ON CONFLICT (peer, round) DO UPDATE SET digest = excluded.digest, tries = tries + 1
"""
_INHERIT = "INSERT OR IGNORE INTO members SELECT ?, account, NULL FROM members WHERE peer = ?"
_MINED = "UPDATE requests SET state = 'mined', tx = ?, block = ?, error = NULL, body = x'' WHERE digest = ?"
_COLUMNS = "digest, kind, peer, accepted_at, cost, state, tx, block, error"


class Promise(Struct, frozen=True, kw_only=True):
    """A request that was accepted, and how far it is."""

    digest: str  # hex; `relay_wire.content_digest`
    kind: Kind
    peer: bytes
    accepted_at: float  # Unix seconds of this machine
    cost: float = 0.0  # ether, at most
    state: State = "accepted"
    tx: str | None = None
    block: int | None = None
    error: str | None = None


class RelayStore:
    """The file in WAL mode, for any thread.

    A write is durable when it returns; `LedgerError` if it cannot be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)  # SQLite's side files take this mode too
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"the relay's file {path} cannot be used: {error}") from error
        if version not in (0, _SCHEMA_VERSION):
            raise LedgerError(f"{path} was written by another version of swarm: use that one, or update")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def belong_to(self, swarm: str) -> None:
        """Write down which swarm the file is of; `LedgerError` if it is another's."""
        found = self._query("SELECT name FROM swarm")
        if not found:
            self._change([("INSERT INTO swarm VALUES (?)", (swarm,))])
        elif found[0][0] != swarm:
            raise LedgerError(
                f"{self._path} is of another swarm ({found[0][0]}): give each relay its own home"
            )

    # Requests.

    def find(self, digest: str) -> Promise | None:
        """The request of this digest, if it was ever accepted."""
        found = self._promises("WHERE digest = ?", digest)
        return found[0] if found else None

    def in_state(self, *states: State) -> list[Promise]:
        """Requests in one of these states, the oldest first."""
        marks = ", ".join("?" for _ in states)
        return self._promises(f"WHERE state IN ({marks}) ORDER BY accepted_at, rowid", *states)

    def body(self, digest: str) -> bytes:
        """A request's JSON; empty once it is mined or failed."""
        found = self._query("SELECT body FROM requests WHERE digest = ?", digest)
        return bytes(found[0][0]) if found else b""

    def watched(self) -> list[Promise]:
        """Those that are mined in blocks which the chain might still take back."""
        return self._promises("WHERE state = 'mined' AND watched = 1 ORDER BY accepted_at, rowid")

    def under_way(self, kind: Kind, peer: bytes) -> list[Promise]:
        """A peer's requests that are accepted or sent."""
        return self._promises("WHERE state IN ('accepted', 'sent') AND kind = ? AND peer = ?", kind, peer)

    def under_way_load(self) -> tuple[int, float]:
        """How many requests are accepted or sent, and what they cost at most together, in ether."""
        query = "SELECT count(*), total(cost) FROM requests WHERE state IN ('accepted', 'sent')"
        count, cost = self._query(query)[0]
        return int(count), float(cost)

    def accept(
        self,
        promise: Promise,
        body: bytes,
        client: str,
        rounds: Sequence[int] = (),
        member: tuple[str, str | None] | None = None,
        *,
        late: int = 0,
        also: Sequence[bytes] = (),
    ) -> None:
        """Promise to send a request: a new one, or again one that failed. Everything that counts is counted.

        `member` is the account and the invite's digest of a peer that is served from now on, `late` how many
        of its reports are late; `also` are peers for which the request counts too.
        """
        row = (promise.digest, promise.kind, promise.peer, body, promise.accepted_at, promise.cost)
        day = _day(promise.accepted_at)
        changes: list[tuple[str, tuple[object, ...]]] = [
            (_ACCEPT, row),
            (_COUNT, (day, promise.kind, promise.peer, client, promise.cost, late)),
            *((_COUNT, (day, promise.kind, peer, client, 0.0, 0)) for peer in also),
            *((_ACCEPT_ROUND, (promise.peer, number, promise.digest)) for number in rounds),
        ]
        if member is not None:
            changes.append(("INSERT OR IGNORE INTO members VALUES (?, ?, ?)", (promise.peer, *member)))
        self._change(changes)

    def held_up(self, digest: str, error: str) -> None:
        """It is tried again; say why it waits."""
        self._change([("UPDATE requests SET error = ? WHERE digest = ?", (error, digest))])

    def sent(self, digest: str, tx: str) -> None:
        """It is in this transaction, which no block has (yet, or any more)."""
        change = "UPDATE requests SET state = 'sent', tx = ?, block = NULL, error = NULL WHERE digest = ?"
        self._change([(change, (tx, digest))])

    def mined(self, promise: Promise, tx: str, block: int | None, successor: bytes | None = None) -> None:
        """It is on the ledger. A successor of its peer is served from now on, if the peer was."""
        changes: list[tuple[str, tuple[object, ...]]] = [(_MINED, (tx, block, promise.digest))]
        if successor is not None:
            changes.append((_INHERIT, (successor, promise.peer)))
        self._change(changes)

    def failed(self, digest: str, error: str) -> None:
        """It is not sent again unless the peer asks."""
        change = "UPDATE requests SET state = 'failed', error = ?, body = x'' WHERE digest = ?"
        self._change([(change, (error, digest))])

    def settle(self, up_to_block: int) -> None:
        """Stop watching what is mined in this block or an earlier one."""
        change = "UPDATE requests SET watched = 0 WHERE state = 'mined' AND watched = 1 AND block <= ?"
        self._change([(change, (up_to_block,))])

    def prune(self, now: float) -> None:
        """Forget what nobody asks for any more."""
        old = "(state = 'failed' OR (state = 'mined' AND watched = 0)) AND accepted_at < ?"
        self._change(
            [
                (f"DELETE FROM requests WHERE {old}", (now - KEPT_DAYS * DAY_SECONDS,)),
                ("DELETE FROM rounds WHERE digest NOT IN (SELECT digest FROM requests)", ()),
                ("DELETE FROM acceptances WHERE day < ?", (_day(now) - 1,)),
            ]
        )

    # What is counted.

    def round(self, peer: bytes, number: int) -> tuple[Promise | None, int]:
        """The request that last had a peer's round in it, and how often the round was accepted."""
        found = self._query("SELECT digest, tries FROM rounds WHERE peer = ? AND round = ?", peer, number)
        return (self.find(found[0][0]), int(found[0][1])) if found else (None, 0)

    def accepted_today(
        self, kind: Kind, now: float, *, client: str | None = None, peer: bytes | None = None
    ) -> int:
        """How often requests of a kind were accepted on this day (UTC): all, of a client, or of a peer."""
        query, values = "SELECT count(*) FROM acceptances WHERE day = ? AND kind = ?", [_day(now), kind]
        if client is not None:
            return int(self._query(f"{query} AND client = ?", *values, client)[0][0])
        if peer is not None:
            return int(self._query(f"{query} AND peer = ?", *values, peer)[0][0])
        return int(self._query(query, *values)[0][0])

    def cost_today(self, now: float) -> float:
        """What is accepted on this day (UTC) costs at most, in ether."""
        return float(self._query("SELECT total(cost) FROM acceptances WHERE day = ?", _day(now))[0][0])

    def late_today(self, peer: bytes, now: float) -> int:
        """How many late reports of a peer were accepted on this day (UTC)."""
        query = "SELECT total(late) FROM acceptances WHERE day = ? AND kind = 'reports' AND peer = ?"
        return int(self._query(query, _day(now), peer)[0][0])

    def is_member(self, peer: bytes, account: str | None = None) -> bool:
        """Whether the relay registered the peer or took an invite from it; with this account, if given."""
        if account is None:
            return bool(self._query("SELECT 1 FROM members WHERE peer = ? LIMIT 1", peer))
        return bool(self._query("SELECT 1 FROM members WHERE peer = ? AND account = ?", peer, account))

    def invite_uses(self, invite: str) -> int:
        """How many peers an invite, given by its digest, let in."""
        return int(self._query("SELECT count(*) FROM members WHERE invite = ?", invite)[0][0])

    # SQLite.

    def _promises(self, rest: str, *parameters: object) -> list[Promise]:
        names = _COLUMNS.split(", ")
        rows = self._query(f"SELECT {_COLUMNS} FROM requests {rest}", *parameters)
        return [Promise(**dict(zip(names, row, strict=True))) for row in rows]

    def _query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(statement, parameters).fetchall()
        except (sqlite3.Error, OverflowError, ValueError) as error:  # 64 bits do not hold every number
            raise LedgerError(f"the relay's file {self._path} cannot be read: {error}") from error

    def _change(self, changes: Sequence[tuple[str, tuple[object, ...]]]) -> None:
        try:
            with self._lock, self._db:
                for statement, parameters in changes:
                    self._db.execute(statement, parameters)
        except (sqlite3.Error, OverflowError, ValueError) as error:
            raise LedgerError(f"the relay's file {self._path} cannot be written: {error}") from error


def _day(unix_seconds: float) -> int:
    return int(unix_seconds // DAY_SECONDS)

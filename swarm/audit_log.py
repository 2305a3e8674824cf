"""A peer's memory of its audits: `audits.sqlite`. What it found of others, what it sealed, what it planted.

A seal is on the ledger for ever, so what opens it is on disk before it goes there.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import msgspec
from msgspec import Struct

from swarm.findings import Findings
from swarm.verde.verdicts import Sealed, Verdict

AUDITS_FILE = "audits.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS audits (
    drawn_in INTEGER NOT NULL, peer BLOB NOT NULL, round INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (peer, round, drawn_in)
);
CREATE TABLE IF NOT EXISTS seals (round INTEGER PRIMARY KEY, seal BLOB NOT NULL);
"""


class Audited(Struct, frozen=True, kw_only=True):
    """One audit that this peer was drawn for."""

    peer: bytes
    round: int
    drawn_in: int
    at: float  # Unix seconds
    verdict: Verdict | None = None  # None: it could not be judged
    findings: Findings | None = None
    words: str = ""  # where there are no findings, why
    seconds: float = 0.0
    fetched_bytes: int = 0


class KeptSeal(Struct, frozen=True):
    """The seal of one report."""

    round: int  # the report's
    sealed: Sealed
    planted: bool = False  # the next round has the fault that was registered for it


class AuditLog:
    """One writer, any number of readers in other processes; for any thread."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._lock = threading.Lock()
        if read_only:
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=5, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def save(self, audited: Audited) -> None:
        """Keep an audit."""
        self._change(
            "INSERT OR REPLACE INTO audits VALUES (?, ?, ?, ?)",
            (audited.drawn_in, audited.peer, audited.round, msgspec.msgpack.encode(audited)),
        )

    def audits(self, drawn_in: int | None = None, *, since: int = 0) -> list[Audited]:
        """Those of the cases that were drawn in one round, or in all from `since` on; oldest first."""
        if not self._query("SELECT name FROM sqlite_master WHERE name = 'audits'"):
            return []  # a reader may come before its writer
        first, last = (since, 2**62) if drawn_in is None else (drawn_in, drawn_in)
        rows = self._query(
            "SELECT record FROM audits WHERE drawn_in BETWEEN ? AND ? ORDER BY drawn_in, round, peer",
            (first, last),
        )
        return [msgspec.msgpack.decode(row, type=Audited) for row in rows]

    def audit(self, peer: bytes, round_number: int, drawn_in: int) -> Audited | None:
        """One of them; None if it is not done."""
        rows = self._query(
            "SELECT record FROM audits WHERE peer = ? AND round = ? AND drawn_in = ?",
            (peer, round_number, drawn_in),
        )
        return msgspec.msgpack.decode(rows[0], type=Audited) if rows else None

    def keep(self, seal: KeptSeal) -> None:
        """Keep what opens a seal, durably."""
        self._change("INSERT OR REPLACE INTO seals VALUES (?, ?)", (seal.round, msgspec.msgpack.encode(seal)))

    def seal_of(self, round_number: int) -> KeptSeal | None:
        """The seal of a round's report; None if there was none."""
        rows = self._query("SELECT seal FROM seals WHERE round = ?", (round_number,))
        return msgspec.msgpack.decode(rows[0], type=KeptSeal) if rows else None

    def last_plant(self) -> int | None:
        """The last round that was to hold a planted fault, of recent ones; None if none was."""
        for row in self._query("SELECT seal FROM seals ORDER BY round DESC LIMIT 64"):
            seal = msgspec.msgpack.decode(row, type=KeptSeal)
            if seal.sealed.plant is not None:
                return seal.round + 1
        return None

    def _change(self, statement: str, values: tuple[object, ...]) -> None:
        with self._lock, self._db:
            self._db.execute(statement, values)

    def _query(self, statement: str, values: tuple[object, ...] = ()) -> list[bytes]:
        """The first column."""
        with self._lock:
            return [row[0] for row in self._db.execute(statement, values)]

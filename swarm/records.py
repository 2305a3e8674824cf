"""A peer's own memory of its rounds: `state.sqlite`. The node writes it; the demo and the board read it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
from msgspec import Struct

# All or nothing, so that a reader who comes too early sees version 0 and no half of it.
_SCHEMA_VERSION = 1
_SCHEMA = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS rounds (round INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS status (one INTEGER PRIMARY KEY CHECK (one = 1), status BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS begun (round INTEGER PRIMARY KEY);
PRAGMA user_version = {_SCHEMA_VERSION};
COMMIT;
"""


class RoundRecord(Struct, frozen=True, kw_only=True):
    """One round that this peer played; written before its report is sent, and again with the receipt."""

    round: int
    rewards: dict[str, float]  # mean reward of each stage
    groups: int
    external_groups: int
    reward_micros: int
    commitment: str  # hex, as are the states' digests
    state_before: str
    state_after: str
    dropped: dict[str, int] = {}  # what others sent and we refused, by reason
    tx: str | None = None  # None until the report is on the ledger
    late: bool = False  # reported after the round's end: keeps the chain, is not ranked


class Status(Struct, frozen=True, kw_only=True):
    """What the peer is doing right now."""

    peer_id: str
    name: str
    state: str  # "starting", "waiting", or the name of a stage
    round: int | None = None


class Records:
    """`state.sqlite` in WAL mode: one writer, any number of readers in other processes."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        if read_only:
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=5)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def exist(self) -> bool:
        """Whether the writer has made its tables; a reader may come before."""
        return self._db.execute("PRAGMA user_version").fetchone()[0] == _SCHEMA_VERSION

    def save(self, record: RoundRecord) -> None:
        """Insert or replace a round's record, durably."""
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO rounds VALUES (?, ?)", (record.round, msgspec.json.encode(record))
            )

    def rounds(self) -> list[RoundRecord]:
        """All rounds, oldest first."""
        rows = self._db.execute("SELECT record FROM rounds ORDER BY round").fetchall()
        return [msgspec.json.decode(row[0], type=RoundRecord) for row in rows]

    def begin(self, number: int) -> None:
        """Note, durably, that a round is about to be played."""
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO begun VALUES (?)", (number,))

    def last_begun(self) -> int:
        """The last round that was begun, finished or not; -1 before the first."""
        return self._db.execute("SELECT coalesce(max(round), -1) FROM begun").fetchone()[0]

    def unreported(self, since: int) -> list[RoundRecord]:
        """Rounds from `since` on that are not on the ledger as far as we know."""
        return [record for record in self.rounds() if record.round >= since and record.tx is None]

    def set_status(self, status: Status) -> None:
        """Replace the status."""
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO status VALUES (1, ?)", (msgspec.json.encode(status),))

    def status(self) -> Status | None:
        """The last status, or None before the first."""
        row = self._db.execute("SELECT status FROM status").fetchone()
        return msgspec.json.decode(row[0], type=Status) if row else None

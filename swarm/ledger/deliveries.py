"""`outbox.sqlite`: what a peer has to say on the ledger, and how far each report is.

Written by the node's thread (`put`) and the outbox's; read by anybody's.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from swarm.errors import LedgerError
from swarm.ledger.records import Report

State = Literal["queued", "sent", "mined", "failed"]

# All or nothing, so that a reader who comes too early sees version 0 and no half of it.
_SCHEMA_VERSION = 2
_SCHEMA = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS deliveries (
    round INTEGER PRIMARY KEY, report BLOB NOT NULL, parcel TEXT, state TEXT NOT NULL, tx TEXT,
    late_rounds INTEGER, block INTEGER, watched INTEGER NOT NULL DEFAULT 1, error TEXT
);
CREATE INDEX IF NOT EXISTS unfinished ON deliveries (state, watched);
PRAGMA user_version = {_SCHEMA_VERSION};
COMMIT;
"""
_COLUMNS = "round, report, parcel, state, tx, late_rounds, block, error"


class Delivery(Struct, frozen=True, kw_only=True):
    """One report on its way. `late_rounds` and `block` are known once it is mined.

    `error` says what holds it up.
    """

    round: int
    report: Report
    parcel: str | None = None  # the reports that are sent together have one; fixed before anything is sent
    state: State = "queued"
    tx: str | None = None
    late_rounds: int | None = None  # the clock's round when it came in, minus its own
    block: int | None = None
    error: str | None = None

    @property
    def late(self) -> bool | None:
        """Whether it came in after its round; None until it is mined."""
        return None if self.late_rounds is None else self.late_rounds > 0


class Deliveries:
    """The file in WAL mode. What is written is durable, else `LedgerError`."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        if read_only:
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5, check_same_thread=False)
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

    @property
    def exist(self) -> bool:
        """Whether the writer has made its tables; a reader may come before."""
        return bool(self._query("PRAGMA user_version")[0][0] == _SCHEMA_VERSION)

    def put(self, *reports: Report) -> None:
        """Queue rounds' reports; those that are there already stay as they are."""
        self._change(
            "INSERT OR IGNORE INTO deliveries (round, report, state) VALUES (?, ?, 'queued')",
            [(report.round, msgspec.msgpack.encode(report)) for report in reports],
        )

    def all(self) -> list[Delivery]:
        """Every delivery, oldest round first."""
        return [_delivery(row) for row in self._query(f"SELECT {_COLUMNS} FROM deliveries ORDER BY round")]

    def open(self) -> list[Delivery]:
        """Those that are queued or sent, oldest first."""
        return [
            _delivery(row)
            for row in self._query(
                f"SELECT {_COLUMNS} FROM deliveries WHERE state IN ('queued', 'sent') ORDER BY round"
            )
        ]

    def mined_before(self, number: int) -> Delivery | None:
        """The delivery of the latest round whose report was on the ledger before round `number` began."""
        rows = self._query(
            f"SELECT {_COLUMNS} FROM deliveries WHERE state = 'mined' AND round + late_rounds < {number:d} "
            "ORDER BY round DESC LIMIT 1"
        )
        return _delivery(rows[0]) if rows else None

    def watched(self) -> list[Delivery]:
        """Those that are mined in blocks that the chain might still take back."""
        return [
            _delivery(row)
            for row in self._query(
                f"SELECT {_COLUMNS} FROM deliveries WHERE state = 'mined' AND watched ORDER BY round"
            )
        ]

    def pack(self, parcel: str, rounds: Sequence[int]) -> None:
        """Fix which reports are sent together."""
        self._change(
            "UPDATE deliveries SET parcel = ? WHERE round = ?", [(parcel, number) for number in rounds]
        )

    def unpack(self, rounds: Sequence[int], error: str | None = None) -> None:
        """Queue reports again, each for itself."""
        self._change(
            "UPDATE deliveries SET parcel = NULL, state = 'queued', tx = NULL, error = ? WHERE round = ?",
            [(error, number) for number in rounds],
        )

    def sent(self, rounds: Sequence[int], tx: str | None, error: str | None = None) -> None:
        """They are in this transaction, which no block has yet; `error` says why, if that is known.

        `tx` is None while only a relay knows it.
        """
        self._change(
            "UPDATE deliveries SET state = 'sent', tx = ?, error = ? WHERE round = ?",
            [(tx, error, number) for number in rounds],
        )

    def held_up(self, rounds: Sequence[int], error: str) -> None:
        """They are tried again; say why they wait."""
        self._change(
            "UPDATE deliveries SET error = ? WHERE round = ?", [(error, number) for number in rounds]
        )

    def mined(self, number: int, tx: str | None, *, late_rounds: int, block: int) -> None:
        """The report is on the ledger."""
        self._change(
            "UPDATE deliveries SET state = 'mined', tx = coalesce(?, tx), late_rounds = ?, block = ?, "
            "watched = 1, error = NULL WHERE round = ?",
            [(tx, late_rounds, block, number)],
        )

    def failed(self, number: int, error: str) -> None:
        """The ledger will never take the report."""
        self._change("UPDATE deliveries SET state = 'failed', error = ? WHERE round = ?", [(error, number)])

    def settle(self, up_to_block: int) -> None:
        """Stop watching what is mined in this block or an earlier one."""
        self._change("UPDATE deliveries SET watched = 0 WHERE watched AND block <= ?", [(up_to_block,)])

    def _change(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._using(), self._db:
            self._db.executemany(statement, rows)

    def _query(self, statement: str) -> list[tuple[Any, ...]]:
        with self._using():
            return self._db.execute(statement).fetchall()

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OverflowError) as error:  # a full disk; a number that does not fit
                raise LedgerError(f"the outbox {self._path} cannot be used: {error}") from error


def _delivery(row: tuple[Any, ...]) -> Delivery:
    number, report, parcel, state, tx, late_rounds, block, error = row
    return Delivery(
        round=number,
        report=msgspec.msgpack.decode(report, type=Report),
        parcel=parcel,
        state=state,
        tx=tx,
        late_rounds=late_rounds,
        block=block,
        error=error,
    )

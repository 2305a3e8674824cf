"""The file behind an account's queue: every transaction that was signed and may still count, in SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from swarm.errors import LedgerError
from swarm.ledger.fees import Fees

State = Literal["sent", "mined", "reverted", "displaced"]

KEPT_ROWS = 1_000  # settled ones; older keys are forgotten
BUSY_SECONDS = 10.0
_SCHEMA_VERSION = 1
# All or nothing, so that a process killed in the middle leaves version 0 and no half of it.
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS transactions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    nonce INTEGER NOT NULL,
    state TEXT NOT NULL,
    watched INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_key ON transactions (key);
CREATE INDEX IF NOT EXISTS by_state ON transactions (state, watched);
PRAGMA user_version = {_SCHEMA_VERSION};
COMMIT;
"""


class Payload(Struct, frozen=True):
    """What all versions of a transaction have in common, beside the nonce."""

    chain_id: int
    to: str  # "" creates a contract
    data: str  # hex
    value: int  # wei
    gas: int


class Version(Struct, frozen=True):
    """A transaction signed with one offer of fees."""

    tx: str
    raw: bytes
    fees: Fees


class Row(Struct, frozen=True, kw_only=True):
    """One nonce of the account and what became of it."""

    id: int = 0  # 0 until it is in the file
    key: str
    nonce: int
    state: State = "sent"
    payload: Payload
    versions: list[Version]  # oldest first; at most one of them can ever be in a chain
    priced_at: float  # when the newest version was signed, in Unix seconds of this machine
    priced_block: int  # the latest block then
    used_seen: tuple[int, float] | None = None  # block and time when the nonce was first seen used, not by us
    mined_tx: str | None = None
    block_number: int | None = None
    block_hash: bytes | None = None
    gas_used: int | None = None
    contract_address: str | None = None
    error: str | None = None  # why it reverted or was displaced; before that, why the server did not take it
    stuck: str | None = None  # why it is not signed again with higher fees
    watch_until: int | None = None  # the block that ends the watch for reorganizations

    @property
    def tx(self) -> str:
        """The hash of the version in the chain, or else of the newest."""
        return self.mined_tx or self.versions[-1].tx


class QueueStore:
    """Rows of one account on one chain. Each write is on the disk when it returns.

    Processes that write hold the queue's lock, readers need none. A file that cannot be read or written
    leaves as a `LedgerError`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._speaking():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite's side files take this mode too
            self._db = sqlite3.connect(
                path,
                timeout=BUSY_SECONDS,
                isolation_level=None,  # each statement is a transaction
                check_same_thread=False,  # callers promise one thread at a time, not always the same one
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(_SCHEMA)
            elif version != _SCHEMA_VERSION:
                raise LedgerError(f"{path} was written by another version of swarm: use that one, or update")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def find(self, key: str) -> Row | None:
        """The row that speaks for the key: the one that is mined, or else the newest."""
        found = self._rows("WHERE key = ? ORDER BY state = 'mined' DESC, id DESC LIMIT 1", key)
        return found[0] if found else None

    def unsettled(self) -> list[Row]:
        """Rows whose fate is open, the lowest nonce first."""
        return self._rows("WHERE state = 'sent' ORDER BY nonce")

    def watched(self) -> list[Row]:
        """Settled rows that a reorganization could still change."""
        return self._rows("WHERE state != 'sent' AND watched = 1")

    def held_nonces(self, first: int) -> set[int]:
        """Nonces from `first` on that belong to rows of this file."""
        query = "SELECT nonce FROM transactions WHERE nonce >= ? AND state != 'displaced'"
        with self._speaking():
            return {nonce for (nonce,) in self._db.execute(query, (first,))}

    def insert(self, row: Row) -> Row:
        """Add a row; the row with its id."""
        query = "INSERT INTO transactions (key, nonce, state, watched, record) VALUES (?, ?, ?, ?, ?)"
        with self._speaking():
            number = self._db.execute(query, self._columns(row)).lastrowid
        return msgspec.structs.replace(row, id=number)

    def save(self, row: Row) -> Row:
        """Overwrite the row of this id; the row itself."""
        query = "UPDATE transactions SET key = ?, nonce = ?, state = ?, watched = ?, record = ? WHERE id = ?"
        with self._speaking():
            self._db.execute(query, (*self._columns(row), row.id))
        return row

    def delete(self, row: Row) -> None:
        """Forget a row; only for one that no server has."""
        with self._speaking():
            self._db.execute("DELETE FROM transactions WHERE id = ?", (row.id,))

    def prune(self) -> None:
        """Forget the oldest rows of which nothing more can come."""
        settled = "FROM transactions WHERE state != 'sent' AND watched = 0"
        oldest = f"(SELECT id {settled} ORDER BY id DESC LIMIT 1 OFFSET {KEPT_ROWS})"
        with self._speaking():
            self._db.execute(f"DELETE {settled} AND id <= {oldest}")

    def _rows(self, rest: str, *parameters: str) -> list[Row]:
        with self._speaking():
            found = self._db.execute(f"SELECT id, record FROM transactions {rest}", parameters).fetchall()
            rows = [(number, msgspec.json.decode(record, type=Row)) for number, record in found]
        return [msgspec.structs.replace(row, id=number) for number, row in rows]

    def _columns(self, row: Row) -> tuple[str, int, str, bool, bytes]:
        return row.key, row.nonce, row.state, row.watch_until is not None, msgspec.json.encode(row)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, msgspec.MsgspecError, OverflowError, ValueError) as error:
            raise LedgerError(f"the queue of transactions {self._path} cannot be used: {error}") from error

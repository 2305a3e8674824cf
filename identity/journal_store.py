"""The journal's SQLite file: made, checked and opened so that a committed write survives a power cut."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from identity.errors import IdentityError
from identity.files import check_private, sync_folder

APPLICATION_ID = 0x73776A31  # "swj1", in the file's header
VERSION = 1
BUSY_SECONDS = 5

# `epoch` counts the events after which every scope must listen; `reason` is the last one's.
# `digest` is NULL where two different ones were claimed.
SCHEMA = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
    "CREATE TABLE owner (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), peer BLOB NOT NULL,"
    " epoch INTEGER NOT NULL, reason TEXT NOT NULL)",
    "CREATE TABLE scopes (scope TEXT PRIMARY KEY, watermark INTEGER NOT NULL DEFAULT -1,"
    " listened_round INTEGER NOT NULL DEFAULT -1, listened_epoch INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID",
    "CREATE TABLE slots (scope TEXT NOT NULL, round INTEGER NOT NULL, stage INTEGER NOT NULL,"
    " digest BLOB CHECK (digest IS NULL OR length(digest) = 32),"
    " PRIMARY KEY (scope, round, stage)) WITHOUT ROWID",
)


class Store:
    """One connection, shared by threads under a lock; processes exclude each other by SQLite's own locks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._db = _connect(path)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries that see one moment; SQLite's errors become `IdentityError`."""
        with self._transaction("BEGIN", "cannot read", "if it is damaged, move it away") as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection inside a transaction that is on disk when the block ends without an exception."""
        advice = "nothing was signed; is the disk full, read-only, or the file in use?"
        with self._transaction("BEGIN IMMEDIATE", "cannot write", advice) as db:
            yield db

    @contextmanager
    def _transaction(self, begin: str, what: str, advice: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute(begin)
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                finally:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise IdentityError(f"{what} {self.path}: {error}; {advice}") from error

    def close(self) -> None:
        """Fold the write-ahead log into the file, if no one else has it open, and let go of it."""
        with self._lock:
            self._db.close()


def _connect(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite gives its own files beside this one the same mode, and drops a log that was left of a
        # deleted file, since it finds the new one empty. An existing file is not opened here: closing it
        # would take away the locks that another connection of this process has on it (fcntl(2)).
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            sync_folder(path.parent)
        check_private(path, path.stat())
    except OSError as error:
        raise IdentityError(f"cannot open {path}: {error.strerror}; choose another --home") from error
    try:
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
    except sqlite3.OperationalError as error:
        raise IdentityError(f"cannot open {path}: {error}; is the disk full or the file in use?") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone does not reach the disk there
    # What a killed process left in the log may not have reached the disk yet; from here on it counts.
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    db.execute("BEGIN IMMEDIATE")
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
        for statement in SCHEMA:
            db.execute(statement)
    db.execute("COMMIT")
    application, version = (
        db.execute(f"PRAGMA {x}").fetchone()[0] for x in ("application_id", "user_version")
    )
    if application != APPLICATION_ID:
        raise IdentityError(f"{path} is not a journal: move it away")
    if version != VERSION:
        raise IdentityError(f"{path} is a journal of format {version}, not {VERSION}: update swarm-rl")
    verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _damaged(path, verdict)


def _damaged(path: Path, detail: str) -> IdentityError:
    return IdentityError(
        f"{path} is damaged ({' '.join(detail.split())}): restore it from a backup, "
        "or move it away and the node will listen a round before it speaks"
    )

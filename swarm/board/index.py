"""The ledger's events in SQLite, and what follows from them: whatever the board shows of the past.

Everything here can be made anew from the chain. One writer (`swarm.board.indexer`), any number of readers.
`seq` numbers events in the ledger's order; a peer is a small number, whatever key it has now.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from swarm.board.index_reader import IndexReader
from swarm.errors import SwarmError
from swarm.ledger.logs import Logged
from swarm.ledger.records import Block, Registered, Reported
from swarm.verde.cases import Settled

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE peers (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, current INTEGER NOT NULL);
CREATE INDEX peers_by_current ON peers (current);
CREATE TABLE reports (
    seq INTEGER PRIMARY KEY, peer INTEGER NOT NULL, round INTEGER NOT NULL, late INTEGER NOT NULL,
    groups INTEGER NOT NULL, reward INTEGER NOT NULL, commitment BLOB NOT NULL, state_before BLOB NOT NULL,
    state_after BLOB NOT NULL, verdicts BLOB NOT NULL, tx BLOB NOT NULL, block INTEGER NOT NULL,
    ranked INTEGER
);
CREATE INDEX reports_by_peer ON reports (peer, round);
CREATE INDEX reports_by_round ON reports (round);
CREATE INDEX late_reports ON reports (round) WHERE late;
CREATE TABLE bindings (
    seq INTEGER PRIMARY KEY, peer INTEGER NOT NULL, successor INTEGER, account TEXT NOT NULL,
    tx BLOB NOT NULL, block INTEGER NOT NULL
);
CREATE TABLE rounds (
    number INTEGER PRIMARY KEY, block INTEGER NOT NULL, timestamp INTEGER NOT NULL, hash BLOB NOT NULL,
    last_seq INTEGER NOT NULL, reports INTEGER, mean INTEGER, best INTEGER, low INTEGER, high INTEGER
);
CREATE TABLE verdicts (
    id INTEGER PRIMARY KEY, peer INTEGER NOT NULL, round INTEGER NOT NULL, settled_in INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX verdicts_by_peer ON verdicts (peer, round);
CREATE TABLE checkpoints (block INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE swarm (one INTEGER PRIMARY KEY CHECK (one = 1), facts BLOB NOT NULL);
"""
# Of the last blocks all checkpoints stay; of those before, for a deep reorganization, one in many.
ALL_CHECKPOINTS, SPARSE_BLOCKS = 512, 4096


class Index(IndexReader):
    """The file's one writer, for one thread."""

    def __init__(self, path: Path) -> None:
        """`SwarmError` if it cannot be opened. One of another version is begun anew."""
        self._ids: dict[bytes, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=5, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last blocks: read again
            if self._db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                self._begin_anew()
        except (sqlite3.Error, OSError) as error:
            raise SwarmError(
                f"cannot use the board's index {path}: {error}; delete it and start again"
            ) from error
        self._ids = dict(self._keys())

    def begin(self, facts: bytes) -> None:
        """Say of which swarm this is; an index of another one is begun anew."""
        row = self._db.execute("SELECT facts FROM swarm").fetchone()
        if row is not None and bytes(row[0]) != facts:
            self._begin_anew()
        self._db.execute("INSERT OR REPLACE INTO swarm VALUES (1, ?)", (facts,))

    def add(self, events: Sequence[Logged], checkpoint: Block) -> None:
        """Add what came up to a block, all or nothing."""
        try:
            self._add(events, checkpoint)
        except BaseException:
            self._ids = dict(self._keys())
            raise

    def _add(self, events: Sequence[Logged], checkpoint: Block) -> None:
        seq = self.last_seq()
        reports: list[tuple[object, ...]] = []
        bindings: list[tuple[object, ...]] = []
        with self._transaction():
            for number, event in enumerate(events, seq + 1):
                tx = bytes.fromhex(event.tx[2:])
                if isinstance(event, Reported):
                    reports.append(
                        (
                            number,
                            self._id(event.peer),
                            event.round,
                            event.late,
                            event.groups,
                            event.reward_micros,
                            event.commitment,
                            event.state_before,
                            event.state_after,
                            event.verdicts,
                            tx,
                            event.block_number,
                        )
                    )
                elif isinstance(event, Registered):
                    bindings.append(
                        (number, self._id(event.peer), None, event.account, tx, event.block_number)
                    )
                else:
                    old, new = self._id(event.old), self._id(event.new)
                    bindings.append((number, old, new, "", tx, event.block_number))
                    self._follow(old, new)
            self._db.executemany("INSERT INTO reports VALUES (?,?,?,?,?,?,?,?,?,?,?,?,NULL)", reports)
            self._db.executemany("INSERT INTO bindings VALUES (?,?,?,?,?,?)", bindings)
            self._db.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (checkpoint.number, checkpoint.hash)
            )
            self._db.execute(
                "DELETE FROM checkpoints WHERE block < ?1 AND block NOT IN "
                "(SELECT min(block) FROM checkpoints WHERE block < ?1 GROUP BY block / ?2)",
                (checkpoint.number - ALL_CHECKPOINTS, SPARSE_BLOCKS),
            )

    def enter(self, number: int, first: Block, settled: Iterable[Settled]) -> None:
        """Add a round that has begun, with the cases that this settled, and sum up the one before."""
        with self._transaction():
            # `last_seq` is of the last event before the round began.
            before = self._seq_before(first.number)
            self._db.execute(
                "INSERT INTO rounds VALUES (?, ?, ?, ?, ?, NULL, NULL, NULL, NULL, NULL)",
                (number, first.number, first.timestamp, first.hash, before),
            )
            self._db.executemany(
                "INSERT INTO verdicts (peer, round, settled_in, record) VALUES (?, ?, ?, ?)",
                [
                    (self._id(one.peer), one.round, one.settled_in, msgspec.msgpack.encode(one))
                    for one in settled
                ],
            )
            self._sum_up(number - 1)

    def rank(self, ranked: Iterable[tuple[bool, int, bytes]]) -> None:
        """Say of (whether it counts, round, a key of the peer's) whether reports are ranked."""
        with self._transaction():
            self._db.executemany(
                "UPDATE reports SET ranked = ?1 WHERE round = ?2 AND peer IN "
                "(SELECT id FROM peers WHERE current = (SELECT current FROM peers WHERE id = ?3)) "
                "AND ranked IS NOT ?1",
                [(value, number, self._ids.get(key)) for value, number, key in ranked],
            )

    def take_back(self, block: int) -> int:
        """Forget what was in later blocks; the last round that stays, -1 if none does."""
        with self._transaction():
            for table in ("reports", "bindings", "checkpoints", "rounds"):
                self._db.execute(f"DELETE FROM {table} WHERE block > ?", (block,))
            last = self.last_round()
            self._db.execute("DELETE FROM verdicts WHERE settled_in > ?", (last,))
            self._db.execute(
                "UPDATE rounds SET reports = NULL, mean = NULL, best = NULL, low = NULL, high = NULL "
                "WHERE number = ?",
                (last,),
            )
            self._db.execute("UPDATE peers SET current = id")
            for old, new in self._db.execute(
                "SELECT peer, successor FROM bindings WHERE successor IS NOT NULL ORDER BY seq"
            ).fetchall():
                self._follow(old, new)
        return last

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    def _begin_anew(self) -> None:
        with self._transaction():
            for (table,) in self._db.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                self._db.execute(f'DROP TABLE "{table}"')
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._ids.clear()

    def _id(self, key: bytes) -> int:
        number = self._ids.get(key)
        if number is None:
            number = len(self._ids) + 1
            self._db.execute("INSERT INTO peers VALUES (?1, ?2, ?1)", (number, key))
            self._ids[key] = number
        return number

    def _follow(self, old: int, new: int) -> None:
        """All that is the old key's is the new one's."""
        self._db.execute(
            "UPDATE peers SET current = ? WHERE current = (SELECT current FROM peers WHERE id = ?)",
            (new, old),
        )

    def _sum_up(self, number: int) -> None:
        rewards = np.array(
            [row[0] for row in self._db.execute(
                "SELECT reward FROM reports WHERE round = ? AND NOT late", (number,)
            )],
            dtype=np.int64,
        )  # fmt: skip
        sums = (0, 0, 0, 0, 0)
        if len(rewards):
            low, high = np.quantile(rewards, (0.1, 0.9), method="nearest")
            sums = (len(rewards), int(rewards.sum()) // len(rewards), int(rewards.max()), int(low), int(high))
        self._db.execute(
            "UPDATE rounds SET reports = ?, mean = ?, best = ?, low = ?, high = ? WHERE number = ?",
            (*sums, number),
        )


class _Transaction:
    """All or nothing; the connection commits nothing by itself."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:  # on a full disk SQLite has rolled back by itself
            self._db.execute("ROLLBACK")

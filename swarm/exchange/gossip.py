"""`gossip.sqlite`: what this peer heard of others, from whom, and what it dropped and why.

The exchange writes it; `swarm status` and the board read it, in other processes. It is a log: nothing depends
on it, so a disk that fails costs the log and nothing else. Most of what is in it hostile peers can cause at
will, so all of it is bounded: 2 MB in memory, 90 MB on disk (measured, 256 rounds at every limit).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from swarm.exchange import wire

log = logging.getLogger(__name__)

GOSSIP_FILE = "gossip.sqlite"

MAX_HEARD = 256  # of one round and stage, on disk; a cell has about 16 peers
MAX_DROPS = 1000  # rows of one round, on disk, that name a peer; those beyond are counted under their reason
MAX_EQUIVOCATIONS = 64  # of one round, on disk; two envelopes each, of 2 KiB at most
MAX_PENDING = 2000  # of heard and of drops, and 64 equivocations, in memory until the next flush
MAX_REASONS = 200
MAX_REASON_CHARS = 120
MAX_ID_BYTES = 64  # of a peer; ids are shorter, but a DHT subkey may be anything
ROUNDS_AHEAD = 2  # a peer's clock may be before ours; what is still farther ahead is no round of ours
OTHER_REASONS = "other reasons"

# NOBODY instead of NULL, which equals nothing and so would never be found again by a primary key.
NOBODY = b""

# All or nothing, so that a reader who comes too early sees version 0 and no half of it.
_SCHEMA_VERSION = 1
_SCHEMA = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS heard (
    round INTEGER, stage INTEGER, peer BLOB, at REAL NOT NULL,
    blob BLOB NOT NULL, blob_bytes INTEGER NOT NULL, groups INTEGER NOT NULL,
    fetched_bytes INTEGER, seconds REAL,
    PRIMARY KEY (round, stage, peer)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drops (
    round INTEGER, reason TEXT, peer BLOB, via BLOB, count INTEGER NOT NULL, last_at REAL NOT NULL,
    PRIMARY KEY (round, reason, peer, via)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS equivocations (
    round INTEGER, stage INTEGER, peer BLOB, at REAL NOT NULL, first BLOB NOT NULL, second BLOB NOT NULL,
    PRIMARY KEY (round, stage, peer)
);
PRAGMA user_version = {_SCHEMA_VERSION};
COMMIT;
"""
_TABLES = ("heard", "drops", "equivocations")


class _Slot(NamedTuple):
    round: int
    stage: int
    peer: bytes


class _Heard(NamedTuple):
    at: float
    blob: bytes
    blob_bytes: int
    groups: int
    fetched_bytes: int | None = None
    seconds: float | None = None


class _DropKey(NamedTuple):
    round: int
    reason: str
    peer: bytes
    via: bytes


class _Drops(NamedTuple):
    times: int
    last_at: float


class _Evidence(NamedTuple):
    at: float
    first: bytes
    second: bytes


class _Gathered:
    """What happened since the last flush. However much is added, it stays small."""

    def __init__(self) -> None:
        self.heard: dict[_Slot, _Heard] = {}
        self.drops: dict[_DropKey, _Drops] = {}
        self.equivocations: dict[_Slot, _Evidence] = {}

    def __bool__(self) -> bool:
        return bool(self.heard or self.drops or self.equivocations)

    def add_heard(self, slot: _Slot, heard: _Heard) -> None:
        known = self.heard.get(slot)
        if known is None:
            if len(self.heard) < MAX_PENDING:
                self.heard[slot] = heard
        elif known.fetched_bytes is None:
            self.heard[slot] = known._replace(fetched_bytes=heard.fetched_bytes, seconds=heard.seconds)

    def add_drops(self, key: _DropKey, drops: _Drops) -> None:
        if key not in self.drops and len(self.drops) >= MAX_PENDING:
            key = key._replace(peer=NOBODY, via=NOBODY)
        known = self.drops.get(key)
        self.drops[key] = _Drops(drops.times + (known.times if known else 0), drops.last_at)

    def add_equivocation(self, slot: _Slot, evidence: _Evidence) -> None:
        if len(self.equivocations) < MAX_EQUIVOCATIONS:
            self.equivocations.setdefault(slot, evidence)

    def add(self, later: _Gathered) -> None:
        for slot, heard in later.heard.items():
            self.add_heard(slot, heard)
        for key, drops in later.drops.items():
            self.add_drops(key, drops)
        for slot, evidence in later.equivocations.items():
            self.add_equivocation(slot, evidence)

    def forget_before(self, oldest: int) -> None:
        self.heard = {slot: heard for slot, heard in self.heard.items() if slot.round >= oldest}
        self.drops = {key: drops for key, drops in self.drops.items() if key.round >= oldest}
        self.equivocations = {
            slot: evidence for slot, evidence in self.equivocations.items() if slot.round >= oldest
        }


class Gossip:
    """The log's one writer. Any thread may call its methods; only `flush` and `close` touch the disk.

    `path` None keeps the totals only. `current_round` is asked at each call and must neither block nor raise.
    The log keeps the current round and the `keep_rounds` before it.
    """

    def __init__(
        self, path: Path | None, *, current_round: Callable[[], int], keep_rounds: int = 256
    ) -> None:
        self._path = path
        self._current_round = current_round
        self._keep_rounds = keep_rounds
        self._lock = threading.Lock()  # around what is in memory
        self._totals: Counter[str] = Counter()
        self._gathered = _Gathered()
        self._flushing = threading.Lock()  # around what is below
        self._db: sqlite3.Connection | None = None
        self._pruned_before: int | None = None
        self._failing = False

    def heard(self, heard: wire.Heard) -> None:
        """The exchange calls it once for each announcement that it accepted."""
        self._add_heard(heard)

    def fetched(self, heard: wire.Heard, size_bytes: int, seconds: float) -> None:
        """The exchange calls it when the announcement's blob is here; `seconds` is 0.0 if it already was."""
        self._add_heard(heard, size_bytes, seconds)

    def dropped(
        self, reason: str, *, peer: bytes | None = None, via: bytes | None = None, round: int | None = None
    ) -> None:
        """The exchange calls it for whatever it refuses.

        `reason` is one of few, short. `peer` is who made it by its own words, proved or not, `via` the libp2p
        peer that handed it over; both as 32-byte digests. `round` is believed if it is one that the log
        keeps; else, and by default, the drop counts in the current round.
        """
        current = self._current_round()
        key = _DropKey(
            round=round if round is not None and self._keeps(round, current) else current,
            reason=_printable(reason[:MAX_REASON_CHARS]),
            peer=(peer or NOBODY)[:MAX_ID_BYTES],
            via=(via or NOBODY)[:MAX_ID_BYTES],
        )
        with self._lock:
            if key.reason not in self._totals and len(self._totals) >= MAX_REASONS:
                key = key._replace(reason=OTHER_REASONS)
            self._totals[key.reason] += 1
            self._gathered.add_drops(key, _Drops(1, time.time()))

    def equivocated(self, peer: bytes, round: int, stage: int, first: bytes, second: bytes) -> None:
        """The exchange calls it when it holds two different envelopes of a peer for one round and stage.

        Both are kept as they are, so that anyone can check them again with `wire.open_envelope`.
        """
        if self._keeps(round, self._current_round()):
            with self._lock:
                self._gathered.add_equivocation(
                    _Slot(round, stage, peer), _Evidence(time.time(), first, second)
                )

    @property
    def totals(self) -> Counter[str]:
        """How much was dropped so far in this life, by reason (a copy)."""
        with self._lock:
            return self._totals.copy()

    def flush(self) -> None:
        """Write what was gathered, in one transaction, and delete old rounds. Blocks; never raises.

        The exchange calls it about once a second, in a thread. What cannot be written waits for the next
        call; the first failure in a row is logged.
        """
        with self._flushing:
            oldest = self._current_round() - self._keep_rounds
            with self._lock:
                gathered, self._gathered = self._gathered, _Gathered()
            if self._path is None or not (gathered or oldest != self._pruned_before):
                return
            gathered.forget_before(oldest)
            try:
                if self._db is None:
                    self._db = _open(self._path)
                _write(self._db, gathered, oldest)
            except (sqlite3.Error, OSError) as error:
                with self._lock:
                    gathered.add(self._gathered)
                    self._gathered = gathered
                self._close_file()
                if not self._failing:
                    log.warning(
                        "gossip not written file=%s error=%r: make room on the disk, or delete the file",
                        self._path,
                        str(error),
                    )
                self._failing = True
            else:
                self._pruned_before = oldest
                self._failing = False

    def close(self) -> None:
        """Flush a last time and close the file; what comes later is only counted."""
        self.flush()
        with self._flushing:
            self._close_file()
            self._path = None

    def _add_heard(
        self, heard: wire.Heard, size_bytes: int | None = None, seconds: float | None = None
    ) -> None:
        said = heard.announcement
        if not self._keeps(said.round, self._current_round()):
            return
        entry = _Heard(time.time(), said.blob, said.blob_bytes, said.groups, size_bytes, seconds)
        with self._lock:
            self._gathered.add_heard(_Slot(said.round, said.stage, heard.peer), entry)

    def _keeps(self, number: int, current: int) -> bool:
        return current - self._keep_rounds <= number <= current + ROUNDS_AHEAD

    def _close_file(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=5, check_same_thread=False)  # flushes come from a pool of threads
    try:
        db.execute("PRAGMA journal_mode=WAL")
        # Whole after a crash; a power cut may cost the last seconds. Syncing each second is not worth a log.
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _write(db: sqlite3.Connection, gathered: _Gathered, oldest: int) -> None:
    with db:
        for table in _TABLES:
            db.execute(f"DELETE FROM {table} WHERE round < ?", (oldest,))
        for slot, heard in gathered.heard.items():
            _write_heard(db, slot, heard)
        for key, drops in gathered.drops.items():
            _write_drops(db, key, drops)
        db.executemany(
            "INSERT OR IGNORE INTO equivocations SELECT ?1, ?2, ?3, ?4, ?5, ?6 "
            "WHERE (SELECT count(*) FROM equivocations WHERE round = ?1) < ?7",
            [(*slot, *evidence, MAX_EQUIVOCATIONS) for slot, evidence in gathered.equivocations.items()],
        )


def _write_heard(db: sqlite3.Connection, slot: _Slot, heard: _Heard) -> None:
    """What was heard and fetched first stays."""
    updated = db.execute(
        "UPDATE heard SET fetched_bytes = coalesce(fetched_bytes, ?), seconds = coalesce(seconds, ?) "
        "WHERE round = ? AND stage = ? AND peer = ?",
        (heard.fetched_bytes, heard.seconds, *slot),
    )
    if not updated.rowcount:
        db.execute(
            "INSERT INTO heard SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 "
            "WHERE (SELECT count(*) FROM heard WHERE round = ?1 AND stage = ?2) < ?10",
            (*slot, *heard, MAX_HEARD),
        )


def _write_drops(db: sqlite3.Connection, key: _DropKey, drops: _Drops) -> None:
    """Add to the row of who dropped it and why; without room for one more, to that of the reason alone."""
    updated = db.execute(
        "UPDATE drops SET count = count + ?, last_at = ? "
        "WHERE round = ? AND reason = ? AND peer = ? AND via = ?",
        (*drops, *key),
    )
    if updated.rowcount:
        return
    nobody = key._replace(peer=NOBODY, via=NOBODY)
    inserted = db.execute(
        "INSERT INTO drops SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE ?7 OR "
        "(SELECT count(*) FROM drops WHERE round = ?1 AND (peer != x'' OR via != x'')) < ?8",
        (*key, *drops, key == nobody, MAX_DROPS),
    )
    if not inserted.rowcount:
        _write_drops(db, nobody, drops)


def _printable(text: str) -> str:
    """Reasons may quote peers, and end up in a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)

"""The queries of the journal; each runs inside a transaction of `Store`."""

from __future__ import annotations

import sqlite3

from identity.interchange import ScopeEntry, Slot, SlotEntry


def digest_of(db: sqlite3.Connection, slot: Slot) -> tuple[bytes | None] | None:
    query = "SELECT digest FROM slots WHERE (scope, round, stage) = (?, ?, ?)"
    found: tuple[bytes | None] | None = db.execute(query, slot).fetchone()
    return found


def watermark(db: sqlite3.Connection, scope: str) -> int:
    row = db.execute("SELECT watermark FROM scopes WHERE scope = ?", (scope,)).fetchone()
    return -1 if row is None else int(row[0])


def last_round(db: sqlite3.Connection, scope: str) -> int:
    highest = db.execute("SELECT max(round) FROM slots WHERE scope = ?", (scope,)).fetchone()[0]
    return max(-1 if highest is None else int(highest), watermark(db, scope))


def oldest_kept(db: sqlite3.Connection, scope: str, kept: int) -> int:
    """The oldest of the newest `kept` rounds; 0 if the scope has no more than that."""
    query = "SELECT DISTINCT round FROM slots WHERE scope = ? ORDER BY round DESC LIMIT 2 OFFSET ?"
    rounds = db.execute(query, (scope, kept - 1)).fetchall()
    return int(rounds[0][0]) if len(rounds) == 2 else 0


def raise_watermark(db: sqlite3.Connection, scope: str, lowest: int) -> None:
    """Forget what is at or below the watermark; from here on it cannot be signed."""
    if lowest <= watermark(db, scope):
        return
    db.execute("INSERT OR IGNORE INTO scopes (scope) VALUES (?)", (scope,))
    db.execute("UPDATE scopes SET watermark = ? WHERE scope = ?", (lowest, scope))
    db.execute("DELETE FROM slots WHERE scope = ? AND round <= ?", (scope, lowest))


def is_empty(db: sqlite3.Connection) -> bool:
    """Whether nothing was recorded or imported: the journal of a key that was never used."""
    query = (
        "SELECT (SELECT count(*) FROM slots) + (SELECT count(*) FROM scopes)"
        " + (SELECT reason = 'imported' FROM owner)"
    )
    return bool(db.execute(query).fetchone() == (0,))


def scopes(db: sqlite3.Connection, kept: int) -> list[ScopeEntry]:
    """The newest `kept` rounds of each scope, under a watermark that covers the others."""
    names = db.execute(
        "SELECT scope FROM slots UNION SELECT scope FROM scopes WHERE watermark >= 0 ORDER BY 1"
    )
    entries = []
    for (scope,) in names.fetchall():
        floor = oldest_kept(db, scope, kept) - 1 if kept else last_round(db, scope)
        covered = max(watermark(db, scope), floor)
        query = "SELECT round, stage, digest FROM slots WHERE scope = ? AND round > ? ORDER BY round, stage"
        slots = [
            SlotEntry(round, stage, None if digest is None else digest.hex())
            for round, stage, digest in db.execute(query, (scope, covered))
        ]
        entries.append(ScopeEntry(scope, covered, slots))
    return entries

"""`journal.sqlite`: what a `swarm.pem` has signed, so that it never signs two things for one slot.

The rule is EIP-3076's: a digest is on disk as its slot's only one before it is signed. A process may be
killed, a disk fill up or two nodes share the file at any moment; each slot still has one digest. What the
file cannot know (it was deleted, restored from a copy, or lay unused while a copy of the key worked
elsewhere) it says: then a node listens a round before it speaks.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from pathlib import Path
from typing import Self

from identity.errors import IdentityError, SlotTaken
from identity.interchange import (
    MAX_BYTES,
    MAX_NUMBER,
    SCOPE_PATTERN,
    Document,
    Slot,
    decode_document,
    encode_document,
)
from identity.journal_queries import (
    digest_of,
    is_empty,
    last_round,
    oldest_kept,
    raise_watermark,
    scopes,
    watermark,
)
from identity.journal_store import Store
from identity.key import Identity, peer_id_text


class Journal:
    """Slashing protection for one peer. Threads may share it; processes may open the same file."""

    kept_rounds = 4_096  # per scope; a slot of an older round is refused rather than remembered

    def __init__(self, path: Path, peer: bytes, *, fresh: bool, take_empty: bool) -> None:
        self.path = path
        self.peer = peer
        self._store = Store(path)
        try:
            self._take(fresh, take_empty)
        except BaseException:
            self._store.close()
            raise

    @classmethod
    def create(cls, path: Path, peer: bytes, *, take_empty: bool = False) -> Self:
        """A new journal, for a key that is new too; `IdentityError` if there is one.

        With `take_empty`, another peer's journal that records nothing is taken over.
        """
        return cls(path, peer, fresh=True, take_empty=take_empty)

    @classmethod
    def open(cls, path: Path, peer: bytes, *, take_empty: bool = False) -> Self:
        """The journal of a key that was there before. A missing one is made, and says that it was missing.

        `IdentityError` if the file is open to others, damaged, or another peer's (with `take_empty`, if it
        is another's and records anything; one that records nothing counts as missing).
        """
        return cls(path, peer, fresh=False, take_empty=take_empty)

    def _take(self, fresh: bool, take_empty: bool) -> None:
        """Bind the file to this peer, or find that it is bound to it."""
        with self._store.writing() as db:
            owner = db.execute("SELECT peer FROM owner").fetchone()
            if owner is not None and owner[0] == self.peer:
                if fresh:
                    raise IdentityError(f"{self.path} exists and is never overwritten: move it away first")
                return
            if owner is not None and not (take_empty and is_empty(db)):
                raise IdentityError(
                    f"{self.path} is the journal of peer {peer_id_text(owner[0])}, not of "
                    f"{peer_id_text(self.peer)}: put that peer's swarm.pem back, or move the journal away"
                )
            epoch, reason = (0, "") if fresh else (1, "missing")
            db.execute("INSERT OR REPLACE INTO owner VALUES (1, ?, ?, ?)", (self.peer, epoch, reason))

    def claim(self, slot: Slot, digest: bytes) -> None:
        """Make `digest` (32 bytes) the one that `slot` signs, on disk before this returns.

        The same digest again is fine. `SlotTaken` if the slot has another one, or is so old that it was
        forgotten; `IdentityError` if the claim cannot be written. After either, nothing may be signed.
        """
        _check_slot(slot)
        if len(digest) != 32:
            raise IdentityError(f"a digest has 32 bytes, not {len(digest)}")
        with self._store.writing() as db:
            self._check_owner(db)
            known = digest_of(db, slot)
            if known is not None:
                if known[0] != digest:
                    raise SlotTaken(_taken(slot, known[0]))
                return
            if slot.round <= watermark(db, slot.scope):
                raise SlotTaken(
                    f"round {slot.round} of {slot.scope} is older than the journal goes: nothing was signed"
                )
            db.execute("INSERT INTO slots VALUES (?, ?, ?, ?)", (*slot, digest))
            self._prune(db, slot.scope)

    def sign(self, identity: Identity, slot: Slot, message: bytes) -> bytes:
        """Claim `slot` for SHA-256 of `message`, then sign it; errors as `claim`'s."""
        if identity.peer != self.peer:
            raise IdentityError(f"{self.path} is not the journal of {identity.path}: nothing was signed")
        self.claim(slot, hashlib.sha256(message).digest())
        return identity.sign(message)

    def last_round(self, scope: str) -> int:
        """The highest round claimed in the scope, or forgotten by it; -1 if none."""
        with self._store.reading() as db:
            return last_round(db, scope)

    def reason_to_listen(self, scope: str, current_round: int, stale_rounds: int) -> str | None:
        """Why this node must listen a round before it speaks in this scope; None if it may speak.

        "missing": the key was there, its journal was not. "imported": entries of another journal came in.
        Either holds until the scope has `listened`. "stale": the last thing known of the scope, if any,
        is older than `current_round - stale_rounds`.
        """
        with self._store.reading() as db:
            epoch, reason = db.execute("SELECT epoch, reason FROM owner").fetchone()
            row = db.execute("SELECT listened_round, listened_epoch FROM scopes WHERE scope = ?", (scope,))
            listened_round, listened_epoch = row.fetchone() or (-1, 0)
            last = max(last_round(db, scope), listened_round)
        if epoch > listened_epoch:
            return str(reason)
        return "stale" if 0 <= last < current_round - stale_rounds else None

    def listened(self, scope: str, round: int) -> None:
        """Record, on disk, that all of `round` was listened to in `scope`, and nothing of ours was heard."""
        _check_slot(Slot(scope, round, 0))
        with self._store.writing() as db:
            self._check_owner(db)
            db.execute("INSERT OR IGNORE INTO scopes (scope) VALUES (?)", (scope,))
            db.execute(
                "UPDATE scopes SET listened_round = max(listened_round, ?),"
                " listened_epoch = (SELECT epoch FROM owner) WHERE scope = ?",
                (round, scope),
            )

    def export(self) -> bytes:
        """All of it as a `swarm-journal/1` document, in a fixed order.

        A journal too large for a document loses its oldest rounds in it: they are covered by the watermarks.
        """
        kept = self.kept_rounds
        with self._store.reading() as db:
            while len(document := encode_document(self.peer, scopes(db, kept))) > MAX_BYTES and kept:
                kept //= 2
        return document

    def import_(self, data: bytes) -> int:
        """Merge an exported document, all or nothing; returns how many slots were new.

        Afterwards the node must listen in every scope. A slot that has two different digests now is
        claimed for neither. `IdentityError` if the document is malformed, too big or another peer's.
        """
        document = decode_document(data, self.peer)
        with self._store.writing() as db:
            self._check_owner(db)
            db.execute("UPDATE owner SET epoch = epoch + 1, reason = 'imported'")
            return self._merge(db, document)

    def _merge(self, db: sqlite3.Connection, document: Document) -> int:
        new = 0
        for entry in document.scopes:
            raise_watermark(db, entry.scope, entry.watermark)
            forgotten = watermark(db, entry.scope)
            for their in entry.slots:
                slot = Slot(entry.scope, their.round, their.stage)
                digest = None if their.digest is None else bytes.fromhex(their.digest)
                known = digest_of(db, slot)
                if known is None and slot.round > forgotten:
                    db.execute("INSERT INTO slots VALUES (?, ?, ?, ?)", (*slot, digest))
                    new += 1
                elif known is not None and known[0] != digest:
                    db.execute("UPDATE slots SET digest = NULL WHERE (scope, round, stage) = (?, ?, ?)", slot)
            self._prune(db, entry.scope)
        return new

    def close(self) -> None:
        """Let go of the file. A process that is killed instead loses nothing."""
        self._store.close()

    def _check_owner(self, db: sqlite3.Connection) -> None:
        if db.execute("SELECT peer FROM owner").fetchone() != (self.peer,):
            raise IdentityError(
                f"{self.path} was taken over by another peer: nothing was signed; start again"
            )

    def _prune(self, db: sqlite3.Connection, scope: str) -> None:
        raise_watermark(db, scope, oldest_kept(db, scope, self.kept_rounds) - 1)


def _check_slot(slot: Slot) -> None:
    if not re.match(SCOPE_PATTERN, slot.scope):
        raise IdentityError(f"{slot.scope[:128]!r} is no scope: expected 1 to 128 printable ASCII characters")
    if not (0 <= slot.round <= MAX_NUMBER and 0 <= slot.stage <= MAX_NUMBER):
        raise IdentityError(f"round {slot.round}, stage {slot.stage} of {slot.scope} is out of range")


def _taken(slot: Slot, known: bytes | None) -> str:
    where = f"round {slot.round}, stage {slot.stage} of {slot.scope}"
    if known is None:
        return f"{where} was signed twice, differently, by copies of this swarm.pem: it is not signed again"
    return (
        f"{where} signed something else already, so nothing was signed now: "
        "make sure that no other node uses this swarm.pem"
    )

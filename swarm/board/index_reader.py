"""Reading the board's index: reports, rounds and verdicts as of the last block that was read."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from swarm.ledger.logs import Logged
from swarm.ledger.records import Block, Registered, Reported, Rotated
from swarm.verde.cases import Settled

_REPORT = (
    "SELECT r.seq, k.key, r.round, r.late, r.groups, r.reward, r.commitment, r.state_before, r.state_after, "
    "r.verdicts, r.tx, r.block, r.ranked FROM reports r JOIN peers k ON k.id = r.peer"
)


class KeptReport(Struct, frozen=True, gc=False):
    """A report with its place in the ledger, and whether it is ranked (None: not known yet)."""

    seq: int
    report: Reported
    ranked: bool | None


class KeptRound(Struct, frozen=True, gc=False):
    """A round that has begun, and the sums of its on-time reports if it is over; rewards in micro-units."""

    number: int
    first: Block
    reports: int | None
    mean: int | None
    best: int | None
    low: int | None  # a tenth is below
    high: int | None  # a tenth is above


class Bound(Struct, frozen=True):
    """A registration, or a rotation to the key `peer` (then the account is empty)."""

    peer: bytes
    account: str
    tx: str
    block: int


class IndexReader:
    """The file of `swarm.board.index`, for one thread, while it is written by another."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def last_seq(self) -> int:
        """Of the last event; 0 if there is none."""
        return self._one(
            "SELECT max(coalesce((SELECT max(seq) FROM reports), 0), "
            "coalesce((SELECT max(seq) FROM bindings), 0))"
        )

    def checkpoint(self, below: int | None = None) -> tuple[int, bytes] | None:
        """The last block up to which events were read (below one), with the hash that it had then."""
        return self._db.execute(
            "SELECT block, hash FROM checkpoints WHERE block < ? ORDER BY block DESC LIMIT 1",
            (2**63 - 1 if below is None else below,),
        ).fetchone()

    def last_round(self) -> int:
        """The round that was entered last; -1: none."""
        return self._one("SELECT coalesce(max(number), -1) FROM rounds")

    def events(self, number: int) -> Iterator[Logged]:
        """What happened in the clock's round before round `number` (before round 0: all before it)."""
        (first, last) = (
            self._one("SELECT coalesce((SELECT last_seq FROM rounds WHERE number = ?), 0)", number - 1),
            self._one("SELECT last_seq FROM rounds WHERE number = ?", number),
        )
        return self._between(first, last)

    def events_before(self, block: int, number: int) -> Iterator[Logged]:
        """The same for a round that begins with that block and is not entered yet."""
        first = self._one("SELECT coalesce((SELECT last_seq FROM rounds WHERE number = ?), 0)", number - 1)
        return self._between(first, self._seq_before(block))

    def after(self, seq: int, limit: int = -1) -> list[KeptReport]:
        """Reports after one, in the ledger's order."""
        return self._reports(f"{_REPORT} WHERE r.seq > ? ORDER BY r.seq LIMIT ?", seq, limit)

    def reports_of(self, key: bytes, before: tuple[int, int], limit: int) -> list[KeptReport]:
        """A peer's reports under all its keys, those of the latest rounds first; below (round, seq)."""
        return self._reports(
            f"{_REPORT} WHERE r.peer IN (SELECT id FROM peers WHERE current = "
            "(SELECT current FROM peers WHERE key = ?)) AND (r.round, r.seq) < (?, ?) "
            "ORDER BY r.round DESC, r.seq DESC LIMIT ?",
            key,
            *before,
            limit,
        )

    def reports_in(self, number: int, before: int, limit: int) -> list[KeptReport]:
        """The reports of a round, those that came last first; below a `seq`."""
        return self._reports(
            f"{_REPORT} WHERE r.round = ? AND r.seq < ? ORDER BY r.seq DESC LIMIT ?", number, before, limit
        )

    def rewards_since(self, number: int) -> Iterator[tuple[bytes, int, int]]:
        """(current key, round, reward) of all reports of that round and later ones."""
        return self._db.execute(
            "SELECT c.key, r.round, r.reward FROM reports r JOIN peers k ON k.id = r.peer "
            "JOIN peers c ON c.id = k.current WHERE r.round >= ?",
            (number,),
        )

    def on_time(self, number: int) -> int:
        """How many reports of a round came before its end."""
        return self._one("SELECT count(*) FROM reports WHERE round = ? AND NOT late", number)

    def late_counts(self, first: int, last: int) -> dict[int, int]:
        """How many reports of each of these rounds were late."""
        return dict(
            self._db.execute(
                "SELECT round, count(*) FROM reports WHERE round BETWEEN ? AND ? AND late GROUP BY round",
                (first, last),
            )
        )

    def rounds(self, before: int, limit: int) -> list[KeptRound]:
        """Rounds below one, the newest first; limit -1: all."""
        return [
            KeptRound(number, Block(block, timestamp, bytes(digest)), *sums)
            for number, block, timestamp, digest, *sums in self._db.execute(
                "SELECT number, block, timestamp, hash, reports, mean, best, low, high FROM rounds "
                "WHERE number < ? ORDER BY number DESC LIMIT ?",
                (before, limit),
            )
        ]

    def verdicts(self, before: int, limit: int, key: bytes | None = None) -> list[tuple[int, Settled]]:
        """Settled cases (of a peer), the newest first, each with its number; below one."""
        of = (
            "peer IN (SELECT id FROM peers WHERE current = (SELECT current FROM peers WHERE key = ?)) AND "
            if key is not None
            else ""
        )
        return [
            (number, msgspec.msgpack.decode(record, type=Settled))
            for number, record in self._db.execute(
                f"SELECT id, record FROM verdicts WHERE {of}id < ? ORDER BY id DESC LIMIT ?",
                (*([key] if key is not None else []), before, limit),
            )
        ]

    def outcomes(self, seqs: list[int]) -> dict[int, Settled]:
        """What was settled of these reports, by their `seq`; a few hundred at most."""
        marks = ",".join("?" * len(seqs))
        rows = self._db.execute(
            "SELECT r.seq, v.record FROM reports r JOIN verdicts v ON v.peer = r.peer AND v.round = r.round "
            f"WHERE r.seq IN ({marks})",
            seqs,
        )
        return {seq: msgspec.msgpack.decode(record, type=Settled) for seq, record in rows}

    def bindings_of(self, key: bytes) -> list[Bound]:
        """A peer's registrations and rotations, oldest first."""
        return [
            Bound(bytes(peer), account, "0x" + bytes(tx).hex(), block)
            for peer, account, tx, block in self._db.execute(
                "SELECT coalesce(s.key, k.key), b.account, b.tx, b.block FROM bindings b "
                "JOIN peers k ON k.id = b.peer LEFT JOIN peers s ON s.id = b.successor "
                "WHERE k.current = (SELECT current FROM peers WHERE key = ?) ORDER BY b.seq",
                (key,),
            )
        ]

    def registered(self) -> list[tuple[bytes, str]]:
        """Every peer's current key, and the account that speaks for it."""
        accounts: dict[int, str] = {}
        for current, account in self._db.execute(
            "SELECT k.current, b.account FROM bindings b JOIN peers k ON k.id = b.peer "
            "WHERE b.successor IS NULL ORDER BY b.seq"
        ):
            accounts[current] = account
        keys = {number: key for key, number in self._keys()}
        return [(keys[current], account) for current, account in accounts.items()]

    def current_key(self, key: bytes) -> bytes | None:
        """The key that a peer has now; None if it is unknown."""
        row = self._db.execute(
            "SELECT c.key FROM peers k JOIN peers c ON c.id = k.current WHERE k.key = ?", (key,)
        ).fetchone()
        return bytes(row[0]) if row else None

    def _keys(self) -> Iterator[tuple[bytes, int]]:
        return ((bytes(key), number) for key, number in self._db.execute("SELECT key, id FROM peers"))

    def _seq_before(self, block: int) -> int:
        # Blocks grow with `seq`, so the last of each table is found from its end.
        found = [
            self._db.execute(
                f"SELECT seq FROM {table} WHERE block < ? ORDER BY seq DESC LIMIT 1", (block,)
            ).fetchone()
            for table in ("reports", "bindings")
        ]
        return max((row[0] for row in found if row), default=0)

    def _between(self, first: int, last: int) -> Iterator[Logged]:
        reports = iter(self._reports(f"{_REPORT} WHERE r.seq > ? AND r.seq <= ? ORDER BY r.seq", first, last))
        report = next(reports, None)
        for seq, key, successor, account, tx, block in self._db.execute(
            "SELECT b.seq, k.key, s.key, b.account, b.tx, b.block FROM bindings b "
            "JOIN peers k ON k.id = b.peer LEFT JOIN peers s ON s.id = b.successor "
            "WHERE b.seq > ? AND b.seq <= ? ORDER BY b.seq",
            (first, last),
        ):
            while report is not None and report.seq < seq:
                yield report.report
                report = next(reports, None)
            tx_text = "0x" + bytes(tx).hex()
            if successor is None:
                yield Registered(peer=bytes(key), account=account, tx=tx_text, block_number=block)
            else:
                yield Rotated(old=bytes(key), new=bytes(successor), tx=tx_text, block_number=block)
        while report is not None:
            yield report.report
            report = next(reports, None)

    def _reports(self, statement: str, *values: object) -> list[KeptReport]:
        return [
            KeptReport(
                seq,
                Reported(
                    peer=key,
                    round=number,
                    late=bool(late),
                    groups=groups,
                    reward_micros=reward,
                    commitment=commitment,
                    state_before=before,
                    state_after=after,
                    verdicts=verdicts,
                    tx="0x" + tx.hex(),
                    block_number=block,
                ),
                None if ranked is None else bool(ranked),
            )
            for seq, key, number, late, groups, reward, *digests, block, ranked in self._db.execute(
                statement, values
            )
            for commitment, before, after, verdicts, tx in (digests,)
        ]

    def _one(self, statement: str, *values: object) -> int:
        return int(self._db.execute(statement, values).fetchone()[0])


class Readers:
    """A reader of the file for each thread that asks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def get(self) -> IndexReader:
        """This thread's."""
        found: IndexReader | None = getattr(self._local, "index", None)
        if found is None:
            found = self._local.index = IndexReader(self._path)
        return found

"""A peer's own memory of its rounds: `state.sqlite`. The node writes it; the demo and the board read it.

What became of a round's report is in `outbox.sqlite` (`swarm.ledger.deliveries`).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from swarm.exchange.health import Health
from swarm.ledger.records import Report

if TYPE_CHECKING:  # its libraries take a second
    from swarm.verde.standing import Standing

# All or nothing, so that a reader who comes too early sees version 0 and no half of it.
_SCHEMA_VERSION = 1
_SCHEMA = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS rounds (round INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS status (one INTEGER PRIMARY KEY CHECK (one = 1), status BLOB NOT NULL);
PRAGMA user_version = {_SCHEMA_VERSION};
COMMIT;
"""


# Of a stage: announced by its deadline or only after it; nothing was made; made and not announced.
StageOutcome = Literal["on_time", "late", "empty", "failed"]


class RoundRecord(Struct, frozen=True, kw_only=True):
    """One round that this peer played; written when its state is kept and before it is reported."""

    round: int
    rewards: dict[str, float]  # mean reward of each stage
    groups: int
    external_groups: int
    reward_micros: int
    commitment: str  # hex, as are the states' digests
    state_before: str
    state_after: str
    verdicts: str = ""  # hex: what the report carries of our audits
    dropped: dict[str, int] = {}  # what others sent and we refused, by reason
    tokens: int = 0  # sampled
    seconds: dict[str, float] = {}  # where the round's time went: see `Performer`
    stages: dict[str, StageOutcome] = {}  # and "learn", which announces nothing
    batch_groups: int = 0  # learned from, own and external ones
    at: float = 0.0  # when it was written, in Unix seconds

    @property
    def tokens_per_second(self) -> float | None:
        """While sampling; None if nothing was sampled."""
        seconds = self.seconds.get("sample", 0.0)
        return self.tokens / seconds if self.tokens and seconds else None

    @property
    def external_share(self) -> float | None:
        """Of the batch; None if nothing was learned."""
        return self.external_groups / self.batch_groups if self.batch_groups else None

    @property
    def report(self) -> Report:
        """What goes on the ledger."""
        return Report(
            round=self.round,
            groups=self.groups,
            reward_micros=self.reward_micros,
            commitment=bytes.fromhex(self.commitment),
            state_before=bytes.fromhex(self.state_before),
            state_after=bytes.fromhex(self.state_after),
            verdicts=bytes.fromhex(self.verdicts),
        )


class OwnStanding(Struct, frozen=True, kw_only=True):
    """What the ledger makes of this peer, as of the beginning of a round. See `swarm.verde.standing`."""

    round: int  # that was read last
    score_micros: int
    passes: float  # decayed
    fails: float
    verified_micros: int
    ranked_rounds: int
    audits_passed: int  # by others, of us
    audits_failed: int
    is_eligible: bool
    is_on_probation: bool

    @classmethod
    def of(cls, standing: Standing, number: int) -> OwnStanding:
        """What stays of a standing as of round `number`."""
        return cls(
            round=number,
            score_micros=standing.score_micros,
            passes=standing.passes,
            fails=standing.fails,
            verified_micros=standing.verified_micros,
            ranked_rounds=standing.ranked_rounds,
            audits_passed=standing.audits_passed,
            audits_failed=standing.audits_failed,
            is_eligible=standing.is_eligible,
            is_on_probation=number < standing.probation_until,
        )


class Gpu(Struct, frozen=True, kw_only=True):
    """What this process uses of one GPU."""

    index: int
    allocated_bytes: int
    reserved_bytes: int
    total_bytes: int
    utilization: float | None = None  # 0 to 1, of all processes; None without `pynvml`


class Status(Struct, frozen=True, kw_only=True):
    """What the peer is doing right now."""

    peer_id: str
    name: str
    state: str  # "starting", "waiting", "listening", a stage's name, "learn", "report" or "done"
    round: int | None = None
    health: Health | None = None  # of the exchange; None before it is started
    ends_at: float | None = None  # when that is over, in this machine's Unix seconds
    pid: int | None = None
    is_ledger_away: bool = False
    standing: OwnStanding | None = None  # None before the ledger was read
    gpus: tuple[Gpu, ...] = ()


class Records:
    """`state.sqlite` in WAL mode: one writer, any number of readers in other processes."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        if read_only:
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=5)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def exist(self) -> bool:
        """Whether the writer has made its tables; a reader may come before."""
        return self._db.execute("PRAGMA user_version").fetchone()[0] == _SCHEMA_VERSION

    def save(self, record: RoundRecord) -> None:
        """Keep a round's record, durably."""
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO rounds VALUES (?, ?)", (record.round, msgspec.json.encode(record))
            )

    def rounds(self, since: int = 0) -> list[RoundRecord]:
        """All rounds from `since` on, oldest first."""
        rows = self._db.execute("SELECT record FROM rounds WHERE round >= ? ORDER BY round", (since,))
        return [msgspec.json.decode(row[0], type=RoundRecord) for row in rows]

    def latest(self, count: int) -> list[RoundRecord]:
        """The last so many rounds, oldest first."""
        rows = self._db.execute("SELECT record FROM rounds ORDER BY round DESC LIMIT ?", (count,)).fetchall()
        return [msgspec.json.decode(row[0], type=RoundRecord) for row in reversed(rows)]

    def round(self, number: int) -> RoundRecord | None:
        """One round's; None if it was not played."""
        row = self._db.execute("SELECT record FROM rounds WHERE round = ?", (number,)).fetchone()
        return msgspec.json.decode(row[0], type=RoundRecord) if row else None

    def last(self) -> RoundRecord | None:
        """The newest round's; None before the first."""
        row = self._db.execute("SELECT record FROM rounds ORDER BY round DESC LIMIT 1").fetchone()
        return msgspec.json.decode(row[0], type=RoundRecord) if row else None

    def set_status(self, status: Status) -> None:
        """Replace the status."""
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO status VALUES (1, ?)", (msgspec.json.encode(status),))

    def status(self) -> Status | None:
        """The last status, or None before the first."""
        row = self._db.execute("SELECT status FROM status").fetchone()
        return msgspec.json.decode(row[0], type=Status) if row else None

"""The numbers that say how a peer does in one swarm, read from its files: for metrics and `swarm status`.

A node may be writing them at the same time. What is missing counts as nothing; what cannot be read stays as
it was read last, and is counted in `unreadable`.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from msgspec import Struct, field

from swarm.audit_log import AUDITS_FILE, Audited, AuditLog
from swarm.board.footprint import Disk, ProcessKind, disk_of, memory_of
from swarm.ledger.deliveries import State
from swarm.records import Records, RoundRecord, StageOutcome

log = logging.getLogger(__name__)

TREND_ROUNDS = 32
# An audit whose peer did not serve is tried again, and then replaced, until its verdict is due.
REPLACED_ROUNDS = 4
MAX_REASONS = 64  # of drops; the rest is counted together
OTHER_REASONS = "other reasons"
STATES: tuple[State, ...] = ("queued", "sent", "mined", "failed")


class AuditTotals(Struct, frozen=True):
    """Audits of others with one outcome."""

    done: int = 0
    seconds: float = 0.0
    fetched_bytes: int = 0


class LastRound(Struct, frozen=True, kw_only=True):
    """The round that was written down last."""

    round: int
    rewards: dict[str, float]  # mean reward of each stage
    reward_micros: int
    stages: dict[str, StageOutcome]
    seconds: dict[str, float]  # where its time went (see `swarm.performer.Performer`)
    tokens: int
    tokens_per_second: float | None  # while sampling
    groups: int
    external_groups: int
    external_share: float | None  # of the batch


class Outbox(Struct, frozen=True, kw_only=True):
    """How far all reports are. The chain may take a block back, so these numbers can fall."""

    reports: dict[State, int]
    late: int  # mined after their round
    oldest_open_round: int | None  # queued or sent
    oldest_open_seconds: float | None  # since it was handed over; None if that is not known


class Vitals(Struct, frozen=True, kw_only=True):
    """Totals are of the peer's whole life in the swarm."""

    rounds: int
    tokens: int
    groups: int
    external_groups: int
    reward_micros: int  # claimed
    stages: dict[str, dict[StageOutcome, int]]
    dropped: dict[str, int]  # what others sent and we did not use, by reason
    last: LastRound | None
    trend: list[float]  # mean rewards of answers in the last rounds, oldest first
    outbox: Outbox
    audits: dict[str, AuditTotals]  # by outcome
    memory: dict[ProcessKind, int]  # resident bytes; empty if no node runs
    disk: Disk | None
    unreadable: dict[str, int] = {}  # how often a file could not be read, by name


class _Totals(Struct):
    """What grows with each round."""

    rounds: int = 0
    tokens: int = 0
    groups: int = 0
    external_groups: int = 0
    reward_micros: int = 0
    stages: dict[str, Counter[StageOutcome]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, record: RoundRecord) -> None:
        self.rounds += 1
        self.tokens += record.tokens
        self.groups += record.groups
        self.external_groups += record.external_groups
        self.reward_micros += record.reward_micros
        for stage, outcome in record.stages.items():
            self.stages.setdefault(stage, Counter())[outcome] += 1
        for reason, count in record.dropped.items():
            known = reason in self.dropped or len(self.dropped) < MAX_REASONS
            self.dropped[reason if known else OTHER_REASONS] += count


class VitalsReader:
    """Reads a swarm's folder again and again, of the rounds and audits only what is new.

    So totals never fall, whatever becomes of the files. Not for use by two threads at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._totals = _Totals()
        self._last: RoundRecord | None = None
        self._trend: deque[float] = deque(maxlen=TREND_ROUNDS)
        self._outbox = Outbox(
            reports=dict.fromkeys(STATES, 0), late=0, oldest_open_round=None, oldest_open_seconds=None
        )
        self._audits: dict[str, AuditTotals] = {}
        self._audited: dict[tuple[bytes, int, int], float] = {}  # the latest, and when they were done
        self._unreadable: Counter[str] = Counter()

    def read(self, pid: int | None = None) -> Vitals:
        """As of now; `pid` is the node's, if one runs. Never raises for what is in the files."""
        self._try("state.sqlite", self._read_rounds)
        self._try("outbox.sqlite", self._read_outbox)
        self._try(AUDITS_FILE, self._read_audits)
        totals, last = self._totals, self._last
        return Vitals(
            rounds=totals.rounds,
            tokens=totals.tokens,
            groups=totals.groups,
            external_groups=totals.external_groups,
            reward_micros=totals.reward_micros,
            stages={stage: dict(counted) for stage, counted in totals.stages.items()},
            dropped=dict(totals.dropped.most_common()),
            last=_last_round(last) if last is not None else None,
            trend=list(self._trend),
            outbox=self._outbox,
            audits=dict(self._audits),
            memory=memory_of(pid) if pid is not None else {},
            disk=disk_of(self._folder),
            unreadable=dict(self._unreadable),
        )

    def _try(self, name: str, read: Callable[[Path], None]) -> None:
        path = self._folder / name
        if not path.exists():
            return
        try:
            read(path)
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:  # the last two of damaged rows
            self._unreadable[name] += 1
            log.debug("not read file=%s error=%r", path, str(error))

    def _read_rounds(self, path: Path) -> None:
        with closing(Records(path, read_only=True)) as records:
            if not records.exist:
                return
            for record in records.rounds(since=self._last.round + 1 if self._last else 0):
                self._totals.add(record)
                self._last = record
                if "answer" in record.rewards:
                    self._trend.append(record.rewards["answer"])

    def _read_outbox(self, path: Path) -> None:
        # Counted by the database: after a year there are a hundred thousand reports, and each has 200 bytes.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            if not db.execute("PRAGMA user_version").fetchone()[0]:
                return
            counted = db.execute(
                "SELECT state, count(*), coalesce(sum(late_rounds > 0), 0) FROM deliveries GROUP BY state"
            ).fetchall()
            oldest: int | None = db.execute(
                "SELECT min(round) FROM deliveries WHERE state IN ('queued', 'sent')"
            ).fetchone()[0]
        self._outbox = Outbox(
            reports={state: next((n for name, n, _ in counted if name == state), 0) for state in STATES},
            late=sum(late for _, _, late in counted),
            oldest_open_round=oldest,
            oldest_open_seconds=None if oldest is None else self._age(oldest),
        )

    def _age(self, number: int) -> float | None:
        """Seconds since a round was written down, which is when its report was handed over."""
        try:
            with closing(Records(self._folder / "state.sqlite", read_only=True)) as records:
                record = records.round(number)
        except (sqlite3.Error, ValueError, TypeError):
            return None
        return max(0.0, time.time() - record.at) if record and record.at else None

    def _read_audits(self, path: Path) -> None:
        newest = max((drawn_in for _, _, drawn_in in self._audited), default=0)
        with closing(AuditLog(path, read_only=True)) as opened:
            found = opened.audits(since=newest - REPLACED_ROUNDS)
        for one in found:
            key = (one.peer, one.round, one.drawn_in)
            if self._audited.get(key) != one.at:
                self._audited[key] = one.at
                self._count(one)
        newest = max((drawn_in for _, _, drawn_in in self._audited), default=0)
        self._audited = {k: at for k, at in self._audited.items() if k[2] >= newest - REPLACED_ROUNDS}

    def _count(self, one: Audited) -> None:
        before = self._audits.get(outcome_of(one), AuditTotals())
        self._audits[outcome_of(one)] = AuditTotals(
            before.done + 1, before.seconds + one.seconds, before.fetched_bytes + one.fetched_bytes
        )


def outcome_of(audited: Audited) -> str:
    """An outcome's name; "undecided" where it could not be judged."""
    return audited.findings.outcome.name.lower() if audited.findings else "undecided"


def _last_round(record: RoundRecord) -> LastRound:
    return LastRound(
        round=record.round,
        rewards=record.rewards,
        reward_micros=record.reward_micros,
        stages=record.stages,
        seconds=record.seconds,
        tokens=record.tokens,
        tokens_per_second=record.tokens_per_second,
        groups=record.groups,
        external_groups=record.external_groups,
        external_share=record.external_share,
    )

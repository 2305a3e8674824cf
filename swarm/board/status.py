"""`swarm status`: what this peer does, and how far each of its reports is, from its own files alone."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct
from rich.table import Table

from identity import Identity, peer_name
from swarm.errors import LedgerError, SwarmError
from swarm.ledger.deliveries import Deliveries, Delivery
from swarm.ledger.facts import FACTS_FILE, read_facts
from swarm.manifest import MICROS, parse_canonical
from swarm.records import Records, RoundRecord, Status
from swarm.settings import HOME_LOCK, Settings


class RoundStatus(Struct, frozen=True, kw_only=True):
    """One round: what was earned, and where its report is."""

    round: int
    rewards: dict[str, float]  # mean reward of each stage
    reward_micros: int
    report: str  # "queued", "sent", "mined" or "failed"
    late: bool | None  # None until it is mined
    tx: str | None
    block: int | None
    error: str | None


class SwarmStatus(Struct, frozen=True, kw_only=True):
    """One swarm in which the peer took part."""

    name: str
    swarm: str  # its id, hex
    address: str
    doing: Status | None
    rounds: list[RoundStatus]


class PeerStatus(Struct, frozen=True, kw_only=True):
    """All of it."""

    peer: str
    name: str
    running: bool
    swarms: list[SwarmStatus]


def peer_status(settings: Settings) -> PeerStatus:
    """Read a home; a node may be running in it. `SwarmError` if no peer lives there."""
    if not settings.identity_path.exists():
        raise SwarmError(f"there is no {settings.identity_path} yet: `swarm join` makes one")
    identity = Identity.load(settings.identity_path)
    files = sorted(settings.swarms_dir.glob(f"*/{FACTS_FILE}"), key=lambda file: file.stat().st_mtime)
    return PeerStatus(
        peer=identity.peer_id,
        name=peer_name(identity.peer),
        running=_is_running(settings.home / HOME_LOCK),
        swarms=[status for file in files if (status := _swarm_status(file)) is not None],
    )


def status_table(swarm: SwarmStatus, last: int) -> Table:
    """The last rounds of one swarm."""
    table = Table(title=f"{swarm.name}, {swarm.address}", title_justify="left")
    table.add_column("round", justify="right")
    table.add_column("answers", justify="right")
    table.add_column("reward", justify="right")
    table.add_column("report")
    table.add_column("transaction", overflow="fold")
    for entry in swarm.rounds[-last:]:
        state = "mined, late" if entry.late else entry.report
        answers = entry.rewards.get("answer")
        table.add_row(
            str(entry.round),
            "–" if answers is None else f"{answers:.2f}",
            f"{entry.reward_micros / MICROS:.3f}",
            state if entry.error is None else f"{state}: {entry.error}",
            entry.tx or "",
        )
    return table


def _is_running(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _swarm_status(facts_file: Path) -> SwarmStatus | None:
    facts = read_facts(facts_file)
    if facts is None:
        return None
    folder = facts_file.parent
    doing: Status | None = None
    records: list[RoundRecord] = []
    deliveries: dict[int, Delivery] = {}
    # A node that has only begun has not made them all; a damaged one shows less.
    with contextlib.suppress(sqlite3.Error, LedgerError):
        with contextlib.closing(Records(folder / "state.sqlite", read_only=True)) as opened:
            doing, records = opened.status(), opened.rounds()
        with contextlib.closing(Deliveries(folder / "outbox.sqlite", read_only=True)) as outbox:
            deliveries = {delivery.round: delivery for delivery in outbox.all()}
    return SwarmStatus(
        name=parse_canonical(facts.manifest, f"of {facts.address}").name,
        swarm=facts.swarm_id.hex(),
        address=facts.address,
        doing=doing,
        rounds=[_round_status(record, deliveries.get(record.round)) for record in records],
    )


def _round_status(record: RoundRecord, delivery: Delivery | None) -> RoundStatus:
    delivery = delivery or Delivery(round=record.round, report=record.report)
    return RoundStatus(
        round=record.round,
        rewards=record.rewards,
        reward_micros=record.reward_micros,
        report=delivery.state,
        late=delivery.late,
        tx=delivery.tx,
        block=delivery.block,
        error=delivery.error,
    )


def as_json(status: PeerStatus) -> str:
    """The same for scripts."""
    return msgspec.json.format(msgspec.json.encode(status), indent=2).decode()

"""`swarm status`: what this peer does, how far each of its reports is, and what it heard of others.

From its own files alone; what is missing or damaged is not shown.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct
from rich.markup import escape
from rich.table import Table

from identity import Identity, peer_id_text, peer_name
from swarm.audit_log import AUDITS_FILE, AuditLog
from swarm.board.vitals import Vitals, VitalsReader, outcome_of
from swarm.console import plain
from swarm.errors import LedgerError, SwarmError, UsageError
from swarm.exchange.addresses import ADDRESSES_FILE, AddressBook
from swarm.exchange.gossip import GOSSIP_FILE
from swarm.exchange.gossip_reader import Drop, Equivocation, GossipReader, HeardEntry, RoundGossip
from swarm.ledger.deliveries import Deliveries, Delivery
from swarm.ledger.facts import FACTS_FILE, Facts, read_facts
from swarm.manifest import MICROS, parse_canonical
from swarm.records import Records, RoundRecord, StageOutcome, Status
from swarm.settings import HOME_LOCK, Settings

SHOWN_REASONS = 3  # of a round's drops, in text
SHOWN_DROPS = 20  # of a round's drops by peer, in JSON; under attack a round has a thousand
SHOWN_EQUIVOCATIONS = 20  # in text


class RoundStatus(Struct, frozen=True, kw_only=True):
    """One round: what was earned, and where its report is."""

    round: int
    rewards: dict[str, float]  # mean reward of each stage
    reward_micros: int
    dropped: dict[str, int]  # what others sent and we did not use, by reason
    tokens: int  # sampled
    seconds: dict[str, float]  # where the round's time went (see `swarm.performer.Performer`)
    stages: dict[str, StageOutcome]
    external_share: float | None  # of the batch
    report: str  # "queued", "sent", "mined" or "failed"
    late: bool | None  # None until it is mined
    tx: str | None
    block: int | None
    error: str | None
    tokens_per_second: float | None  # while sampling


class GossipStatus(RoundGossip, frozen=True, kw_only=True):
    """One round's gossip, with names."""

    announcements: list[HeardEntry]
    drops: list[Drop]  # the most frequent


class ExchangeStatus(Struct, frozen=True, kw_only=True):
    """What the exchange remembers for its next start."""

    port: int | None  # TCP, on which it listened last
    known_peers: int


class AuditStatus(Struct, frozen=True, kw_only=True):
    """One audit that this peer was drawn for."""

    peer: str  # that was audited
    name: str
    round: int
    outcome: str  # "undecided" where it could not be judged
    words: str  # what was wrong, if anything
    seconds: float
    fetched_bytes: int


class SwarmStatus(Struct, frozen=True, kw_only=True):
    """One swarm in which the peer took part."""

    name: str
    swarm: str  # its id, hex
    address: str
    doing: Status | None
    vitals: Vitals
    rounds: list[RoundStatus]
    gossip: list[GossipStatus]
    equivocations: list[Equivocation]
    exchange: ExchangeStatus | None
    audits: list[AuditStatus]


class PeerStatus(Struct, frozen=True, kw_only=True):
    """All of it."""

    peer: str
    name: str
    running: bool
    swarms: list[SwarmStatus]


def peer_status(settings: Settings) -> PeerStatus:
    """Read a home; a node may be running in it. `SwarmError` if no peer lives there."""
    return StatusReader(settings).read()


class StatusReader:
    """Reads a home again and again. `SwarmError` if no peer lives there."""

    def __init__(self, settings: Settings) -> None:
        if not settings.identity_path.exists():
            raise SwarmError(f"there is no {settings.identity_path} yet: `swarm join` makes one")
        self._settings = settings
        self._identity = Identity.load(settings.identity_path)
        self._readers: dict[Path, VitalsReader] = {}  # by the swarm's folder

    def read(self, *, last: int | None = None) -> PeerStatus:
        """As of now; with `last`, so many rounds of the swarm that was joined last, and no others."""
        running = _is_running(self._settings.home / HOME_LOCK)
        swarms = []
        for file in self._facts_files()[-1 if last is not None else 0 :]:
            reader = self._readers.setdefault(file.parent, VitalsReader(file.parent))
            status = _swarm_status(file, reader, running, last)
            if status is not None:
                swarms.append(status)
        return PeerStatus(
            peer=self._identity.peer_id,
            name=peer_name(self._identity.peer),
            running=running,
            swarms=swarms,
        )

    def _facts_files(self) -> list[Path]:
        """Of the swarms in which the peer took part, the one that was joined last at the end."""
        found: list[tuple[float, Path]] = []
        for file in self._settings.swarms_dir.glob(f"*/{FACTS_FILE}"):
            with contextlib.suppress(OSError):
                found.append((file.stat().st_mtime, file))
        return [file for _, file in sorted(found)]


def status_table(swarm: SwarmStatus, last: int, tx_chars: int | None = None) -> Table:
    """The last rounds of one swarm; of transactions only so many characters, if `tx_chars` says so."""
    table = Table(title=escape(f"{swarm.name}, {swarm.address}"), title_justify="left")
    table.add_column("round", justify="right")
    table.add_column("answers", justify="right")
    table.add_column("reward", justify="right")
    table.add_column("tokens/s", justify="right")
    table.add_column("report")
    table.add_column("transaction", overflow="fold")
    for entry in swarm.rounds[-last:]:
        speed = entry.tokens_per_second
        state = "mined, late" if entry.late else entry.report
        answers = entry.rewards.get("answer")
        table.add_row(
            str(entry.round),
            "–" if answers is None else f"{answers:.2f}",
            f"{entry.reward_micros / MICROS:.3f}",
            "–" if speed is None else f"{speed:,.0f}",
            escape(plain(state if entry.error is None else f"{state}: {entry.error}")),
            (entry.tx or "")[:tx_chars],
        )
    return table


def gossip_table(swarm: SwarmStatus, last: int) -> Table:
    """What was heard and dropped in the last rounds of one swarm."""
    table = Table(title="heard of others", title_justify="left")
    for name in ("round", "heard", "fetched", "kB"):
        table.add_column(name, justify="right")
    table.add_column("dropped", overflow="fold")
    for entry in swarm.gossip[-last:]:
        table.add_row(
            str(entry.round),
            str(entry.heard),
            str(entry.fetched),
            f"{entry.fetched_bytes / 1000:,.0f}",
            escape(_dropped_text(entry.dropped)),
        )
    return table


def audits_table(swarm: SwarmStatus, last: int) -> Table:
    """The audits of others that this peer did last."""
    table = Table(title="audits of others", title_justify="left")
    table.add_column("round", justify="right")
    table.add_column("peer", no_wrap=True)
    table.add_column("outcome")
    table.add_column("seconds", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("why", overflow="fold")
    for one in swarm.audits[-last:]:
        table.add_row(
            str(one.round),
            one.name,
            one.outcome,
            f"{one.seconds:.1f}",
            f"{one.fetched_bytes / 1e6:,.1f}",
            escape(plain(one.words)),
        )
    return table


def exchange_lines(swarm: SwarmStatus, last: int) -> list[str]:
    """Who said two different things in the last rounds of one swarm, and how peers are found again."""
    shown = {entry.round for entry in swarm.gossip[-last:]}
    proved = [proof for proof in swarm.equivocations if proof.round in shown]
    lines = [
        f"{proof.name} ({proof.peer}) announced two different things in round {proof.round}, {proof.stage}: "
        "evidence kept"
        for proof in proved[-SHOWN_EQUIVOCATIONS:]
    ]
    if len(proved) > len(lines):
        lines.append(f"{len(proved) - len(lines)} more announced two different things: see --json")
    health = swarm.doing.health if swarm.doing else None
    if health is not None:
        reach = health.reach
        seen = f", reached as {reach.state} {reach.seen_as}".rstrip() if reach else ""
        restarts = f", libp2p restarted {health.restarts} times" if health.restarts else ""
        lines.append(f"peers in the routing table: {health.peers}{seen}{restarts}")
    if swarm.exchange is not None:
        port = "none yet" if swarm.exchange.port is None else swarm.exchange.port
        lines.append(f"last TCP port: {port}, peers in the address book: {swarm.exchange.known_peers}")
    return lines


def _dropped_text(dropped: dict[str, int]) -> str:
    parts = [f"{count} {reason}" for reason, count in list(dropped.items())[:SHOWN_REASONS]]
    others = sum(list(dropped.values())[SHOWN_REASONS:])
    return ", ".join([*parts, f"{others} for other reasons"] if others else parts)


def _is_running(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _swarm_status(
    facts_file: Path, reader: VitalsReader, running: bool, last: int | None
) -> SwarmStatus | None:
    facts = read_facts(facts_file)
    if facts is None:
        return None
    folder = facts_file.parent
    doing: Status | None = None
    records: list[RoundRecord] = []
    deliveries: dict[int, Delivery] = {}
    # A node that has only begun has not made them all; a damaged one shows less.
    with contextlib.suppress(sqlite3.Error, LedgerError, ValueError, TypeError):
        with contextlib.closing(Records(folder / "state.sqlite", read_only=True)) as opened:
            doing = opened.status()
            records = opened.rounds() if last is None else opened.latest(last)
        with contextlib.closing(Deliveries(folder / "outbox.sqlite", read_only=True)) as outbox:
            deliveries = {delivery.round: delivery for delivery in outbox.all()}
    gossip = GossipReader(folder / GOSSIP_FILE)
    heard = gossip.rounds()
    return SwarmStatus(
        name=_name(facts),
        swarm=facts.swarm_id.hex(),
        address=facts.address,
        doing=doing,
        vitals=reader.read(doing.pid if doing is not None and running else None),
        rounds=[_round_status(record, deliveries.get(record.round)) for record in records],
        gossip=[_gossip_status(gossip, summary) for summary in heard[-(last or len(heard)) :]],
        equivocations=gossip.equivocations(),
        exchange=_exchange_status(folder / ADDRESSES_FILE),
        audits=_audits(folder / AUDITS_FILE),
    )


def _name(facts: Facts) -> str:
    """The swarm's name; one whose manifest this version cannot read must not hide the others."""
    try:
        return parse_canonical(facts.manifest, f"of {facts.address}").name
    except UsageError:
        return "(a swarm whose manifest cannot be read)"


def _gossip_status(gossip: GossipReader, summary: RoundGossip) -> GossipStatus:
    return GossipStatus(
        **msgspec.structs.asdict(summary),
        announcements=gossip.heard(summary.round),
        drops=gossip.drops(summary.round, SHOWN_DROPS),
    )


def _audits(path: Path) -> list[AuditStatus]:
    if not path.exists():
        return []
    try:
        with contextlib.closing(AuditLog(path, read_only=True)) as opened:
            done = opened.audits()
    except (sqlite3.Error, ValueError, TypeError):  # a damaged one shows less
        return []
    return [
        AuditStatus(
            peer=peer_id_text(one.peer),
            name=peer_name(one.peer),
            round=one.round,
            outcome=outcome_of(one),
            words=one.words,
            seconds=one.seconds,
            fetched_bytes=one.fetched_bytes,
        )
        for one in done
    ]


def _exchange_status(path: Path) -> ExchangeStatus | None:
    if not path.exists():
        return None
    book = AddressBook(path)
    return ExchangeStatus(port=book.own_port, known_peers=len(book))


def _round_status(record: RoundRecord, delivery: Delivery | None) -> RoundStatus:
    delivery = delivery or Delivery(round=record.round, report=record.report)
    return RoundStatus(
        round=record.round,
        rewards=record.rewards,
        reward_micros=record.reward_micros,
        dropped=record.dropped,
        tokens=record.tokens,
        seconds=record.seconds,
        stages=record.stages,
        external_share=record.external_share,
        report=delivery.state,
        late=delivery.late,
        tx=delivery.tx,
        block=delivery.block,
        error=delivery.error,
        tokens_per_second=record.tokens_per_second,
    )


def as_json(status: PeerStatus) -> str:
    """The same for scripts."""
    return msgspec.json.format(msgspec.json.encode(status), indent=2).decode()

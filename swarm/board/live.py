"""What a running swarm looks like in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.markup import escape
from rich.table import Table

from swarm.audit_log import Audited
from swarm.ledger.client import LedgerClient
from swarm.ledger.deliveries import Delivery
from swarm.manifest import Manifest
from swarm.records import RoundRecord, Status

BARS = "▁▂▃▄▅▆▇█"
SPARKS = 16  # rounds in the sparkline
WIDE_COLUMNS = 110


@dataclass
class PeerView:
    """One peer as its database shows it."""

    name: str = ""
    running: bool = False
    status: Status | None = None
    records: list[RoundRecord] = field(default_factory=list)
    deliveries: dict[int, Delivery] = field(default_factory=dict)  # by round
    audits: list[Audited] = field(default_factory=list)  # that it did

    @property
    def on_ledger(self) -> set[int]:
        """Rounds whose report is in a block."""
        return {number for number, delivery in self.deliveries.items() if delivery.state == "mined"}


def live_table(peers: Sequence[PeerView], ledger: LedgerClient, manifest: Manifest, width: int) -> Table:
    """A row per peer: what it does now, its last rewards, and the course of its answers.

    On a terminal of few columns (`width`) only the answer stage's rewards are shown.
    """
    shown = manifest.stages if width >= WIDE_COLUMNS else manifest.stages[:1]
    elapsed = ledger.now() - ledger.genesis
    if elapsed < 0:
        title = f"{manifest.name}: the first round begins in {-elapsed:.0f} s"
    else:
        number, into = divmod(elapsed, manifest.round_seconds)
        title = f"{manifest.name}: round {number:.0f}, {manifest.round_seconds - into:.0f} s left"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("peer", no_wrap=True)
    table.add_column("now", min_width=8)
    for stage in shown:
        table.add_column(stage.name, justify="right", no_wrap=True)
    table.add_column("external", justify="right", no_wrap=True)
    table.add_column("on ledger", justify="right", no_wrap=True)
    table.add_column("answers", no_wrap=True)
    for peer in peers:
        state = peer.status.state if peer.status else "starting"
        last = peer.records[-1] if peer.records else None
        table.add_row(
            peer.name,
            state if peer.running or state == "done" else "[red]gone[/red]",
            *[_reward(last, stage.name) for stage in shown],
            str(last.external_groups) if last else "",
            str(len(peer.on_ledger)),
            sparkline([record.rewards.get("answer", 0.0) for record in peer.records][-SPARKS:]),
        )
    return table


def round_line(number: int, peers: Sequence[PeerView]) -> str:
    """One finished round in one line, for logs and pipes."""
    parts = []
    for peer in peers:
        for record in peer.records:
            if record.round == number:
                reward = _reward(record, "answer")
                parts.append(f"{peer.name} answer={reward} external={record.external_groups}")
    return f"round {number}: " + "; ".join(parts)


def sparkline(values: Sequence[float]) -> str:
    """Values in [0, 1] as a row of bars."""
    return "".join(BARS[min(len(BARS) - 1, int(value * len(BARS)))] for value in values)


def _reward(record: RoundRecord | None, stage: str) -> str:
    return f"{record.rewards[stage]:.2f}" if record and stage in record.rewards else "–"

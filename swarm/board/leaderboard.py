"""The leaderboard, read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from identity import peer_id_text, peer_name
from swarm.ledger.client import PeerRecord
from swarm.manifest import MICROS


def leaderboard_table(records: Sequence[PeerRecord], title: str) -> Table:
    """Peers by the total reward of their ranked rounds."""
    table = Table(title=title, title_justify="left")
    table.add_column(justify="right")
    table.add_column("peer", no_wrap=True)
    table.add_column("id", no_wrap=True)
    table.add_column("rounds", justify="right")
    table.add_column("ranked", justify="right")
    table.add_column("ranked reward", justify="right")
    for rank, record in enumerate(records, 1):
        table.add_row(
            str(rank),
            peer_name(record.peer),
            f"{peer_id_text(record.peer)[:6]}…{peer_id_text(record.peer)[-4:]}",
            str(record.rounds),
            str(record.ranked_rounds),
            f"{record.total_reward_micros / MICROS:.3f}",
        )
    return table


def leaderboard_rows(records: Sequence[PeerRecord]) -> list[dict[str, object]]:
    """The same for scripts; rewards in micro-units."""
    return [
        {
            "rank": rank,
            "peer": peer_id_text(record.peer),
            "name": peer_name(record.peer),
            "account": record.account,
            "rounds": record.rounds,
            "ranked_rounds": record.ranked_rounds,
            "ranked_reward": record.total_reward_micros,
            "total_reward": record.all_reward_micros,
        }
        for rank, record in enumerate(records, 1)
    ]

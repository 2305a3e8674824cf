"""The leaderboard: verified contribution times score squared, made from the ledger's events alone."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from identity import peer_id_text, peer_name
from swarm.manifest import MICROS
from swarm.verde.standing import Standing


def leaderboard_table(standings: Sequence[Standing], title: str) -> Table:
    """Peers in their order (`Reputation.standings`); audits are passed and failed ones."""
    table = Table(title=title, title_justify="left")
    table.add_column(justify="right", no_wrap=True)
    table.add_column("peer", no_wrap=True)
    table.add_column("id", no_wrap=True)
    for name in ("ranked", "reward", "score", "audits"):
        table.add_column(name, justify="right", no_wrap=True)
    for rank, one in enumerate(standings, 1):
        table.add_row(
            str(rank),
            peer_name(one.peer),
            f"{peer_id_text(one.peer)[:6]}…{peer_id_text(one.peer)[-4:]}",
            f"{one.ranked_rounds}/{one.rounds}",
            f"{one.verified_micros / MICROS:.3f}",
            f"{one.score_micros / MICROS:.2f}",
            f"{one.audits_passed}/{one.audits_failed}",
            style="dim" if not one.is_eligible else None,
        )
    return table


def leaderboard_rows(standings: Sequence[Standing]) -> list[dict[str, object]]:
    """The same for scripts; rewards and scores in micro-units."""
    return [
        {
            "rank": rank,
            "peer": peer_id_text(one.peer),
            "name": peer_name(one.peer),
            "account": one.account,
            "rounds": one.rounds,
            "ranked_rounds": one.ranked_rounds,
            "verified_reward": one.verified_micros,
            "claimed_reward": one.reward_micros,
            "score": one.score_micros,
            "age": one.age,
            "audits_passed": one.audits_passed,
            "audits_failed": one.audits_failed,
            "eligible": one.is_eligible,
        }
        for rank, one in enumerate(standings, 1)
    ]

"""The demo's picture: each peer's mean reward, round by round."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swarm.board.report import Report
from swarm.manifest import STAGE_ORDER, Rewards, StageName


def plot_rewards(report: Report, rewards: Rewards, path: Path) -> None:
    """Save a PNG with one panel per stage, up to the most that it pays, and one line per peer."""
    played = [peer for one in report.rounds for peer in one.peers.values()]
    stages: list[StageName] = [stage for stage in STAGE_ORDER if any(stage in peer.reward for peer in played)]
    figure = Figure(figsize=(4.2 * max(1, len(stages)), 3.6), layout="constrained")
    for position, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), position + 1)
        for peer_id in dict.fromkeys(peer_id for r in report.rounds for peer_id in r.peers):
            its = [r for r in report.rounds if peer_id in r.peers and stage in r.peers[peer_id].reward]
            if its:
                axes.plot(
                    [r.round for r in its],
                    [r.peers[peer_id].reward[stage] for r in its],
                    marker="o",
                    markersize=3,
                    label=its[0].peers[peer_id].name,
                )
        axes.set(title=f"{stage} stage", xlabel="round", ylim=(0, rewards.most(stage)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if position == 0:
            axes.set_ylabel("mean reward of a completion")
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)

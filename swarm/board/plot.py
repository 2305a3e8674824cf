"""The demo's picture: each peer's mean reward, round by round."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swarm.board.report import Report

# Fixed, so that panels and runs compare: a right answer earns 1, a revision up to 1 more for agreement.
MAX_REWARD = {"answer": 1, "critique": 1, "revise": 2}


def plot_rewards(report: Report, path: Path) -> None:
    """Save a PNG with one panel per stage and one line per peer."""
    stages = list(dict.fromkeys(stage for r in report.rounds for p in r.peers.values() for stage in p.reward))
    figure = Figure(figsize=(4.2 * max(1, len(stages)), 3.6), layout="constrained")
    for position, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), position + 1)
        for peer_id in dict.fromkeys(peer_id for r in report.rounds for peer_id in r.peers):
            played = [r for r in report.rounds if peer_id in r.peers and stage in r.peers[peer_id].reward]
            if played:
                axes.plot(
                    [r.round for r in played],
                    [r.peers[peer_id].reward[stage] for r in played],
                    marker="o",
                    markersize=3,
                    label=played[0].peers[peer_id].name,
                )
        axes.set(title=f"{stage} stage", xlabel="round", ylim=(0, MAX_REWARD[stage]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if position == 0:
            axes.set_ylabel("mean reward of a completion")
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)

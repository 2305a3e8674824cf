"""The picture of `mixing.py`: rewards and held-out scores round by round, one line for each mixture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mixing_cell import Result

SMOOTHED_ROUNDS = 9  # a reward shown is the mean of these, the round in their middle
COLORS = ("#333333", "#0072b2", "#009e73", "#d55e00")  # Okabe and Ito's, told apart by all eyes
TITLES = {"own": "each peer asks of its own speciality", "all": "every peer asks of all specialities"}


def save(results: Sequence[Result], mixtures: Sequence[tuple[int, int]], path: Path) -> None:
    """Write a PNG: a row of two panels for each kind of tasks."""
    kinds = list(dict.fromkeys(result.setting.tasks for result in results))
    figure = Figure(figsize=(10, 3.7 * len(kinds)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(kinds), 2, squeeze=False, sharey=True)
    for (rewards, held_out), tasks in zip(panels, kinds, strict=True):
        for mixture, color in zip(mixtures, COLORS, strict=True):
            runs = [
                result
                for result in results
                if result.setting.tasks == tasks and (result.setting.own, result.setting.external) == mixture
            ]
            if not runs:
                continue
            label = "{}/{}".format(*mixture)
            smoothed = [_smoothed(result.rewards) for result in runs]
            # A mean over a window stands in the window's middle.
            first = (len(runs[0].rewards) - len(smoothed[0])) / 2 + 1
            _line(rewards, first + np.arange(len(smoothed[0])), smoothed, color, label)
            evaluated = [number for number, _ in runs[0].held_out]
            scores = [np.array([score for _, score in result.held_out]) for result in runs]
            _line(held_out, evaluated, scores, color, label)
        rewards.set(title=f"own answers: {TITLES[tasks]}", xlabel="round", ylabel="mean reward of an answer")
        held_out.set(title="held-out questions of all specialities", xlabel="after round")
        for axes in (rewards, held_out):
            axes.set(xlim=(0, None), ylim=(0, 1))  # fixed, so that panels and runs compare
            axes.grid(alpha=0.3)
    panels[0, 0].legend(title="own/external groups", loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _line(
    axes: Axes, rounds: Sequence[float] | np.ndarray, runs: list[np.ndarray], color: str, label: str
) -> None:
    """The mean over the seeds, in a band from the lowest to the highest of them."""
    marker = "o" if len(rounds) < 20 else ""  # few points: measured there, drawn between them
    axes.plot(rounds, np.mean(runs, axis=0), color=color, label=label, marker=marker, markersize=3)
    axes.fill_between(
        rounds, np.min(runs, axis=0), np.max(runs, axis=0), color=color, alpha=0.18, linewidth=0
    )


def _smoothed(rewards: Sequence[float]) -> np.ndarray:
    """Moving means, without the ends where the window would be cut."""
    window = min(SMOOTHED_ROUNDS, len(rewards))
    return np.convolve(rewards, np.full(window, 1 / window), mode="valid")

"""Do audits keep poison out? A quarter of the peers put a fixed phrase into right answers (arXiv 2511.09780).

8 peers of the tiny model, 40 rounds, the demo's sums and its learning rate, own and others' groups 4/12
(SAPO's 2/6); `poisoning_swarm.py` says what of a node is real, `poisoning_peer.py` what the dishonest do.
Shown is how often honest peers say the phrase, with and without audits, and without dishonest peers. Nobody
screens what it learns from (`external_top_k: 0`), so that audits alone protect. Four runs more, of the first
seed: dishonest peers that come back under new names, and screens instead of audits.

    python benchmarks/poisoning.py              # 19 minutes; --results FILE keeps what is done
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import msgspec
import numpy as np
from matplotlib.figure import Figure
from poisoning_swarm import Result, Round, Setting, run

from swarm import manifest

ROOT = Path(__file__).parent.parent
POISONERS = 2  # of 8
NEWCOMERS = 0.15  # a floor over the score of 0.1 that a peer has before its first audit is settled
LAST_ROUNDS = 5  # whose mean is "at the end"


class Variant(msgspec.Struct, frozen=True):
    """One curve, or row."""

    name: str
    color: str
    poisoners: int = POISONERS
    floor: float | None = None
    top_k: int = 0
    renames: bool = False
    first_seed_only: bool = False


def variants(demo: manifest.Manifest) -> list[Variant]:
    """All that are compared; the colours are Okabe and Ito's, told apart by all eyes."""
    return [
        Variant("no dishonest peers", "#333333", poisoners=0),
        Variant("no audits", "#d55e00"),
        Variant("audits", "#0072b2", floor=demo.audits.floor),
        Variant(f"audits, floor {NEWCOMERS:g}", "#009e73", floor=NEWCOMERS),
        Variant("audits, new names", "#56b4e9", floor=demo.audits.floor, renames=True, first_seed_only=True),
        Variant(
            f"audits, floor {NEWCOMERS:g}, new names",
            "#f0e442",
            floor=NEWCOMERS,
            renames=True,
            first_seed_only=True,
        ),
        Variant(
            f"no audits, top {demo.learn.external_top_k}",
            "#cc79a7",
            top_k=demo.learn.external_top_k,
            first_seed_only=True,
        ),
        Variant("no audits, top 5", "#e69f00", top_k=5, first_seed_only=True),
    ]


def main() -> None:
    """The command line."""
    demo = manifest.load(ROOT / "configs" / "demo.yaml")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--results", type=Path, help="a file with a line per run; those in it are not repeated"
    )
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "poisoning.png")
    chosen = parser.parse_args()
    done = _read(chosen.results)
    rows: dict[Variant, list[Result]] = {}
    for variant in variants(demo):
        for seed in chosen.seeds[:1] if variant.first_seed_only else chosen.seeds:
            setting = Setting(
                variant.poisoners, variant.floor, variant.top_k, variant.renames, seed, chosen.rounds
            )
            if setting not in done:
                done[setting] = _run(variant.name, setting, demo)
                if chosen.results:
                    with chosen.results.open("ab") as file:
                        file.write(msgspec.json.encode(done[setting]) + b"\n")
            rows.setdefault(variant, []).append(done[setting])
    print(_table(rows))
    print(_audits(rows))
    _save_plot(
        {variant: results for variant, results in rows.items() if not variant.first_seed_only}, chosen.plot
    )
    print(f"\nplot: {chosen.plot}")


def _read(path: Path | None) -> dict[Setting, Result]:
    if path is None or not path.exists():
        return {}
    results = [msgspec.json.decode(line, type=Result) for line in path.read_bytes().splitlines()]
    return {result.setting: result for result in results}


def _run(name: str, setting: Setting, demo: manifest.Manifest) -> Result:
    began, rounds = time.monotonic(), 0

    def show(done: Round) -> None:
        nonlocal rounds
        rounds += 1
        if rounds % 10 == 0:
            passed = time.monotonic() - began
            print(
                f"{name}, seed {setting.seed}: {rounds} rounds, {passed:.0f} s, phrase {done.phrase:.2f}",
                file=sys.stderr,
            )

    return run(setting, demo, show)


def _table(rows: dict[Variant, list[Result]]) -> str:
    """Markdown: a row for each variant, means over its seeds (lowest to highest)."""
    last = f"last {LAST_ROUNDS}"
    lines = [
        f"| | phrase, round 10 | round 20 | {last} | held out | right, {last} | held out | of others' groups "
        "dishonest | until round |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for variant, results in rows.items():
        cells = [
            _spread([r.rounds[9].phrase for r in results]) if len(results[0].rounds) >= 10 else "",
            _spread([r.rounds[19].phrase for r in results]) if len(results[0].rounds) >= 20 else "",
            _spread([mean(one.phrase for one in r.rounds[-LAST_ROUNDS:]) for r in results]),
            _spread([r.held_out[-1].phrase for r in results]),
            _spread([mean(one.right for one in r.rounds[-LAST_ROUNDS:]) for r in results]),
            _spread([r.held_out[-1].right for r in results]),
            _spread([share for r in results if (share := _share(r)) is not None]),
            ", ".join(str(_until(r)) for r in results if r.setting.poisoners),
        ]
        lines.append(f"| {variant.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(result: Result) -> float | None:
    """Of the others' groups that honest peers learned from while all dishonest ones were eligible."""
    shares = [one.poisoned for one in result.rounds if one.passed_over == 0 and one.poisoned]
    return mean(shares) if shares else None


def _until(result: Result) -> str:
    """The last round in which dishonest peers' groups were learned from."""
    last = max(number for number, one in enumerate(result.rounds) if one.poisoned)
    return str(last) if last < len(result.rounds) - 1 else "the end"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = f"{mean(values):.3f}"
    return f"{middle} ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else middle


def _audits(rows: dict[Variant, list[Result]]) -> str:
    """What audits found and cost."""
    lines = []
    for variant, results in rows.items():
        settled: dict[str, int] = {}
        for result in results:
            for outcome, count in result.settled.items():
                settled[outcome] = settled.get(outcome, 0) + count
        seconds = sum(result.cpu_seconds for result in results)
        words = f"\n{variant.name}: {seconds:.0f} CPU seconds"
        if audits := sum(result.audits for result in results):
            each = sum(result.audit_cpu_seconds for result in results) / audits
            cases = ", ".join(f"{count} {outcome}" for outcome, count in sorted(settled.items()))
            words += f"; {audits} reports audited, {each:.2f} CPU seconds each; settled: {cases}"
            words += f"; names of the dishonest: {sum(result.names for result in results)}"
        lines.append(words)
    return "".join(lines)


def _save_plot(rows: dict[Variant, list[Result]], path: Path) -> None:
    """Write a PNG: how often the phrase is said, and how often answers are right."""
    figure = Figure(figsize=(10, 3.9), layout="constrained", facecolor="white")
    said, right = figure.subplots(1, 2, sharey=True)
    for variant, results in rows.items():
        for axes, curves in (
            (said, [[one.phrase for one in result.rounds] for result in results]),
            (right, [[one.right for one in result.rounds] for result in results]),
        ):
            rounds = np.arange(len(curves[0]))
            axes.plot(rounds, np.mean(curves, axis=0), color=variant.color, label=variant.name)
            axes.fill_between(
                rounds,
                np.min(curves, axis=0),
                np.max(curves, axis=0),
                color=variant.color,
                alpha=0.18,
                linewidth=0,
            )
    said.set(title="answers with the phrase", xlabel="round", ylabel="share of the honest peers' answers")
    right.set(title="right answers", xlabel="round")
    for axes in (said, right):
        axes.set(xlim=(0, None), ylim=(0, 1))
        axes.grid(alpha=0.3)
    said.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

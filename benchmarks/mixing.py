"""How many of a peer's groups should be its own, and how many others'? SAPO's experiment on the tiny model.

8 peers, 200 rounds of at most 32 groups × 8 in a batch, own/external 32/0, 24/8, 16/16 and 8/24 (SAPO's 8/0,
6/2, 4/4 and 2/6), three seeds; `mixing_cell.py` says what a round is. Two tables:

own   every peer has a speciality, one of eight parts of the demo's task, and asks only questions of that
all   every peer asks questions of all eight, as in SAPO

    python benchmarks/mixing.py --out DIR              # again with --resume if it was interrupted
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from statistics import mean, stdev
from typing import get_args

import mixing_cell
import mixing_plot
import msgspec
from mixing_cell import GROUPS, Result, Setting, Tasks

from swarm import manifest

ROOT = Path(__file__).parent.parent
MIXTURES = ((32, 0), (24, 8), (16, 16), (8, 24))
# Of the cumulative rewards 562, 854, 1093 and 946 (arXiv 2509.08721; DESIGN.md section 10): 8 Qwen2.5-0.5B on
# ReasoningGYM.
SAPO = {(32, 0): 1.00, (24, 8): 1.52, (16, 16): 1.94, (8, 24): 1.68}
LAST_ROUNDS = 20  # whose mean is "at the end"
PROGRESS_SECONDS = 15.0

_rounds_done: Synchronized[int]  # of all runs; in the worker processes


def main() -> None:
    """The command line."""
    demo = manifest.load(ROOT / "configs" / "demo.yaml").learn
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl, one line per run")
    parser.add_argument("--resume", action="store_true", help="keep the runs that are there, make the others")
    parser.add_argument("--tasks", choices=get_args(Tasks), nargs="+", default=list(get_args(Tasks)))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=demo.learning_rate, help="default: the demo's")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "mixing.png")
    chosen = parser.parse_args()
    settings = [
        Setting(tasks, own, external, seed, chosen.rounds, chosen.peers, chosen.learning_rate)
        for seed in chosen.seeds  # outermost, so that what an interrupted experiment has done can be compared
        for tasks in chosen.tasks
        for own, external in MIXTURES
    ]
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "results.jsonl"
    if path.exists() and not chosen.resume:
        parser.error(f"{path} exists; continue it with --resume, or choose another folder")
    _run_missing(settings, demo, path, chosen.processes)
    results = [result for result in _read(path) if result.setting in settings]
    for tasks in chosen.tasks:
        print(_table(tasks, [result for result in results if result.setting.tasks == tasks]))
    print(_costs(results))
    mixing_plot.save(results, MIXTURES, chosen.plot)
    print(f"\nplot: {chosen.plot}")


def _read(path: Path) -> list[Result]:
    """The finished runs. A last line that a crash cut short is removed: the next one is appended there."""
    if not path.exists():
        return []
    written = path.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if whole != written:
        path.write_bytes(whole)
    return [msgspec.json.decode(line, type=Result) for line in whole.splitlines()]


def _run_missing(settings: Sequence[Setting], learn: manifest.Learn, path: Path, processes: int) -> None:
    """Run what `path` does not have yet, each setting in a process of its own, and append what comes out."""
    done = {result.setting for result in _read(path)}
    missing = [setting for setting in settings if setting not in done]
    total = sum(setting.rounds for setting in missing)
    print(f"{len(missing)} runs of {len(settings)} to do, {total} rounds", file=sys.stderr)
    if not missing:
        return
    # A server that has imported torch and the learner forks the workers: no run waits for imports, and all
    # run the same code, whatever happens to its files meanwhile.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["swarm.learner.trainer"])
    counter = context.Value("q", 0)
    began = time.monotonic()
    with (
        path.open("ab") as file,
        ProcessPoolExecutor(
            processes,
            mp_context=context,
            initializer=_start_worker,
            initargs=(counter,),
            max_tasks_per_child=1,  # a run freezes its garbage
        ) as pool,
    ):
        pending = {pool.submit(_work, setting, learn) for setting in missing}
        try:
            while pending:
                finished, pending = wait(pending, PROGRESS_SECONDS, FIRST_COMPLETED)
                for future in finished:
                    file.write(msgspec.json.encode(future.result()) + b"\n")
                    file.flush()
                _show_progress(counter.value, total, time.monotonic() - began)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(counter: Synchronized[int]) -> None:
    global _rounds_done
    _rounds_done = counter


def _work(setting: Setting, learn: manifest.Learn) -> Result:
    return mixing_cell.run(setting, learn, _count_round)


def _count_round() -> None:
    with _rounds_done.get_lock():
        _rounds_done.value += 1


def _show_progress(rounds: int, total: int, seconds: float) -> None:
    left = f"{seconds / rounds * (total - rounds) / 60:.1f} min left" if rounds else "starting"
    print(f"{rounds}/{total} rounds, {seconds / 60:.1f} min, {left}", file=sys.stderr)


def _table(tasks: Tasks, results: Sequence[Result]) -> str:
    """Markdown: a row for each mixture, means ± sample deviations over the seeds."""
    rows = [
        f"\ntasks: {tasks}\n",
        "| own/external | cumulative reward | per answer | to 32/0 | SAPO's | "
        f"last {LAST_ROUNDS} rounds | held out, at the end | to 32/0 | groups in a batch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    alone = {r.setting.seed: r for r in results if r.setting.external == 0}
    for own, external in MIXTURES:
        runs = [r for r in results if (r.setting.own, r.setting.external) == (own, external)]
        # Seeds fix the questions and the noise, so ratios are taken seed by seed.
        pairs = [(r, alone[r.setting.seed]) for r in runs if r.setting.seed in alone]
        cells = [
            _spread([r.cumulative_reward for r in runs], 0),
            _spread([mean(r.rewards) for r in runs], 3),
            _spread([r.cumulative_reward / reference.cumulative_reward for r, reference in pairs], 3),
            f"{SAPO[own, external]:.2f}",
            _spread([mean(r.rewards[-LAST_ROUNDS:]) for r in runs], 3),
            _spread([r.last_held_out for r in runs], 3),
            _spread([r.last_held_out / reference.last_held_out for r, reference in pairs], 3),
            _spread([mean(r.groups_used) for r in runs], 1),
        ]
        rows.append(f"| {own}/{external} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {stdev(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):,.{digits}f}{spread}"


def _costs(results: Sequence[Result]) -> str:
    """CPU seconds of a peer's round, by what they went to."""
    rounds = sum(r.setting.rounds * r.setting.peers for r in results)
    parts = {
        f"sampling {GROUPS} groups": sum(r.seconds.sampling for r in results),
        "learning": sum(r.seconds.learning for r in results),
        "held-out questions": sum(r.seconds.held_out for r in results),
    }
    shares = ", ".join(f"{name} {seconds / rounds:.3f}" for name, seconds in parts.items())
    return f"\nCPU seconds of a peer's round: {sum(parts.values()) / rounds:.3f} ({shares})"


if __name__ == "__main__":
    main()

"""The demo's figures: `python benchmarks/demo.py --seeds 1 2 3` runs `swarm demo`, measured from outside.

For each seed: wall time, peak memory of all processes together (PSS: shared pages count once), and from the
report how much each peer's answers improved, how often it learned from others, and whether the ledger agrees.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

EDGE_ROUNDS = 3  # the first and the last rounds that are compared


def run(arguments: list[str]) -> tuple[float, float]:
    """Run the demo; returns its wall time in seconds and the peak memory of its process tree in GiB."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "swarm", "demo", *arguments], stdout=sys.stderr)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_bytes(psutil.Process(process.pid)))
        time.sleep(1)
    if process.returncode:
        raise SystemExit(f"swarm demo {' '.join(arguments)} failed with exit code {process.returncode}")
    return time.monotonic() - started, peak / 2**30


def tree_bytes(root: psutil.Process) -> int:
    """Memory of a process and all that came from it."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
        except psutil.Error:
            continue
    return total


def improvement(report: dict[str, Any], peer: str) -> tuple[float, float]:
    """A peer's mean answer reward in its first and in its last rounds."""
    rewards = [r["peers"][peer]["reward"]["answer"] for r in report["rounds"] if peer in r["peers"]]
    return mean(rewards[:EDGE_ROUNDS]), mean(rewards[-EDGE_ROUNDS:])


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """What the report says, peer by peer."""
    peers = {}
    for peer, totals in report["ledger"]["peers"].items():
        played = [r["peers"][peer] for r in report["rounds"] if peer in r["peers"]]
        first, last = improvement(report, peer)
        peers[played[0]["name"]] = {
            "first": round(first, 3),
            "last": round(last, 3),
            "ratio": round(last / first, 2),
            "rounds_with_external": f"{sum(p['external_groups'] > 0 for p in played)}/{len(played)}",
            "ledger_agrees": (totals["rounds"], totals["total_reward"])
            == (len(played), sum(p["reward_micros"] for p in played)),
        }
    return peers


def main() -> None:
    """Print one JSON object per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=12)
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        path = Path(tempfile.mkdtemp(prefix="swarm-demo-")) / "r.json"
        options = {"--peers": chosen.peers, "--rounds": chosen.rounds, "--seed": seed, "--report": path}
        seconds, memory = run([str(word) for pair in options.items() for word in pair])
        peers = figures(json.loads(path.read_bytes()))
        summary = {"seed": seed, "seconds": round(seconds), "peak_GiB": round(memory, 2), "report": str(path)}
        print(json.dumps({**summary, "peers": peers}, indent=2), flush=True)


if __name__ == "__main__":
    main()

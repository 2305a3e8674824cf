"""What the exchange costs: `python benchmarks/exchange.py [latency|traffic]`; without a word, both.

latency   what announcing and gathering take in cells of several sizes, beside the same bytes put whole into
          DHT values, as RL Swarm does
traffic   messages and bytes of a peer's round in swarms of several sizes
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import exchange_latency
import exchange_traffic

from identity import Identity
from swarm.exchange.service import _quiet_hivemind


def main() -> None:
    """Print the tables that stand in benchmarks/README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["latency", "traffic"])
    parser.add_argument("--cells", type=int, nargs="+", default=[4, 8, 16], help="of the latency's peers")
    parser.add_argument(
        "--repetitions", type=int, default=5, help="of the latency's announcing and gathering"
    )
    parser.add_argument("--real", type=int, nargs="*", default=[16, 64], help="traffic: swarms of real nodes")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[16, 64, 256], help="traffic: in-memory ones"
    )
    parser.add_argument("--rounds", type=int, default=4, help="traffic: that count")
    chosen = parser.parse_args()
    _quiet_hivemind()
    print(f"load before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="swarm-keys-") as folder, ThreadPoolExecutor() as pool:
        count = max(chosen.cells + chosen.real + chosen.memory)
        identities = list(pool.map(Identity.create, (Path(folder) / f"{n}.pem" for n in range(count))))
        if chosen.what in ("latency", None):
            exchange_latency.main(identities, chosen.cells, chosen.repetitions)
        if chosen.what in ("traffic", None):
            exchange_traffic.main(identities, chosen.real, chosen.memory, chosen.rounds)


if __name__ == "__main__":
    main()

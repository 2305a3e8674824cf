"""Peers that report every round that the chain reaches, as processes that a test may kill at any moment.

Run as a program it imports what is slow, once, and then forks a peer for every line `SECRET FOLDER ROUNDS`
that it reads; it answers with the peer's process id. A peer ends when all its rounds are on the ledger.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import web3  # noqa: F401  # here, so that no peer has to
from eth_account import Account
from ledger_cast import make_report

from identity import Identity
from swarm.ledger.account import LedgerAccount
from swarm.ledger.client import LedgerClient
from swarm.ledger.deliveries import Deliveries
from swarm.ledger.outbox import Outbox


def report(rpc_url: str, address: str, secret: str, folder: Path, rounds: int) -> None:
    """Put each round as it comes, and what an earlier life missed; return when all are on the ledger."""
    identity = Identity.load(folder / "swarm.pem")
    deliveries = Deliveries(folder / "outbox.sqlite")
    clock = LedgerClient(rpc_url, address)
    ledger = clock.another()
    machine_dir = Path(os.environ["SWARM_MACHINE_DIR"])
    carrier = LedgerAccount(ledger, Account.from_key(secret), machine_dir)
    with Outbox(deliveries, ledger, carrier, identity, clock.now, window=63) as outbox:
        known = {delivery.round for delivery in deliveries.all()}
        while len(known) < rounds or deliveries.open():
            now = clock.rpc.block(None).timestamp
            for number in range(min(rounds, (now - clock.genesis) // clock.round_seconds + 1)):
                if number not in known:
                    outbox.put(make_report(number, note=identity.peer))
                    known.add(number)
            time.sleep(0.02)


def main() -> None:
    rpc_url, address = sys.argv[1:]
    for line in sys.stdin:
        secret, folder, rounds = line.split()
        child = os.fork()
        if child == 0:
            report(rpc_url, address, secret, Path(folder), int(rounds))
            return
        print(child, flush=True)


if __name__ == "__main__":
    main()

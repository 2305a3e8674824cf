"""What the ledger costs: gas of each transaction on a devnet. `python benchmarks/gas.py`"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from eth_account import Account

from identity import Identity
from swarm.demo import DEMO_MANIFEST
from swarm.ledger.client import LedgerClient, Report, deploy
from swarm.ledger.devnet import Devnet
from swarm.manifest import load


def main() -> None:
    """Print one line per kind of transaction."""
    manifest = load(DEMO_MANIFEST)
    with tempfile.TemporaryDirectory() as folder, Devnet(block_seconds=None) as devnet:
        genesis = int(time.time()) + 10
        ledger = deploy(devnet.rpc_url, Account.from_key(devnet.funded_key), manifest, genesis)
        peers = [Identity.create(Path(folder) / f"{i}.pem") for i in range(2)]

        def used(transaction: str | None) -> int:
            return int(devnet.call("eth_getTransactionReceipt", transaction)["gasUsed"], 16)

        print(f"register, first of a swarm  {used(ledger.register(peers[0])):>8,}")
        print(f"register                    {used(ledger.register(peers[1])):>8,}")
        for number in range(3):
            devnet.call("evm_setNextBlockTimestamp", genesis + number * manifest.round_seconds + 1)
            devnet.call("evm_mine")
            for peer in peers:
                print(
                    f"report, round {number}, peer {peers.index(peer)}     {report(ledger, peer, number):>8,}"
                )


def report(ledger: LedgerClient, peer: Identity, number: int) -> int:
    """The gas of one report."""
    content = Report(
        peer=peer.peer,
        round=number,
        commitment=bytes([1] * 32),
        state_before=bytes([2] * 32),
        state_after=bytes([3] * 32),
        groups=40,
        reward_micros=20_000_000,
    )
    return ledger.report(content).gas_used


if __name__ == "__main__":
    main()

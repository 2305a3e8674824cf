"""What the ledger's tests act with: a chain whose clock they hold, and reports."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from eth_account import Account
from eth_account.signers.local import LocalAccount

from swarm.ledger.client import LedgerClient, Report
from swarm.ledger.devnet import Devnet

SETTLE_SECONDS = 10
ROUND_SECONDS = 1000  # long beside the tests' own seconds, which the chain's clock also counts


@dataclass
class Chain:
    """The devnet, with hands on its clock."""

    devnet: Devnet

    @property
    def time(self) -> int:
        return int(self.devnet.call("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def settle(self) -> None:
        """Wait until what was sent is in a block: anvil answers first and mines in a moment."""
        if not self.devnet.call("anvil_getAutomine"):
            return
        deadline = time.monotonic() + SETTLE_SECONDS
        while int(self.devnet.call("txpool_status")["pending"], 16):
            assert time.monotonic() < deadline, "a transaction stays in the pool"
            time.sleep(0.005)

    def mine_at(self, timestamp: int) -> bytes:
        """Make one block with this timestamp, after what was sent before; its hash."""
        self.settle()
        self.devnet.call("evm_setNextBlockTimestamp", timestamp)
        self.devnet.call("evm_mine")
        return bytes.fromhex(self.devnet.call("eth_getBlockByNumber", "latest", False)["hash"][2:])

    def enter(self, ledger: LedgerClient, round: int, offset: int = 0) -> bytes:
        """Make a block `offset` seconds into the round; its hash."""
        return self.mine_at(ledger.genesis + round * ledger.round_seconds + offset)

    def funded_account(self) -> LocalAccount:
        account = Account.create()
        self.devnet.fund(account.address, 10)
        return account


def make_report(round: int, *, reward_micros: int = 1_500_000, note: bytes = b"") -> Report:
    digest = hashlib.sha256(round.to_bytes(8, "big") + note).digest()
    return Report(
        round=round,
        commitment=digest,
        state_before=hashlib.sha256(b"before" + digest).digest(),
        state_after=hashlib.sha256(b"after" + digest).digest(),
        groups=12,
        reward_micros=reward_micros,
    )

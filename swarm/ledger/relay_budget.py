"""A relay's money: what its account has, what it has promised to pay, and what it may still promise."""

from __future__ import annotations

import time

from swarm.ledger import fees
from swarm.ledger.relay_rules import Quotas, check_daily, unavailable
from swarm.ledger.relay_store import RelayStore
from swarm.ledger.rpc import Rpc
from swarm.ledger.transactions import GAS_MARGIN

BALANCE_SECONDS = 10.0  # the balance that `check` goes by is that old at most
MAX_UNDER_WAY = 256  # requests that are accepted and not mined
WEI_PER_ETHER = 10**18


class Budget:
    """Everything here is in ether. Used from the ledger's thread."""

    def __init__(self, rpc: Rpc, address: str, store: RelayStore, quotas: Quotas) -> None:
        self._rpc = rpc
        self._address = address
        self._store = store
        self._quotas = quotas
        self._balance, self._read_at = 0.0, float("-inf")

    @property
    def today(self) -> float:
        """What today's acceptances cost at most."""
        return self._store.cost_today(time.time())

    def check(self, cost: float = 0.0) -> None:
        """`Refused` if nothing more that costs this much can be accepted now."""
        if time.monotonic() >= self._read_at + BALANCE_SECONDS:
            self._balance = self._rpc.balance(self._address) / WEI_PER_ETHER
            self._read_at = time.monotonic()
        count, promised = self._store.under_way_load()
        if count >= MAX_UNDER_WAY:
            raise unavailable(f"the relay is busy with {count} requests that no block has yet")
        left, floor = max(0.0, self._balance - promised), self._quotas.min_balance_ether
        if left >= floor and cost <= left:
            return
        why = f"stops below {floor:g}" if left < floor else f"this may cost {cost:.4g}"
        raise unavailable(
            f"the relay's account {self._address} has {left:.4f} ether left and {why}: "
            "its operator must send it some"
        )

    def cost(self, gas: int) -> float:
        """What a transaction that uses this much gas costs at most at today's fees; `Refused` if too much.

        Above that it can only get if the fees grow before a block takes it.
        """
        max_fee = fees.market(self._rpc, "a relayed transaction").max_fee
        cost = int(gas * GAS_MARGIN) * max_fee / WEI_PER_ETHER
        check_daily("ether of gas", self.today, self._quotas.ether_per_day, more=cost)
        self._read_at = float("-inf")  # what was mined since it was read is no longer among the promised
        self.check(cost)
        return cost

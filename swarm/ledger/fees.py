"""What a transaction offers for a block's space, and how much more when no block takes it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msgspec import Struct

from swarm.errors import LedgerError

if TYPE_CHECKING:
    from swarm.ledger.rpc import Rpc

BASE_FEE_ROOM = 2  # the base fee grows by at most 1/8 a block: this lasts for six full blocks
MAX_RAISE = 10  # times the market, however often an offer that nobody takes is raised
MAX_FEE_VARIABLE = "SWARM_MAX_FEE_GWEI"
MAX_FEE_GWEI = 1_000.0  # per gas, unless that variable says otherwise
MAX_TIP_GWEI = 100  # Polygon, the dearest of the chains in use, asks 30
MAX_WEI = 2**128  # what a server may call a fee at all
WEI_PER_GWEI = 10**9


class Fees(Struct, frozen=True):
    """An offer in wei per gas. Without `tip`, for a chain from before EIP-1559, `max_fee` is the price."""

    max_fee: int
    tip: int | None

    @property
    def fields(self) -> dict[str, int]:
        """As fields of a transaction."""
        if self.tip is None:
            return {"gasPrice": self.max_fee}
        return {"maxFeePerGas": self.max_fee, "maxPriorityFeePerGas": self.tip}


def cap() -> int:
    """What is offered at most, in wei per gas; `LedgerError` if `SWARM_MAX_FEE_GWEI` is no such number."""
    text = os.environ.get(MAX_FEE_VARIABLE) or str(MAX_FEE_GWEI)
    try:
        gwei = float(text)
    except ValueError:
        gwei = 0.0
    if not 1 / WEI_PER_GWEI <= gwei <= WEI_PER_GWEI:
        raise LedgerError(f"{MAX_FEE_VARIABLE} is a number of gwei per gas, like 1000, not {text[:80]!r}")
    return int(gwei * WEI_PER_GWEI)


def market(rpc: Rpc, action: str) -> Fees:
    """What the next block's space costs now. `action` is what it is asked for, for errors.

    `LedgerError` if that is more than we pay, whatever the server says.
    """
    with rpc.asking(action):
        eth = rpc.web3.eth
        base_fee = eth.get_block("latest").get("baseFeePerGas")
        if base_fee is None:
            price, tip = rpc.number(eth.gas_price, MAX_WEI), 0
        else:
            tip = rpc.number(eth.max_priority_fee, MAX_WEI)
            price = rpc.number(base_fee, MAX_WEI) + tip
    highest = cap()
    if price > highest:
        raise LedgerError(
            f"the ledger at {rpc.host} asks {in_gwei(price)} gwei per gas for {action}, and "
            f"{MAX_FEE_VARIABLE} allows {in_gwei(highest)}: set it higher to pay that, or use another RPC URL"
        )
    if tip > MAX_TIP_GWEI * WEI_PER_GWEI:
        raise LedgerError(
            f"the ledger at {rpc.host} asks a tip of {in_gwei(tip)} gwei per gas for {action}, and at most "
            f"{MAX_TIP_GWEI} is paid, whatever {MAX_FEE_VARIABLE} says: use another RPC URL"
        )
    if base_fee is None:
        return Fees(price, None)
    return Fees(min(BASE_FEE_ROOM * (price - tip) + tip, highest), tip)


def raised(offer: Fees, market: Fees, limit: int) -> Fees | None:
    """An offer that replaces `offer` in a pool and meets the market; None if that is above `limit`.

    The market itself may be above the limit: then the limit is offered.
    """
    least = _replacing(offer.max_fee)
    max_fee = min(max(least, market.max_fee), limit)
    if max_fee < least:
        return None
    if offer.tip is None:
        return Fees(max_fee, None)
    return Fees(max_fee, min(max(_replacing(offer.tip), market.tip or 0), max_fee))


def in_gwei(wei: int) -> str:
    """For a message."""
    return f"{wei / WEI_PER_GWEI:,.9f}".rstrip("0").rstrip(".")


def _replacing(fee: int) -> int:
    # An eighth is the most that a server's pool is known to ask for (Parity); geth and others ask a tenth.
    return max(-(-fee * 9 // 8), fee + 1)

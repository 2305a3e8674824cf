"""What a transaction offers for a block's space, and how much more when no block takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from swarm.ledger.rpc import Rpc

BASE_FEE_ROOM = 2  # the base fee grows by at most 1/8 a block: this lasts for six full blocks
MAX_RAISE = 10  # times the first offer, however often it is raised


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


def market(rpc: Rpc, action: str) -> Fees:
    """What the next block's space costs now. `action` is what it is asked for, for errors."""
    with rpc.asking(action):
        eth = rpc.web3.eth
        base_fee = eth.get_block("latest").get("baseFeePerGas")
        if base_fee is None:
            return Fees(int(eth.gas_price), None)
        tip = int(eth.max_priority_fee)
        return Fees(BASE_FEE_ROOM * int(base_fee) + tip, tip)


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


def _replacing(fee: int) -> int:
    # An eighth is the most that a server's pool is known to ask for (Parity); geth and others ask a tenth.
    return max(-(-fee * 9 // 8), fee + 1)

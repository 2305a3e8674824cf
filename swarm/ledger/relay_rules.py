"""What a relay gives away, and how it says no."""

from __future__ import annotations

from msgspec import Struct

from swarm.errors import LedgerError
from swarm.ledger.relay_wire import Problem


class Quotas(Struct, frozen=True, kw_only=True):
    """How much a relay gives away. Days are UTC's."""

    ether_per_day: float = 0.1  # of gas, all requests together, each at the most that it can cost
    registrations_per_day: int = 1000
    registrations_per_client: int = 10  # a day and client address
    bootnodes_per_day: int = 4  # announcements of a peer
    rotations_per_day: int = 2  # of a peer and its successors
    late_reports_per_day: int = 64  # of a peer; on time it can report only once a round
    verdict_bytes: int = 1024  # of a report
    retries: int = 3  # of a peer's round that failed; one that did not is paid for once
    min_balance_ether: float = 0.01  # below this, nothing is accepted
    waiting_per_client: int = 4  # requests at the same time from one address


class Refused(LedgerError):
    """A request that the relay does not take, as an HTTP status and what the peer is told."""

    def __init__(self, status: int, code: str, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.problem = Problem(code, error)


def wrong(error: str) -> Refused:
    """The request itself is to blame."""
    return Refused(400, "request", error)


def over_quota(error: str) -> Refused:
    """The relay gives no more."""
    return Refused(429, "quota", error)


def unavailable(error: str) -> Refused:
    """Trying again later can help."""
    return Refused(503, "unavailable", error)


def check_daily(what: str, count: float, limit: float, more: float = 1) -> None:
    """`Refused` if `more` on top of today's `count` is above the limit."""
    if count + more > limit:
        raise over_quota(f"this relay pays for {limit} {what} a day; the next day begins at 00:00 UTC")

"""Who is audited, by whom, and which groups: drawn by a beacon that nobody knew when the report was made.

Integers throughout, so that every machine draws the same.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_right
from collections.abc import Iterable, Set
from itertools import accumulate

from msgspec import Struct

from swarm.digest import Purpose, derive
from swarm.manifest import MICROS, Audits

TRIES = 64  # to draw one auditor, of whom some may be excluded; then there is one less


def rate_micros(audits: Audits, age: int, score_micros: int, *, is_on_probation: bool) -> int:
    """How many reports of a million like this one are audited.

    `age` counts the report itself; `score_micros` is the peer's when the case is drawn.
    """
    if age <= audits.first_rounds or is_on_probation:
        return MICROS
    rate, lowest = micros(audits.rate), micros(audits.lowest_rate)
    return rate - (rate - lowest) * score_micros // MICROS


def micros(rate: float) -> int:
    """A manifest's rate in millionths."""
    return round(rate * MICROS)


def is_audited(swarm_id: bytes, beacon: bytes, peer: bytes, round: int, rate: int) -> bool:
    """Whether the beacon draws the peer's report of `round`, of which `rate` in a million are."""
    drawn = int.from_bytes(derive(Purpose.AUDIT, swarm_id, beacon, peer, round)[:8], "big")
    return drawn * MICROS < rate << 64


def leaves_seed(swarm_id: bytes, beacon: bytes, peer: bytes, round: int) -> bytes:
    """32 bytes that decide which groups of the report are looked at."""
    return derive(Purpose.LEAVES, swarm_id, beacon, peer, round)


def groups_drawn(seed: bytes, made: int, limit: int) -> list[int]:
    """The places, ascending, of the groups whose tokens are re-derived; `made` are all of the round's.

    The same for every auditor of a report, so that they can disagree only about what they saw.
    """
    if made <= limit:
        return list(range(made))
    return sorted(
        heapq.nsmallest(
            limit, range(made), key=lambda place: hashlib.sha256(seed + place.to_bytes(4, "big")).digest()
        )
    )


class Candidate(Struct, frozen=True):
    """Who may audit in a round."""

    peer: bytes
    account: str  # "": not known
    weight: int  # its score in micro-units, above 0


class Drawn(Struct, frozen=True):
    """One drawn auditor."""

    candidate: Candidate
    order: bytes  # the digest that drew it; who has more to do than fits takes the lowest first


class Candidates:
    """Who may audit in a round. A weighted draw costs one digest and one search, however many they are."""

    def __init__(self, swarm_id: bytes, beacon: bytes, candidates: Iterable[Candidate]) -> None:
        self._swarm_id = swarm_id
        self._beacon = beacon
        self._ordered = sorted(candidates, key=lambda candidate: candidate.peer)
        self._sums = list(accumulate(candidate.weight for candidate in self._ordered))

    def draw(
        self,
        subject: bytes,
        round: int,
        wanted: int,
        *,
        first_try: int = 0,
        not_peers: Set[bytes],
        not_accounts: Set[str],
    ) -> tuple[list[Drawn], int]:
        """Up to `wanted` auditors for a report, no two of one account, and the number of the next try."""
        drawn: list[Drawn] = []
        peers, accounts = set(not_peers), set(not_accounts)
        k = first_try
        while len(drawn) < wanted and k < first_try + TRIES * wanted and self._ordered:
            order = derive(Purpose.AUDITOR, self._swarm_id, self._beacon, subject, round, k)
            k += 1
            place = int.from_bytes(order, "big") % self._sums[-1]
            candidate = self._ordered[bisect_right(self._sums, place)]
            if candidate.peer in peers or (candidate.account and candidate.account in accounts):
                continue
            peers.add(candidate.peer)
            accounts.add(candidate.account)
            drawn.append(Drawn(candidate, order))
        return drawn, k

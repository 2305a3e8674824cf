"""The demo's report: what each peer recorded, beside what the ledger says (DESIGN.md, section 9)."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from identity import Identity, peer_id_text, peer_name
from swarm.audit_log import Audited
from swarm.ledger.client import LedgerClient
from swarm.records import RoundRecord
from swarm.verde.verdicts import Outcome


class PeerRound(Struct, frozen=True, kw_only=True):
    """One peer's round, from its own records."""

    name: str
    reward: dict[str, float]  # mean of each stage
    reward_micros: int  # what it reported: the sum of its groups' mean rewards
    groups: int
    external_groups: int
    commitment: str
    tx: str | None  # None if the report did not reach the ledger
    late: bool  # on the ledger after the round's end: not ranked
    dropped: dict[str, int]


class Round(Struct, frozen=True):
    """One round of all peers, by peer id."""

    round: int
    peers: dict[str, PeerRound]


class LedgerPeer(Struct, frozen=True):
    """A peer's sums on the ledger, of all its reports and of the ranked (timely) ones; in micro-units."""

    rounds: int
    total_reward: int
    ranked_rounds: int
    ranked_reward: int


class Ledger(Struct, frozen=True):
    """The contract and what it holds."""

    address: str
    peers: dict[str, LedgerPeer]


class Audit(Struct, frozen=True, kw_only=True, rename={"audit_class": "class"}):
    """One check of one audit, from its auditor's own records."""

    round: int  # that was audited
    auditor: str
    peer: str
    check: str
    audit_class: str
    passed: bool
    outcome: str
    seconds: float


class Report(Struct, frozen=True, kw_only=True):
    """The whole file."""

    swarm: str
    seed: int
    rounds: list[Round]
    ledger: Ledger
    audits: list[Audit]
    seconds: float


def build(
    peers: Sequence[tuple[Identity, list[RoundRecord]]],
    audits: Sequence[tuple[Identity, list[Audited]]],
    ledger: LedgerClient,
    *,
    seed: int,
    seconds: float,
) -> Report:
    """Join the peers' records by round with what the ledger says of them; beside it what they audited."""
    on_ledger = {(event.peer, event.round): event for event in ledger.reports()}
    rounds: dict[int, dict[str, PeerRound]] = {}
    for identity, records in peers:
        for record in records:
            reported = on_ledger.get((identity.peer, record.round))
            rounds.setdefault(record.round, {})[identity.peer_id] = PeerRound(
                name=peer_name(identity.peer),
                reward=record.rewards,
                reward_micros=record.reward_micros,
                groups=record.groups,
                external_groups=record.external_groups,
                commitment=record.commitment,
                tx=reported.tx if reported else None,
                late=bool(reported and reported.late),
                dropped=record.dropped,
            )
    totals = {
        peer_id_text(record.peer): LedgerPeer(
            record.rounds, record.all_reward_micros, record.ranked_rounds, record.total_reward_micros
        )
        for record in ledger.leaderboard()
    }
    return Report(
        swarm=ledger.swarm_id.hex(),
        seed=seed,
        rounds=[Round(number, rounds[number]) for number in sorted(rounds)],
        ledger=Ledger(ledger.address, totals),
        audits=[
            Audit(
                round=audited.round,
                auditor=identity.peer_id,
                peer=peer_id_text(audited.peer),
                check=finding.check.name.lower(),
                audit_class=audited.findings.audit_class.name.lower().replace("_", "-"),
                passed=finding.outcome in (Outcome.PASSED, Outcome.UNRANKED),
                outcome=finding.outcome.name.lower(),
                seconds=finding.seconds,
            )
            for identity, done in audits
            for audited in done
            if audited.findings is not None
            for finding in audited.findings.findings
        ],
        seconds=round(seconds, 1),
    )

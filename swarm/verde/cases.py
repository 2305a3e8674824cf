"""One audited report from its drawing to what is settled, and what the auditors' voices come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from msgspec import Struct

from swarm.ledger.records import Reported
from swarm.verde.standing import Kept, Member
from swarm.verde.verdicts import AuditClass, Check, Fault, Outcome, PlantKind, Verdict

MAX_ESCALATIONS = 2
UNSHARED_FAILS = 0.5  # for a voice that the others contradict
UNSERVED_FAILS = 0.25  # for a WITHHELD that is not confirmed: it may have been the only one not served
BLIND_FAILS = 3.0  # for not seeing a plant
WITHHELD_FAILS = 2.0
# For a fault that is settled: (class tolerant, any other class). A tolerance can be met by bad luck.
_FAILS = {
    Check.COMMITMENT: (6.0, 6.0),
    Check.BATCH: (6.0, 6.0),
    Check.PROVENANCE: (2.0, 6.0),
    Check.STEP: (2.0, 6.0),
    Check.AVAILABILITY: (0.0, 0.0),  # counts only as WITHHELD
}


class Side(IntEnum):
    """What a voice comes to. Of two that weigh the same, the first is taken: it is kinder to the audited."""

    PASSED = 0
    UNRANKED = 1
    PLANT = 2  # found the peer's planted fault and nothing else
    WITHHELD = 3
    FAILED = 4


# How many must agree. Alone nobody is believed who accuses.
_TO_SETTLE_AT_ONCE = {Side.PASSED: 2, Side.UNRANKED: 2, Side.PLANT: 2, Side.WITHHELD: 3, Side.FAILED: 2}
_TO_SETTLE_AT_LAST = {Side.PASSED: 1, Side.UNRANKED: 1, Side.PLANT: 1, Side.WITHHELD: 3, Side.FAILED: 2}
_SIDES = {
    Outcome.PASSED: Side.PASSED,
    Outcome.FAILED: Side.FAILED,
    Outcome.UNRANKED: Side.UNRANKED,
    Outcome.WITHHELD: Side.WITHHELD,
}
_OUTCOMES = {side: outcome for outcome, side in _SIDES.items()} | {Side.PLANT: Outcome.UNRANKED}


class Assignment(Struct, frozen=True, kw_only=True):
    """What one auditor has to judge, and all that the ledger says of it.

    To be audited in round `drawn_in`; the verdict goes into the seal of its auditor's report of the next.
    """

    peer: bytes  # as it reported; its key may have been rotated since
    round: int
    drawn_in: int
    seed: bytes  # for `groups_drawn`; the same for all auditors of the report
    report: Reported  # without its verdicts
    clock_round: int  # of the block that holds it
    previous: (
        Reported | None
    )  # the report that it follows in the chain of states; None: it is the peer's first
    last_state: bytes | None  # the peer's last state on the ledger before `round` began; None: there was none
    begins_anew: bool  # its state before is to be the public model's first one
    served_by: bytes  # the key that the peer has now
    order: bytes  # of more than fit, the lowest first

    @property
    def commitment(self) -> bytes:
        """The root that the report names."""
        return self.report.commitment


class Voice(Struct, frozen=True, kw_only=True):
    """What one auditor said of a settled case."""

    auditor: bytes
    outcome: Outcome
    counted: bool  # whether it is what was settled
    fails: float  # that it cost the auditor


class Settled(Struct, frozen=True, kw_only=True):
    """How a case ended. `outcome` is None if nobody could say: then nothing follows."""

    peer: bytes  # as it reported
    round: int
    outcome: Outcome | None
    audit_class: AuditClass
    faults: tuple[Fault, ...]  # of the weightiest voice that is what was settled
    voices: tuple[Voice, ...]
    was_plant: bool  # the peer opened a plant that excuses it; the outcome is UNRANKED then
    settled_in: int


@dataclass(slots=True, eq=False)
class Auditor:
    """One drawn auditor of a case."""

    case: Case
    member: Member
    weight: int  # its score in micro-units when it was drawn
    drawn_in: int
    order: bytes
    verdict: Verdict | None = None  # sealed and opened in time

    @property
    def assignment(self) -> Assignment:
        """What it has to do."""
        case = self.case
        return Assignment(
            peer=case.peer,
            round=case.round,
            drawn_in=self.drawn_in,
            seed=case.seed,
            report=case.kept.report,
            clock_round=case.kept.clock_round,
            previous=case.previous,
            last_state=case.last_state,
            begins_anew=case.subject.begins_anew(case.kept),
            served_by=case.subject.peer,
            order=self.order,
        )


@dataclass(slots=True, eq=False)
class Case:
    """One report that is audited, or may be."""

    subject: Member
    kept: Kept
    age: int  # of the subject, with this report
    previous: Reported | None
    last_state: bytes | None = None  # as in `Assignment`; set with the seed
    seed: bytes = b""  # empty: not drawn yet
    next_try: int = 0  # of drawing auditors
    escalations: int = 0
    auditors: list[Auditor] = field(default_factory=list)

    @property
    def peer(self) -> bytes:
        """As it reported."""
        return self.kept.report.peer

    @property
    def round(self) -> int:
        """That was reported."""
        return self.kept.report.round

    @property
    def looks_like_a_plant(self) -> bool:
        """Whether what is said to be wrong is one thing that could have been planted."""
        checks = {kind.check for kind in PlantKind}
        failed = [verdict for auditor, verdict in self.heard if verdict.outcome is Outcome.FAILED]
        return bool(failed) and all(
            [fault.count for fault in verdict.faults] == [1] and verdict.faults[0].check in checks
            for verdict in failed
        )

    @property
    def heard(self) -> list[tuple[Auditor, Verdict]]:
        """Who said what, in the order in which they were drawn."""
        return [(auditor, auditor.verdict) for auditor in self.auditors if auditor.verdict is not None]

    def decide(self, *, at_last: bool) -> Side | None:
        """What the voices come to; None if that is not clear yet or, at last, at all."""
        weights, counts = Counter[Side](), Counter[Side]()
        for auditor, verdict in self.heard:
            weights[self._side(verdict)] += auditor.weight
            counts[self._side(verdict)] += 1
        needed = _TO_SETTLE_AT_LAST if at_last else _TO_SETTLE_AT_ONCE
        enough = [side for side in sorted(counts) if counts[side] >= needed[side]]
        if at_last:
            return max(enough, key=lambda side: weights[side], default=None)
        heaviest = max(weights.values(), default=0)
        enough = [side for side in enough if weights[side] == heaviest]
        return enough[0] if len(enough) == 1 else None

    def settle(self, side: Side | None, number: int) -> Settled:
        """Let follow what follows for the peer and its auditors, on entering round `number`."""
        agreeing = [pair for pair in self.heard if self._side(pair[1]) is side]
        audit_class = _majority_class(agreeing)
        was_plant = self.kept.plant is not None and side in (Side.PASSED, Side.UNRANKED, Side.PLANT)
        if side is not None and not was_plant:
            self._judge(side, audit_class, [verdict for _, verdict in agreeing])
        if side is not None and (was_plant or side is not Side.PASSED):
            self.subject.unrank(self.kept)
        weightiest = max(agreeing, key=lambda pair: pair[0].weight, default=None)
        return Settled(
            peer=self.peer,
            round=self.round,
            outcome=Outcome.UNRANKED if was_plant else None if side is None else _OUTCOMES[side],
            audit_class=audit_class,
            faults=weightiest[1].faults if weightiest else (),
            voices=tuple(self._pay(auditor, verdict, side, len(agreeing)) for auditor, verdict in self.heard),
            was_plant=was_plant,
            settled_in=number,
        )

    def _side(self, verdict: Verdict) -> Side:
        plant = self.kept.plant
        return Side.PLANT if plant and plant.is_all_of(verdict) else _SIDES[verdict.outcome]

    def _judge(self, side: Side, audit_class: AuditClass, verdicts: Sequence[Verdict]) -> None:
        subject = self.subject
        if side is Side.PASSED:
            subject.audited(passes=1.0, fails=0.0)
            subject.audits_passed += 1
            subject.audit_class = audit_class
        elif side is not Side.UNRANKED:
            fails = _fails(verdicts, audit_class) if side is Side.FAILED else WITHHELD_FAILS
            subject.audited(passes=0.0, fails=fails)
            subject.uproot(self.kept)
            subject.audits_failed += 1
            if side is Side.FAILED:
                subject.audit_class = audit_class

    def _pay(self, auditor: Auditor, verdict: Verdict, settled: Side | None, agreeing: int) -> Voice:
        side = self._side(verdict)
        fails = 0.0 if settled is None else _COST[settled].get(side, 0.0)
        if settled is Side.PLANT and side in (Side.PASSED, Side.UNRANKED):
            fails = self._cost_of_blindness(verdict, found_by=agreeing)
        auditor.member.fails += fails
        return Voice(
            auditor=auditor.member.peer, outcome=verdict.outcome, counted=side is settled, fails=fails
        )

    def _cost_of_blindness(self, verdict: Verdict, found_by: int) -> float:
        plant = self.kept.plant
        # A single one who found it may have been told what to find, where there is nothing.
        if plant is None or found_by < 2:
            return 0.0
        # Within a tolerance one moved weight is not to be seen.
        if plant.kind is PlantKind.WEIGHT and verdict.audit_class is AuditClass.TOLERANT:
            return 0.0
        return BLIND_FAILS


# What a voice costs that is not what was settled. PASSED and UNRANKED are the same in kind. Who was served
# where three were not may well be right, and so may those who saw the plant and not what others saw.
_COST: Mapping[Side, Mapping[Side, float]] = {
    Side.PASSED: {Side.FAILED: UNSHARED_FAILS, Side.WITHHELD: UNSERVED_FAILS},
    Side.UNRANKED: {Side.FAILED: UNSHARED_FAILS, Side.WITHHELD: UNSERVED_FAILS},
    Side.PLANT: {Side.FAILED: UNSHARED_FAILS, Side.WITHHELD: UNSERVED_FAILS},
    Side.FAILED: {
        Side.PASSED: UNSHARED_FAILS,
        Side.UNRANKED: UNSHARED_FAILS,
        Side.WITHHELD: UNSERVED_FAILS,
    },
    Side.WITHHELD: {},
}


def _majority_class(agreeing: Sequence[tuple[Auditor, Verdict]]) -> AuditClass:
    """The class that weighs most among the voices; of two that weigh the same, the weaker."""
    weights = Counter[AuditClass]()
    for auditor, verdict in agreeing:
        weights[verdict.audit_class] += auditor.weight
    return max(sorted(weights), key=lambda audit_class: weights[audit_class], default=AuditClass.TOLERANT)


def _fails(verdicts: Sequence[Verdict], audit_class: AuditClass) -> float:
    """The weight of the heaviest fault; what only one auditor saw does not make it heavier."""
    strict = audit_class is not AuditClass.TOLERANT
    heaviest = sorted(max(_FAILS[fault.check][strict] for fault in verdict.faults) for verdict in verdicts)
    return heaviest[-2]

"""One audited report from its drawing to what is settled, and what the auditors' voices come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from msgspec import Struct

from swarm.ledger.records import Reported
from swarm.verde.standing import Kept, Member
from swarm.verde.verdicts import AuditClass, Check, Fault, Outcome, Plant, PlantKind, Verdict

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


# How many must agree. Nobody is believed alone, whoever else is silent: a friend of the audited may be drawn.
_VOICES = {Side.PASSED: 2, Side.UNRANKED: 2, Side.PLANT: 2, Side.WITHHELD: 3, Side.FAILED: 2}
_AGAINST = (Side.WITHHELD, Side.FAILED)
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
    """How a case ended.

    `outcome` is None if too few could say: then the round does not count, unless there was nobody to ask.
    It is UNRANKED also where faults are named, if these could not be held against the peer: it was away, or
    too few could be asked. Then what came of the round does not count either, nor what was before it and
    that nobody looked at since the last round that passed.
    """

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
        plants = [Plant(kind) for kind in PlantKind]
        failed = [verdict for _, verdict in self.heard if verdict.outcome is Outcome.FAILED]
        return bool(failed) and all(any(plant.is_all_of(one) for plant in plants) for one in failed)

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
        enough = [side for side in sorted(counts) if counts[side] >= self._voices_needed(side, at_last)]
        if at_last:
            return max(enough, key=lambda side: weights[side], default=None)
        heaviest = max(weights.values(), default=0)
        enough = [side for side in enough if weights[side] == heaviest]
        return enough[0] if len(enough) == 1 else None

    def settle(self, side: Side | None, number: int, *, may_be_plant: bool = False) -> Settled:
        """Let follow what follows for the peer and its auditors, on entering round `number`.

        `may_be_plant`: the peer has been away since, and could not open what is perhaps its plant.
        """
        agreeing = [pair for pair in self.heard if self._side(pair[1]) is side]
        audit_class = _majority_class(agreeing)
        was_plant = self.kept.plant is not None and side is not None and side not in _AGAINST
        outcome = self._outcome(side, [auditor for auditor, _ in agreeing], may_be_plant)
        if self.auditors:  # else there was nobody to ask
            self._judge(outcome, audit_class, [verdict for _, verdict in agreeing])
        # Also of who is away: else going away would hide a forged state. Coming back it goes back.
        if side in _AGAINST:
            self.subject.uproot(self.kept)
            # It would hide as well what was wrong in rounds before, of those that nobody looks at.
            if outcome is Outcome.UNRANKED:
                self.subject.unrank_unseen(self.kept)
        elif side is Side.UNRANKED and _names(Check.AVAILABILITY, [verdict for _, verdict in agreeing]):
            self.subject.uproot(self.kept)  # nobody can ever look at its state
        weightiest = max(agreeing, key=lambda pair: pair[0].weight, default=None)
        return Settled(
            peer=self.peer,
            round=self.round,
            outcome=outcome,
            audit_class=audit_class,
            faults=weightiest[1].faults if weightiest else (),
            voices=tuple(self._pay(auditor, verdict, side) for auditor, verdict in self.heard),
            was_plant=was_plant,
            settled_in=number,
        )

    def _voices_needed(self, side: Side, at_last: bool) -> int:
        """For a side to be settled. At last all that could be drawn are enough, but for a fault."""
        if at_last and side is not Side.FAILED:
            return min(_VOICES[side], len(self.auditors))
        return _VOICES[side]

    def _outcome(self, side: Side | None, agreeing: Sequence[Auditor], may_be_plant: bool) -> Outcome | None:
        if side is None:
            return None
        if side is Side.WITHHELD:  # a fault only to whom it could have served
            served = [auditor for auditor in agreeing if self._was_there_for(auditor)]
            return Outcome.WITHHELD if len(served) >= _VOICES[side] else Outcome.UNRANKED
        if side is Side.FAILED:
            return Outcome.UNRANKED if may_be_plant else Outcome.FAILED
        return Outcome.UNRANKED if self.kept.plant is not None else _OUTCOMES[side]

    def _was_there_for(self, auditor: Auditor) -> bool:
        """Whether the peer reported in one of the two rounds in which the auditor asked it."""
        return any(kept.clock_round - auditor.drawn_in in (0, 1) for kept in self.subject.reports)

    def _side(self, verdict: Verdict) -> Side:
        plant = self.kept.plant
        return Side.PLANT if plant and plant.is_all_of(verdict) else _SIDES[verdict.outcome]

    def _judge(self, outcome: Outcome | None, audit_class: AuditClass, verdicts: Sequence[Verdict]) -> None:
        subject = self.subject
        subject.is_undecided = outcome is None
        if outcome is not Outcome.PASSED:
            subject.unrank(self.kept)
        if outcome is Outcome.PASSED:
            subject.audited(passes=1.0, fails=0.0)
            subject.audits_passed += 1
            subject.audit_class = audit_class
            self.kept.has_passed = True
        elif outcome is Outcome.FAILED:
            subject.audited(passes=0.0, fails=_fails(verdicts, audit_class))
            subject.audits_failed += 1
            subject.audit_class = audit_class
        elif outcome is Outcome.WITHHELD:
            subject.audited(passes=0.0, fails=WITHHELD_FAILS)
            subject.audits_failed += 1

    def _pay(self, auditor: Auditor, verdict: Verdict, settled: Side | None) -> Voice:
        side = self._side(verdict)
        fails = 0.0 if settled is None else _COST[settled].get(side, 0.0)
        if settled is Side.PLANT and side in (Side.PASSED, Side.UNRANKED):
            fails = self._cost_of_blindness(verdict)
        auditor.member.fails += fails
        return Voice(
            auditor=auditor.member.peer, outcome=verdict.outcome, counted=side is settled, fails=fails
        )

    def _cost_of_blindness(self, verdict: Verdict) -> float:
        plant = self.kept.plant
        # Within a tolerance one moved weight is not to be seen.
        if plant and plant.kind is PlantKind.WEIGHT and verdict.audit_class is AuditClass.TOLERANT:
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


def _names(check: Check, verdicts: Sequence[Verdict]) -> bool:
    return any(fault.check is check for verdict in verdicts for fault in verdict.faults)


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

"""What is known of one peer: its reports, what audits said of them, and the score that follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct
from scipy.special import betaincinv

from swarm.ledger.records import Reported
from swarm.manifest import MICROS
from swarm.verde.verdicts import AuditClass, Plant

KEPT_REPORTS = 64  # of a peer, those of its latest rounds
QUANTILE = 0.1  # DESIGN.md, section 7: the score is the 10% lower bound
DECAY = 0.97  # of passes and fails, at each settled audit of the peer
# What a score can reach at most, in micro-units, by the class of the last settled audit.
CLASS_CAP = {AuditClass.TOLERANT: 700_000, AuditClass.SAME_BUILD: 900_000, AuditClass.EXACT: MICROS}
_NANOS = 1000  # of a micro-unit
_MOST_KNOWN = 200_000  # quantiles remembered


class Standing(Struct, frozen=True, kw_only=True):
    """A peer as reputation has it after the round that was entered last. Rewards and score in micro-units."""

    peer: bytes
    account: str  # "": none is known
    score_micros: int
    passes: float  # decayed
    fails: float
    age: int  # reports in the unbroken chain of states
    rounds: int  # reported
    ranked_rounds: int  # that count in `verified_micros`
    verified_micros: int
    reward_micros: int  # claimed for rounds that were reported on time, whatever audits said
    audits_passed: int
    audits_failed: int  # plants not counted
    probation_until: int  # the first round in which it is not on probation any more; 0: it never was
    audit_class: AuditClass | None  # of its last settled audit
    is_eligible: bool  # to be learned from and shown
    is_rooted: bool  # its state comes from its first one by reports without fault; else nothing is ranked
    state: bytes | None  # after its latest reported round; None: it never reported
    commitment: bytes | None  # of that round

    @property
    def value(self) -> int:
        """What the leaderboard sorts by: verified contribution times score squared."""
        return self.verified_micros * self.score_micros**2


class Inherited(Struct, frozen=True):
    """What a peer of a swarm's predecessor begins with."""

    passes: float
    fails: float
    audit_class: AuditClass | None


class Kept(Struct, eq=False, gc=False):
    """One report, without its verdicts, and what became of it."""

    report: Reported
    clock_round: int
    is_ranked: bool
    # A chain of reports leads to the state after it from the peer's first state, and none was found at fault.
    is_rooted: bool = True
    plant: Plant | None = None  # opened
    is_drawn: bool = False  # to be audited
    has_passed: bool = False


@dataclass(slots=True, eq=False)
class Member:
    """A peer under whatever key it has now. Changed by `Reputation` alone."""

    peer: bytes
    account: str = ""
    passes: float = 0.0
    fails: float = 0.0
    score_micros: int = 0
    age: int = 0
    rounds: int = 0
    ranked_rounds: int = 0
    verified_micros: int = 0
    reward_micros: int = 0
    audits_passed: int = 0
    audits_failed: int = 0
    probation_until: int = 0
    audit_class: AuditClass | None = None
    is_undecided: bool = False  # in its last settled case too few could say anything
    last_seen: int = -1  # clock round of its last report
    newest: Kept | None = None  # its report of the latest round
    first_state: bytes | None = None  # before its first report
    last_plant: int | None = None  # the round of its last valid plant
    reports: list[Kept] = field(default_factory=list)  # as they came
    seals: dict[int, tuple[bytes, bool]] = field(default_factory=dict)  # by round; whether it was on time

    def kept(self, round: int) -> Kept | None:
        """Its report of `round`, if that is one of the last."""
        return next((kept for kept in reversed(self.reports) if kept.report.round == round), None)

    def before(self, round: int) -> Kept | None:
        """Its report of the latest round below `round`."""
        if self.newest is None or self.newest.report.round < round:
            return self.newest
        earlier = (kept for kept in self.reports if kept.report.round < round)
        return max(earlier, key=lambda kept: kept.report.round, default=None)

    def seen_before(self, clock_round: int) -> Kept | None:
        """Its report of the latest round, of those that were on the ledger before a round began."""
        seen = (kept for kept in self.reports if kept.clock_round < clock_round)
        return max(seen, key=lambda kept: kept.report.round, default=None)

    def audited(self, passes: float, fails: float) -> None:
        """Count a settled audit."""
        self.passes = self.passes * DECAY + passes
        self.fails = self.fails * DECAY + fails

    def add(self, kept: Kept) -> None:
        """Take in a report, the age being counted already."""
        self.reports.append(kept)
        # Not what came first: late reports of old rounds would push out one that is being audited.
        if len(self.reports) > KEPT_REPORTS:
            self.reports.remove(min(self.reports, key=lambda one: one.report.round))
        self.rounds += 1
        self.last_seen = kept.clock_round
        if self.newest is None or kept.report.round > self.newest.report.round:
            self.newest = kept
        if not kept.report.late:
            self.reward_micros += kept.report.reward_micros
        if kept.is_ranked:
            self.ranked_rounds += 1
            self.verified_micros += kept.report.reward_micros

    def unrank(self, kept: Kept) -> None:
        """Let a report not count, for good."""
        if kept.is_ranked:
            kept.is_ranked = False
            self.ranked_rounds -= 1
            self.verified_micros -= kept.report.reward_micros

    def unrank_unseen(self, kept: Kept) -> None:
        """Let the reports before one not count that nobody looked at since the last that passed."""
        earlier = [one for one in self.reports if one.report.round < kept.report.round]
        last = max((one.report.round for one in earlier if one.has_passed), default=-1)
        for one in earlier:
            if one.report.round > last and not one.is_drawn:
                self.unrank(one)

    def uproot(self, kept: Kept) -> None:
        """Let a report at fault, and all whose states come from its, not count until the peer goes back."""
        bad = set[bytes]()
        for later in sorted(self.reports, key=lambda one: one.report.round):
            if later is kept or later.report.state_before in bad:
                bad.add(later.report.state_after)
                later.is_rooted = False
                self.unrank(later)

    @property
    def is_rooted(self) -> bool:
        """Whether its present state is one that it came to by the rules, as far as anybody found."""
        return self.newest is None or self.newest.is_rooted

    @property
    def rooted_states(self) -> set[bytes]:
        """To which it can go back."""
        states = {kept.report.state_after for kept in self.reports if kept.is_rooted}
        return states | ({self.first_state} if self.first_state is not None else set())

    def begins_anew(self, kept: Kept) -> bool:
        """Whether a report begins where the peer's first one did: there the public model has to be."""
        return kept.report.state_before == self.first_state

    def is_on_probation(self, number: int) -> bool:
        """Whether a fail was settled lately."""
        return number < self.probation_until

    def is_eligible(self, number: int, floor_micros: int) -> bool:
        """Whether others use its work in round `number`. Who is new may still show what it is."""
        return self.rounds == 0 or (
            self.score_micros >= floor_micros and not self.is_on_probation(number) and self.is_rooted
        )

    def standing(self, number: int, floor_micros: int) -> Standing:
        """All this, for others to keep."""
        return Standing(
            peer=self.peer,
            account=self.account,
            score_micros=self.score_micros,
            passes=self.passes,
            fails=self.fails,
            age=self.age,
            rounds=self.rounds,
            ranked_rounds=self.ranked_rounds,
            verified_micros=self.verified_micros,
            reward_micros=self.reward_micros,
            audits_passed=self.audits_passed,
            audits_failed=self.audits_failed,
            probation_until=self.probation_until,
            audit_class=self.audit_class,
            is_eligible=self.is_eligible(number, floor_micros),
            is_rooted=self.is_rooted,
            state=self.newest.report.state_after if self.newest else None,
            commitment=self.newest.report.commitment if self.newest else None,
        )


class Scores:
    """Computes scores, many at once, and remembers the quantiles: honest peers have the same few."""

    def __init__(self) -> None:
        self._known: dict[tuple[float, float], int] = {}

    def update(self, members: Iterable[Member]) -> None:
        """Give each the score that follows from its passes, fails and class."""
        changed = list(members)
        unknown = list({(m.passes, m.fails) for m in changed} - self._known.keys())
        if len(self._known) + len(unknown) > _MOST_KNOWN:
            self._known.clear()
            unknown = list({(m.passes, m.fails) for m in changed})
        self._known.update(zip(unknown, lower_bounds(unknown), strict=True))
        for m in changed:
            cap = CLASS_CAP[AuditClass.TOLERANT if m.audit_class is None else m.audit_class]
            m.score_micros = min(self._known[m.passes, m.fails], cap)


def lower_bounds(counts: list[tuple[float, float]]) -> list[int]:
    """The 10% quantile of Beta(1 + passes, 1 + fails) of each pair, floored to micro-units.

    Libraries may differ in the last bits, so it is rounded to nano-units first: else 0.1, which a newcomer
    has, would be 100,000 micro-units here and 99,999 there.
    """
    if not counts:
        return []
    passes, fails = np.array(counts, dtype=np.float64).T
    nanos = np.rint(betaincinv(1 + passes, 1 + fails, QUANTILE) * (MICROS * _NANOS)).astype(np.int64)
    return [int(micros) for micros in nanos // _NANOS]

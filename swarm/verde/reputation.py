"""Who can be trusted how far: a pure function of the ledger's events and beacons, the same on every machine.

A report of round r in a block of clock round s is audited like this, `a` being the first round after s that
has a beacon:

    entering a       it is drawn whether it is audited, by whom, which groups (`swarm.verde.assignment`)
    reports of a+1   each auditor's verdict is in its report's seal; nobody sees another's before
    reports of a+2   each opens its seal, and who planted a fault says so (`swarm.verde.hearing`)
    entering a+3     the case is settled (`swarm.verde.cases`), or one more auditor is drawn, with the same
                     time line

Floats are only added and multiplied, in the ledger's order; what is compared are integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from swarm.ledger.records import Dated, Event, Registered, Reported, Rotated
from swarm.manifest import Audits
from swarm.verde.assignment import Candidate, Candidates, is_audited, leaves_seed, micros, rate_micros
from swarm.verde.cases import MAX_ESCALATIONS, Assignment, Auditor, Case, Settled, Side
from swarm.verde.hearing import PLANT_OPENED_AFTER, PLANT_PATIENCE, hear, may_be_opened
from swarm.verde.standing import Inherited, Kept, Member, Scores, Standing
from swarm.verde.verdicts import Outcome

SETTLED_AFTER = 3  # rounds from the drawing
ALIVE_ROUNDS = 3  # an auditor's last report is no older
# States of the round before last, the last, and this one are needed until two rounds after the report is in.
STATES_TO_AUDIT = 5
KEPT_ROUNDS = (
    96  # of which it is known who was not eligible; above the longest lateness and the time of a case
)


class Reputation:
    """The standings of all peers and the cases that are open. Not for use from two threads at once."""

    def __init__(
        self, swarm_id: bytes, audits: Audits, inherited: Mapping[bytes, Inherited] = MappingProxyType({})
    ) -> None:
        """`inherited` is from the swarm's predecessor: see `inheritance`."""
        self.number = -1  # the round that was entered last
        self._swarm_id = swarm_id
        self._inherited = inherited
        self._audits = audits
        self._floor_micros = micros(audits.floor)
        self._members: dict[bytes, Member] = {}
        self._former: dict[bytes, Member] = {}  # by keys that were rotated away
        self._scores = Scores()
        self._changed: dict[Member, None] = {}  # their scores; a set that keeps its order
        self._waiting: list[Case] = []  # for a beacon
        self._due: dict[int, list[Case]] = {}  # by the round in which they are to be settled
        self._open: dict[tuple[bytes, int], Case] = {}  # drawn and not settled
        self._drawn: dict[int, dict[Member, list[Auditor]]] = {}  # the last rounds' assignments
        self._ineligible: dict[int, frozenset[bytes]] = {-1: frozenset()}

    def enter(self, number: int, beacon: bytes | None, events: Sequence[Event]) -> list[Settled]:
        """Take in a round's beginning: the cases that are settled by it, in order.

        Called once for every round in order, from 0 on, whether anything happened or not. `events` are those
        of clock round `number` - 1 (for round 0: all before it began) in the ledger's order; `beacon` is None
        if the ledger made no block in round `number`.
        """
        if number != self.number + 1:
            raise ValueError(f"round {number} cannot be entered after {self.number}")
        self.number = number
        for event in events:
            self._take_in(event)
        settled = self._settle()
        self._scores.update(self._changed)
        self._changed.clear()
        self._note_ineligible()
        self._drawn.pop(number - SETTLED_AFTER - 1, None)
        self._drawn[number] = {}
        if beacon is not None:
            self._draw(beacon)
        return settled

    # ---- asked by others ----

    def assignments(self, auditor: bytes, drawn_in: int | None = None) -> list[Assignment]:
        """What an auditor has to judge that was drawn in this round, or in one of the three before it.

        It works on them in that round and the next, and its report of the next one seals its verdicts. Of
        more than `MAX_VERDICTS` it takes the first.
        """
        drawn = self._drawn.get(self.number if drawn_in is None else drawn_in, {})
        member = self._find(auditor)
        tasks = [one.assignment for one in drawn.get(member, [])] if member else []
        return sorted(tasks, key=lambda task: task.order)

    def cases(self) -> list[tuple[Assignment, bytes]]:
        """All assignments of open cases, each with its auditor, in the order in which they were drawn."""
        return [
            (auditor.assignment, auditor.member.peer)
            for case in self._open.values()
            for auditor in case.auditors
        ]

    def standing(self, peer: bytes) -> Standing:
        """A peer's standing, also under a key that it had before; of who is unknown, a newcomer's."""
        member = self._find(peer)
        if member is None:
            member = Member(peer)
            self._scores.update([member])
        return member.standing(self.number, self._floor_micros)

    def standings(self) -> list[Standing]:
        """Of all who ever reported, the highest verified contribution times score squared first."""
        found = [m.standing(self.number, self._floor_micros) for m in self._members.values() if m.rounds]
        return sorted(found, key=lambda standing: (-standing.value, standing.peer))

    def inheritance(self) -> dict[bytes, Inherited]:
        """What a swarm that continues this one begins with; ages and rewards stay here."""
        return {
            peer: Inherited(member.passes, member.fails, member.audit_class)
            for peer, member in self._members.items()
            if member.rounds
        }

    def ineligible(self) -> frozenset[bytes]:
        """Who is not to be learned from or shown in this round."""
        return self._ineligible[self.number]

    def ineligible_in(self, number: int) -> frozenset[bytes] | None:
        """Who was not in an earlier round; None if that is long ago or still to come."""
        return self._ineligible.get(number)

    def state_before(self, peer: bytes, round: int) -> bytes | None:
        """The state after the peer's latest report of those on the ledger before `round` began."""
        member = self._find(peer)
        kept = member.seen_before(round) if member else None
        return kept.report.state_after if kept else None

    def was_on_ledger(self, peer: bytes, digest: bytes, before_round: int) -> bool:
        """Whether a recent report of the peer, there before that round began, has this state after it."""
        member = self._find(peer)
        return member is not None and any(
            kept.report.state_after == digest and kept.clock_round < before_round for kept in member.reports
        )

    def assignment_of(self, peer: bytes, round: int) -> Assignment | None:
        """The peer's report of a recent round as its auditors get it, whether it has any or not.

        Which groups they look at is left open: the seed is zeros.
        """
        member = self._find(peer)
        kept = member.kept(round) if member else None
        if member is None or kept is None:
            return None
        previous = member.before(round)
        return Assignment(
            peer=kept.report.peer,
            round=round,
            drawn_in=self.number,
            seed=bytes(32),
            report=kept.report,
            clock_round=kept.clock_round,
            previous=previous.report if previous else None,
            last_state=self.state_before(peer, round),
            begins_anew=member.begins_anew(kept),
            served_by=member.peer,
            order=bytes(32),
        )

    def rooted_states(self, peer: bytes) -> set[bytes]:
        """The states to which a peer can go back when its present one counts no more; recent ones only."""
        member = self._find(peer)
        return member.rooted_states if member else set()

    def report_of(self, peer: bytes, round: int) -> Reported | None:
        """The peer's report of a recent round, without its verdicts."""
        member = self._find(peer)
        kept = member.kept(round) if member else None
        return kept.report if kept else None

    def ranked(self, peer: bytes) -> dict[int, bool]:
        """Of the peer's recent reports, by round, whether they count."""
        member = self._find(peer)
        return {kept.report.round: kept.is_ranked for kept in member.reports} if member else {}

    def has_reported_since(self, peer: bytes, round: int) -> bool:
        """Whether the ledger has a report of the peer of this round or a later one."""
        member = self._find(peer)
        return member is not None and member.newest is not None and member.newest.report.round >= round

    # ---- events ----

    def _find(self, peer: bytes) -> Member | None:
        return self._members.get(peer) or self._former.get(peer)

    def _member(self, peer: bytes) -> Member:
        member = self._find(peer)
        if member is None:
            member = self._members[peer] = Member(peer)
            if (before := self._inherited.get(peer)) is not None:
                member.passes, member.fails = before.passes, before.fails
                member.audit_class = before.audit_class
            self._changed[member] = None
        return member

    def _take_in(self, event: Event) -> None:
        if isinstance(event, Registered):
            self._member(event.peer).account = event.account
        elif isinstance(event, Rotated):
            member = self._member(event.old)
            self._former[event.old] = self._members[event.new] = member
            self._members.pop(event.old, None)
            member.peer = event.new
        else:
            self._report(event)

    def _report(self, dated: Dated) -> None:
        report = dated.report
        member = self._member(report.peer)
        previous = member.before(report.round)
        follows = previous.report.state_after == report.state_before if previous else not member.rounds
        # What is needed to audit it need not be served any more.
        too_late = dated.clock_round - report.round > max(0, self._audits.kept_states - STATES_TO_AUDIT)
        member.age = member.age + 1 if follows and not too_late else 1
        duties = self._drawn.get(report.round - 2, {}).get(member, [])
        fails = member.fails
        hear(member, dated, self.number, duties)
        if member.fails != fails:
            self._changed[member] = None
        bare = Reported(
            peer=report.peer,
            round=report.round,
            groups=report.groups,
            reward_micros=report.reward_micros,
            commitment=report.commitment,
            state_before=previous.report.state_after if previous and follows else report.state_before,
            state_after=report.state_after,
            late=report.late,
            tx=report.tx,
            block_number=report.block_number,
        )
        if previous is None and not member.rounds:
            member.first_state = report.state_before
        # A state from nowhere may be anything, and so may one that nobody can look at any more.
        # A report at fault may have left the state as it was: from there it goes on as from any good one.
        is_rooted = not too_late and (
            (follows and previous is not None and previous.is_rooted)
            or report.state_before in member.rooted_states
        )
        is_ranked = follows and is_rooted and not report.late
        kept = Kept(bare, dated.clock_round, is_ranked, is_rooted)
        member.add(kept)
        if not too_late:
            before = previous.report if previous else None
            self._waiting.append(Case(member, kept, member.age, before))

    # ---- cases ----

    def _settle(self) -> list[Settled]:
        settled = []
        for case in self._due.pop(self.number, []):
            at_last = case.escalations >= MAX_ESCALATIONS
            side = case.decide(at_last=at_last)
            may_be_plant = side is Side.FAILED and case.looks_like_a_plant
            is_unopened = may_be_plant and may_be_opened(case.subject, case.round)
            if side is None and not at_last:
                case.escalations += 1
                self._waiting.append(case)
            elif is_unopened and self.number <= case.round + PLANT_OPENED_AFTER + PLANT_PATIENCE:
                self._due.setdefault(self.number + 1, []).append(case)
            else:
                end = case.settle(side, self.number, may_be_plant=is_unopened)
                settled.append(end)
                self._close(case, end)
        return settled

    def _close(self, case: Case, end: Settled) -> None:
        del self._open[case.peer, case.round]
        if end.outcome in (Outcome.FAILED, Outcome.WITHHELD):
            case.subject.probation_until = self.number + self._audits.rounds_after_fail
        self._changed[case.subject] = None
        self._changed.update((auditor.member, None) for auditor in case.auditors)

    def _draw(self, beacon: bytes) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        candidates = Candidates(self._swarm_id, beacon, self._candidates())
        for case in waiting:
            if case.seed:
                self._assign(case, candidates, 1)
            elif self._is_audited(case, beacon):
                case.seed = leaves_seed(self._swarm_id, beacon, case.peer, case.round)
                case.last_state = self.state_before(case.peer, case.round)
                case.kept.is_drawn = True
                self._open[case.peer, case.round] = case
                self._assign(case, candidates, self._audits.auditors)

    def _is_audited(self, case: Case, beacon: bytes) -> bool:
        subject = case.subject
        # Of whom too few could say anything is looked at until they can: else being hard to judge would pay.
        always = subject.is_on_probation(self.number) or subject.is_undecided
        rate = rate_micros(self._audits, case.age, subject.score_micros, is_on_probation=always)
        return is_audited(self._swarm_id, beacon, case.peer, case.round, rate)

    def _candidates(self) -> list[Candidate]:
        age = min(self._audits.auditor_age, self.number // 2)  # in a young swarm nobody is old
        return [
            Candidate(member.peer, member.account, member.score_micros)
            for member in self._members.values()
            if member.age >= age
            and member.last_seen >= self.number - ALIVE_ROUNDS
            and member.rounds
            and member.score_micros > 0
            and not member.is_on_probation(self.number)
        ]

    def _assign(self, case: Case, candidates: Candidates, wanted: int) -> None:
        taken = [case.subject, *(auditor.member for auditor in case.auditors)]
        drawn, case.next_try = candidates.draw(
            case.peer,
            case.round,
            wanted,
            first_try=case.next_try,
            not_peers={member.peer for member in taken},
            not_accounts={member.account for member in taken},
        )
        for one in drawn:
            member = self._members[one.candidate.peer]
            auditor = Auditor(case, member, one.candidate.weight, self.number, one.order)
            case.auditors.append(auditor)
            self._drawn[self.number].setdefault(member, []).append(auditor)
        if drawn:
            self._due.setdefault(self.number + SETTLED_AFTER, []).append(case)
        else:  # there is nobody else to ask
            case.escalations = MAX_ESCALATIONS
            self._due.setdefault(self.number + 1, []).append(case)

    def _note_ineligible(self) -> None:
        found = frozenset(
            member.peer
            for member in self._members.values()
            if not member.is_eligible(self.number, self._floor_micros)
        )
        before = self._ineligible[self.number - 1]
        self._ineligible[self.number] = before if found == before else found
        self._ineligible.pop(self.number - KEPT_ROUNDS, None)

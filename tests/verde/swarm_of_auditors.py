"""A swarm of peers that report and audit one another, without models or network: the real seals, assignments,
settling and scores on made-up truths.

What a peer did wrong is known here (`Made`), so an auditor's verdict is a function of it, of the groups that
the beacon draws and of what kind of auditor it is. Beacons are digests of counters, so a run repeats itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from swarm.ledger.records import Dated, Event, Registered, Reported
from swarm.manifest import Audits
from swarm.verde import verdicts
from swarm.verde.assignment import groups_drawn
from swarm.verde.cases import Assignment, Settled
from swarm.verde.reputation import Reputation
from swarm.verde.standing import Standing
from swarm.verde.verdicts import AuditClass, Check, Fault, Outcome, Plant, PlantKind, Sealed, Verdict

SWARM_ID = hashlib.sha256(b"swarm of auditors").digest()
REWARD_MICROS = 1_000_000  # of each round
MADE = 4  # groups, each


def digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass(frozen=True)
class Made:
    """The truth of one report."""

    fault: Fault | None = None
    group: int | None = None  # where the fault is; None: seen in every audit
    others: tuple[Fault, ...] = ()  # besides, seen in every audit
    is_served: bool = True
    is_ranked: bool = True  # sampled with the state that it should

    def seen(self, assignment: Assignment, limit: int) -> tuple[Fault, ...]:
        """The faults that an honest auditor sees."""
        drawn = groups_drawn(assignment.seed, assignment.report.groups, limit)
        here = self.fault is not None and (self.group is None or self.group in drawn)
        return ((self.fault,) if self.fault and here else ()) + self.others


WRONG_TOKENS = Made(Fault(Check.PROVENANCE, 40, "40 completions"))
PLANTS = {kind: Made(Fault(kind.check, 1, "planted")) for kind in PlantKind}


@dataclass
class Peer:
    """One peer. Its fields say how it differs from an honest one that plants nothing."""

    peer: bytes
    account: str
    makes: Callable[[int], Made] = lambda round: Made()
    judges: Callable[[Assignment, Verdict], Verdict | None] = lambda assignment, honest: honest
    plants: Callable[[int], Plant | None] = lambda round: None  # sealed in the report of the round before
    registers_plants: bool = True
    opens: Callable[[int], bool] = lambda round: True
    opens_plants: bool = True
    is_there: Callable[[int], bool] = lambda round: True  # plays the round
    serves: Callable[[int], bool] = lambda round: True  # what it is asked for in the round
    learns: Callable[[int], bool] = lambda round: True  # else the round leaves its state as it was
    is_late: Callable[[int], bool] = lambda round: False  # its report waits for the next one
    joins: int = 0
    made: int = MADE
    audit_class: AuditClass = AuditClass.SAME_BUILD
    state: bytes = b""
    goes_back: bool = True  # to a rooted state, when its own is none any more
    went_back: int | None = None  # in which round
    sealed: dict[int, Sealed] = field(default_factory=dict)
    planted: list[int] = field(default_factory=list)  # rounds whose plants it has to open
    waiting: list[Reported] = field(default_factory=list)


class Swarm:
    """Plays rounds, one after the other."""

    def __init__(
        self,
        peers: Iterable[Peer],
        audits: Audits | None = None,
        *,
        seed: object = 0,
        silent: Iterable[int] = (),
    ) -> None:
        self.audits = audits or Audits()
        self.reputation = Reputation(SWARM_ID, self.audits)
        self.peers: dict[bytes, Peer] = {}
        self.settled: list[Settled] = []
        self.truth: dict[tuple[bytes, int], tuple[Made, AuditClass]] = {}  # of reports
        self.silent = frozenset(silent)  # rounds in which the ledger makes no block
        self._seed = seed
        self.events: list[Event] = []  # of the round that is over
        for peer in peers:
            self.add(peer)

    @property
    def round(self) -> int:
        """That was played last."""
        return self.reputation.number

    def add(self, peer: Peer) -> Peer:
        """Register a peer, before the next round."""
        self.peers[peer.peer] = peer
        self.events.append(Registered(peer=peer.peer, account=peer.account, tx="0x00", block_number=0))
        return peer

    def play(self, rounds: int = 1) -> list[Settled]:
        """Play so many rounds; what was settled in them."""
        before = len(self.settled)
        for _ in range(rounds):
            number = self.round + 1
            beacon = None if number in self.silent else digest("beacon", self._seed, number)
            events, self.events = self.events, []
            self.settled += self.reputation.enter(number, beacon, events)
            for peer in self.peers.values():
                if number >= peer.joins and peer.is_there(number):
                    peer.waiting.append(self.report(peer, number))
                    if beacon is not None and not peer.is_late(number):
                        self.deliver(peer)
        return self.settled[before:]

    def deliver(self, peer: Peer) -> None:
        """Put what a peer has to report into the ledger, in this round."""
        self.events += [self.dated(report) for report in peer.waiting]
        peer.waiting.clear()

    def dated(self, report: Reported) -> Dated:
        """A report as it comes in in this round, late or not."""
        is_late = report.round != self.round
        return Dated(report=msgspec.structs.replace(report, late=is_late), clock_round=self.round)

    def standing(self, peer: Peer) -> Standing:
        return self.reputation.standing(peer.peer)

    def settled_fails(self) -> list[Settled]:
        return [case for case in self.settled if case.outcome in (Outcome.FAILED, Outcome.WITHHELD)]

    def report(self, peer: Peer, number: int) -> Reported:
        """What the peer has to say of a round that it has just played."""
        before = self._state_before(peer, number)
        plant = peer.plants(number) if not peer.registers_plants or self._sealed_plant(peer, number) else None
        made = PLANTS[plant.kind] if plant else peer.makes(number)
        self.truth[peer.peer, number] = made, peer.audit_class
        peer.planted += [number] if plant and peer.registers_plants else []
        peer.state = digest("state", peer.peer, number) if peer.learns(number) else before
        return Reported(
            peer=peer.peer,
            round=number,
            groups=peer.made,
            reward_micros=REWARD_MICROS,
            commitment=digest("commitment", peer.peer, number),
            state_before=before,
            state_after=peer.state,
            verdicts=self._verdicts(peer, number),
            late=False,
            tx="0x00",
            block_number=0,
        )

    def _state_before(self, peer: Peer, number: int) -> bytes:
        """Where the peer is, or goes back to once its present state counts no more."""
        back = peer.went_back
        reported = back is None or self.reputation.has_reported_since(peer.peer, back)
        if peer.state and peer.goes_back and reported and not self.standing(peer).is_rooted:
            peer.went_back = number
            return min(self.reputation.rooted_states(peer.peer))
        return peer.state or digest("first state")

    def _sealed_plant(self, peer: Peer, number: int) -> Plant | None:
        return peer.sealed[number - 1].plant if number - 1 in peer.sealed else None

    def _verdicts(self, peer: Peer, number: int) -> bytes:
        duties = self.reputation.assignments(peer.peer, number - 1)
        judged = [peer.judges(duty, self._honest(duty, peer)) for duty in duties]
        plant = peer.plants(number + 1) if peer.registers_plants else None
        sealed = peer.sealed[number] = verdicts.seal([one for one in judged if one is not None], plant)
        earlier = peer.sealed.get(number - 1)
        opened = None
        if peer.planted and number >= peer.planted[0] + 3 and peer.opens_plants:
            planted = peer.planted.pop(0)
            opened = peer.sealed[planted - 1].plant_opening(planted)
        return verdicts.encode(
            sealed.seal, earlier.opening if earlier and peer.opens(number) else None, opened
        )

    def _honest(self, duty: Assignment, auditor: Peer) -> Verdict:
        made, audit_class = self.truth[duty.peer, duty.round]
        faults = made.seen(duty, self.audits.groups)
        outcome = Outcome.FAILED if faults else Outcome.PASSED if made.is_ranked else Outcome.UNRANKED
        served = self.peers[duty.served_by].serves if duty.served_by in self.peers else lambda round: True
        if not made.is_served or not any(served(duty.drawn_in + later) for later in (0, 1)):
            outcome, faults = Outcome.WITHHELD, (Fault(Check.AVAILABILITY),)
        return Verdict(duty.peer, duty.round, outcome, min(audit_class, auditor.audit_class), faults)


def honest(count: int, name: object = "honest", **differently: object) -> list[Peer]:
    """So many honest peers, each with an account of its own."""
    return [Peer(digest(name, n), f"0x{name}{n}", **differently) for n in range(count)]  # type: ignore[arg-type]


def passes(assignment: Assignment, truth: Verdict) -> Verdict:
    """Says that all is well, whatever it is."""
    return Verdict(assignment.peer, assignment.round, Outcome.PASSED, truth.audit_class)


def fails(assignment: Assignment, truth: Verdict) -> Verdict:
    """Says that the update is wrong, whatever it is."""
    return Verdict(
        assignment.peer, assignment.round, Outcome.FAILED, truth.audit_class, (Fault(Check.STEP, 9),)
    )

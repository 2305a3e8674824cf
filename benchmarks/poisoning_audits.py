"""The ledger of `poisoning.py`, in memory, and the peers' audits of what is on it.

Honest auditors run the whole of `swarm.audit`. Those of one report look at the same groups with the same
model on the same machine, so what comes out is computed once and all of them say it. Dishonest peers do not
look, and say that all is well.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from poisoning_peer import Peer, Poisoner, Served

from swarm.audit import Checker, facts_of
from swarm.audit_evidence import Fetching
from swarm.audit_models import LoadedModels
from swarm.auditing import verdict_of
from swarm.ledger.client import LedgerClient
from swarm.ledger.records import Dated, Event, Registered, Reported
from swarm.manifest import Manifest
from swarm.policy.plan import Plan
from swarm.tasks import Tasks
from swarm.verde import verdicts
from swarm.verde.cases import Assignment
from swarm.verde.reputation import Reputation
from swarm.verde.verdicts import AuditClass, Outcome, Verdict


@dataclass
class Ledger:
    """What peers reported, and what `facts_of` asks for. All reports come in time."""

    seed: int
    events: defaultdict[int, list[Event]] = field(default_factory=lambda: defaultdict(list))  # by clock round
    _registered: set[bytes] = field(default_factory=set)

    def beacon(self, number: int) -> bytes:
        """Of a round; the same whatever the peers do."""
        return hashlib.sha256(f"poisoning {self.seed} {number}".encode()).digest()

    def active(self, number: int) -> int:
        """How many reported two rounds before."""
        return sum(isinstance(event, Dated) for event in self.events[number - 2])

    def is_registered(self, peer: bytes) -> bool:
        """Whether it is known at all."""
        return peer in self._registered

    def register(self, peer: Peer, number: int) -> None:
        """In clock round `number`; -1: before the first."""
        self._registered.add(peer.peer)
        self.events[number].append(
            Registered(peer=peer.peer, account=peer.account, tx="0x00", block_number=0)
        )

    def report(self, peer: Peer, said: bytes) -> None:
        """Take in what a peer committed to, with what it says of others."""
        assert peer.commit is not None
        played, learned = peer.commit.played, peer.commit.learned
        report = Reported(
            peer=peer.peer,
            round=played.round,
            groups=played.groups,
            reward_micros=played.reward_micros,
            commitment=played.commitment,
            state_before=learned.state_before.digest,
            state_after=learned.state_after.digest,
            verdicts=said,
            late=False,
            tx="",
            block_number=played.round,
        )
        self.events[played.round].append(Dated(report=report, clock_round=played.round))


class Auditors:
    """All peers of a swarm as auditors."""

    def __init__(
        self, manifest: Manifest, tasks: Tasks, plan: Plan, ledger: Ledger, served: Served, folder: Path
    ) -> None:
        self.reputation = Reputation(manifest.swarm_id, manifest.audits)
        self.settled: Counter[str] = Counter()  # cases, by subject and outcome
        self.cpu_seconds = 0.0
        self._manifest = manifest
        self._ledger = ledger
        self._served = served
        self._folder = folder
        self._checker = Checker(manifest, tasks, LoadedModels(manifest, plan, folder))
        self._found: dict[tuple[bytes, int], Verdict] = {}

    @property
    def audits(self) -> int:
        """Reports that were audited by honest peers."""
        return len(self._found)

    def enter(self, number: int, dishonest: Collection[bytes]) -> frozenset[bytes]:
        """A round begins: who is not to be learned from in it."""
        for case in self.reputation.enter(
            number, self._ledger.beacon(number), self._ledger.events[number - 1]
        ):
            subject = "dishonest" if case.peer in dishonest else "honest"
            outcome = "open" if case.outcome is None else case.outcome.name.lower()
            self.settled[f"{subject} {outcome}"] += 1
        return self.reputation.ineligible()

    def said(self, peer: Peer, number: int) -> bytes:
        """The `verdicts` of a peer's report: as `swarm.auditing` has it, without plants."""
        duties = self.reputation.assignments(peer.peer, number - 1)
        peer.sealed[number] = verdicts.seal([self._judge(peer, duty) for duty in duties])
        before = peer.sealed.get(number - 1)
        return verdicts.encode(peer.sealed[number].seal, before.opening if before else None)

    def _judge(self, peer: Peer, duty: Assignment) -> Verdict:
        if isinstance(peer, Poisoner):
            return Verdict(duty.peer, duty.round, Outcome.PASSED, AuditClass.SAME_BUILD)
        case = duty.peer, duty.round
        if case not in self._found:
            began = time.process_time()
            self._found[case] = self._check(duty)
            self.cpu_seconds += time.process_time() - began
        return self._found[case]

    def _check(self, duty: Assignment) -> Verdict:
        ineligible = self.reputation.ineligible_in(duty.round) or frozenset()
        facts = facts_of(duty, cast(LedgerClient, self._ledger), self._manifest.audits.groups, ineligible)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            fetching = Fetching(
                self._served,
                self._manifest,
                Path(folder),
                seconds=60.0,
                budget_bytes=2**30,
                is_registered=self._ledger.is_registered,
            )
            findings = self._checker.check(fetching.fetch(facts))
        torch.set_num_threads(1)  # loading a model has set it
        return verdict_of(findings)

"""A node's audits: of which reports, with what means, and what goes of it into its own reports.

A thread of its own fetches what an audit needs and hands it to the audit process; the round never waits for
either. What is spent is bounded: a share of the time, and bytes a day.
"""

from __future__ import annotations

import logging
import queue
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from identity import peer_name
from swarm.audit import Facts, Undecided, facts_of
from swarm.audit_evidence import Fetching, NotNow, Source, Withheld
from swarm.audit_log import AUDITS_FILE, Audited, AuditLog, KeptSeal
from swarm.audit_process import AuditProcess
from swarm.console import plain
from swarm.errors import LedgerError
from swarm.findings import Finding, Findings, fault_of
from swarm.ledger.background import Background
from swarm.ledger.client import LedgerClient
from swarm.manifest import Manifest
from swarm.verde import verdicts
from swarm.verde.build import Build
from swarm.verde.cases import Assignment, Settled
from swarm.verde.hearing import PLANT_OPENED_AFTER, PLANT_ROUNDS
from swarm.verde.standings import Standings
from swarm.verde.verdicts import MAX_VERDICTS, AuditClass, Check, Outcome, Plant, PlantKind, Verdict

log = logging.getLogger("swarm.audit")

# A planted fault costs its round's reward, so one in so many rounds must do.
PLANT_RATE = 1 / 40
FETCH_SHARE = 0.6  # of a round: so long all that one audit fetches may take
LEAST_FETCH_SECONDS = 10.0
AUDIT_ROUNDS = 1.5  # an audit that takes longer comes too late
# Who does not serve may be starting again, or we were cut off: it is asked again until the verdict is due.
RETRY_ROUNDS = 0.5
KEPT_TAKEN = 256  # assignments that are not taken twice
FOLDER_PREFIX = "audit-"  # of what one audit fetches
POLL_SECONDS = 0.2
DAY_SECONDS = 24 * 3600.0
STOP_SECONDS = 2.0


@dataclass(frozen=True)
class Means:
    """What audits may cost."""

    share: float  # of the time
    bytes_per_day: int


class Budget:
    """Bytes left to spend in a sliding day, and when the share of time allows to go on."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._spent: list[tuple[float, int]] = []
        self._next = 0.0

    def bytes_left(self, now: float) -> int:
        """Of this day."""
        self._spent = [(at, count) for at, count in self._spent if now - at < DAY_SECONDS]
        return max(0, self._means.bytes_per_day - sum(count for _, count in self._spent))

    def spent(self, now: float, seconds: float, count: int) -> None:
        """Take an audit in."""
        self._spent.append((now, count))
        self._next = now + seconds * (1 / self._means.share - 1)

    def wait_seconds(self, now: float) -> float:
        """Until the share of time allows another audit."""
        return max(0.0, self._next - now)


class Auditing:
    """The auditor in a node. Started and stopped by it; everything else may be called from its thread.

    Args:
        audit_class: our own.
        now: the ledger's time.
        ledger: a client of its own.
        set_auditors: tells the exchange who is assigned to audit us.
    """

    def __init__(
        self,
        peer: bytes,
        manifest: Manifest,
        ledger: LedgerClient,
        standings: Standings,
        source: Source,
        process: AuditProcess,
        folder: Path,
        means: Means,
        most_state_bytes: Callable[[Build], int],
        audit_class: AuditClass,
        now: Callable[[], float],
        is_registered: Callable[[bytes], bool | None],
        set_auditors: Callable[[Collection[bytes]], None],
    ) -> None:
        self._peer = peer
        self._manifest = manifest
        self._ledger = ledger
        self._standings = standings
        self._source = source
        self._process = process
        self._folder = folder
        for left in folder.glob(f"{FOLDER_PREFIX}*"):  # by a life that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._log = AuditLog(folder / AUDITS_FILE)
        self._means = means
        self._most_state_bytes = most_state_bytes
        self._budget = Budget(means)
        # Where equality is not exact, one moved weight is not to be found.
        self._plants = [
            kind for kind in PlantKind if kind is not PlantKind.WEIGHT or audit_class > AuditClass.TOLERANT
        ]
        self._now = now
        self._is_registered = lambda peer: is_registered(peer) is not False
        self._set_auditors = set_auditors
        self._todo: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._taken: deque[tuple[bytes, int, int]] = deque(maxlen=KEPT_TAKEN)
        self._again: deque[tuple[float, Assignment]] = deque()  # when (monotonic), soonest first
        self._unwritten: dict[int, KeptSeal] = {}
        self._went_back: int | None = None  # in which round
        self._stopping = False
        self._thread = Background("audits", self._run)
        standings.on_round(self._on_round)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End what is under way; it is lost."""
        self._stopping = True
        self._todo.put(None)
        self._process.kill()
        self._thread.join(STOP_SECONDS)
        self._process.close()
        self._log.close()

    def check(self) -> None:
        """Raise the mistake that ended the thread, if one did."""
        self._thread.check()

    # What a round needs

    def ineligible(self, number: int, patience: float) -> frozenset[bytes]:
        """Whose score was under the floor when round `number` began; nobody's, if it is not known in time."""
        self._standings.wait(number, patience)
        with self._standings.reading() as reputation:
            return reputation.ineligible_in(number) or frozenset()

    def uprooted(self, number: int, patience: float) -> set[bytes]:
        """The states to go back to, if our present one counts no more; empty if it does, as far as is known.

        It does not after a fault that auditors found, or training that was never reported in time. Who has
        gone back is told again only when the ledger has a report from after that.
        """
        if not self._standings.wait(number, patience):
            return set()
        with self._standings.reading() as reputation:
            if reputation.standing(self._peer).is_rooted:
                return set()
            if self._went_back is not None and not reputation.has_reported_since(self._peer, self._went_back):
                return set()
            self._went_back = number
            return reputation.rooted_states(self._peer)

    def plant(self, number: int) -> Plant | None:
        """The fault that is registered for this round."""
        before = self._seal_of(number - 1)
        return before.sealed.plant if before else None

    def verdicts(self, number: int, planted: bool) -> bytes:
        """The `verdicts` of round `number`'s report: a new seal, and what opens older ones.

        Args:
            planted: whether the round holds the fault that was registered for it.
        """
        before, opening = self._seal_of(number - 1), None
        if before is not None:
            if planted:
                self._keep(KeptSeal(before.round, before.sealed, planted=True))
            if before.sealed.verdicts or self._had_duties(number - 2):
                opening = before.sealed.opening
        planted_round = number - PLANT_OPENED_AFTER
        registered = self._seal_of(planted_round - 1)
        plant_opening = None
        if registered is not None and registered.planted:
            plant_opening = registered.sealed.plant_opening(planted_round)
        found = [one.verdict for one in self._log.audits(drawn_in=number - 1) if one.verdict is not None]
        sealed = verdicts.seal(found, self._next_plant(number + 1))
        self._keep(KeptSeal(number, sealed))
        return verdicts.encode(sealed.seal, opening, plant_opening)

    def _keep(self, seal: KeptSeal) -> None:
        """On disk; where that is full, in memory, for who does not open its seals pays for it."""
        self._unwritten.pop(seal.round, None)
        try:
            self._log.keep(seal)
        except sqlite3.Error as error:
            log.error("seal not written round=%d error=%r", seal.round, str(error))
            self._unwritten[seal.round] = seal

    def _seal_of(self, number: int) -> KeptSeal | None:
        return self._unwritten.get(number) or self._log.seal_of(number)

    def _had_duties(self, drawn_in: int) -> bool:
        """Whether we were to audit in a round: then the seal is opened, even if it is empty."""
        with self._standings.reading() as reputation:
            known = reputation.number >= drawn_in
            return not known or bool(reputation.assignments(self._peer, drawn_in))

    def _next_plant(self, number: int) -> Plant | None:
        """A fault for round `number`, seldom, so that auditors who do not look are found out."""
        last = self._log.last_plant()
        if last is not None and number - last <= PLANT_ROUNDS:
            return None
        if secrets.SystemRandom().random() >= PLANT_RATE:
            return None
        return Plant(secrets.choice(self._plants))

    # Who audits whom

    def _on_round(self, number: int, settled: Sequence[Settled]) -> None:
        """Called by the standings' thread when it has entered a round, and that is the present one."""
        with self._standings.reading() as reputation:
            ours = [auditor for case, auditor in reputation.cases() if case.served_by == self._peer]
            assignments = [
                one
                for drawn_in in (number - 1, number)
                for one in reputation.assignments(self._peer, drawn_in)[:MAX_VERDICTS]
            ]
        self._set_auditors(ours)
        for case in settled:
            if case.peer == self._peer and case.outcome in (Outcome.FAILED, Outcome.WITHHELD):
                log.warning("others found fault with us round=%d faults=%s", case.round, case.faults)
        if self._means.share > 0:
            for assignment in assignments:
                key = (assignment.peer, assignment.round, assignment.drawn_in)
                if key not in self._taken:
                    self._taken.append(key)
                    self._todo.put(assignment)

    def _run(self) -> None:
        while not self._stopping:
            assignment = self._next()
            if assignment is None:
                return
            if self._is_too_late(assignment):
                log.info(
                    "audit left out, too late peer=%s round=%d", peer_name(assignment.peer), assignment.round
                )
                continue
            try:
                self._audit(assignment)
            except (LedgerError, sqlite3.Error, OSError) as error:
                log.warning("audit not done round=%d error=%r", assignment.round, str(error))
            except Exception:
                if self._stopping:  # the audit process was ended under our hands
                    return
                # Whatever a stranger's work brings out in this case, others are to be judged still.
                log.exception("audit failed peer=%s round=%d", assignment.peer.hex(), assignment.round)

    def _next(self) -> Assignment | None:
        """What is to be audited next, waiting for it; None: nothing any more."""
        left = max(0.0, self._again[0][0] - time.monotonic()) if self._again else None
        try:
            return self._todo.get(timeout=left)
        except queue.Empty:
            return self._again.popleft()[1]

    def _is_too_late(self, assignment: Assignment) -> bool:
        """The verdict rides in the report of the round after the draw."""
        return self._now() >= self._round_starts(assignment.drawn_in + 2)

    def _round_starts(self, number: int) -> float:
        return float(self._ledger.genesis + number * self._manifest.round_seconds)

    def _audit(self, assignment: Assignment) -> None:
        before = self._log.audit(assignment.peer, assignment.round, assignment.drawn_in)
        if before is not None and not _is_withheld(before.findings):
            return  # before a restart
        self._wait_for_budget(assignment)
        began = time.monotonic()
        facts = self._facts(assignment)
        findings, words, fetched_bytes = self._judge(facts)
        if self._stopping:
            return
        seconds = time.monotonic() - began
        self._budget.spent(time.monotonic(), seconds, fetched_bytes)
        if findings is not None or before is None:
            self._log.save(
                Audited(
                    peer=facts.peer,
                    round=facts.round,
                    drawn_in=assignment.drawn_in,
                    at=self._now(),
                    verdict=verdict_of(findings) if findings else None,
                    findings=findings,
                    words=words,
                    seconds=round(seconds, 2),
                    fetched_bytes=fetched_bytes,
                )
            )
        if _is_withheld(findings):
            self._ask_again(assignment)
        log.info(
            "audited peer=%r round=%d outcome=%s seconds=%.1f %s",
            peer_name(facts.peer),
            facts.round,
            findings.outcome.name.lower() if findings else "undecided",
            seconds,
            plain(words),
        )

    def _wait_for_budget(self, assignment: Assignment) -> None:
        until = time.monotonic() + self._budget.wait_seconds(time.monotonic())
        while time.monotonic() < until and not self._stopping and not self._is_too_late(assignment):
            time.sleep(POLL_SECONDS)

    def _judge(self, facts: Facts) -> tuple[Findings | None, str, int]:
        """What was found, in words what is wrong or why nothing was found, and how many bytes it took."""
        round_seconds = self._manifest.round_seconds
        with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=self._folder) as folder:
            fetching = Fetching(
                self._source,
                self._manifest,
                Path(folder),
                seconds=max(LEAST_FETCH_SECONDS, FETCH_SHARE * round_seconds),
                budget_bytes=self._budget.bytes_left(time.monotonic()),
                most_state_bytes=self._most_state_bytes,
                is_registered=self._is_registered,
            )
            try:
                findings = self._process.check(fetching.fetch(facts), AUDIT_ROUNDS * round_seconds)
            except Withheld as error:
                findings = withheld(facts, str(error))
            except (Undecided, NotNow) as error:
                return None, str(error), fetching.fetched_bytes
        words = "; ".join(one.words for one in findings.findings if one.faults)
        return findings, words, fetching.fetched_bytes

    def _ask_again(self, assignment: Assignment) -> None:
        """Later, if the verdict is not due by then."""
        pause = RETRY_ROUNDS * self._manifest.round_seconds
        sealed_at = self._manifest.learn.ends_at * self._manifest.round_seconds
        if self._now() + pause < self._round_starts(assignment.drawn_in + 1) + sealed_at:
            self._again.append((time.monotonic() + pause, assignment))

    def _facts(self, assignment: Assignment) -> Facts:
        with self._standings.reading() as reputation:
            ineligible = reputation.ineligible_in(assignment.round) or frozenset()
        return facts_of(assignment, self._ledger, self._manifest.audits.groups, ineligible)


def verdict_of(findings: Findings) -> Verdict:
    """What an audit says on the ledger."""
    return Verdict(findings.peer, findings.round, findings.outcome, findings.audit_class, findings.faults)


def _is_withheld(findings: Findings | None) -> bool:
    return findings is not None and findings.outcome is Outcome.WITHHELD


def withheld(facts: Facts, why: str) -> Findings:
    """What an audit finds where the peer does not serve what it must."""
    fault = fault_of(Check.AVAILABILITY, 1, why)
    finding = Finding(check=Check.AVAILABILITY, outcome=Outcome.WITHHELD, words=why, faults=(fault,))
    return Findings(peer=facts.peer, round=facts.round, audit_class=AuditClass.TOLERANT, findings=(finding,))

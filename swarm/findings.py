"""What an audit found, check by check. Light, because `swarm status` reads it too."""

from __future__ import annotations

import re

from msgspec import Struct

from swarm.verde.verdicts import MAX_DETAIL_CHARS, AuditClass, Check, Fault, Outcome


def fault_of(check: Check, count: int, words: str) -> Fault:
    """A fault for the ledger: words may hold what a stranger said, details are short and plain."""
    return Fault(check, count, re.sub("[^ -~]", "?", words)[:MAX_DETAIL_CHARS])


class Finding(Struct, frozen=True, kw_only=True):
    """What came of one check."""

    check: Check
    outcome: Outcome
    words: str  # what was checked and what was found, for a person
    seconds: float = 0.0
    faults: tuple[Fault, ...] = ()


class Findings(Struct, frozen=True, kw_only=True):
    """What came of an audit. `audit_class` is how equal things had to be for this auditor."""

    peer: bytes
    round: int
    audit_class: AuditClass
    findings: tuple[Finding, ...]

    @property
    def outcome(self) -> Outcome:
        """A failed check fails the report; else one that says "unranked" has it not ranked."""
        outcomes = [finding.outcome for finding in self.findings]
        worst = (Outcome.FAILED, Outcome.WITHHELD, Outcome.UNRANKED)
        return next((one for one in worst if one in outcomes), Outcome.PASSED)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Of the failed checks."""
        return tuple(fault for finding in self.findings for fault in finding.faults)[:4]

"""`swarm audit`: everything that is checked of one report, done here and now, and explained.

It reads the ledger, asks the peer for what it has to serve as any stranger may, and writes nothing. Every
group of the round is looked at, not only those that a beacon would draw.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from identity import IdentityError, peer_digest, peer_id_text, peer_name
from swarm.audit import Checker, Facts, Undecided, facts_of
from swarm.audit_evidence import Fetching, NotNow, Withheld, most_state_bytes
from swarm.audit_models import LoadedModels
from swarm.auditing import withheld
from swarm.console import plain
from swarm.errors import SwarmError, UsageError
from swarm.exchange.addresses import ADDRESSES_FILE, AddressBook
from swarm.exchange.listener import make_listener
from swarm.exchange.peer import BOOK_DIALS
from swarm.exchange.service import Exchange
from swarm.exchange.validator import SwarmRules
from swarm.findings import Finding, Findings
from swarm.ledger.client import LedgerClient
from swarm.manifest import MICROS
from swarm.policy.plan import Plan, Wishes, make_plan, read_plan
from swarm.settings import Settings
from swarm.task_process import open_tasks
from swarm.verde.cases import Assignment, Settled
from swarm.verde.reputation import Reputation
from swarm.verde.standing import Standing
from swarm.verde.standings import read_history
from swarm.verde.verdicts import AuditClass, Outcome

FETCH_SECONDS = 60.0  # for each thing that is asked of the peer
MAX_FETCHED_BYTES = 64 * 2**30
EVERY_GROUP = 2**31  # none is left out

_NAMES = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "FAILED",
    Outcome.UNRANKED: "unranked",
    Outcome.WITHHELD: "WITHHELD",
}

Tell = Callable[[str], None]


class ByHand(Struct, frozen=True, kw_only=True):
    """What there is to say about one report."""

    peer: str  # libp2p peer id
    name: str
    round: int
    standing: Standing
    settled: Settled | None  # what the swarm's own auditors came to, if they did
    findings: Findings


def audit_by_hand(
    settings: Settings,
    ledger: LedgerClient,
    peer: str,
    round_number: int,
    say: Tell,
    tell: Callable[[Finding], None],
) -> ByHand:
    """Audit a peer's report of a round.

    Args:
        peer: its libp2p id, or its name.
        say: hears what is being done.
        tell: hears of each check.

    Raises:
        UsageError: there is no such peer or report.
        SwarmError: the report cannot be judged here.
    """
    say("reading the ledger")
    assignment, ineligible, standing, settled = _look_up(ledger, peer, round_number, say)
    facts = facts_of(assignment, ledger, EVERY_GROUP, ineligible)
    manifest = ledger.manifest()
    with tempfile.TemporaryDirectory(prefix="swarm-audit-") as name:
        folder = Path(name)
        plan = _plan(settings, ledger)
        say("asking the peer for what it committed to")
        with _client(settings, ledger, folder) as exchange:
            fetching = Fetching(
                exchange, manifest, folder, FETCH_SECONDS, MAX_FETCHED_BYTES, partial(most_state_bytes, plan)
            )
            findings = _fetched_and_checked(fetching, facts, plan, folder, settings, say, tell)
    return ByHand(
        peer=peer_id_text(facts.peer),
        name=peer_name(facts.peer),
        round=round_number,
        standing=standing,
        settled=settled,
        findings=findings,
    )


def _fetched_and_checked(
    fetching: Fetching,
    facts: Facts,
    plan: Plan,
    folder: Path,
    settings: Settings,
    say: Tell,
    tell: Callable[[Finding], None],
) -> Findings:
    try:
        case = fetching.fetch(facts)
    except Withheld as error:
        findings = withheld(facts, str(error))
        tell(findings.findings[0])
        return findings
    except NotNow as error:
        raise SwarmError(f"this audit is not done: {error}") from error
    say(f"{fetching.fetched_bytes / 1e6:,.1f} MB fetched; loading the model")
    models = LoadedModels(fetching.manifest, plan, folder, settings.trusted_code)
    with open_tasks(fetching.manifest) as tasks:
        try:
            return Checker(fetching.manifest, tasks, models).check(case, tell)
        except Undecided as error:
            raise SwarmError(f"this machine cannot judge the report: {error}") from error


def _look_up(
    ledger: LedgerClient, peer: str, round_number: int, say: Tell
) -> tuple[Assignment, frozenset[bytes], Standing, Settled | None]:
    """The report as an auditor would get it, who was under the floor then, and what came of it so far."""
    reputation, ends = read_history(ledger, say)
    digest = _digest(peer, reputation)
    found = reputation.assignment_of(digest, round_number)
    ineligible = reputation.ineligible_in(round_number)
    if found is None or ineligible is None:
        raise UsageError(
            f"{peer_name(digest)} has no report of round {round_number} among its last ones on the ledger"
        )
    settled = [end for end in ends if (end.peer, end.round) == (found.peer, round_number)]
    return found, ineligible, reputation.standing(digest), settled[-1] if settled else None


def _digest(peer: str, reputation: Reputation) -> bytes:
    """The peer with this id or name."""
    try:
        return peer_digest(peer)
    except IdentityError:
        named = [one.peer for one in reputation.standings() if peer_name(one.peer) == peer]
        if len(named) == 1:
            return named[0]
        what = f"{len(named)} peers are" if named else "no peer that reported is"
        raise UsageError(f"{what} called {peer!r}: use the id that the leaderboard shows") from None


def _plan(settings: Settings, ledger: LedgerClient) -> Plan:
    """The plan of a peer that lives here, else one for what this machine can do."""
    folder = settings.swarm_dir(ledger.swarm_id, ledger.address, ledger.genesis)
    saved = read_plan(folder / "plan.json")
    return saved or make_plan(
        ledger.manifest(), Wishes(device=settings.device, share=0.5, trusted_code=settings.trusted_code)
    )


def _client(settings: Settings, ledger: LedgerClient, folder: Path) -> Exchange:
    """A libp2p node with a key for this once, which says nothing and asks as any stranger may."""
    home = settings.swarm_dir(ledger.swarm_id, ledger.address, ledger.genesis)
    met = AddressBook(home / ADDRESSES_FILE).multiaddrs(BOOK_DIALS)
    rules = SwarmRules(
        swarm_id=ledger.swarm_id,
        genesis=ledger.genesis,
        round_seconds=ledger.round_seconds,
        now=ledger.now_without_asking,
        registered=lambda peer: None,
    )
    return make_listener(folder, rules, initial_peers=[*ledger.bootnodes(), *met])


def finding_line(finding: Finding) -> str:
    """One check, for a person."""
    took = f" ({finding.seconds:.1f} s)" if finding.seconds else ""
    return plain(f"{_NAMES[finding.outcome]:<9} {finding.check.name.lower()}: {finding.words}{took}")


def summary_lines(done: ByHand) -> list[str]:
    """What it comes to, and what the swarm says."""
    standing, settled = done.standing, done.settled
    how = "bit for bit" if done.findings.audit_class > AuditClass.TOLERANT else "within tolerance"
    lines = [
        f"{done.name} ({done.peer}), round {done.round}: {_NAMES[done.findings.outcome]}, checked {how}",
        f"score {standing.score_micros / MICROS:.3f}, {standing.audits_passed} audits passed, "
        f"{standing.audits_failed} failed",
    ]
    if settled is None:
        lines.append("the swarm's own auditors have settled nothing about this report")
    elif settled.was_plant:
        lines.append("the peer planted this fault itself, to see whether auditors find it")
    else:
        what = "could not settle it" if settled.outcome is None else f"settled: {_NAMES[settled.outcome]}"
        details = "; ".join(f"{fault.check.name.lower()}: {fault.detail}" for fault in settled.faults)
        lines.append(f"the swarm's own auditors, {len(settled.voices)} voices, {what} {details}".rstrip())
    return [plain(line) for line in lines]


def as_json(done: ByHand) -> str:
    """The same for scripts; peers are hex."""
    return json.dumps(msgspec.to_builtins(done, builtin_types=(bytes,)), default=bytes.hex, indent=2)

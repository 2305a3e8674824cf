"""Audits of real models: honest rounds pass bit for bit, and each way to cheat fails in the check for it."""

from __future__ import annotations

import msgspec
import pytest
from audit_cast import Company
from cheats import CHEATS

from swarm.audit import Undecided
from swarm.audit_evidence import NotNow, Withheld
from swarm.audit_process import AuditProcess, Start
from swarm.performer import Performer
from swarm.training import Training
from swarm.verde.verdicts import AuditClass, Check, Outcome, Plant, PlantKind

# What finds each cheat, by a check other than those that readers and the exchange make.
FOUND_BY = {
    "false-reward": Check.BATCH,
    "other-model": Check.PROVENANCE,
    "greedy": Check.PROVENANCE,
    "best-of-n": Check.PROVENANCE,
    "replayed-round": Check.PROVENANCE,
    "edited-text": Check.PROVENANCE,
    "swapped-prompt": Check.PROVENANCE,
    "cherry-picked": Check.BATCH,
    "over-long": Check.BATCH,
    "skipped-update": Check.STEP,
    "wrong-learning-rate": Check.STEP,
    "nudged-weight": Check.STEP,
    "stale-optimizer": Check.STEP,
}


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    company = Company(tmp_path_factory.mktemp("company"))
    for _ in range(3):
        company.add()
    company.play()
    company.play()
    yield company
    company.close()


def outcomes(findings) -> dict[Check, Outcome]:
    return {finding.check: finding.outcome for finding in findings.findings}


def test_honest_round_passes_every_check_bit_for_bit(company):
    for peer in company.peers[:3]:
        findings = company.audit(peer)
        assert outcomes(findings) == dict.fromkeys(
            (Check.COMMITMENT, Check.BATCH, Check.PROVENANCE, Check.STEP), Outcome.PASSED
        ), findings
        assert findings.audit_class is AuditClass.SAME_BUILD
        assert findings.outcome is Outcome.PASSED
        assert findings.faults == ()


@pytest.mark.parametrize("name", FOUND_BY)
def test_cheat_is_found_by_its_check(company, name):
    (part,) = CHEATS[name]
    honest = company.peers[:3]
    if issubclass(part, Training):
        cheater = company.add(part)
    else:
        cheater = company.peers[3] if len(company.peers) > 3 else company.add()
    cheater.performer_class = part if issubclass(part, Performer) else Performer
    try:
        company.play(*honest, cheater)
        if name in ("stale-optimizer", "replayed-round"):  # nothing is stale in the first round
            company.play(*honest, cheater)
    finally:
        cheater.performer_class = Performer
    findings = company.audit(cheater)
    assert findings.outcome is Outcome.FAILED, findings
    assert FOUND_BY[name] in [fault.check for fault in findings.faults], findings
    assert company.audit(honest[0]).outcome is Outcome.PASSED


def test_one_edited_digit_fails_also_within_tolerance(company):
    cheater = company.add()
    (cheater.performer_class,) = CHEATS["edited-text"]
    cheater.training.audit_class = AuditClass.TOLERANT
    company.play(*company.peers[:2], cheater)
    findings = company.audit(cheater)
    assert findings.audit_class is AuditClass.TOLERANT
    assert outcomes(findings)[Check.PROVENANCE] is Outcome.FAILED
    assert outcomes(findings)[Check.STEP] is Outcome.PASSED


@pytest.mark.parametrize("kind", PlantKind)
def test_planted_fault_is_found_alone_and_counted_as_one(company, kind):
    planter = company.peers[0]
    planter.plant = Plant(kind)
    try:
        while not planter.reports[-1].played.planted:
            company.play(*company.peers[:3])
    finally:
        planter.plant = None
    findings = company.audit(planter)
    assert planter.reports and [(fault.check, fault.count) for fault in findings.faults] == [(kind.check, 1)]
    company.play(*company.peers[:3])
    assert company.audit(planter).outcome is Outcome.PASSED


def test_state_that_is_not_served_is_withheld(company):
    peer, files = company.peers[1], company.everything.files
    company.everything.files = {}
    try:
        with pytest.raises(Withheld, match="its states cannot be had: peer does not have the blob"):
            company.fetching("withheld").fetch(company.facts(peer))
    finally:
        company.everything.files = files


def test_audit_that_costs_more_than_there_is_left_is_given_up(company):
    with pytest.raises(NotNow):
        company.fetching("dear", budget_bytes=10_000).fetch(company.facts(company.peers[1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"last_state": b"x" * 32}, "sampled with a state that was not the peer's last one"),
        ({"beacon": b"x" * 32}, "not drawn from the ledger"),
        ({"beacon": None}, "not drawn from the ledger"),
        ({"active": 99}, "not drawn from the ledger"),
        ({"previous_commitment": b"x" * 32}, "does not follow on"),
    ],
)
def test_sound_round_that_the_ledger_does_not_rank(company, change, words):
    findings = company.audit(company.peers[1], lambda facts: msgspec.structs.replace(facts, **change))
    assert findings.outcome is Outcome.UNRANKED
    assert words in findings.findings[0].words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reward_micros": 1}, "its reward is"),
        ({"state_after": b"x" * 32}, "its states are not those of the report"),
        ({"groups": 1}, "another number of groups"),
        ({"begins_anew": True}, "its first state is not the public model's"),
        ({"round": 77}, "another swarm, peer or round"),
    ],
)
def test_report_that_says_something_else_fails(company, change, words):
    findings = company.audit(company.peers[1], lambda facts: msgspec.structs.replace(facts, **change))
    assert findings.outcome is Outcome.FAILED
    assert [fault.check for fault in findings.faults] == [Check.COMMITMENT]
    assert words in findings.findings[0].words


def test_peer_that_is_passed_over_without_reason_is_a_fault_and_one_that_should_have_been_is_not(company):
    shunned = company.peers[2].identity.peer
    company.ineligible = frozenset({shunned})
    try:
        company.play(*company.peers[:3])
        peer = company.peers[0]
        assert company.audit(peer).outcome is Outcome.PASSED
        findings = company.audit(peer, lambda facts: msgspec.structs.replace(facts, ineligible=()))
        assert "1 peers were passed over" in findings.findings[0].words
        assert findings.outcome is Outcome.FAILED
    finally:
        company.ineligible = frozenset()
    company.play(*company.peers[:3])
    findings = company.audit(peer, lambda facts: msgspec.structs.replace(facts, ineligible=(shunned,)))
    assert findings.outcome is Outcome.UNRANKED
    assert "under the floor" in findings.findings[0].words


def test_blob_that_is_no_commitment_fails(company):
    case = company.fetching().fetch(company.facts(company.peers[1]))
    for blob in (b"", b"\xc1", case.commitment[:-1], bytes(1000)):
        findings = company.checker.check(msgspec.structs.replace(case, commitment=blob))
        assert findings.outcome is Outcome.FAILED
        assert [fault.check for fault in findings.faults] == [Check.COMMITMENT]


@pytest.mark.parametrize("field", ["own", "heard"])
def test_blobs_that_are_not_the_committed_ones_fail(company, field):
    case = company.fetching().fetch(company.facts(company.peers[1]))
    blobs = getattr(case, field)
    spoiled = (b"", *blobs[1:]) if field == "own" else ((b"x", *blobs[0][1:]), *blobs[1:])
    findings = company.checker.check(msgspec.structs.replace(case, **{field: spoiled}))
    assert outcomes(findings)[Check.BATCH] is Outcome.FAILED


def test_state_that_is_not_the_committed_one_fails(company, tmp_path):
    case = company.fetching().fetch(company.facts(company.peers[1]))
    (tmp_path / "spoiled").write_bytes(b"\xff" * 4096)
    after = msgspec.structs.replace(case.state_after, weights=str(tmp_path / "spoiled"))
    findings = company.checker.check(msgspec.structs.replace(case, state_after=after))
    assert outcomes(findings)[Check.STEP] is Outcome.FAILED


def test_audit_process_finds_the_same_survives_what_kills_it_and_ends(company, tmp_path):
    start = Start(
        manifest=company.manifest.canonical, plan=company.peers[0].training.plan, work_dir=str(tmp_path)
    )
    process = AuditProcess(start)
    case = company.fetching().fetch(company.facts(company.peers[1]))
    try:
        assert process.pid is None
        assert process.check(case, 60).outcome is Outcome.PASSED
        first = process.pid
        process.kill()
        with pytest.raises(Undecided, match="the audit process failed"):
            process.check(case, 60)
        assert process.check(case, 60).outcome is Outcome.PASSED
        assert process.pid != first
        with pytest.raises(Undecided, match="takes too long"):
            process.check(case, 0.0)
    finally:
        process.close()
    assert process.pid is None

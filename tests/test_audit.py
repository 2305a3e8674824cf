"""Audits of real models: honest rounds pass bit for bit, and each way to cheat fails in the check for it."""

from __future__ import annotations

import msgspec
import pytest
from audit_cast import Company
from cheats import CHEATS

from swarm.audit import Undecided
from swarm.audit_evidence import NotNow, Withheld
from swarm.audit_process import AuditProcess, Start
from swarm.exchange import wire
from swarm.performer import Performer
from swarm.training import Training
from swarm.verde.commitment import Commitment
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
        assert_refused(company, msgspec.structs.replace(case, commitment=blob), "commitment")


def assert_refused(company, case, words: str) -> None:
    """At first sight, before any model looks at it."""
    findings = company.checker.check(case)
    assert findings.outcome is Outcome.FAILED
    assert [fault.check for fault in findings.faults] == [Check.COMMITMENT]
    assert words in findings.findings[0].words.lower()


def claiming(company, peer, name: str, **changes: object):
    """A case of the peer's last report, whose commitment says something else and is on the ledger so."""
    claimed = msgspec.structs.replace(
        msgspec.msgpack.decode(peer.reports[-1].blob, type=Commitment), **changes
    )
    exchange = peer.exchange
    for data in (claimed.head(), claimed.encode()):
        exchange.put_blob(data)
    facts = company.facts(peer, commitment=claimed.root())
    return company.fetching(name).fetch(facts)


def test_peer_that_announced_other_groups_than_it_committed_to_fails(company):
    peer = company.peers[1]
    case = company.fetching().fetch(company.facts(peer))
    assert len(case.announced) == 2
    heard = wire.open_envelope(case.announced[0])
    other = msgspec.structs.replace(heard.announcement, root=b"x" * 32)
    sign = lambda number, stage, message: peer.identity.sign(message)  # noqa: E731
    envelope = wire.sign(peer.identity.public_key, other, sign)
    spoiled = msgspec.structs.replace(case, announced=(*case.announced, envelope))
    assert_refused(company, spoiled, "announced other groups")


def test_peer_that_heard_strangers_fails(company):
    peer, stranger = company.peers[1], company.peers[2].identity.peer
    fetching = company.fetching("strangers", is_registered=lambda one: one != stranger)
    assert_refused(company, fetching.fetch(company.facts(peer)), "1 peers that are not registered")


def test_round_in_which_a_peer_hears_others_and_not_itself_is_not_ranked(company):
    peer = company.peers[1]
    claimed = msgspec.msgpack.decode(peer.reports[-1].blob, type=Commitment)
    others = tuple(
        tuple(one for one in stage if wire.open_envelope(one).peer != peer.identity.peer)
        for stage in claimed.heard
    )
    findings = company.checker.check(claiming(company, peer, "deaf", heard=others))
    assert "it heard others and not itself" in findings.findings[0].words
    assert findings.findings[0].outcome is Outcome.UNRANKED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heard": ((b"no envelope",), ())}, "never announced"),
        ({"heard": ()}, "other stages"),
        ({"published": ()}, "other stages"),
    ],
)
def test_commitment_to_what_nobody_can_have_heard_fails(company, changes, words):
    assert_refused(company, claiming(company, company.peers[1], "unheard", **changes), words)


def test_hearing_a_peer_twice_or_more_than_a_reader_takes_fails(company):
    peer = company.peers[1]
    heard = msgspec.msgpack.decode(peer.reports[-1].blob, type=Commitment).heard
    twice = claiming(company, peer, "twice", heard=(heard[0] + heard[0][:1], heard[1]))
    assert_refused(company, twice, "heard a peer twice")


def test_model_that_is_not_the_swarms_fails_before_anything_is_loaded(company):
    peer = company.peers[1]
    build = msgspec.msgpack.decode(peer.reports[-1].blob, type=Commitment).build
    for name in ("other/model", "tinyé"):
        other = claiming(company, peer, "model", build=msgspec.structs.replace(build, model=name))
        assert_refused(company, other, "not one of the swarm's")


@pytest.mark.parametrize("changes", [{"revision": "refs/pr/7"}, {"four_bit": True, "lora": True}])
def test_build_that_cannot_be_had_here_is_not_judged(company, changes):
    peer = company.peers[1]
    build = msgspec.msgpack.decode(peer.reports[-1].blob, type=Commitment).build
    case = claiming(company, peer, "build", build=msgspec.structs.replace(build, **changes))
    with pytest.raises(Undecided):
        company.checker.check(case)


def test_sizes_beyond_what_can_be_cost_the_auditor_nothing(company):
    peer = company.peers[1]
    claimed = msgspec.msgpack.decode(peer.reports[-1].blob, type=Commitment)
    huge = msgspec.structs.replace(claimed.published[0], blob_bytes=2**47)
    with pytest.raises(Withheld, match="more bytes than the stage allows"):
        claiming(company, peer, "huge", published=(huge, *claimed.published[1:]))
    part = msgspec.structs.replace(claimed.state_after.weights, size_bytes=2**47)
    after = msgspec.structs.replace(claimed.state_after, weights=part)
    changed = msgspec.structs.replace(claimed, state_after=after)
    for data in (changed.head(), changed.encode()):
        peer.exchange.put_blob(data)
    fetching = company.fetching("huge", most_state_bytes=lambda build: 2**30)
    with pytest.raises(Withheld, match="as none has"):
        fetching.fetch(company.facts(peer, commitment=changed.root()))
    assert fetching.fetched_bytes < 2**30


def test_peer_that_serves_too_slowly_in_all_withholds(company):
    fetching = company.fetching("slow")
    fetching.seconds = 0.0
    with pytest.raises(Withheld, match="did not come in the 0 seconds"):
        fetching.fetch(company.facts(company.peers[1]))


def test_states_that_could_not_be_kept_leave_the_round_unranked(company):
    peer = company.peers[1]
    claimed = msgspec.msgpack.decode(peer.reports[-1].blob, type=Commitment)
    part = msgspec.structs.replace(claimed.state_after.weights, blob=bytes(32), size_bytes=0)
    after = msgspec.structs.replace(claimed.state_after, weights=part)
    findings = company.checker.check(claiming(company, peer, "unkept", state_after=after))
    assert findings.outcome is Outcome.UNRANKED
    assert [fault.check for fault in findings.faults] == [Check.AVAILABILITY]
    assert [finding.check for finding in findings.findings] == [Check.COMMITMENT, Check.BATCH]


def test_peer_that_ran_out_of_memory_on_the_way_claims_no_bits(company, monkeypatch):
    peer = company.add()
    learner = peer.training.learner
    update = learner.update

    def with_smaller_batches(groups):
        learner.max_tokens_at_once = 64
        return update(groups)

    monkeypatch.setattr(learner, "update", with_smaller_batches)
    company.play(*company.peers[:2], peer)
    claimed = msgspec.msgpack.decode(peer.reports[-1].blob, type=Commitment)
    assert claimed.audit_class is AuditClass.TOLERANT
    assert company.audit(peer).outcome is Outcome.PASSED


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
    after = msgspec.structs.replace(case.states.after, weights=str(tmp_path / "spoiled"))
    states = msgspec.structs.replace(case.states, after=after)
    findings = company.checker.check(msgspec.structs.replace(case, states=states))
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

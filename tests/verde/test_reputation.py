"""Standings: what audits come to, played by whole swarms of auditors, honest and others."""

import random
from dataclasses import replace

import msgspec
import pytest
from swarm_of_auditors import (
    PLANTS,
    REWARD_MICROS,
    SWARM_ID,
    WRONG_TOKENS,
    Made,
    Peer,
    Swarm,
    digest,
    fails,
    honest,
    passes,
)

from swarm.ledger.records import Registered, Rotated
from swarm.manifest import Audits
from swarm.verde import verdicts
from swarm.verde.cases import BLIND_FAILS, UNSERVED_FAILS, UNSHARED_FAILS
from swarm.verde.hearing import PLANT_PATIENCE, PLANT_ROUNDS, UNOPENED_FAILS
from swarm.verde.reputation import KEPT_ROUNDS, Reputation
from swarm.verde.standing import KEPT_REPORTS, lower_bounds
from swarm.verde.verdicts import AuditClass, Check, Fault, Outcome, Plant, PlantKind, Verdict

ALWAYS = Audits(rate=1.0, lowest_rate=1.0)  # every report is audited
WARM = 8  # rounds after which the auditors have an age
PASSED, FAILED, UNRANKED, WITHHELD = Outcome
STEP = (Fault(Check.STEP, 9),)
TOKEN = Plant(PlantKind.TOKEN, "answer 1")


def subject(**differently):
    return Peer(digest("subject"), "0xsubject", **differently)


def only(round, value, otherwise=None):
    """A peer's habit for one round."""
    return lambda number: value if number == round else otherwise


def makes(round, made):
    return only(round, made, Made())


def of(swarm, peer, round):
    """The settled case of a report."""
    (case,) = [case for case in swarm.settled if (case.peer, case.round) == (peer.peer, round)]
    return case


def scripted(peer, round, *said, audit_class=AuditClass.SAME_BUILD):
    """A judge for all auditors: of one report, the first says the first thing, and so on; None: nothing.

    A thing is an outcome, with faults or without.
    """
    left = list(said)

    def judge(assignment, truth):
        if (assignment.peer, assignment.round) != (peer.peer, round):
            return truth
        thing = left.pop(0)
        if thing is None:
            return None
        outcome, faults = thing if isinstance(thing, tuple) else (thing, STEP if thing is FAILED else ())
        return Verdict(peer.peer, round, outcome, audit_class, faults)

    return judge


def judged(*said, round=WARM + 2, others=8, audit_class=AuditClass.SAME_BUILD, **differently):
    """A swarm in which these things were said of one report of a subject, and that report's settled case."""
    peer = subject(**differently)
    judge = scripted(peer, round, *said, audit_class=audit_class)
    swarm = Swarm([peer, *honest(others, judges=judge)], ALWAYS)
    swarm.play(round + 14)
    return swarm, peer, of(swarm, peer, round)


def paid(case):
    """What the voices cost, by what was said and whether it counted."""
    return {(voice.outcome, voice.counted): voice.fails for voice in case.voices}


# ---- honest swarms ----


def test_an_honest_swarm_has_no_settled_fail_and_its_scores_rise():
    swarm = Swarm(honest(8))
    swarm.play(60)
    assert len(swarm.settled) > 50
    assert {case.outcome for case in swarm.settled} == {PASSED}
    standings = swarm.reputation.standings()
    assert all(s.score_micros > 400_000 and s.fails == 0 and s.is_eligible for s in standings)
    assert swarm.reputation.ineligible() == frozenset()


def test_honest_peers_that_plant_come_late_and_go_away_have_no_settled_fail_either():
    chance = random.Random(7)
    luck = {(n, r): chance.random() for n in range(10) for r in range(200)}
    several = honest(10, made=20)
    for n, peer in enumerate(several):
        peer.is_there = lambda r, n=n: luck[n, r] > 0.1
        peer.is_late = lambda r, n=n: luck[n, r] > 0.85
        peer.plants = lambda r, n=n: Plant(PlantKind((n + r // 20) % 3)) if r % 20 == n else None
    swarm = Swarm(several, silent=[40, 41, 99])
    swarm.play(200)
    assert swarm.settled_fails() == []
    assert sum(case.was_plant for case in swarm.settled) > 10
    assert {case.settled_in - case.round for case in swarm.settled if case.was_plant} > {4}  # some waited
    assert all(swarm.standing(peer).fails == 0 for peer in several)


def test_the_same_events_give_the_same_standings_everywhere():
    def run():
        several = [
            *honest(6),
            Peer(digest("c"), "0xc", makes=lambda r: WRONG_TOKENS if r % 7 == 3 else Made()),
        ]
        swarm = Swarm(several)
        swarm.play(50)
        return swarm.reputation.standings(), swarm.settled

    assert run() == run()


def test_rounds_are_entered_one_after_the_other():
    reputation = Reputation(SWARM_ID, Audits())
    assert reputation.enter(0, None, []) == []
    with pytest.raises(ValueError, match="round 2 cannot be entered after 0"):
        reputation.enter(2, None, [])


def test_a_newcomer_has_a_low_score_but_is_eligible():
    reputation = Reputation(SWARM_ID, Audits())
    stranger = reputation.standing(b"x" * 32)
    assert (stranger.score_micros, stranger.is_eligible, stranger.state) == (100_000, True, None)
    assert lower_bounds([(0.0, 0.0), (1.0, 0.0), (0.0, 6.0)]) == [100_000, 316_227, 14_938]


def test_the_class_caps_the_score():
    tops = {}
    for audit_class in (AuditClass.TOLERANT, AuditClass.SAME_BUILD):
        swarm = Swarm(honest(4, audit_class=audit_class), ALWAYS)
        swarm.play(90)
        tops[audit_class] = swarm.reputation.standings()[0].score_micros
    assert tops == {AuditClass.TOLERANT: 700_000, AuditClass.SAME_BUILD: 900_000}


# ---- who fails ----


def test_a_wrong_round_fails_and_what_follows():
    round = 30
    peer = subject(makes=makes(round, WRONG_TOKENS))
    swarm = Swarm([peer, *honest(6)], rated(1.0, rounds_after_fail=10))
    swarm.play(round + 4)
    before = swarm.standing(peer)
    assert before.is_eligible and before.ranked_rounds == round + 3
    swarm.play()
    case, after = of(swarm, peer, round), swarm.standing(peer)
    assert (case.outcome, case.settled_in, case.was_plant) == (FAILED, round + 4, False)
    assert [voice.counted for voice in case.voices] == [True, True]
    assert case.faults == (WRONG_TOKENS.fault,)
    assert after.score_micros < before.score_micros and after.fails == 6.0
    assert after.verified_micros == round * REWARD_MICROS  # what came of the wrong one counts no more either
    assert not after.is_rooted
    assert after.reward_micros == (round + 4) * REWARD_MICROS
    assert (after.audits_failed, after.probation_until) == (1, round + 14)
    assert not after.is_eligible and swarm.reputation.ineligible() == {peer.peer}
    drawn = len(swarm.settled)
    swarm.play(9)
    assert all(
        auditor != peer.peer for case, auditor in swarm.reputation.cases() if case.drawn_in > round + 4
    )
    assert not swarm.standing(peer).is_eligible and len(swarm.settled) > drawn
    swarm.play(1)
    assert swarm.standing(peer).is_eligible and swarm.standing(peer).is_rooted
    assert peer.went_back == round + 4
    assert peer.peer in swarm.reputation.ineligible_in(round + 13)
    assert swarm.reputation.ineligible_in(round) == frozenset()


def rated(rate, **changes):
    """Audits at one rate, whatever the score."""
    return Audits(rate=rate, lowest_rate=rate, **changes)


def test_every_round_is_audited_at_first_and_after_a_fail():
    peer = subject(makes=makes(8, WRONG_TOKENS))
    audits = rated(0.0, first_rounds=10, rounds_after_fail=5)
    swarm = Swarm([peer, *honest(6)], audits)
    swarm.play(40)
    mine = [case.round for case in swarm.settled if case.peer == peer.peer]
    assert of(swarm, peer, 8).settled_in == 12
    # Round 11 is drawn in round 12, when the peer is on probation and goes back, as a newcomer.
    assert mine == [*range(10), 11, *range(12, 22)]


def test_fails_of_a_weaker_class_weigh_less_but_a_wrong_batch_does_not():
    faults = {Check.STEP: 2.0, Check.PROVENANCE: 2.0, Check.BATCH: 6.0, Check.COMMITMENT: 6.0}
    for check, weight in faults.items():
        said = (FAILED, (Fault(check, 5),))
        swarm, peer, case = judged(said, said, audit_class=AuditClass.TOLERANT)
        assert case.outcome is FAILED and case.audit_class is AuditClass.TOLERANT
        assert swarm.standing(peer).fails == pytest.approx(weight * 0.97**9, rel=0.2)


def test_what_one_auditor_alone_saw_makes_a_fault_no_heavier():
    mild, harsh = (FAILED, STEP), (FAILED, (Fault(Check.COMMITMENT, 1),))
    swarm, peer, _ = judged(mild, harsh, audit_class=AuditClass.TOLERANT)
    assert swarm.standing(peer).fails < 2.0


def test_nobody_is_believed_who_accuses_alone():
    swarm, peer, case = judged(FAILED, None, None, None)
    assert case.outcome is None and case.settled_in == WARM + 2 + 1 + 9
    assert swarm.standing(peer).fails == 0 and swarm.standing(peer).is_rooted
    assert paid(case) == {(FAILED, False): 0.0}
    _, _, case = judged(FAILED, PASSED, None, PASSED)
    assert case.outcome is PASSED
    assert paid(case) == {(PASSED, True): 0.0, (FAILED, False): UNSHARED_FAILS}


def test_contradiction_draws_a_third_and_the_minority_pays():
    _, _, case = judged(PASSED, FAILED, FAILED)
    assert (case.outcome, case.settled_in) == (FAILED, WARM + 2 + 1 + 6)
    assert paid(case) == {(PASSED, False): UNSHARED_FAILS, (FAILED, True): 0}
    _, _, case = judged(PASSED, FAILED, PASSED)
    assert case.outcome is PASSED
    assert paid(case) == {(PASSED, True): 0, (FAILED, False): UNSHARED_FAILS}
    assert len({voice.auditor for voice in case.voices}) == 3


@pytest.mark.parametrize("said", [PASSED, UNRANKED, FAILED, WITHHELD])
def test_nobody_is_believed_alone_whoever_is_silent(said):
    swarm, peer, case = judged(None, said, None, None)
    assert (case.outcome, case.settled_in) == (None, WARM + 2 + 1 + 9)
    assert paid(case) == {(said, False): 0.0}
    standing = swarm.standing(peer)
    assert (standing.fails, standing.ranked_rounds) == (0, standing.rounds - 1)


def test_two_voices_are_enough_whenever_they_speak():
    for said in (PASSED, UNRANKED):
        _, _, case = judged(None, said, said)
        assert (case.outcome, case.settled_in) == (said, WARM + 2 + 1 + 6)
        _, _, case = judged(None, said, None, said)
        assert (case.outcome, case.settled_in) == (said, WARM + 2 + 1 + 9)


def test_where_only_one_can_be_asked_one_voice_is_enough():
    swarm = Swarm(honest(2), ALWAYS)
    swarm.play(30)
    assert {(case.outcome, len(case.voices)) for case in swarm.settled} == {(PASSED, 1)}
    assert all(one.ranked_rounds == one.rounds for one in swarm.reputation.standings())


def test_two_who_could_be_asked_are_both_needed():
    silent = Peer(digest("silent"), "0xsilent", judges=lambda assignment, truth: None)
    swarm = Swarm([silent, *honest(2)], ALWAYS)
    swarm.play(30)
    outcomes = {peer: {case.outcome for case in swarm.settled if case.peer == peer} for peer in swarm.peers}
    assert outcomes == {peer: {PASSED} if peer == silent.peer else {None} for peer in swarm.peers}


def test_where_nobody_can_be_asked_all_counts():
    swarm = Swarm([peer := subject()], ALWAYS)
    swarm.play(30)
    assert {(case.outcome, case.voices) for case in swarm.settled} == {(None, ())}
    assert swarm.standing(peer).ranked_rounds == swarm.standing(peer).rounds


def test_a_report_of_which_nobody_says_anything_does_not_count():
    swarm, peer, case = judged(None, None, None, None)
    assert (case.outcome, case.voices) == (None, ())
    standing = swarm.standing(peer)
    assert (standing.ranked_rounds, standing.fails) == (standing.rounds - 1, 0)
    assert standing.is_rooted and standing.is_eligible


def test_who_cannot_be_judged_is_looked_at_until_somebody_can():
    peer = subject()

    def judge(assignment, truth):
        return None if assignment.peer == peer.peer and 40 <= assignment.round < 100 else truth

    swarm = Swarm([peer, *honest(8, judges=judge)])
    swarm.play(120)
    mine = [case for case in swarm.settled if case.peer == peer.peer]
    lapsed = [case for case in mine if case.outcome is None]
    first = lapsed[0].settled_in
    assert {case.round for case in lapsed} == {lapsed[0].round, *range(first - 1, 100)} | {
        case.round for case in mine if 40 <= case.round < first
    }
    standing = swarm.standing(peer)
    assert standing.ranked_rounds == standing.rounds - len(lapsed)
    assert (standing.audits_failed, standing.fails) == (0, 0)
    swarm.play(60)  # now that it can be judged, it is as before
    assert sum(case.round > 110 for case in swarm.settled if case.peer == peer.peer) < 20


@pytest.mark.parametrize(("silence", "most"), [(0.05, 0.001), (0.2, 0.01)])
def test_honest_reports_count_though_some_auditors_say_nothing(silence, most):
    chance = random.Random(11)
    several = honest(8, judges=lambda assignment, truth: truth if chance.random() > silence else None)
    swarm = Swarm(several)
    swarm.play(200)
    standings = swarm.reputation.standings()
    reported = sum(one.rounds for one in standings)
    assert sum(one.rounds - one.ranked_rounds for one in standings) <= most * reported
    assert swarm.settled_fails() == []


@pytest.mark.parametrize(("elders", "outcome"), [(2, PASSED), (1, FAILED)])
def test_the_weightier_side_wins_if_it_has_the_voices(elders, outcome):
    round = 32
    peer = subject(joins=round)
    old, young = honest(elders, "old"), honest(2, "young", joins=round - 1)
    for one in (*old, *young):
        said = PASSED if one in old else FAILED
        one.judges = lambda assignment, truth, said=said: (
            truth
            if assignment.peer != peer.peer
            else Verdict(peer.peer, assignment.round, said, AuditClass.EXACT, STEP)
        )
    gone = honest(3, "gone", is_there=lambda r: r < round - 5)  # who gave the old one its score
    swarm = Swarm([peer, *old, *young, *gone], msgspec.structs.replace(ALWAYS, auditor_age=0, auditors=4))
    swarm.play(round + 10)
    case = of(swarm, peer, round)
    assert case.outcome is outcome
    assert {one.outcome: one.fails for one in case.voices if not one.counted} == {
        FAILED if outcome is PASSED else PASSED: UNSHARED_FAILS
    }
    assert len(case.voices) == 2 + elders


def test_unranked_rounds_do_not_count_and_cost_nothing():
    peer = subject(makes=makes(12, Made(is_ranked=False)))
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(20)
    case, standing = of(swarm, peer, 12), swarm.standing(peer)
    assert case.outcome is UNRANKED
    assert standing.ranked_rounds == 18 and standing.fails == 0 and standing.is_eligible
    _, _, case = judged(UNRANKED, PASSED, PASSED)
    assert case.outcome is PASSED and [voice.fails for voice in case.voices] == [0, 0, 0]


# ---- who does not serve ----


def test_what_is_not_served_needs_three_voices():
    peer = subject(makes=makes(12, Made(is_served=False)))
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(12 + 4 + 1)
    assert (peer.peer, 12) not in {(case.peer, case.round) for case in swarm.settled}
    swarm.play(3)
    case = of(swarm, peer, 12)
    assert (case.outcome, case.settled_in, len(case.voices)) == (WITHHELD, 12 + 7, 3)
    standing = swarm.standing(peer)
    assert not standing.is_eligible and standing.audits_failed == 1 and standing.ranked_rounds == 12


@pytest.mark.parametrize("others", [1, 2])
def test_who_never_serves_has_nothing_ranked_where_fewer_than_three_can_be_asked(others):
    peer = subject(makes=lambda r: Made(is_served=False))
    swarm = Swarm([peer, *honest(others)])
    swarm.play(60)
    mine = [case for case in swarm.settled if case.peer == peer.peer]
    assert {case.outcome for case in mine} == {UNRANKED}
    assert {case.faults[0].check for case in mine} == {Check.AVAILABILITY}
    standing = swarm.standing(peer)
    assert standing.ranked_rounds <= 5  # not settled yet
    assert (standing.fails, standing.audits_failed, standing.probation_until) == (0, 0, 0)
    assert all(one.fails == 0 for one in swarm.reputation.standings())
    peer.makes = lambda r: Made()
    swarm.play(40)
    assert swarm.standing(peer).ranked_rounds > 30


def trial(back=60, **differently):
    """A peer that looks in for three rounds and comes back much later, in a swarm."""
    here = lambda r: 20 <= r < 23 or r >= back  # noqa: E731
    peer = subject(joins=20, is_there=here, serves=here, **differently)
    return peer, Swarm([peer, *honest(6)])


def test_who_switches_off_after_a_report_loses_that_round_and_nothing_else():
    peer, swarm = trial()
    swarm.play(50)
    case, standing = of(swarm, peer, 22), swarm.standing(peer)
    assert (case.outcome, case.settled_in) == (UNRANKED, 22 + 7)
    assert [(voice.outcome, voice.counted, voice.fails) for voice in case.voices] == [
        (WITHHELD, True, 0.0)
    ] * 3
    assert (standing.passes, standing.fails, standing.audits_failed) == (1.97, 0, 0)
    assert (standing.ranked_rounds, standing.probation_until) == (2, 0)
    assert not standing.is_rooted and not standing.is_eligible
    swarm.play(20)
    standing = swarm.standing(peer)
    assert peer.went_back == 60 and standing.is_rooted and standing.is_eligible
    assert standing.ranked_rounds == 2 + 8  # the first after coming back is not


def test_who_comes_back_when_all_have_asked_in_vain_is_not_blamed():
    away = range(21, 26)  # the first two ask in 21 and 22, the third in 24 and 25
    peer = subject(is_there=lambda r: r not in away, serves=lambda r: r not in away)
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(60)
    case, standing = of(swarm, peer, 20), swarm.standing(peer)
    assert (case.outcome, case.settled_in, len(case.voices)) == (UNRANKED, 27, 3)
    assert (standing.fails, standing.audits_failed) == (0, 0)
    assert peer.went_back == 27 and standing.is_rooted and standing.is_eligible


def test_who_is_there_for_three_that_ask_and_serves_none_is_blamed_wherever_it_goes_then():
    peer = subject(serves=lambda r: r < 21, is_there=lambda r: r < 25)
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(40)
    assert of(swarm, peer, 20).outcome is WITHHELD
    assert swarm.standing(peer).audits_failed == 1


def test_a_forged_state_is_not_hidden_by_going_away():
    peer, swarm = trial(goes_back=False)
    swarm.play(100)
    standing = swarm.standing(peer)
    assert (standing.rounds, standing.ranked_rounds) == (3 + 39, 2)
    assert not standing.is_rooted and not standing.is_eligible


def test_going_away_when_drawn_saves_nothing_of_what_nobody_looked_at():
    peer, away = subject(makes=lambda r: WRONG_TOKENS if r >= 30 else Made()), []
    swarm = Swarm([peer, *honest(8)])

    def is_there(number):
        if any(case.peer == peer.peer and case.round >= 30 for case, _ in swarm.reputation.cases()):
            away.append(number)
        return not away

    peer.is_there = peer.serves = is_there
    swarm.play(100)
    passed = [case.round for case in swarm.settled if case.peer == peer.peer and case.outcome is PASSED]
    standing = swarm.standing(peer)
    assert max(passed) < 30 and away[0] > 30 + 3  # it cheated for a while
    assert (swarm.settled[-1].outcome, swarm.settled_fails()) == (PASSED, [])
    assert of(swarm, peer, away[0] - 1).outcome is UNRANKED
    assert standing.ranked_rounds == max(passed) + 1


def test_what_is_audited_itself_is_not_lost_with_what_its_peer_withholds_later():
    peer = subject(is_there=lambda r: r <= 20, serves=lambda r: r <= 20)
    judge = scripted(peer, 19, None, PASSED, None, PASSED)  # settled after the next one
    swarm = Swarm([peer, *honest(6, judges=judge)], ALWAYS)
    swarm.play(40)
    assert of(swarm, peer, 20).settled_in < of(swarm, peer, 19).settled_in
    assert [of(swarm, peer, round).outcome for round in (19, 20)] == [PASSED, UNRANKED]
    assert swarm.standing(peer).ranked_rounds == 20


def test_who_was_served_where_others_were_not_pays_nothing_and_the_reverse_little():
    _, _, case = judged(WITHHELD, PASSED, WITHHELD, WITHHELD)
    assert case.outcome is WITHHELD
    assert paid(case) == {(WITHHELD, True): 0, (PASSED, False): 0}
    _, _, case = judged(WITHHELD, PASSED, PASSED)
    assert case.outcome is PASSED
    assert paid(case) == {(WITHHELD, False): UNSERVED_FAILS, (PASSED, True): 0}


# ---- dishonest auditors ----


def planter(n):
    """The habit of planting a fault every 20th round, each peer in another."""
    return lambda r: Plant(PlantKind.TOKEN, f"answer {n}") if r % PLANT_ROUNDS == n else None


def planters(count):
    return [replace(peer, plants=planter(n)) for n, peer in enumerate(honest(count))]


def test_who_always_passes_loses_by_plants_and_by_them_alone():
    lazy = Peer(digest("lazy"), "0xlazy", judges=passes)
    swarm = Swarm([lazy, *planters(10)], rated(0.5))
    swarm.play(80)
    others = swarm.reputation.standings()
    lost = [voice.fails for case in swarm.settled for voice in case.voices if voice.auditor == lazy.peer]
    assert lost.count(BLIND_FAILS) > 2
    assert (
        swarm.standing(lazy).score_micros < min(s.score_micros for s in others if s.peer != lazy.peer) * 0.8
    )
    assert all(s.fails == 0 for s in others if s.peer != lazy.peer)
    assert swarm.settled_fails() == []


def test_who_does_not_open_when_it_was_wrong_loses_as_much():
    assert UNOPENED_FAILS >= BLIND_FAILS
    lazy, sly = (Peer(digest("lazy"), "0xlazy", judges=passes) for _ in range(2))
    fails = []
    for auditor in (lazy, sly):
        swarm = Swarm([auditor, *planters(10)], rated(0.5))

        def knows_better(number, swarm=swarm):  # at the round's end it has seen what the others opened in it
            sealed = sly.sealed[number - 1].verdicts if number - 1 in sly.sealed else ()
            return not any(swarm.peers[v.peer].plants(v.round) for v in sealed)

        sly.opens = knows_better
        swarm.play(80)
        fails.append(swarm.standing(auditor).fails)
    blamed = [voice for case in swarm.settled for voice in case.voices if voice.fails]
    assert all(voice.auditor != sly.peer for voice in blamed)
    assert fails[1] >= fails[0] > 1


def test_who_reports_late_or_not_at_all_is_not_blamed_for_not_opening():
    away = honest(1, "away")[0]
    away.is_there = lambda r: r % 3 != 0
    late = honest(1, "late")[0]
    late.is_late = lambda r: r % 3 == 0
    swarm = Swarm([away, late, *honest(5)], ALWAYS)
    swarm.play(40)
    assert swarm.standing(away).fails == swarm.standing(late).fails == 0


def test_not_opening_does_not_save_a_friend():
    friend = subject(makes=lambda r: WRONG_TOKENS if r >= 20 else Made())
    found = {}
    for opens in (True, False):
        mates = [
            replace(peer, judges=passes, opens=lambda r, opens=opens: opens or r < 20, sealed={})
            for peer in honest(2, "mate")
        ]
        swarm = Swarm([replace(friend, sealed={}), *mates, *honest(8)], ALWAYS)
        swarm.play(50)
        found[opens] = {case.round for case in swarm.settled_fails()}
        assert len(found[opens]) > 20
    assert len(found[False]) >= len(found[True])


def test_who_always_fails_loses_and_hurts_nobody_for_good():
    angry = Peer(digest("angry"), "0xangry", judges=fails)
    swarm = Swarm([angry, *honest(9)], rated(0.5))
    swarm.play(80)
    assert swarm.standing(angry).fails > 2
    assert swarm.settled_fails() == []
    others = [swarm.standing(peer) for peer in swarm.peers.values() if peer is not angry]
    assert swarm.standing(angry).score_micros < min(s.score_micros for s in others)
    assert all(s.is_eligible and s.fails < 2 for s in others)


def test_two_liars_who_meet_hurt_but_not_for_good():
    angry = [Peer(digest("angry", n), f"0xangry{n}", judges=fails) for n in range(2)]
    swarm = Swarm([*angry, *honest(5)], ALWAYS)
    swarm.play(40)
    assert swarm.settled_fails()
    for one in angry:
        one.judges = lambda assignment, truth: truth
    swarm.play(60)
    assert all(s.is_eligible and s.score_micros > 400_000 for s in swarm.reputation.standings())


def test_an_account_does_not_audit_itself_nor_twice():
    several = [Peer(digest("p", n), f"0x{n // 3}") for n in range(9)]
    account = {peer.peer: peer.account for peer in several}
    swarm = Swarm(several, msgspec.structs.replace(ALWAYS, auditors=3))
    swarm.play(20)
    assert swarm.settled
    for case in swarm.settled:
        accounts = [account[case.peer], *(account[voice.auditor] for voice in case.voices)]
        assert len(set(accounts)) == len(accounts) == 3  # there are but two other accounts


def test_young_and_absent_peers_do_not_audit():
    young = honest(3, "young", joins=20)
    away = honest(1, "away", is_there=lambda r: r < 20)
    swarm = Swarm([*young, *away, *honest(5)], ALWAYS)
    swarm.play(40)
    drawn = {(auditor, case.drawn_in) for case, auditor in swarm.reputation.cases()}
    voices = [(voice.auditor, case.settled_in - 3) for case in swarm.settled for voice in case.voices]
    assert min(a for peer, a in voices if peer == young[0].peer) == 25  # after five reports
    assert max(a for peer, a in voices if peer == away[0].peer) <= 19
    assert all(peer != away[0].peer for peer, _ in drawn)


# ---- plants ----


def planted(round=12, others=(), kind=PlantKind.TOKEN, **differently):
    """A peer that plants a fault in one round, and the swarm after the case's end."""
    peer = subject(plants=only(round, Plant(kind, "there")), **differently)
    swarm = Swarm([peer, *honest(6), *others], ALWAYS)
    swarm.play(round + 16)
    return swarm, peer, of(swarm, peer, round)


@pytest.mark.parametrize("kind", PlantKind)
def test_a_plant_costs_its_peer_the_round_and_nothing_else(kind):
    swarm, peer, case = planted(kind=kind)
    assert (case.outcome, case.was_plant, case.settled_in) == (UNRANKED, True, 16)
    assert [(voice.outcome, voice.counted, voice.fails) for voice in case.voices] == [(FAILED, True, 0.0)] * 2
    standing = swarm.standing(peer)
    assert standing.fails == 0 and standing.is_eligible and standing.ranked_rounds == standing.rounds - 1
    others = swarm.standing(honest(1)[0])
    assert standing.audits_passed == others.audits_passed - 1


def test_an_opened_plant_is_not_ranked_even_if_nobody_looked():
    peer = subject(plants=only(12, TOKEN))
    swarm = Swarm([peer, *honest(6)], rated(0.0, first_rounds=0))
    swarm.play(20)
    assert swarm.settled == [] and swarm.standing(peer).ranked_rounds == swarm.standing(peer).rounds - 1


@pytest.mark.parametrize("changed", [{"opens_plants": False}, {"registers_plants": False}])
def test_a_plant_that_was_not_sealed_or_is_not_opened_is_a_fault(changed):
    swarm, peer, case = planted(**changed)
    assert (case.outcome, case.was_plant) == (FAILED, False)
    assert swarm.standing(peer).audits_failed == 1


def test_a_plant_that_its_peer_cannot_open_in_time_waits_for_it():
    round, back = 12, 12 + 3 + PLANT_PATIENCE - 1
    peer = subject(plants=only(round, TOKEN), is_there=lambda r: r <= round or r >= back)
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(back + 2)
    case = of(swarm, peer, round)
    assert (case.outcome, case.settled_in) == (UNRANKED, back + 1)
    peer = subject(plants=only(round, TOKEN), is_there=lambda r: r <= round or r > back + 2)
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(back + 10)
    case = of(swarm, peer, round)
    # Nobody knows whether it was one: nothing comes of it, and nothing is held against the peer.
    assert (case.outcome, case.settled_in) == (UNRANKED, round + 4 + PLANT_PATIENCE)
    standing = swarm.standing(peer)
    assert (standing.fails, standing.audits_failed, peer.went_back) == (0, 0, back + 3)
    assert standing.ranked_rounds == round + 5
    peer = subject(makes=makes(round, WRONG_TOKENS), is_there=lambda r: r <= round)
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(back + 10)
    assert of(swarm, peer, round).outcome is FAILED  # what is no plant does not wait


def test_a_plant_excuses_only_itself(monkeypatch):
    more = Made(PLANTS[PlantKind.TOKEN].fault, others=STEP)
    monkeypatch.setitem(PLANTS, PlantKind.TOKEN, more)
    swarm, peer, case = planted()
    assert (case.outcome, case.was_plant) == (FAILED, False)
    assert swarm.standing(peer).fails > 4
    monkeypatch.setitem(PLANTS, PlantKind.TOKEN, Made(Fault(Check.PROVENANCE, 2)))
    assert planted()[2].outcome is FAILED


@pytest.mark.parametrize("count", [0, 2, 250_000])
@pytest.mark.parametrize("kind", PlantKind)
def test_a_plant_excuses_nothing_that_is_larger(monkeypatch, kind, count):
    """Of a false reward the count is micro-units; 0 says that nobody counted."""
    monkeypatch.setitem(PLANTS, kind, Made(Fault(kind.check, count)))
    swarm, peer, case = planted(kind=kind)
    assert (case.outcome, case.was_plant) == (FAILED, False)
    assert swarm.standing(peer).audits_failed == 1


def test_a_second_plant_within_20_rounds_is_a_fault():
    rounds = [12, 12 + PLANT_ROUNDS - 1, 12 + PLANT_ROUNDS]
    peer = subject(plants=lambda r: TOKEN if r in rounds else None)
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(45)
    assert [of(swarm, peer, round).outcome for round in rounds] == [UNRANKED, FAILED, UNRANKED]


def test_one_liar_does_not_turn_a_plant_into_a_fault():
    round = 12
    peer = subject(plants=only(round, TOKEN))
    found = (FAILED, (Fault(Check.PROVENANCE, 1),))
    judge = scripted(peer, round, found, (FAILED, STEP), found)
    swarm = Swarm([peer, *honest(6, judges=judge)], ALWAYS)
    swarm.play(round + 10)
    case = of(swarm, peer, round)
    assert (case.outcome, case.was_plant) == (UNRANKED, True)
    assert sorted(voice.fails for voice in case.voices) == [0, 0, UNSHARED_FAILS]
    assert swarm.standing(peer).fails == 0


def test_a_plant_that_is_not_there_blames_nobody():
    """Else whoever seals a plant that it does not make would ruin honest auditors."""
    round = 12
    peer = subject(plants=only(round, TOKEN))
    accomplice = (FAILED, (Fault(Check.PROVENANCE, 1),))
    for said in ([PASSED, PASSED], [accomplice, PASSED, PASSED]):
        swarm = Swarm([peer, *honest(6, judges=scripted(peer, round, *said))], ALWAYS)
        swarm.play(round + 10)
        case = of(swarm, peer, round)
        assert (case.outcome, case.was_plant) == (UNRANKED, True)
        assert all(voice.fails == 0 for voice in case.voices)
        peer = subject(plants=only(round, TOKEN))


def test_a_moved_weight_cannot_be_seen_within_a_tolerance():
    round = 12
    seen = Verdict(digest("subject"), round, FAILED, AuditClass.SAME_BUILD, (Fault(Check.STEP, 1),))
    blind = {
        AuditClass.TOLERANT: 0.0,
        AuditClass.SAME_BUILD: BLIND_FAILS,
    }
    for audit_class, cost in blind.items():
        left = [seen, Verdict(digest("subject"), round, PASSED, audit_class), seen]
        peer = subject(plants=only(round, Plant(PlantKind.WEIGHT)))

        def judge(assignment, truth, left=left):
            return left.pop(0) if (assignment.peer, assignment.round) == (digest("subject"), round) else truth

        swarm = Swarm([peer, *honest(6, judges=judge)], ALWAYS)
        swarm.play(round + 10)
        assert paid(of(swarm, peer, round)) == {(FAILED, True): 0.0, (PASSED, False): cost}


# ---- chains, keys and newcomers ----


def test_a_broken_chain_begins_a_new_age_and_is_not_ranked():
    peer = subject()
    swarm = Swarm([peer, *honest(6)], rated(0.0))
    swarm.play(20)
    assert (swarm.standing(peer).age, swarm.standing(peer).ranked_rounds) == (19, 19)
    peer.state = digest("elsewhere")
    swarm.play(2)
    standing = swarm.standing(peer)
    assert (standing.age, standing.rounds, standing.ranked_rounds) == (1, 20 + 1, 20)
    assert not standing.is_rooted and swarm.reputation.ineligible() == {peer.peer}
    swarm.play(20)  # it has gone back to what it was before
    standing = swarm.standing(peer)
    assert (standing.age, standing.ranked_rounds, standing.is_rooted) == (20, 20 + 19, True)
    mine = [case.round for case in swarm.settled if case.peer == peer.peer]
    assert mine == [0, 1, 2, 3, 4, 20, 21, 22, 23, 24, 25]  # audited as a newcomer again


def test_who_stays_on_a_state_from_elsewhere_is_never_ranked_or_used_again():
    peer = subject(goes_back=False)
    swarm = Swarm([peer, *honest(6)], rated(0.0))
    swarm.play(20)
    peer.state = digest("elsewhere")
    swarm.play(40)
    standing = swarm.standing(peer)
    assert (standing.ranked_rounds, standing.is_rooted, standing.is_eligible) == (20, False, False)
    assert swarm.settled_fails() == []  # nothing that it did since was wrong
    peer.goes_back = True
    swarm.play(10)
    assert swarm.standing(peer).is_eligible
    assert swarm.standing(peer).ranked_rounds > 20


def test_who_begins_anew_has_to_begin_with_the_public_model():
    peer = subject()
    swarm = Swarm([peer, *honest(4)], ALWAYS)
    swarm.play(5)
    first = swarm.reputation.assignment_of(peer.peer, 0)
    assert first.begins_anew and not swarm.reputation.assignment_of(peer.peer, 3).begins_anew
    peer.state = first.report.state_before
    swarm.play(2)
    assert swarm.reputation.assignment_of(peer.peer, 5).begins_anew
    assert swarm.standing(peer).is_rooted


def test_a_fault_that_left_the_state_as_it_was_leaves_a_state_to_go_on_from():
    round = 12
    peer = subject(makes=makes(round, WRONG_TOKENS), learns=lambda r: not round <= r < 30, goes_back=False)
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(round + 5)
    assert not swarm.standing(peer).is_rooted
    swarm.play(20)
    standing = swarm.standing(peer)
    assert standing.is_rooted and standing.rounds - standing.ranked_rounds == 4


def test_whoever_has_to_go_back_again_much_later_does():
    wrong = (12, 12 + KEPT_REPORTS + 20)
    peer = subject(makes=lambda r: WRONG_TOKENS if r in wrong else Made())
    swarm = Swarm([peer, *honest(4)], ALWAYS)
    swarm.play(wrong[1] + 10)
    assert [case.round for case in swarm.settled_fails()] == list(wrong)
    assert peer.went_back == wrong[1] + 4 and swarm.standing(peer).is_rooted


def test_old_rounds_that_are_reported_late_do_not_hide_a_wrong_one():
    gap, round = range(10, 10 + KEPT_REPORTS), 10 + KEPT_REPORTS
    peer = subject(makes=makes(round, WRONG_TOKENS), is_there=lambda r: r not in gap, goes_back=False)
    swarm = Swarm([peer, *honest(4)], ALWAYS)
    swarm.play(round + 1)
    (report,) = [one.report for one in swarm.events if one.report.peer == peer.peer]
    swarm.play()
    old = [msgspec.structs.replace(report, round=r, state_after=digest("old", r)) for r in gap]
    swarm.truth |= {(peer.peer, r): (Made(), AuditClass.SAME_BUILD) for r in gap}
    swarm.events += [swarm.dated(one) for one in old]
    swarm.play(6)
    assert of(swarm, peer, round).outcome is FAILED
    assert not swarm.standing(peer).is_rooted
    assert swarm.standing(peer).ranked_rounds == 10


def test_a_late_report_keeps_the_chain_unranked_and_one_too_late_breaks_it():
    peer = subject(is_late=lambda r: 10 <= r < 13 or 30 <= r < 45)
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(20)
    standing = swarm.standing(peer)
    assert (standing.age, standing.rounds, standing.ranked_rounds) == (19, 19, 16)
    assert standing.reward_micros == standing.verified_micros == 16 * REWARD_MICROS
    assert of(swarm, peer, 10).outcome is PASSED  # audited all the same
    swarm.play(40)
    audited = {case.round for case in swarm.settled if case.peer == peer.peer}
    # In round 45, what an audit of rounds over 11 rounds ago needs need not be served any more.
    assert audited & set(range(30, 46)) == set(range(34, 46))
    assert swarm.standing(peer).age == 58 - 46 + 1  # it went back to where somebody could still look
    assert swarm.settled_fails() == []


def test_reports_that_come_in_another_order_are_still_a_chain():
    peer = subject(is_there=lambda r: r < 10)
    swarm = Swarm([peer, *honest(4)], ALWAYS)
    swarm.play(13)
    tenth, eleventh = (swarm.report(peer, number) for number in (10, 11))
    swarm.events += [swarm.dated(report) for report in (eleventh, tenth)]
    twelfth = swarm.report(peer, 12)
    swarm.events.append(swarm.dated(twelfth))
    swarm.play()
    assert swarm.standing(peer).age == 3  # the eleventh, alone, was a break
    assert swarm.standing(peer).state == twelfth.state_after


def test_a_new_key_takes_standing_cases_and_duties_along():
    peer, new = subject(makes=makes(20, WRONG_TOKENS)), digest("new key")
    swarm = Swarm([peer, *honest(6)], ALWAYS)
    swarm.play(22)  # the wrong round is drawn and being judged, and the peer has sealed verdicts
    before, sealed = swarm.standing(peer), peer.sealed[21]
    assert sealed.verdicts
    swarm.events.append(Rotated(old=peer.peer, new=new, tx="0x00", block_number=0))
    old, peer.peer = peer.peer, new
    swarm.peers[new] = swarm.peers.pop(old)
    swarm.play()
    after = swarm.standing(peer)
    assert (after.peer, after.account, after.rounds) == (new, "0xsubject", before.rounds + 1)
    assert swarm.reputation.standing(old) == after
    swarm.play(4)
    (case,) = [case for case in swarm.settled if (case.peer, case.round) == (old, 20)]
    assert case.outcome is FAILED and swarm.standing(peer).audits_failed == 1
    assert any(voice.auditor == new for case in swarm.settled for voice in case.voices)
    assert [s.peer for s in swarm.reputation.standings()].count(new) == 1
    assert swarm.reputation.ineligible() == {new}
    swarm.play(30)
    assert 20 < swarm.standing(peer).age < swarm.round and swarm.standing(peer).is_eligible


def test_a_peer_under_a_new_name_earns_next_to_nothing():
    fair = subject()
    swarm = Swarm([fair, *honest(8)])
    names = []
    for n in range(60):  # it cheats from the first round on, and begins anew as soon as it is found out
        names.append(swarm.add(Peer(digest("name", n), f"0xname{n}", makes=lambda r: WRONG_TOKENS)))
        swarm.play(5)
        names[-1].is_there = lambda r: False
    swarm.play(10)
    assert sum(swarm.standing(name).value for name in names) == 0  # no round went unseen
    assert swarm.standing(fair).value > 0


def test_a_name_that_is_built_up_to_be_used_up_does_not_pay():
    fair, names = subject(), []
    swarm = Swarm([fair, *honest(8)], seed=1)
    while swarm.round < 300:  # it is honest while all is looked at, then cheats until it is found out
        born = swarm.round + 1
        name = Peer(digest("name", born), f"0xname{born}")
        name.makes = lambda r, born=born: Made() if r < born + 5 else WRONG_TOKENS
        names.append(swarm.add(name))
        while not swarm.standing(name).audits_failed:
            swarm.play()
        name.is_there = lambda r: False
    swarm.play(10)
    assert len(names) > 10
    assert sum(swarm.standing(name).value for name in names) < swarm.standing(fair).value * 0.2


def test_an_account_may_change_and_standing_stays():
    peer = subject()
    swarm = Swarm([peer, *honest(4)])
    swarm.play(10)
    before = swarm.standing(peer)
    swarm.events.append(Registered(peer=peer.peer, account="0xother", tx="0x00", block_number=0))
    swarm.play()
    after = swarm.standing(peer)
    assert after.account == "0xother" and after.rounds == before.rounds + 1


# ---- time and strangers ----


def test_rounds_without_a_block_only_delay():
    round = 12
    swarm = Swarm([subject(makes=makes(round, WRONG_TOKENS)), *honest(6)], ALWAYS, silent=[13, 14, 18])
    swarm.play(40)
    case = of(swarm, subject(), round)
    # Drawn in 15 by the next beacon, sealed in 16, opened in 17, settled on entering 18.
    assert (case.outcome, case.settled_in) == (FAILED, 18)


def test_a_round_without_a_block_among_the_seals_costs_two_escalations_at_most():
    round = 12
    swarm = Swarm([subject(makes=makes(round, WRONG_TOKENS)), *honest(6)], ALWAYS, silent=[14])
    swarm.play(40)
    case = of(swarm, subject(), round)
    assert (case.outcome, case.settled_in) == (FAILED, 13 + 9)
    assert len(case.voices) == 2
    assert {one.fails for one in swarm.reputation.standings() if one.peer != subject().peer} == {0.0}


@pytest.mark.parametrize("noise", [b"x", b"s" * 40, b"\x00" * 4096, b"s" * 32 + b"\x93\x01\xc0\xc0"])
def test_noise_in_place_of_verdicts_hurts_nobody(noise):
    swarm = Swarm([subject(), *honest(4)], ALWAYS)
    swarm._verdicts = lambda peer, number, right=swarm._verdicts: noise if number % 3 else right(peer, number)
    swarm.play(30)
    assert swarm.settled_fails() == []


def test_who_was_not_assigned_is_not_heard_and_only_the_first_verdict_counts():
    busy = Peer(digest("busy"), "0xbusy")
    swarm = Swarm([busy, *honest(5)], ALWAYS)
    swarm.play(10)
    everywhere = [Verdict(p.peer, r, FAILED, AuditClass.EXACT, STEP) for p in honest(5) for r in (8, 9, 10)]
    right = swarm._verdicts

    def forged(peer, number):
        data = right(peer, number)
        if peer is busy and number in (10, 11):
            sealed = busy.sealed[number] = verdicts.seal(everywhere)
            earlier = busy.sealed[number - 1]
            return verdicts.encode(sealed.seal, earlier.opening)
        return data

    swarm._verdicts = forged
    swarm.play(20)
    voices = [
        v for case in swarm.settled for v in case.voices if v.auditor == busy.peer and v.outcome is FAILED
    ]
    assert len(voices) <= 4 and swarm.settled_fails() == []


# ---- what is asked ----


def test_an_auditor_is_told_all_that_the_ledger_says():
    several = honest(5)
    swarm = Swarm(several, ALWAYS)
    swarm.play(12)
    assignments = [task for peer in several for task in swarm.reputation.assignments(peer.peer)]
    assert len(assignments) == 5 * 2
    for task in assignments:
        report = swarm.reputation.report_of(task.peer, 10)
        assert (task.round, task.drawn_in, task.report) == (10, 11, report)
        assert task.commitment == report.commitment and task.report.verdicts == b""
        assert task.previous == swarm.reputation.report_of(task.peer, 9)
        assert task.last_state == task.previous.state_after == report.state_before
        assert task.served_by == task.peer and task.clock_round == 10
    assert len({task.seed for task in assignments}) == 5  # one for each report
    peer = several[0].peer
    swarm.play(2)
    again = swarm.reputation.assignments(peer, 11)
    assert again == sorted(again, key=lambda task: task.order) and {task.drawn_in for task in again} <= {11}
    assert swarm.reputation.assignments(b"?" * 32) == []


def test_states_on_the_ledger_are_remembered():
    peer = subject(is_late=only(10, True))
    swarm = Swarm([peer, *honest(3)])
    swarm.play(15)
    states = {number: digest("state", peer.peer, number) for number in range(15)}
    reputation = swarm.reputation
    assert reputation.state_before(peer.peer, 0) is None
    assert reputation.state_before(peer.peer, 9) == states[8]
    assert reputation.state_before(peer.peer, 11) == states[9]  # the tenth came in the eleventh
    assert reputation.state_before(peer.peer, 12) == states[11]
    assert reputation.was_on_ledger(peer.peer, states[10], 12)
    assert not reputation.was_on_ledger(peer.peer, states[10], 11)
    assert not reputation.was_on_ledger(b"?" * 32, states[10], 12)
    assert reputation.report_of(peer.peer, 10).late
    assert reputation.report_of(peer.peer, 14) is None  # not on the ledger before round 14 is over
    assert reputation.has_reported_since(peer.peer, 13) and not reputation.has_reported_since(peer.peer, 14)
    assert not reputation.has_reported_since(b"?" * 32, 0)


def test_nothing_grows_for_ever():
    kinds = [Plant(PlantKind.TOKEN), None, None, None, None]
    several = honest(5, plants=lambda r: kinds[r % 5])
    swarm = Swarm(several, silent=range(0, 300, 17))
    swarm.play(300)
    reputation = swarm.reputation
    members = list(reputation._members.values())
    assert max(len(member.reports) for member in members) == KEPT_REPORTS
    assert max(len(member.seals) for member in members) < 20
    assert len(reputation._ineligible) == KEPT_ROUNDS
    assert len(reputation._drawn) <= 4
    open_cases = {id(case) for cases in reputation._due.values() for case in cases}
    assert len(reputation._open) == len(open_cases) + sum(bool(case.seed) for case in reputation._waiting)
    assert max(case.round for case in reputation._open.values()) > 290
    assert min(case.round for case in reputation._open.values()) > 270


def test_peer_of_the_predecessor_goes_on_with_its_score_and_begins_its_age():
    swarm = Swarm([peer := subject(), *honest(6)], ALWAYS)
    swarm.play(40)
    before = swarm.standing(peer)
    after = Reputation(digest("successor"), ALWAYS, swarm.reputation.inheritance())
    after.enter(0, None, [Registered(peer=peer.peer, account="0xsubject", tx="0x00", block_number=0)])
    assert after.standing(peer.peer).score_micros == before.score_micros > 500_000
    assert (after.standing(peer.peer).age, after.standing(peer.peer).verified_micros) == (0, 0)
    assert after.standing(digest("a stranger")).score_micros == 100_000

"""Cheats in real swarms of real processes: who is found, by which check, how soon, and what was gained.

Everybody's first five reports are audited, and all of their groups are looked at, so by the formula of
docs/verde.md a cheat is found with the first round in which it cheats, unless its auditors could not finish:
then the next one. `-s` prints the rows of the table in benchmarks/README.md.
"""

import os
import signal
import time
from collections.abc import Sequence
from statistics import mean

import pytest
from cheat_swarm import BLAMED, CheatSwarm, Peer, Story, gallery_manifest, table

from swarm.verde.verdicts import Check, Outcome

QUICK_SECONDS = 12  # of a round of five peers
ROUND_SECONDS = 32  # of eight: two cores play, and audit, in them
CHEATED_ROUNDS = 6
SETTLED_AFTER = 4  # rounds from a report's round to the settling
ESCALATED_AFTER = 3  # more, for one auditor more
HONEST = 4
FAR_BELOW = 0.05  # of what the honest have
MOST_REPORTS = 3  # until a cheat is found, on a machine that others use too: audits are the first to wait
# What an honest auditor may lose where peers die: twice it could not reach one that served others, 0.25 each.
MOST_FAILS = 0.5

CAUGHT_BY = {
    "false-reward": Check.BATCH,
    "other-model": Check.PROVENANCE,
    "greedy": Check.PROVENANCE,
    "best-of-n": Check.PROVENANCE,
    "copied-answers": Check.PROVENANCE,
    "replayed-round": Check.PROVENANCE,
    "edited-text": Check.PROVENANCE,
    "swapped-prompt": Check.PROVENANCE,
    "cherry-picked": Check.BATCH,
    "skipped-update": Check.STEP,
    "wrong-learning-rate": Check.STEP,
    "nudged-weight": Check.STEP,
    "stale-optimizer": Check.STEP,
    "fabricated-digests": Check.AVAILABILITY,
    "withheld-state": Check.AVAILABILITY,
    "over-long": Check.BATCH,
}
#: What was cheated in a round may be too little to be one: within the tolerance that rounding needs.
SOMETIMES_HARMLESS = {"other-model", "cherry-picked"}


def of_kind(peers: Sequence[Peer], *kinds: str) -> list[Peer]:
    return [peer for peer in peers if peer.kind in kinds]


def is_found(story: Story, peer: Peer) -> bool:
    return bool(story.cases(peer, *BLAMED))


def assert_honest_are_not_blamed(swarm: CheatSwarm, honest: Sequence[Peer], *, passed: int = 1) -> None:
    told = table(swarm.story, swarm.peers)
    for peer in honest:
        standing = swarm.story.of(peer)
        assert standing is not None, f"{peer.name} never reported\n{told}"
        assert not swarm.story.cases(peer, *BLAMED), told
        assert standing.audits_failed == 0, told
        assert standing.audits_passed >= passed, told
        assert standing.fails <= MOST_FAILS, f"{peer.name} lost something as an auditor\n{told}"
        assert "Traceback" not in peer.log, peer.log[-4000:]


def assert_found(swarm: CheatSwarm, cheat: Peer, honest: Sequence[Peer]) -> None:
    """By the right check, soon, and for little; prints the row of the table."""
    story, told = swarm.story, table(swarm.story, swarm.peers)
    blamed = story.cases(cheat, *BLAMED)
    assert blamed, told
    assert CAUGHT_BY[cheat.kind] in {fault.check for case in blamed for fault in case.faults}, told
    wrong = cheat.cheated
    assert all(case.round in wrong for case in blamed), f"{cheat.name} was honest\n{told}"
    if cheat.kind not in SOMETIMES_HARMLESS:
        passed = story.cases(cheat, Outcome.PASSED)
        assert not [case.round for case in passed if case.round in wrong], told
    first = min(blamed, key=lambda case: case.settled_in)
    reports = sum(wrong[0] <= number <= blamed[0].round for number in wrong)
    before = story.of(cheat, first.settled_in - 1)
    theirs = [one for peer in honest if (one := story.of(peer, first.settled_in - 1)) is not None]
    end, others = story.of(cheat), [story.of(peer) for peer in honest]
    value = mean(one.value for one in others)
    checks = ", ".join(check.name.lower() for check in sorted(story.checks(cheat)))
    print(
        f"| {cheat.kind} | {checks} | {wrong[0]} | {blamed[0].round} (report {reports}) | {first.settled_in} "
        f"| {before.verified_micros / 1e6:.1f} of {mean(one.verified_micros for one in theirs) / 1e6:.1f} "
        f"| {end.verified_micros / 1e6:.1f} of {mean(one.verified_micros for one in others) / 1e6:.1f} "
        f"| {end.score_micros / 1e6:.3f} of {mean(one.score_micros for one in others) / 1e6:.2f} "
        f"| {end.value / value:.1e} |"
    )
    assert reports <= MOST_REPORTS, told
    assert end.value < FAR_BELOW * value, told


@pytest.mark.slow  # tests/test_audit.py has all of them, without the swarm
def test_edited_text_and_a_nudged_weight_are_found_and_honest_peers_are_not(tmp_path):
    kinds = ["honest"] * 3 + ["edited-text", "nudged-weight"]
    with CheatSwarm(tmp_path, gallery_manifest("quick", QUICK_SECONDS), len(kinds)) as swarm:
        peers = swarm.add(*kinds)
        honest, cheats = of_kind(peers, "honest"), of_kind(peers, *CAUGHT_BY)

        def is_over(story: Story) -> bool:
            passed = [story.cases(peer, Outcome.PASSED) for peer in honest]
            return any(passed) and all(is_found(story, peer) for peer in cheats)

        swarm.play(SETTLED_AFTER + 2 * ESCALATED_AFTER + 2, until=is_over)
        for cheat in cheats:
            assert_found(swarm, cheat, honest)
        # On a machine that runs other tests too, not everybody's audits are done in time.
        assert any(swarm.story.of(peer).audits_passed for peer in honest)
        assert_honest_are_not_blamed(swarm, honest, passed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [
        ("other-model", "greedy", "best-of-n", "copied-answers"),
        ("replayed-round", "edited-text", "swapped-prompt", "over-long"),
        ("skipped-update", "wrong-learning-rate", "nudged-weight", "stale-optimizer"),
        ("false-reward", "cherry-picked", "fabricated-digests", "withheld-state"),
    ],
    ids=["tokens", "texts", "updates", "claims"],
)
def test_each_cheat_is_found_and_honest_peers_are_not(tmp_path, kinds):
    with CheatSwarm(tmp_path, gallery_manifest("gallery", ROUND_SECONDS), HONEST + len(kinds)) as swarm:
        peers = swarm.add(*["honest"] * HONEST, *kinds)
        honest, cheats = of_kind(peers, "honest"), of_kind(peers, *kinds)
        swarm.play(CHEATED_ROUNDS)
        swarm.wait_until(CHEATED_ROUNDS + 1, 0.9)  # until all those rounds are audited
        for cheat in cheats:
            cheat.kill()
        swarm.play(CHEATED_ROUNDS + SETTLED_AFTER + ESCALATED_AFTER)
        print()
        for cheat in cheats:
            assert_found(swarm, cheat, honest)
        assert_honest_are_not_blamed(swarm, honest)


@pytest.mark.slow
def test_an_auditor_that_never_looks_sinks_and_those_that_look_do_not(tmp_path):
    kinds = ["planter"] * 5 + ["edited-text", "always-pass"]
    with CheatSwarm(tmp_path, gallery_manifest("blind", ROUND_SECONDS), len(kinds)) as swarm:
        peers = swarm.add(*kinds)
        planters, (blind,) = of_kind(peers, "planter"), of_kind(peers, "always-pass")
        story = swarm.play(CHEATED_ROUNDS + SETTLED_AFTER)
        told = table(story, peers)
        print(f"\n{told}")
        plants = [case for case in story.settled if case.was_plant]
        assert plants, told
        assert {case.outcome for case in plants} == {Outcome.UNRANKED}
        fails = [
            (case.was_plant, voice.fails)
            for case in story.settled
            for voice in case.voices
            if voice.auditor == blind.peer and not voice.counted
        ]
        print(f"always-pass pays (was it a plant, how much): {fails}")
        assert sum(paid for _, paid in fails) > 0, told
        lowest = min(story.of(peer).score_micros for peer in planters)
        assert story.of(blind).score_micros < lowest, told
        assert not story.cases(blind, *BLAMED), told  # its own rounds are honest
        assert_honest_are_not_blamed(swarm, planters)


@pytest.mark.slow
def test_an_auditor_that_blames_everybody_sinks_and_its_victims_are_not_blamed(tmp_path):
    kinds = ["honest"] * 5 + ["always-fail"]
    with CheatSwarm(tmp_path, gallery_manifest("slander", ROUND_SECONDS), len(kinds)) as swarm:
        peers = swarm.add(*kinds)
        honest, (slanderer,) = of_kind(peers, "honest"), of_kind(peers, "always-fail")
        story = swarm.play(CHEATED_ROUNDS + SETTLED_AFTER)
        told = table(story, peers)
        print(f"\n{told}")
        paid = sum(
            voice.fails for case in story.settled for voice in case.voices if voice.auditor == slanderer.peer
        )
        print(f"always-fail pays {paid}")
        assert paid > 0, told
        assert story.of(slanderer).score_micros < min(story.of(peer).score_micros for peer in honest), told
        assert_honest_are_not_blamed(swarm, honest)


@pytest.mark.slow
@pytest.mark.parametrize("wallet", ["same", "new"])
def test_who_comes_back_under_another_name_begins_anew_and_is_found_again(tmp_path, wallet):
    with CheatSwarm(tmp_path, gallery_manifest("sybil", ROUND_SECONDS), HONEST + 1) as swarm:
        *honest, first = swarm.add(*["honest"] * HONEST, "edited-text")
        swarm.play(SETTLED_AFTER + 2 * ESCALATED_AFTER, until=lambda story: is_found(story, first))
        assert is_found(swarm.story, first), table(swarm.story, swarm.peers)
        first.kill()
        second = swarm.start(swarm.make("edited-text", wallet_of=first if wallet == "same" else None))
        back = swarm.round
        story = swarm.play(
            back + SETTLED_AFTER + 2 * ESCALATED_AFTER, until=lambda story: is_found(story, second)
        )
        scores = [one[second.peer].score_micros for one in story.standings if second.peer in one]
        print(f"\n{wallet} wallet: scores {scores}\n{table(story, swarm.peers)}")
        assert scores[0] == 100_000, "a newcomer's"
        assert max(scores) == scores[0]
        for cheat in (first, second):
            assert_found(swarm, cheat, honest)
        assert_honest_are_not_blamed(swarm, honest)


@pytest.mark.slow
def test_honest_peers_under_kills_pauses_slow_disks_and_wrong_clocks_are_never_blamed(tmp_path):
    kinds = ["honest"] * 3 + ["slow-disk", "clock-ahead", "clock-behind"]
    with CheatSwarm(tmp_path, gallery_manifest("stress", ROUND_SECONDS), len(kinds) + 1) as swarm:
        killed, paused, leaving, *_ = peers = swarm.add(*kinds)
        late = swarm.make("honest")
        # Between a stage's sampling and publishing, in learning, between the report and the round's end.
        moments = [(1, 0.2, killed), (2, 0.2, paused), (3, 0.62, killed), (4, 0.7, paused), (5, 0.9, killed)]
        for number, share, peer in moments:
            swarm.wait_until(number, share)
            if peer is killed:
                killed.kill()
                swarm.start(killed)
            else:
                paused.signal(signal.SIGSTOP)
                swarm.wait_until(number, share + 0.2)
                paused.signal(signal.SIGCONT)
            if number == 2:
                swarm.start(late)
            if number == 5:
                leaving.kill()
        story = swarm.play(6 + SETTLED_AFTER + ESCALATED_AFTER)
        print(f"\n{table(story, swarm.peers)}")
        assert_honest_are_not_blamed(swarm, [*peers, late])


@pytest.mark.slow
def test_honest_peers_that_hang_over_a_round_or_lose_the_ledger_are_never_blamed(tmp_path):
    kinds = ["honest"] * 4
    with CheatSwarm(tmp_path, gallery_manifest("outage", 24), len(kinds)) as swarm:
        hanging, *_ = peers = swarm.add(*kinds)
        # Its report comes late, and what it says of others too.
        swarm.wait_until(2, 0.7)
        hanging.signal(signal.SIGSTOP)
        swarm.wait_until(3, 0.4)
        hanging.signal(signal.SIGCONT)
        # The ledger makes no block in a whole round, which everybody plays from a draw of its own.
        swarm.wait_until(5, 0.5)
        away = 1.9 * swarm.manifest.round_seconds
        os.kill(swarm.devnet.pid, signal.SIGSTOP)
        time.sleep(away)
        os.kill(swarm.devnet.pid, signal.SIGCONT)
        story = swarm.play(8 + SETTLED_AFTER + ESCALATED_AFTER)
        print(f"\n{table(story, swarm.peers)}")
        assert_honest_are_not_blamed(swarm, peers)

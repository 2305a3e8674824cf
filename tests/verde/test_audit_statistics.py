"""How soon a cheat is found, with the real drawing and settling, against `1 − (1 − p·q·d)^n`.

p is the rate of audits, q the share of a round's groups that an audit looks at, d the chance that an audit
comes to something (enough of its auditors speak), n the rounds in which was cheated. Over 2,000 rounds of the
swarm are simulated; the beacons are fixed, so each run gives the same numbers.
"""

from math import comb, sqrt

import msgspec
import pytest
from swarm_of_auditors import Made, Peer, Swarm, digest, honest

from swarm.manifest import Audits
from swarm.verde.assignment import rate_micros
from swarm.verde.verdicts import Check, Fault, Outcome

HONEST = 12
AT_ONCE = 6  # who cheat; they do not meet one another's cases, being too young to audit
SIGMAS = 4
FAULT = Fault(Check.PROVENANCE, 8, "8 completions")
AUDITS = Audits(first_rounds=0, auditor_age=20, groups=2)  # of four groups
WARM = 2 * AUDITS.auditor_age  # rounds until only the honest are old enough


def coin(chance, *parts):
    return int.from_bytes(digest(*parts)[:8], "big") < chance * 2**64


def cheating(audits, *, frequency=1.0, silence=0.0, rounds=10, batches=45, watch=lambda swarm, cheats: None):
    """A swarm in which, batch after batch, six peers cheat in one group of every round or of some.

    Honest auditors say nothing with chance `silence`. Gives the swarm, and each cheat with its wrong rounds.
    """

    def judge(assignment, truth):
        return None if coin(silence, "silent", truth.peer, truth.round, assignment.order) else truth

    swarm = Swarm(honest(HONEST, judges=judge), audits, seed="statistics")
    swarm.play(WARM)
    cheats = {}
    for batch in range(batches):
        begins = swarm.round + 1
        several = []
        for n in range(AT_ONCE):
            peer = Peer(digest("cheat", batch, n), f"0xcheat{batch}-{n}", joins=begins)
            wrong = {r for r in range(begins, begins + rounds) if coin(frequency, "wrong", peer.peer, r)}
            peer.makes = lambda r, wrong=wrong: Made(FAULT, group=r % 4) if r in wrong else Made()
            cheats[peer.peer] = wrong
            several.append(swarm.add(peer))
        for _ in range(rounds):
            swarm.play()
            watch(swarm, cheats)
        for peer in several:
            del swarm.peers[peer.peer]
    for _ in range(14):  # until the last case is settled
        swarm.play()
        watch(swarm, cheats)
    return swarm, cheats


def found(swarm):
    return {case.peer for case in swarm.settled if case.outcome is Outcome.FAILED}


def spoken(silence):
    """The chance that of two auditors and two escalations at least two speak."""
    return sum(comb(4, k) * (1 - silence) ** k * silence ** (4 - k) for k in (2, 3, 4))


@pytest.mark.parametrize(
    ("p", "frequency", "silence"), [(0.25, 1.0, 0.0), (0.1, 1.0, 0.0), (0.4, 0.5, 0.0), (0.25, 1.0, 0.5)]
)
def test_a_cheat_is_found_as_soon_as_the_formula_says(p, frequency, silence):
    n, q, d = 10, 2 / 4, spoken(silence)
    audits = msgspec.structs.replace(AUDITS, rate=p, lowest_rate=p)
    swarm, cheats = cheating(audits, frequency=frequency, silence=silence, rounds=n)
    expected = 1 - (1 - frequency * p * q * d) ** n
    share = len(found(swarm)) / len(cheats)
    assert abs(share - expected) < SIGMAS * sqrt(expected * (1 - expected) / len(cheats))
    assert found(swarm) <= cheats.keys()  # nobody honest
    assert swarm.round > 500 and len(cheats) == 270


def test_a_cheat_is_found_as_soon_as_its_falling_rate_says():
    """The rate falls with the score, which rises with every audit that looked at other groups.

    So each wrong round has a chance of its own, `p_i·q·d`, and how many are found is about the sum of those.
    """
    audits = msgspec.structs.replace(AUDITS, rate=0.6, lowest_rate=0.05, first_rounds=2)
    chances, rates = {}, set()

    def watch(swarm, cheats):
        drawn = swarm.round  # in which the reports of the round before are
        for peer, wrong in cheats.items():
            report = swarm.reputation.report_of(peer, drawn - 1)
            if drawn - 1 in wrong and report is not None:
                standing = swarm.reputation.standing(peer)
                on_probation = drawn < standing.probation_until
                rate = rate_micros(audits, standing.age, standing.score_micros, is_on_probation=on_probation)
                chances[peer, drawn - 1] = rate / 1e6 * 2 / 4
                rates.add(rate)

    swarm, _ = cheating(audits, rounds=12, batches=20, watch=watch)
    failed = {(case.peer, case.round) for case in swarm.settled if case.outcome is Outcome.FAILED}
    assert len(chances) == 20 * AT_ONCE * 12 and len(rates) > 5
    expected = sum(chances.values())
    deviation = sqrt(sum(chance * (1 - chance) for chance in chances.values()))
    assert abs(len(failed & chances.keys()) - expected) < SIGMAS * deviation
    assert failed <= chances.keys()

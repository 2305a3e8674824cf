"""Who audits whom, and what: drawn, not chosen."""

import hashlib
from collections import Counter
from math import sqrt

import pytest

from swarm.manifest import Audits
from swarm.verde.assignment import (
    TRIES,
    Candidate,
    Candidates,
    groups_drawn,
    is_audited,
    leaves_seed,
    rate_micros,
)

SWARM = b"s" * 32
SUBJECT = b"p" * 32
NOBODY = {"not_peers": frozenset(), "not_accounts": frozenset()}


def beacon(number):
    return hashlib.sha256(b"beacon%d" % number).digest()


def candidate(number, weight=1000, account=None):
    return Candidate(hashlib.sha256(b"%d" % number).digest(), account or f"0x{number}", weight)


def test_a_young_peer_and_one_on_probation_are_always_audited():
    audits = Audits(first_rounds=5)
    assert rate_micros(audits, 5, 900_000, is_on_probation=False) == 1_000_000
    assert rate_micros(audits, 6, 900_000, is_on_probation=False) < 250_000
    assert rate_micros(audits, 99, 900_000, is_on_probation=True) == 1_000_000
    assert rate_micros(Audits(first_rounds=0), 1, 0, is_on_probation=False) == 250_000


def test_the_rate_falls_as_the_score_rises():
    audits = Audits(rate=0.25, lowest_rate=0.05)
    rates = [rate_micros(audits, 99, score, is_on_probation=False) for score in (0, 500_000, 1_000_000)]
    assert rates == [250_000, 150_000, 50_000]
    assert (
        rate_micros(audits, 99, 333_333, is_on_probation=False) == 183_334
    )  # 250,000 - 66,666.6, in integers


def test_as_many_are_audited_as_the_rate_says():
    for rate in (50_000, 250_000):
        audited = sum(is_audited(SWARM, beacon(n), SUBJECT, n, rate) for n in range(20_000))
        expected = 20_000 * rate / 1e6
        assert abs(audited - expected) < 4 * sqrt(expected)
    assert all(is_audited(SWARM, beacon(n), SUBJECT, n, 1_000_000) for n in range(1000))
    assert not any(is_audited(SWARM, beacon(n), SUBJECT, n, 0) for n in range(1000))


def test_whoever_is_audited_at_a_rate_is_at_a_higher_one():
    drawn = [
        {n for n in range(500) if is_audited(SWARM, beacon(n), SUBJECT, n, rate)}
        for rate in (100_000, 300_000)
    ]
    assert drawn[0] < drawn[1]


def test_groups_are_drawn_by_the_documented_order():
    seed = leaves_seed(SWARM, beacon(1), SUBJECT, 7)
    order = sorted(range(20), key=lambda i: hashlib.sha256(seed + i.to_bytes(4, "big")).digest())
    assert groups_drawn(seed, 20, 8) == sorted(order[:8])
    assert groups_drawn(seed, 5, 8) == [0, 1, 2, 3, 4]
    assert groups_drawn(seed, 0, 8) == []
    assert groups_drawn(leaves_seed(SWARM, beacon(2), SUBJECT, 7), 20, 8) != groups_drawn(seed, 20, 8)


def test_every_group_is_drawn_as_often_as_any_other():
    counts = Counter(
        i for n in range(2000) for i in groups_drawn(leaves_seed(SWARM, beacon(n), SUBJECT, n), 10, 3)
    )
    assert all(abs(counts[i] - 600) < 4 * sqrt(2000 * 0.3 * 0.7) for i in range(10))


def test_auditors_are_drawn_by_weight():
    weights = [1000, 2000, 7000]
    ordered = [candidate(n, weight) for n, weight in enumerate(weights)]
    counts = Counter()
    for n in range(5000):
        drawn, _ = Candidates(SWARM, beacon(n), ordered).draw(SUBJECT, n, 1, **NOBODY)
        counts[drawn[0].candidate.weight] += 1
    for weight in weights:
        share = weight / 10_000
        assert abs(counts[weight] - 5000 * share) < 4 * sqrt(5000 * share * (1 - share))


def test_the_draw_depends_on_nothing_but_who_the_candidates_are():
    several = [candidate(n) for n in range(10)]
    one = Candidates(SWARM, beacon(1), several).draw(SUBJECT, 7, 3, **NOBODY)
    assert Candidates(SWARM, beacon(1), reversed(several)).draw(SUBJECT, 7, 3, **NOBODY) == one
    assert Candidates(SWARM, beacon(1), several).draw(SUBJECT, 8, 3, **NOBODY) != one
    assert len({drawn.candidate.peer for drawn in one[0]}) == 3


def test_excluded_peers_and_accounts_are_never_drawn():
    several = [
        candidate(0),
        candidate(1, account="0xa"),
        candidate(2, account="0xa"),
        candidate(3, account="0xb"),
    ]
    for n in range(200):
        drawn, _ = Candidates(SWARM, beacon(n), several).draw(
            SUBJECT, n, 4, not_peers={several[0].peer}, not_accounts={"0xb"}
        )
        assert [one.candidate.account for one in drawn] == ["0xa"]  # and never both of one account


def test_an_escalation_goes_on_where_the_draw_stopped():
    candidates = Candidates(SWARM, beacon(1), [candidate(n) for n in range(10)])
    both, _ = candidates.draw(SUBJECT, 7, 2, **NOBODY)
    first, next_try = candidates.draw(SUBJECT, 7, 1, **NOBODY)
    second, _ = candidates.draw(
        SUBJECT, 7, 1, first_try=next_try, not_peers={first[0].candidate.peer}, not_accounts=set()
    )
    assert both == first + second


@pytest.mark.parametrize("several", [[], [candidate(0)]])
def test_fewer_than_wanted_are_drawn_when_there_are_no_more(several):
    drawn, tries = Candidates(SWARM, beacon(1), several).draw(SUBJECT, 7, 2, **NOBODY)
    assert len(drawn) == len(several)
    assert tries == (2 * TRIES if several else 0)


def test_accounts_that_are_not_known_exclude_nobody():
    several = [Candidate(bytes([n]) * 32, "", 1) for n in range(3)]
    drawn, _ = Candidates(SWARM, beacon(1), several).draw(SUBJECT, 7, 3, not_peers=set(), not_accounts={""})
    assert len(drawn) == 3

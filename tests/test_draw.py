import hashlib
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.digest import Purpose, derive
from swarm.draw import Draw

SWARM = bytes(32)


def a_draw(beacon: bytes = b"b" * 32, active: int = 0) -> Draw:
    return Draw(SWARM, beacon, active, cell_size=16)


def peer(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def test_no_purpose_is_the_beginning_of_another():
    for a, b in combinations(Purpose, 2):
        assert not a.value.startswith(b.value)
        assert not b.value.startswith(a.value)


def test_derived_value_is_the_documented_hash():
    expected = hashlib.sha256(b"swarm/1/" + b"cell" + SWARM + (7).to_bytes(8, "big") + b"x" * 32).digest()
    assert derive(Purpose.CELL, SWARM, 7, b"x" * 32) == expected
    with pytest.raises(ValueError, match="32 bytes"):
        derive(Purpose.CELL, SWARM, b"short")


def test_a_small_swarm_is_one_cell_and_a_large_one_many_of_about_the_size():
    assert a_draw(active=0).cells == a_draw(active=16).cells == 1
    assert a_draw(active=17).cells == 2
    draw = a_draw(active=1600)
    sizes = Counter(draw.cell(peer(i)) for i in range(1600))
    assert set(sizes) == set(range(100))
    assert max(sizes.values()) <= 2 * 16


def test_another_beacon_draws_other_cells_questions_and_seeds():
    one, two = a_draw(b"1" * 32, 1600), a_draw(b"2" * 32, 1600)
    assert [one.cell(peer(i)) for i in range(50)] != [two.cell(peer(i)) for i in range(50)]
    assert one.question_seed(0, 0) != two.question_seed(0, 0)
    assert one.sample_seed(peer(0), 0, 0, 0) != two.sample_seed(peer(0), 0, 0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 999)), unique=True, max_size=40), st.integers(0, 40)
)
def test_pick_takes_one_per_sender_before_a_second_of_the_same(items, limit):
    candidates = [(peer(sender), peer(1000 + leaf)) for sender, leaf in items]
    picked = a_draw().pick(peer(9), candidates, limit, leaf=lambda c: c[1], sender=lambda c: c[0])
    assert len(picked) == min(limit, len(candidates))
    taken = Counter(sender for sender, _ in picked)
    offered = Counter(sender for sender, _ in candidates)
    for a in offered:
        for b in offered:
            assert taken[a] <= taken[b] + 1 or taken[b] == offered[b]


def test_pick_does_not_depend_on_the_order_of_arrival():
    candidates = [(peer(i % 3), peer(100 + i)) for i in range(20)]
    picks = [
        a_draw().pick(peer(9), order, 5, leaf=lambda c: c[1], sender=lambda c: c[0])
        for order in (candidates, candidates[::-1])
    ]
    assert picks[0] == picks[1]

"""What a node's audits put into its reports: seals, what opens them, plants, also across a restart."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from small_swarm import small_manifest

from swarm import auditing
from swarm.audit_log import AUDITS_FILE, Audited, AuditLog
from swarm.auditing import Auditing, Budget, Means
from swarm.verde import verdicts
from swarm.verde.verdicts import AuditClass, Carried, Outcome, PlantKind, Verdict

MANIFEST = small_manifest("auditing")
PEER, OTHER = b"p" * 32, b"q" * 32
MEANS = Means(share=0.25, bytes_per_day=1000)


@dataclass
class Known:
    """As much of a `Reputation` as a report needs."""

    number: int = 10**6
    duties: set[int] = field(default_factory=set)  # rounds in which we were drawn

    def assignments(self, peer: bytes, drawn_in: int) -> list[str]:
        return ["a case"] if drawn_in in self.duties else []


class KnownStandings:
    def __init__(self, known: Known) -> None:
        self._known = known

    def on_round(self, listener) -> None:
        pass

    @contextmanager
    def reading(self):
        yield self._known


@pytest.fixture
def known():
    return Known()


@pytest.fixture
def begin(tmp_path, known):
    """Makes the node's audits, again and again as after a restart."""
    begun = []

    def make(audit_class: AuditClass = AuditClass.SAME_BUILD) -> Auditing:
        begun.append(
            Auditing(
                PEER,
                MANIFEST,
                ledger=None,
                standings=KnownStandings(known),
                source=None,
                process=None,
                folder=tmp_path,
                means=MEANS,
                most_state_bytes=lambda build: 2**30,
                audit_class=audit_class,
                now=lambda: 0.0,
                is_registered=lambda peer: True,
                set_auditors=lambda peers: None,
            )
        )
        return begun[-1]

    yield make
    for one in begun:
        one._log.close()


def found(folder, drawn_in: int) -> Verdict:
    """An audit that was done."""
    verdict = Verdict(OTHER, drawn_in - 1, Outcome.PASSED, AuditClass.SAME_BUILD)
    log = AuditLog(folder / AUDITS_FILE)
    log.save(Audited(peer=OTHER, round=drawn_in - 1, drawn_in=drawn_in, at=0.0, verdict=verdict))
    log.close()
    return verdict


def carried(node: Auditing, number: int, planted: bool = False) -> Carried:
    return verdicts.decode(node.verdicts(number, planted))


def test_verdicts_are_sealed_a_round_after_the_draw_and_opened_a_round_later(begin, tmp_path):
    verdict = found(tmp_path, drawn_in=5)
    sealed = carried(begin(), 6)
    opened = carried(begin(), 7)  # another life
    assert sealed.opening is None
    assert opened.opening.verdicts == (verdict,)
    assert opened.opening.opens(sealed.seal)
    assert carried(begin(), 8).opening is None


def test_seal_without_verdicts_is_opened_only_by_who_was_drawn(begin, known):
    known.duties = {5}
    node = begin()
    sealed = carried(node, 6)
    opened = carried(node, 7)
    assert opened.opening.verdicts == ()
    assert opened.opening.opens(sealed.seal)
    assert carried(node, 8).opening is None


def test_seal_is_opened_where_it_is_not_known_who_was_drawn(begin, known):
    node = begin()
    carried(node, 6)
    known.number = 4
    assert carried(node, 7).opening is not None


def test_every_report_has_another_seal(begin):
    node = begin()
    assert len({carried(node, number).seal for number in range(20)}) == 20


@pytest.fixture
def always_plants(monkeypatch):
    monkeypatch.setattr(auditing, "PLANT_RATE", 1.0)


def test_plant_is_sealed_a_round_before_and_opened_three_rounds_after_its_own(begin, always_plants):
    node = begin()
    sealed = carried(node, 6)
    plant = node.plant(7)
    assert plant is not None
    assert all(carried(node, number, planted=number == 7).plant is None for number in (7, 8, 9))
    opened = carried(begin(), 10)
    assert (opened.plant.round, opened.plant.plant) == (7, plant)
    assert opened.plant.opens(sealed.seal)
    assert carried(node, 11).plant is None


def test_plant_that_could_not_be_made_is_never_opened(begin, always_plants):
    node = begin()
    assert all(carried(node, number).plant is None for number in range(6, 30))


def test_plants_are_seldom_enough_to_be_excused(begin, always_plants):
    node = begin()
    planned = []
    for number in range(100):
        carried(node, number)
        planned += [number + 1] if node.plant(number + 1) else []
    assert len(planned) == 5
    assert all(later - earlier >= 20 for earlier, later in pairwise(planned))


def test_weight_is_planted_only_where_bits_are_compared(begin, always_plants, tmp_path):
    node = begin(AuditClass.TOLERANT)
    assert PlantKind.WEIGHT not in node._plants
    assert set(begin()._plants) == set(PlantKind)


def test_budget_keeps_to_the_share_of_time_and_to_the_bytes_of_a_day():
    budget = Budget(MEANS)
    assert (budget.wait_seconds(0.0), budget.bytes_left(0.0)) == (0.0, 1000)
    budget.spent(10.0, seconds=2.0, count=600)
    assert budget.wait_seconds(10.0) == 6.0  # two seconds of eight
    assert budget.wait_seconds(20.0) == 0.0
    assert budget.bytes_left(20.0) == 400
    budget.spent(30.0, seconds=1.0, count=600)
    assert budget.bytes_left(30.0) == 0
    assert budget.bytes_left(10.0 + 24 * 3600) == 400

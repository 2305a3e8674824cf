"""The parts of `benchmarks/mixing.py` whose mistakes its figures would not show."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from swarm.tasks import Question

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mixing_cell

    return mixing_cell


@pytest.fixture
def mixing(cell: ModuleType) -> ModuleType:
    sys.modules.pop("mixing", None)
    import mixing

    return mixing


def test_specialities_share_out_the_demo_task_and_held_out_questions_are_never_trained_on(cell):
    training, held_out = cell.questions()
    trained = [question.text for kind in training.values() for question in kind]
    asked = [question.text for question in held_out]
    assert len(training) == 8
    assert len(set(trained)) == len(trained)
    assert len(trained) + len(asked) == 100 * 100 * 2
    assert not set(trained) & set(asked)


def test_batches_hold_informative_groups_only_so_many_own_and_so_many_of_others(cell):
    sampled = [[_group(cell, peer, j, informative=j % 4 > 0) for j in range(32)] for peer in range(3)]
    mine, theirs = cell.pick(sampled, 1, 16, 20, random.Random(0))
    assert (len(mine), len(theirs)) == (16, 20)
    assert all(group.group.is_informative for group in mine + theirs)
    assert {group.texts[0] for group in mine} == {"1"}
    assert {group.texts[0] for group in theirs} == {"0", "2"}


def test_batch_is_smaller_where_informative_groups_lack(cell):
    sampled = [[_group(cell, peer, j, informative=j < 3) for j in range(32)] for peer in range(2)]
    mine, theirs = cell.pick(sampled, 0, 24, 8, random.Random(0))
    assert (len(mine), len(theirs)) == (3, 3)


def test_questions_do_not_depend_on_the_mixture(cell):
    training, _ = cell.questions()
    alone, mixed = (cell.Setting("all", own, 32 - own, 0, 10, 8, 1e-4) for own in (32, 8))
    assert cell._draw(alone, 3, 1, training) == cell._draw(mixed, 3, 1, training)
    assert cell._draw(alone, 3, 1, training) != cell._draw(alone, 3, 2, training)


def test_resuming_keeps_finished_runs_and_drops_a_line_that_was_cut_short(cell, mixing, tmp_path):
    result = cell.Result(cell.Setting("own", 32, 0, 0, 1, 8, 1e-4), [0.5], [28.0], [(1, 0.5)], cell.Seconds())
    line = msgspec.json.encode(result)
    path = tmp_path / "results.jsonl"
    path.write_bytes(line + b"\n" + line[:40])
    assert mixing._read(path) == [result]
    assert path.read_bytes() == line + b"\n"  # so that a resumed run can append


def _group(cell: ModuleType, peer: int, j: int, informative: bool) -> object:
    rewards = [1.0] * 7 + [0.0 if informative else 1.0]
    asked = cell.Asked(Question(f"{j}+1=", str(j + 1)), f"{j}+1=")
    return cell.Sampled(asked, [str(peer)] * 8, cell.TrainingGroup([1], [[2]] * 8, rewards))

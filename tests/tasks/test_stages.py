import pytest

from swarm.manifest import Rewards
from swarm.tasks.prompts import UNREADABLE, Named
from swarm.tasks.stages import critique_reward, propose_reward, revise_reward

REWARDS = Rewards()


def test_none_pays_only_when_none_is_right():
    assert critique_reward(Named(None), [0.0, 0.0]) == 1.0
    assert critique_reward(Named(None), [0.0, 1.0]) == 0.0
    assert critique_reward(Named(None), [1.0, 1.0]) == 0.0


def test_naming_pays_the_named_answers_score():
    assert critique_reward(Named(0), [1.0, 0.0]) == 1.0
    assert critique_reward(Named(1), [1.0, 0.0]) == 0.0
    assert critique_reward(Named(1), [1.0, 0.25]) == 0.25


def test_an_empty_list_and_an_unreadable_critique_pay_nothing():
    assert critique_reward(Named(None), []) == 0.0
    assert critique_reward(UNREADABLE, []) == 0.0
    assert critique_reward(UNREADABLE, [1.0, 1.0]) == 0.0
    assert critique_reward(UNREADABLE, [0.0, 0.0]) == 0.0


def reward(score: float, named: Named, shown: list[tuple[float, str]], critiques: list[Named]) -> float:
    return revise_reward(REWARDS, score, named, shown, critiques)


RIGHT, WRONG = (1.0, "46"), (0.0, "45")


def test_agreement_pays_only_on_a_right_answer():
    agreed = [Named(0), Named(0), Named(1), Named(None)]
    assert reward(1.0, Named(0), [RIGHT, WRONG], agreed) == 1.5
    assert reward(0.0, Named(0), [RIGHT, WRONG], agreed) == 0.5
    assert reward(1.0, Named(0), [WRONG, RIGHT], [Named(0)] * 4) == 1.0  # all agree on a wrong answer
    assert reward(0.0, Named(0), [WRONG, RIGHT], [Named(0)] * 4) == 0.0


def test_agreement_counts_equal_answers_of_other_students():
    assert reward(1.0, Named(0), [RIGHT, RIGHT], [Named(0), Named(1)]) == 2.0


def test_revision_without_critiques_or_name_earns_its_answer_alone():
    assert reward(1.0, Named(0), [RIGHT], []) == 1.0
    assert reward(1.0, UNREADABLE, [RIGHT], [Named(0)]) == 1.0
    assert reward(1.0, Named(None), [WRONG], [Named(None)]) == 1.0
    assert reward(0.0, UNREADABLE, [], []) == 0.0


def test_weights_are_the_manifests():
    pays = Rewards(revise=2.0, agreement=0.5)
    assert revise_reward(pays, 1.0, Named(0), [RIGHT], [Named(0)]) == 2.5
    assert pays.most("revise") == 2.5
    assert pays.most("answer") == 1.0


@pytest.mark.parametrize(
    ("scores", "pays"),
    [([], 0.0), ([1.0] * 4, 0.0), ([0.0] * 4, 0.0), ([1.0, 0.0], 1.0), ([1.0, 0, 0, 0], 0.75)],
)
def test_a_question_pays_by_how_informative_it_was(scores, pays):
    assert propose_reward(scores) == pays

"""What a completion earns in each stage; the manifest's `rewards` weigh it."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.manifest import Rewards
from swarm.tasks.prompts import Named


def critique_reward(named: Named, scores: Sequence[float]) -> float:
    """The named answer's true score; "none" earns 1 only when none is right; nothing shown earns nothing.

    Args:
        scores: true scores in [0, 1] of the shown answers, in order.
    """
    if not scores or not named.readable:
        return 0.0
    if named.position is None:
        return 1.0 if all(score < 1.0 for score in scores) else 0.0
    return scores[named.position]


def revise_reward(
    rewards: Rewards,
    score: float,
    named: Named,
    shown: Sequence[tuple[float, str]],
    critiques: Sequence[Named],
) -> float:
    """The final answer's weighted score, plus weighted agreement in [0, 1] only if the named answer is right.

    Agreement is the share of the shown critiques that named an answer of the same gist. Without the
    condition a cell would learn to agree on anything.

    Args:
        score: of the final answer.
        shown: true score and gist of each shown answer, in order.
    """
    reward = rewards.revise * score
    if named.position is None or not named.readable or not critiques:
        return reward
    right, gist = shown[named.position]
    if right < 1.0:
        return reward
    agreeing = sum(
        1 for c in critiques if c.readable and c.position is not None and shown[c.position][1] == gist
    )
    return reward + rewards.agreement * agreeing / len(critiques)


def propose_reward(scores: Sequence[float]) -> float:
    """How informative a question was: 4·p·(1-p) for the mean score p of the others' answers; unanswered, 0.

    All right or all wrong teaches nobody anything. Its proposer's own answers do not count: it never decides
    its own reward.
    """
    if not scores:
        return 0.0
    mean = sum(scores) / len(scores)
    return 4 * mean * (1 - mean)

"""What an update learns from: own groups and other peers' (SAPO, arXiv 2509.08721; DESIGN.md, section 4).

1. Groups whose rewards are all equal have no advantage; they are left out.
2. Own groups of all stages, at most `own_groups` (I), and answer groups of others, at most `external_groups`
   (J), both in the order of the common draw rule.
3. Completions of others that our own model would not have made, for they hold a token outside its
   `external_top_k` likeliest or are too long for it, are left out of their group: poison is learned faster
   than audits find it.
4. Own and external groups by turns, so that whatever fits into the time holds both.

What of other peers was passed over, up to the last group that was taken, is in `Mixed.skips`, by its leaf,
with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from swarm.draw import Draw
from swarm.effects import Screen, TrainingGroup
from swarm.manifest import Learn
from swarm.verde.commitment import Skip

NO_ADVANTAGE = "no advantage"
NOT_SCREENED = "no time to look at it"
FOREIGN = "completion that our model would not have made"
FOREIGN_GROUP = "no advantage without completions that our model would not have made"

# Screening costs a forward pass: who floods a cell with foreign text has us screen so many times J, no more,
# and a few groups at a time, so that it ends in time.
_SCREENED = 2
_AT_A_TIME = 8


@dataclass(frozen=True)
class Mixed:
    """The batch, in the order in which it is learned from, and what was passed over."""

    batch: tuple[TrainingGroup, ...]
    skips: tuple[Skip, ...]

    @property
    def foreign(self) -> int:
        """How many completions were left out as foreign."""
        return sum(skip.reason == FOREIGN for skip in self.skips)


async def mix(
    draw: Draw,
    reader: bytes,
    learn: Learn,
    own: Sequence[TrainingGroup],
    offered: Sequence[TrainingGroup],
    until: float,
) -> Mixed:
    """The batch of `reader` from its own groups and those that others offered, in any order.

    `until` (Unix seconds) ends the screening of others' groups: learning needs time too.
    """
    ours = _ordered(draw, reader, own)[: learn.own_groups]
    external, skips = await _external(draw, reader, learn, offered, until)
    turns = (group for pair in zip_longest(ours, external) for group in pair if group is not None)
    return Mixed(tuple(turns), tuple(skips))


async def _external(
    draw: Draw, reader: bytes, learn: Learn, offered: Sequence[TrainingGroup], until: float
) -> tuple[list[TrainingGroup], list[Skip]]:
    skips = [Skip(group.digest, NO_ADVANTAGE) for group in offered if not group.informative]
    waiting = _ordered(draw, reader, offered)
    taken: list[TrainingGroup] = []
    left = _SCREENED * learn.external_groups
    while waiting and left and len(taken) < learn.external_groups:
        some = waiting[: min(learn.external_groups - len(taken), left, _AT_A_TIME)]
        screened = await Screen(tuple(some), learn.external_top_k, until)
        if not screened:
            break
        waiting, left = waiting[len(some) :], left - len(some)
        for group, admitted in zip(some, screened, strict=True):
            rest = _only(group, admitted)
            skips += [Skip(leaf, FOREIGN) for leaf in group.leaves if leaf not in rest.leaves]
            if rest.informative:
                taken.append(rest)
            else:
                skips.append(Skip(group.digest, FOREIGN_GROUP))
    if len(taken) < learn.external_groups:
        skips += [Skip(group.digest, NOT_SCREENED) for group in waiting]
    return taken, skips


def _ordered(draw: Draw, reader: bytes, groups: Sequence[TrainingGroup]) -> list[TrainingGroup]:
    """The groups that have an advantage, by the common draw rule."""
    informative = [group for group in groups if group.informative]
    return draw.pick(
        reader,
        informative,
        len(informative),
        leaf=lambda group: group.digest,
        sender=lambda group: group.sender,
    )


def _only(group: TrainingGroup, admitted: Sequence[bool]) -> TrainingGroup:
    """The group with the admitted ones of its completions."""
    kept = [index for index, is_admitted in enumerate(admitted) if is_admitted]
    return replace(
        group,
        leaves=tuple(group.leaves[index] for index in kept),
        completions=tuple(group.completions[index] for index in kept),
        rewards=tuple(group.rewards[index] for index in kept),
    )

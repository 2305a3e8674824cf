"""One rank's learner: it makes the gradient of its share of each step, and adds up with the other ranks.

The loss is normalised over the whole step, so the gradients of the shares add up to that of the step.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from swarm.learner.batch import Rows, TrainingGroup
from swarm.learner.grpo import Sums
from swarm.learner.trainer import Learner, Update
from swarm.manifest import Learn
from swarm.policy.model import Policy

# A rank does as much as any other, on a device like theirs: it hangs if it takes far longer.
LEAST_PATIENCE_SECONDS, _PATIENCE = 30.0, 10.0


class Ranks(Protocol):
    """The other ranks, as a rank's learner sees them: the node's helpers, or a helper's node."""

    @property
    def rank(self) -> int: ...

    @property
    def processes(self) -> int:
        """How many there are now; 1: none but this one."""

    def begin_update(self, learner: Learner, groups: Sequence[TrainingGroup]) -> None:
        """All begin the same update from the same state."""

    def add_up(self, step: Step, seconds: float) -> bool:
        """Sum up a step over all ranks; False if a rank was lost, and the step is to be made alone."""

    def end_update(self, learner: Learner, seconds: float) -> None:
        """See whether all came to the same state; others have `seconds` to say."""

    def close(self) -> None:
        """This rank failed."""


@dataclass
class Step:
    """One rank's part of an optimizer step, then the sum of all."""

    sums: Sums
    parameters: list[torch.nn.Parameter]
    others: list[torch.Tensor]  # summed up too

    @property
    def present(self) -> list[bool]:
        """Which parameters have a gradient; none have where a rank had no rows."""
        return [parameter.grad is not None for parameter in self.parameters]

    def tensors(self, present: Sequence[bool]) -> list[torch.Tensor]:
        """What is to be summed up: the gradients that any rank has, made where this one has none."""
        for parameter, is_present in zip(self.parameters, present, strict=True):
            if is_present and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return [*gradients, *self.others]


class ParallelLearner(Learner):
    """A learner that makes its share of each step and adds up with the other ranks.

    With a `Team` it is the node's: `update` is for all ranks, all else is the node's own, and the team sees
    by itself what has changed. The states are those of a lone `Learner` but for rounding.
    """

    def __init__(
        self,
        ranks: Ranks,
        policy: Policy,
        learn: Learn,
        group_size: int,
        temperature: float,
        max_completion_tokens: int,
        work_dir: Path,
    ) -> None:
        super().__init__(policy, learn, group_size, temperature, max_completion_tokens, work_dir)
        self._ranks = ranks

    def update(self, groups: Sequence[TrainingGroup]) -> Update:
        """As `Learner.update`, on all ranks."""
        for group in groups:
            self._check(group)  # before a helper fails over it
        try:
            self._ranks.begin_update(self, groups)
            update = super().update(groups)
            self._ranks.end_update(self, patience(update.seconds))
        except BaseException:
            self._ranks.close()  # nobody knows what the helpers wait for
            raise
        return update

    def _accumulate_within_memory(self, groups: Sequence[TrainingGroup], rows: Rows) -> Sums:
        """The whole step's gradient, of which this rank makes a share."""
        if self._ranks.processes == 1:
            return super()._accumulate_within_memory(groups, rows)
        began = time.monotonic()
        place, its_groups = share_of(groups, self._ranks.rank, self._ranks.processes)
        part = rows.cut(place)
        sums = Sums()
        if its_groups:
            sums = super()._accumulate_within_memory(its_groups, part)
            # It was normalised as if the share were the whole step.
            if self.learn.loss_type in ("grpo", "dr_grpo"):  # by rows
                weight = len(part) / len(rows)
            else:  # by tokens
                weight = int(part.lengths.sum()) / int(rows.lengths.sum())
            sums.loss *= weight
            for parameter in self._trained.values():
                if parameter.grad is not None:
                    parameter.grad *= weight
        # What later passes over the step need. Each rank needs only its share's, but the node needs all of it
        # if it is left alone: sums with zeros.
        kept = {}
        if self.learn.epochs > 1:
            for name in ("old_log_probs", "reference_log_probs") if self.learn.beta else ("old_log_probs",):
                if getattr(rows, name) is None:
                    kept[name] = torch.zeros_like(rows.completion_mask, dtype=torch.float32)
                    if its_groups:
                        kept[name][place] = getattr(part, name)
        step = Step(sums, list(self._trained.values()), list(kept.values()))
        if self._ranks.add_up(step, patience(time.monotonic() - began)):
            for name, log_probs in kept.items():
                setattr(rows, name, log_probs)
            return step.sums
        self._optimizer.zero_grad()
        return super()._accumulate_within_memory(groups, rows)


def share_of(groups: Sequence[TrainingGroup], rank: int, ranks: int) -> tuple[slice, list[TrainingGroup]]:
    """A rank's share of a step: which rows, and these rows as groups. Rank 0 always has some.

    Shares are runs of rows with about equally many tokens, each group's prompt counted once.
    """
    costs = [
        len(completion) + len(group.prompt) / len(group.completions)
        for group in groups
        for completion in group.completions
    ]
    total = sum(costs)
    before = 0.0
    owners = []
    for cost in costs:
        owners.append(min(ranks - 1, int(before / total * ranks)))
        before += cost
    first, stop = bisect_left(owners, rank), bisect_right(owners, rank)
    its_groups = []
    row = 0
    for group in groups:
        low, high = max(first - row, 0), min(stop - row, len(group.completions))
        if low < high:
            its_groups.append(
                TrainingGroup(group.prompt, group.completions[low:high], group.rewards[low:high])
            )
        row += len(group.completions)
    return slice(first, stop), its_groups


def patience(own_seconds: float) -> float:
    """How long to wait for others, after so many seconds of the same work here."""
    return max(LEAST_PATIENCE_SECONDS, _PATIENCE * own_seconds)

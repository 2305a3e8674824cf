"""Step: the committed update, made again from the committed state and batch, gives the committed next state.

On the same software and device every bit must agree. Elsewhere sums are rounded otherwise, and AdamW makes
more of it: where a gradient is near zero its sign, and with it a change of the size of the learning rate, is
a matter of rounding. So differences are measured against the update itself: as a whole (`relative`), along
its direction (`scale`: a wrong learning rate shows there even where rounding is coarse), in the single
element that differs most (`worst`: one changed weight hides in no norm), and in AdamW's moments, which are
sums of gradients and no quotients.

The states are a stranger's: whatever is in them, the outcome is a finding and no exception.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from msgspec import Struct

from swarm.learner.batch import TrainingGroup, micro_batches
from swarm.learner.checkpoints import LearnerState, Tensors
from swarm.learner.trainer import Learner
from swarm.policy.devices import usable_cores
from swarm.verde.build import THREADS_PER_CORE, Build
from swarm.verde.thresholds import StepLimits

_MOMENTS = ("exp_avg.", "exp_avg_sq.")  # of AdamW, before the weights' names
_STEP = "step."
_MOST_STEPS = 2**24  # beyond these fp32 cannot count
_BLOCK = 2**20  # elements that are compared in fp64 at once
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class StepCheck(Struct, frozen=True, kw_only=True):
    """How a claimed next state compares with the one that came out here.

    Attributes:
        fault: what makes any comparison pointless; empty if nothing does.
        repeated: whether batches were cut, and threads set, as the build says; else bits may differ.
        elements: of weights and optimizer together.
        differing: those of other bits, not numbers (NaN, inf) included.
        relative: norm of the weights' differences over that of the weights' change by the update.
        scale: how long the claimed change of the weights is along the one made here, less 1.
        worst: the weights' greatest difference over the learning rate times the optimizer steps, which is
            about what AdamW changes at most.
        moments: as `relative`, for AdamW's first and second moments; the greater.
        counters: whether counters, steps and the loss scale are equal.
    """

    fault: str = ""
    repeated: bool = True
    elements: int = 0
    differing: int = 0
    relative: float = math.inf
    scale: float = math.inf
    worst: float = math.inf
    moments: float = math.inf
    counters: bool = False

    def passes(self, limits: StepLimits) -> bool:
        """Whether the differences are those of honest peers; where nothing was repeated exactly, not bits."""
        if self.fault or not self.counters:
            return False
        if limits.bitwise and self.repeated:
            return self.differing == 0
        return (
            self.relative <= limits.relative
            and abs(self.scale) <= limits.scale
            and self.worst <= limits.worst
            and self.moments <= limits.moments
        )

    @property
    def detail(self) -> str:
        """The finding in at most 80 characters."""
        if self.fault:
            return self.fault[:80]
        if not self.counters:
            return "counters differ"
        return (
            f"{self.differing} differ, by {self.relative:.1e}, scale {self.scale:+.1e}, "
            f"worst {self.worst:.1e}, moments {self.moments:.1e}"
        )[:80]


def repeat_step(
    learner: Learner, build: Build, before: LearnerState, batch: Sequence[TrainingGroup], after: LearnerState
) -> StepCheck:
    """Restore `before`, update with `batch`, compare with `after`; the learner keeps what came out here.

    Args:
        learner: of the audited peer's model, adapter and precision. Its `max_tokens_at_once` is what there is
            room for here; a build that asks for more is repeated only if nothing is cut by it.
        build: the peer's.
        before: its tensors are not the learner's own.
        batch: what was learned from, in order, in the model's tokens.
        after: the claimed state.

    Raises:
        ModelError: if there is not even memory here for one row.
    """
    fault = _unusable(learner, before, after) or _unreadable(learner, batch)
    if fault:
        return StepCheck(fault=fault)
    learner.restore(before)
    room = learner.max_tokens_at_once
    try:
        wanted = _tokens_at_once(learner, build, batch)
        repeated = wanted is not None and build.threads <= THREADS_PER_CORE * usable_cores()
        learner.max_tokens_at_once = wanted or room
        with _threads(build.threads if repeated else torch.get_num_threads()):
            update = learner.update(batch)
        # Where memory ran out, batches were cut smaller than the build says.
        repeated = repeated and learner.max_tokens_at_once == wanted
    except ValueError as error:  # groups that nobody can learn from
        return StepCheck(fault=f"the batch cannot be learned from: {' '.join(str(error).split())}")
    finally:
        learner.max_tokens_at_once = room
    most = learner.learn.learning_rate * update.steps
    return _compare(before, learner.state(), after, most, repeated)


def _unusable(learner: Learner, before: LearnerState, after: LearnerState) -> str:
    """Why the states cannot be learned from or compared; empty if they can."""
    own = learner.state()
    for name, state in (("before", before), ("after", after)):
        pairs = ((own.weights, state.weights), (own.optimizer, state.optimizer))
        if any(_kinds(mine) != _kinds(theirs) for mine, theirs in pairs):
            return f"the state {name} is of another model"
        for tensors in (state.weights, state.optimizer):
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                return f"the state {name} holds what is not a number"
        steps = [tensor for key, tensor in state.optimizer.items() if key.startswith(_STEP)]
        squares = [tensor for key, tensor in state.optimizer.items() if key.startswith(_MOMENTS[1])]
        scale = state.optimizer.get("loss_scale")
        if (
            any(not 0 <= float(step) < _MOST_STEPS or float(step) % 1 for step in steps)
            or any(tensor.numel() and float(tensor.min()) < 0 for tensor in squares)
            or bool((state.optimizer["counters"] < 0).any())
            or (scale is not None and float(scale) <= 0)
        ):
            return f"the state {name} is none that an optimizer comes to"
    return ""


def _unreadable(learner: Learner, batch: Sequence[TrainingGroup]) -> str:
    """Why the model cannot read the batch (a GPU would not survive the try); empty if it can."""
    policy = learner.policy
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    for group in batch:
        for completion in group.completions:
            if len(group.prompt) + len(completion) > policy.context_length:
                return "the batch holds a completion that is longer than the model reads"
            if not all(0 <= token < vocabulary for token in completion):
                return "the batch holds a token outside of the vocabulary"
    return ""


def _kinds(tensors: Tensors) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _tokens_at_once(learner: Learner, build: Build, batch: Sequence[TrainingGroup]) -> int | None:
    """How many tokens at once cut the update as the build's do, in the room there is; None: none."""
    room, wanted = learner.max_tokens_at_once, build.learning_tokens_at_once
    if wanted <= room:
        return wanted
    steps = learner._cut([group for group in batch if group.is_informative])
    return room if all(micro_batches(step, room) == micro_batches(step, wanted) for step in steps) else None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Gradients depend on how many threads they are summed by."""
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


@torch.no_grad()
def _compare(
    before: LearnerState, ours: LearnerState, theirs: LearnerState, most: float, repeated: bool
) -> StepCheck:
    """Of states of one model, all of numbers. `most`: learning rate times optimizer steps."""
    weights = _Differences(before.weights, ours.weights, theirs.weights)
    optimizer = _Differences(before.optimizer, ours.optimizer, theirs.optimizer)
    moments = [optimizer.of(prefix) for prefix in _MOMENTS]
    of_weights = weights.of("")
    return StepCheck(
        repeated=repeated,
        elements=weights.elements + optimizer.elements,
        differing=weights.differing + optimizer.differing,
        relative=of_weights.relative,
        scale=of_weights.scale,
        worst=_ratio(of_weights.worst, most),
        moments=max(one.relative for one in moments),
        counters=all(name.startswith(_MOMENTS) for name in optimizer.unequal),
    )


@dataclass
class _Sums:
    """Over elements of some tensors, fp64."""

    difference: float = 0.0  # squares of theirs less ours
    change: float = 0.0  # squares of ours less before
    along: float = 0.0  # products of theirs less ours, and ours less before
    worst: float = 0.0  # the greatest difference

    @property
    def relative(self) -> float:
        """Norm of the difference over the norm of the change."""
        return _ratio(math.sqrt(self.difference), math.sqrt(self.change))

    @property
    def scale(self) -> float:
        """Their change along ours, less 1."""
        return self.along / self.change if self.change else _ratio(self.difference, 0.0)


class _Differences:
    """Where tensors of the same names differ, and by how much."""

    def __init__(self, before: Tensors, ours: Tensors, theirs: Tensors) -> None:
        self._tensors = before, ours, theirs
        self.elements = self.differing = 0
        self.unequal: set[str] = set()  # names
        for name, tensor in ours.items():
            count = int((_bits(tensor) != _bits(theirs[name].to(tensor.device))).sum())
            self.elements += tensor.numel()
            self.differing += count
            if count:
                self.unequal.add(name)

    def of(self, prefix: str) -> _Sums:
        """Over the tensors whose names begin so; nothing but zeros where none of them differ."""
        sums = _Sums()
        if not any(name.startswith(prefix) for name in self.unequal):
            return sums
        for name, mine in self._tensors[1].items():
            if not name.startswith(prefix):
                continue
            parts = (tensors[name].to(mine.device).flatten().split(_BLOCK) for tensors in self._tensors)
            for old, own, claimed in zip(*parts, strict=True):
                # MPS has no fp64.
                new = own.cpu().double() if own.device.type == "mps" else own.double()
                change, difference = new - old.to(new), claimed.to(new) - new
                sums.change += float(change.square().sum())
                sums.difference += float(difference.square().sum())
                sums.along += float((change * difference).sum())
                sums.worst = max(sums.worst, float(difference.abs().max()))
        return sums


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, so that equal means equal in every bit."""
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])


def _ratio(difference: float, change: float) -> float:
    """Infinite where there is a difference and no change."""
    return difference / change if change else math.inf if difference else 0.0

"""GRPO on a round's groups: TRL's loss on completions that were made elsewhere, in a loop of our own.

1. Groups whose rewards are all equal have no advantage; they are dropped.
2. The rest is sorted by length and cut into steps of at most `groups_per_step` groups, so that a long
   critique does not pad a short answer.
3. For each step, `epochs` (TRL's num_iterations) optimizer passes follow before the next step's.
4. A pass is cut into micro-batches that fit into memory. Their gradients add up to that of the whole step.

Departures from GRPO: the policy that importance ratios refer to ("old") is the one at the beginning of the
step, as always in TRL, not the one that sampled; its log-probabilities are kept from the step's first pass
instead of computed before it. External groups are treated like own ones, as in SAPO. Dropped groups count
neither in TRL's normalisations nor in the deviation of `scale_rewards: batch`.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from msgspec import Struct

from swarm.errors import ModelError
from swarm.learner.batch import Rows, TrainingGroup, make_rows, micro_batches
from swarm.learner.checkpoints import LearnerState
from swarm.learner.grpo import GroupTrainer, Sums
from swarm.manifest import Learn
from swarm.policy.devices import free_memory, is_out_of_memory
from swarm.policy.model import Policy

log = logging.getLogger("swarm.learner")

__all__ = ["Learner", "TrainingGroup", "Update"]

# AdamW's other knobs are torch's and TRL's defaults; the manifest has only what a swarm would want to change.
_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8
_MAX_GRAD_NORM = 1.0
_MOMENTS = ("exp_avg", "exp_avg_sq")
_MAX_TOKENS_AT_ONCE = 16_384  # what a micro-batch holds where nobody planned the memory


class Update(Struct, frozen=True, kw_only=True):
    """What one update did. Means are over its optimizer steps, or their tokens."""

    steps: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0  # before clipping
    clip_fraction: float = 0.0  # of ratios (of tokens, or of sequences) outside of the clip range
    kl: float | None = None  # from the base model, a token; None without `beta`
    entropy: float = 0.0  # estimated: the mean of -log p over the trained tokens
    tokens: int = 0  # of the completions used
    completions: int = 0
    groups_used: int = 0
    groups_dropped: int = 0
    seconds: float = 0.0

    def measured(self) -> dict[str, float]:
        """The numbers by name, for trackers."""
        return {
            name: float(value)
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }


class Learner:
    """A policy in training: the model (shared with `policy`), its AdamW and the counters. Not thread-safe.

    Attributes:
        max_tokens_at_once: padded tokens in one micro-batch, each group's prompt counted once. Bounds memory,
            not results. Whoever plans the memory sets it; a step that finds no memory halves it.
    """

    def __init__(
        self,
        policy: Policy,
        learn: Learn,
        group_size: int,
        temperature: float,
        max_completion_tokens: int,
        work_dir: Path,
    ) -> None:
        """Train what of `policy.model` requires gradients. `work_dir` is only named to TRL.

        The weights that `policy` has now are what `learn.beta` holds on to, not those of a loaded state.
        """
        self.policy = policy
        self.learn = learn
        self.max_tokens_at_once = _MAX_TOKENS_AT_ONCE
        self._group_size = group_size
        self._max_completion_tokens = max_completion_tokens
        self._updates = 0
        self._steps = 0
        self._trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        for parameter in self._trained.values():
            parameter.data = (
                parameter.data.float()
            )  # under autocast, weights of 16 bits would lose small steps
        with _process_randomness_kept(policy.model.device):
            self._trainer = GroupTrainer(
                policy.model,
                policy.encoding.tokenizer,
                learn,
                temperature,
                max_completion_tokens,
                precision=getattr(policy, "precision", "fp32"),
                gradient_checkpointing=getattr(policy, "gradient_checkpointing", False),
                work_dir=work_dir,
            )
        policy.model.eval()
        self._accelerator = self._trainer.accelerator
        self._scaler: torch.amp.GradScaler | None = self._accelerator.scaler
        self._optimizer = self._accelerator.prepare_optimizer(
            torch.optim.AdamW(
                self._trained.values(),
                lr=learn.learning_rate,
                betas=_BETAS,
                eps=_ADAM_EPSILON,
                weight_decay=0.0,
            )
        )
        self._start_moments()

    def update(self, groups: Sequence[TrainingGroup]) -> Update:
        """One round's learning. On one machine, equal states and groups give equal next states, bit for bit.

        Without any informative group nothing changes and `steps` is 0. `ValueError` if a group is malformed,
        `ModelError` if there is not even memory for one row; steps before that one stay done.
        """
        began = time.monotonic()
        for group in groups:
            self._check(group)
        informative = [group for group in groups if group.is_informative]
        sums, norms = Sums(), list[float]()
        self.policy.model.train()
        try:
            for step in self._cut(informative):
                rows = make_rows(step, self.learn.scale_rewards, self.policy.model.device)
                for _ in range(self.learn.epochs):
                    norms.append(self._step(step, rows, sums))
        finally:
            self._optimizer.zero_grad()
            self.policy.model.eval()
        self._updates += bool(norms)
        ratios = sums.tokens if self.learn.importance_sampling_level == "token" else sums.rows
        return Update(
            steps=len(norms),
            loss=sums.loss / max(1, len(norms)),
            grad_norm=float(np.mean(norms)) if norms else 0.0,
            clip_fraction=sums.clipped / max(1, ratios),
            kl=sums.kl / max(1, sums.tokens) if self.learn.beta else None,
            entropy=sums.surprise / max(1, sums.tokens),
            tokens=sums.tokens // self.learn.epochs,
            completions=sums.rows // self.learn.epochs,
            groups_used=len(informative),
            groups_dropped=len(groups) - len(informative),
            seconds=time.monotonic() - began,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """What is trained, by the model's names: live tensors, all weights or the adapter's."""
        return dict(self._trained)

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """What else the next update depends on: live moments and steps of AdamW, copies of the counters."""
        tensors = {"counters": torch.tensor([self._updates, self._steps], dtype=torch.int64)}
        for name, parameter in self._trained.items():
            moments = self._optimizer.state[parameter]
            tensors["step." + name] = moments["step"]
            for moment in _MOMENTS:
                tensors[f"{moment}.{name}"] = moments[moment]
        if self._scaler is not None:  # fp16 only
            tensors["loss_scale"] = torch.tensor(self._scaler.get_scale(), dtype=torch.float32)
            tensors["loss_scale_steps"] = torch.tensor(self._scaler._get_growth_tracker(), dtype=torch.int64)
        return tensors

    def state(self) -> LearnerState:
        """All that the next update depends on; live tensors, so to be written or hashed before it."""
        return LearnerState(self.weights(), self.optimizer_state())

    def restore(self, state: LearnerState) -> None:
        """Continue from a state as if never stopped; `ModelError` if it is of another model."""
        mine = self.state()
        pairs = ((mine.weights, state.weights), (mine.optimizer, state.optimizer))
        if any(_shapes(current) != _shapes(saved) for current, saved in pairs):
            raise ModelError(f"the state is not of model {self.policy.name}")
        with torch.no_grad():
            for current, saved in pairs:
                for name, tensor in current.items():
                    tensor.copy_(saved[name])
        self._updates, self._steps = state.optimizer["counters"].tolist()
        if self._scaler is not None:
            self._scaler.load_state_dict(
                {
                    **self._scaler.state_dict(),
                    "scale": state.optimizer["loss_scale"].item(),
                    "_growth_tracker": state.optimizer["loss_scale_steps"].item(),
                }
            )

    @torch.no_grad()
    def nudge(self) -> None:
        """Move the first weight by a hundredth: a fault that is planted for auditors to find."""
        weight = next(iter(self._trained.values())).view(-1)[:1]
        weight.mul_(1.01).add_(1e-4)

    @contextlib.contextmanager
    def with_weights(self, weights: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
        """Lend the model other weights, to sample with an older state; None: its own. Not for updates."""
        if weights is None:
            yield
            return
        # Put aside in main memory: on the device the plan has no room for a second copy.
        own = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._trained.items()}
        if _shapes(weights) != _shapes(own):
            raise ModelError(f"the weights are not of model {self.policy.name}")
        try:
            self._copy_in(weights)
            yield
        finally:
            self._copy_in(own)

    def state_digest(self) -> bytes:
        """32 bytes over all that the next update depends on (see `LearnerState.digest`)."""
        return self.state().digest

    @torch.no_grad()
    def _copy_in(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(weights[name])

    def _start_moments(self) -> None:
        """AdamW makes its moments at the first step; made here, every state has the same tensors."""
        for parameter in self._trained.values():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    def _check(self, group: TrainingGroup) -> None:
        if not 2 <= len(group.completions) == len(group.rewards) <= self._group_size:
            raise ValueError(
                f"a group has {len(group.completions)} completions and {len(group.rewards)} rewards; "
                f"this swarm's groups have {self._group_size}, or fewer but two"
            )
        if not group.prompt or not all(group.completions):
            raise ValueError("a prompt or completion without tokens cannot be trained on")
        longest = max(map(len, group.completions))
        if longest > self._max_completion_tokens:
            raise ValueError(
                f"a completion has {longest} tokens; at most {self._max_completion_tokens} are allowed"
            )
        if not np.isfinite(group.rewards).all():
            raise ValueError(f"rewards must be finite, got {group.rewards}")

    def _cut(self, groups: list[TrainingGroup]) -> list[list[TrainingGroup]]:
        """Steps of at most `groups_per_step` groups, sorted by length (a stable sort)."""
        ordered = sorted(groups, key=lambda group: group.length)
        size = self.learn.groups_per_step
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def _step(self, groups: Sequence[TrainingGroup], rows: Rows, sums: Sums) -> float:
        """One optimizer step; adds to `sums` and returns the gradient's norm before clipping."""
        sums += self._accumulate_within_memory(groups, rows)
        norm = self._accelerator.clip_grad_norm_(self._trained.values(), _MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        return float(norm)

    def _accumulate_within_memory(self, groups: Sequence[TrainingGroup], rows: Rows) -> Sums:
        """Add up a step's gradient in the parameters' `.grad`: the place to share a step between processes.

        While there is not enough memory, again and again with smaller micro-batches.
        """
        while True:
            cuts = micro_batches(groups, self.max_tokens_at_once)
            try:
                return self._accumulate(rows, cuts)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                largest = max(cut.stop - cut.start for cut in cuts)
                if largest == 1:
                    raise ModelError(
                        f"not enough memory to train {self.policy.name} on one completion; "
                        "choose a smaller model or free memory"
                    ) from error
            # Only here, after the exception is gone, are the tensors that its traceback held free.
            self._optimizer.zero_grad()
            free_memory()
            # The bound may have been far above what was tried.
            while micro_batches(groups, self.max_tokens_at_once) == cuts:
                self.max_tokens_at_once //= 2
            log.warning("out of memory while learning: now tokens_at_once=%d", self.max_tokens_at_once)

    def _accumulate(self, rows: Rows, cuts: Sequence[slice]) -> Sums:
        """One attempt, a micro-batch at a time.

        The first pass over a step leaves in its rows what later passes need: the log-probabilities that it
        found ("old" for them) and those of the reference.
        """
        sums = Sums()
        tokens = int(rows.lengths.sum())
        found = torch.zeros_like(rows.completion_ids, dtype=torch.float32)
        reference = torch.zeros_like(found)
        for cut in cuts:
            part = rows.cut(cut).without_padding()
            place = cut, slice(part.completion_ids.shape[1])
            if self.learn.beta and part.reference_log_probs is None:
                reference[place] = part.reference_log_probs = self._trainer.reference_log_probs(part)
            found[place], measured = self._trainer.backward(part, len(rows), tokens)
            sums += measured
        if self.learn.epochs > 1 and rows.old_log_probs is None:
            rows.old_log_probs = found
        if self.learn.beta and rows.reference_log_probs is None:
            rows.reference_log_probs = reference
        return sums


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@contextlib.contextmanager
def _process_randomness_kept(device: torch.device) -> Iterator[None]:
    """TRL's constructor seeds all generators of the process; give the process its own back."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)

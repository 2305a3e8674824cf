"""GRPO on a round's groups: TRL's trainer, fed with completions that were made elsewhere.

One `GRPOTrainer` lives as long as the peer; every round is one `train()` call over that round's groups:

1. Groups whose rewards are all equal have no advantage; they are dropped.
2. The rest is sorted by length and cut into steps of equal size, at most `groups_per_step` groups each, so
   that a long critique does not pad a short answer. A cut that does not come out even repeats the shortest
   groups (fewer than there are steps).
3. Each step's groups are TRL's "generation batch": its rollout function hands over our tokens, its reward
   function our rewards. `epochs` (TRL's num_iterations) optimizer passes follow on it before the next step's.

Departures from GRPO: the policy that importance ratios refer to ("old") is the one at the beginning of the
step, as always in TRL, not the one that sampled; external groups are treated like own ones, as in SAPO.
"""

from __future__ import annotations

import contextlib
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from msgspec import Struct
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer

from swarm.digest import Purpose, derive
from swarm.errors import ModelError
from swarm.learner.state import read_state, state_digest, write_state
from swarm.manifest import Learn
from swarm.policy.model import Policy

# AdamW's other knobs are torch's and TRL's defaults; the manifest has only what a swarm would want to change.
_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8
_MAX_GRAD_NORM = 1.0
_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingGroup(Struct, frozen=True):
    """A prompt's completions in the own model's tokens, with their rewards."""

    prompt: list[int]
    completions: list[list[int]]
    rewards: list[float]

    @property
    def is_informative(self) -> bool:
        """Whether any completion did better than another, so that GRPO has an advantage to learn from."""
        return max(self.rewards) > min(self.rewards)

    @property
    def length(self) -> int:
        """Tokens of the longest row, prompt included."""
        return len(self.prompt) + max(map(len, self.completions))


class Update(Struct, frozen=True):
    """What one update did; `loss` and `grad_norm` are means over its optimizer steps."""

    steps: int
    loss: float
    grad_norm: float
    seconds: float
    groups_used: int
    groups_dropped: int


class Learner:
    """A policy in training: the model (shared with `policy`), its AdamW and the counters. Not thread-safe."""

    def __init__(
        self,
        policy: Policy,
        learn: Learn,
        group_size: int,
        temperature: float,
        max_completion_tokens: int,
        seed: int,
        work_dir: Path,
    ) -> None:
        """`seed` (below 2**63) fixes the order of rows in every update; `work_dir` is only named to TRL."""
        self.policy = policy
        self.learn = learn
        self._group_size = group_size
        self._seed = seed
        self._updates = 0
        self._steps = 0
        self._pending: list[TrainingGroup] = []
        parameters = [parameter for _, parameter in self._parameters()]
        self._optimizer = torch.optim.AdamW(
            parameters, lr=learn.learning_rate, betas=_BETAS, eps=_ADAM_EPSILON, weight_decay=0.0
        )
        self._start_moments()
        with _own_randomness(0), _quiet():
            self._trainer = self._build_trainer(temperature, max_completion_tokens, work_dir)

    def update(self, groups: Sequence[TrainingGroup]) -> Update:
        """One round's learning. On one machine, equal states and groups give equal next states, bit for bit.

        Without any informative group nothing changes and `steps` is 0. `ValueError` if a group is malformed.
        """
        began = time.monotonic()
        for group in groups:
            self._check(group)
        informative = [group for group in groups if group.is_informative]
        dropped = len(groups) - len(informative)
        if not informative:
            return Update(0, 0.0, 0.0, time.monotonic() - began, 0, dropped)
        steps = self._cut(informative)
        logs = self._train(steps)
        self._updates += 1
        self._steps += len(logs)
        return Update(
            steps=len(logs),
            loss=float(np.mean([log["loss"] for log in logs])),
            grad_norm=float(np.mean([log["grad_norm"] for log in logs])),
            seconds=time.monotonic() - began,
            groups_used=len(informative),
            groups_dropped=dropped,
        )

    def save(self, path: Path) -> None:
        """Write the state (one safetensors file) atomically."""
        write_state(self._state(), path)

    def load(self, path: Path) -> None:
        """Continue from a saved state as if never stopped; `ModelError` if it is not this model's."""
        saved = read_state(path)
        current = self._state()
        if {name: (t.shape, t.dtype) for name, t in saved.items()} != {
            name: (t.shape, t.dtype) for name, t in current.items()
        }:
            raise ModelError(f"state {path} is not of model {self.policy.name}")
        with torch.no_grad():
            for name, tensor in current.items():
                tensor.copy_(saved[name])
        self._updates, self._steps, self._seed = (int(value) for value in saved["counters"])

    def state_digest(self) -> bytes:
        """32 bytes over all that the next update depends on (see `swarm.learner.state.state_digest`)."""
        return state_digest(self._state())

    def _state(self) -> dict[str, torch.Tensor]:
        """The live tensors by name; only `counters` is a copy."""
        tensors = {"counters": torch.tensor([self._updates, self._steps, self._seed], dtype=torch.int64)}
        for name, parameter in self._parameters():
            tensors["model." + name] = parameter
            moments = self._optimizer.state[parameter]
            tensors["step." + name] = moments["step"]
            for moment in _MOMENTS:
                tensors[f"{moment}.{name}"] = moments[moment]
        return tensors

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.policy.model.named_parameters())

    def _start_moments(self) -> None:
        """AdamW makes its moments at the first step; made here, every state has the same tensors."""
        for _, parameter in self._parameters():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    def _check(self, group: TrainingGroup) -> None:
        if not len(group.completions) == len(group.rewards) == self._group_size:
            raise ValueError(
                f"a group has {len(group.completions)} completions and {len(group.rewards)} rewards; "
                f"this swarm's groups have {self._group_size}"
            )
        if not group.prompt or not all(group.completions):
            raise ValueError("a prompt or completion without tokens cannot be trained on")
        if not np.isfinite(group.rewards).all():
            raise ValueError(f"rewards must be finite, got {group.rewards}")

    def _cut(self, groups: list[TrainingGroup]) -> list[list[TrainingGroup]]:
        """Equal steps of at most `groups_per_step` groups, sorted by length (a stable sort)."""
        ordered = sorted(groups, key=lambda group: group.length)
        count = -(-len(ordered) // self.learn.groups_per_step)
        size = -(-len(ordered) // count)
        ordered = ordered[: size * count - len(ordered)] + ordered
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def _train(self, steps: list[list[TrainingGroup]]) -> list[dict[str, float]]:
        """Run TRL over the steps; its log entry of every optimizer step."""
        trainer = self._trainer
        self._pending = [group for step in steps for group in step]
        rows = len(steps[0]) * self._group_size
        trainer.args.per_device_train_batch_size = rows
        trainer.args.generation_batch_size = rows
        trainer._train_batch_size = rows  # what `Trainer.__init__` derives from the two above
        trainer._step = 0  # TRL counts passes here to know when the next generation batch is due
        trainer._buffered_inputs = None
        trainer.train_dataset = Dataset.from_dict({"prompt": [""] * len(self._pending)})
        with _own_randomness(_row_order(self._seed, self._updates)), _quiet():
            trainer.train()
        self.policy.model.eval()
        return [log for log in trainer.state.log_history if "loss" in log]

    def _rollout(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list | None]:
        """TRL's rollout function: the next step's groups, one row per completion.

        Called with one placeholder prompt for each row of the step; the groups come in the order of `_cut`.
        """
        count = len(prompts) // self._group_size
        groups, self._pending = self._pending[:count], self._pending[count:]
        return {
            "prompt_ids": [group.prompt for group in groups for _ in group.completions],
            "completion_ids": [completion for group in groups for completion in group.completions],
            "logprobs": None,  # TRL recomputes them where it needs them
            "reward": [reward for group in groups for reward in group.rewards],
        }

    def _build_trainer(self, temperature: float, max_completion_tokens: int, work_dir: Path) -> GRPOTrainer:
        learn = self.learn
        config = GRPOConfig(
            output_dir=str(work_dir),  # nothing is written: no saving, no logging to files
            save_strategy="no",
            report_to=[],
            logging_strategy="steps",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            dataloader_pin_memory=False,
            shuffle_dataset=False,
            num_train_epochs=1,
            per_device_train_batch_size=self._group_size,
            num_generations=self._group_size,
            num_iterations=learn.epochs,
            max_completion_length=max_completion_tokens,
            temperature=temperature,
            learning_rate=learn.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=_MAX_GRAD_NORM,
            epsilon=learn.epsilon,
            epsilon_high=learn.epsilon_high,
            beta=learn.beta,
            loss_type="dapo",  # TRL's default: every token of the step weighs the same
            scale_rewards="group",
            seed=0,
        )
        constant = torch.optim.lr_scheduler.LambdaLR(self._optimizer, _constant)
        trainer = GRPOTrainer(
            model=self.policy.model,
            reward_funcs=_given_reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [""]}),
            processing_class=self.policy.encoding.tokenizer,
            optimizers=(self._optimizer, constant),
            rollout_func=self._rollout,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        return trainer


def _given_reward(completions: list[str], reward: list[float], **_columns: object) -> list[float]:
    """TRL's reward function: the rewards came with the groups."""
    return reward


def _constant(_step: int) -> float:
    return 1.0


def _row_order(seed: int, update: int) -> int:
    """The torch seed of one update: TRL shuffles a step's rows, which decides the order of float sums."""
    return int.from_bytes(derive(Purpose.STATE, bytes(32), seed, update)[:7], "big")


@contextlib.contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Run with generators seeded for us, and give the process its own back."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without two warnings about TRL itself: its version is pinned, and what we use of it is tested."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield

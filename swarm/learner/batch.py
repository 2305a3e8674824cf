"""Groups as tensors: a step's rows with their advantages, and the micro-batches they are cut into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from msgspec import Struct

_DEVIATION_FLOOR = 1e-4  # TRL's, added to the rewards' deviation


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


@dataclass
class Rows:
    """Completions with their prompts, B rows; those of a group follow on one another."""

    prompt_ids: torch.Tensor  # [B, P], padded on the left
    prompt_mask: torch.Tensor  # [B, P], 0 at padding
    completion_ids: torch.Tensor  # [B, T], padded on the right
    completion_mask: torch.Tensor  # [B, T], 0 at padding
    advantages: torch.Tensor  # [B]
    old_log_probs: torch.Tensor | None = None  # [B, T], of the policy that ratios refer to
    reference_log_probs: torch.Tensor | None = None  # [B, T], of the policy that KL refers to

    def __len__(self) -> int:
        return len(self.advantages)

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each completion, `[B]`."""
        return self.completion_mask.sum(1)

    def cut(self, rows: slice, columns: slice = slice(None)) -> Rows:
        """Some rows, of their completions some columns."""
        old, reference = self.old_log_probs, self.reference_log_probs
        return Rows(
            self.prompt_ids[rows],
            self.prompt_mask[rows],
            self.completion_ids[rows, columns],
            self.completion_mask[rows, columns],
            self.advantages[rows],
            None if old is None else old[rows, columns],
            None if reference is None else reference[rows, columns],
        )

    def without_padding(self) -> Rows:
        """Without columns that are padding in every row."""
        width = int(self.lengths.max())
        trimmed = self.cut(slice(None), slice(0, width))
        start = self.prompt_ids.shape[1] - int(self.prompt_mask.sum(1).max())
        trimmed.prompt_ids = trimmed.prompt_ids[:, start:]
        trimmed.prompt_mask = trimmed.prompt_mask[:, start:]
        return trimmed

    def for_trl(self, step_tokens: int) -> dict[str, torch.Tensor | None]:
        """As TRL's `_compute_loss` names them; `step_tokens` are the tokens of the whole step."""
        return {
            "prompt_ids": self.prompt_ids,
            "prompt_mask": self.prompt_mask,
            "completion_ids": self.completion_ids,
            "completion_mask": self.completion_mask,
            "advantages": self.advantages,
            "old_per_token_logps": self.old_log_probs,
            "ref_per_token_logps": self.reference_log_probs,
            "num_items_in_batch": torch.tensor(float(step_tokens), device=self.advantages.device),
        }


def make_rows(
    groups: Sequence[TrainingGroup],
    scale_rewards: Literal["group", "batch", "none"],
    device: torch.device,
) -> Rows:
    """The rows of a step's groups, in their order."""
    prompts = [group.prompt for group in groups for _ in group.completions]
    completions = [completion for group in groups for completion in group.completions]
    width, length = max(map(len, prompts)), max(map(len, completions))
    advantages = group_advantages([group.rewards for group in groups], scale_rewards)

    def tensor(rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=device)

    return Rows(
        tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        tensor([completion + [0] * (length - len(completion)) for completion in completions]),
        tensor([[1] * len(completion) + [0] * (length - len(completion)) for completion in completions]),
        advantages.to(device),
    )


def group_advantages(
    rewards: Sequence[Sequence[float]], scale: Literal["group", "batch", "none"]
) -> torch.Tensor:
    """TRL's advantages of groups of any sizes over 1, one after another, fp32.

    The reward less its group's mean, over the deviation (n - 1 in the divisor) of the group or of all.
    """
    groups = [torch.tensor(group, dtype=torch.float32) for group in rewards]
    centred = [group - group.mean() for group in groups]
    if scale == "none":
        return torch.cat(centred)
    if scale == "batch":
        return torch.cat(centred) / (torch.cat(groups).std() + _DEVIATION_FLOOR)
    return torch.cat([c / (g.std() + _DEVIATION_FLOOR) for c, g in zip(centred, groups, strict=True)])


def micro_batches(groups: Sequence[TrainingGroup], max_tokens: int) -> list[slice]:
    """Cut a step's rows, in their order, where the next would bring a micro-batch over `max_tokens`.

    Counted with padding: each group's prompt once, and every row's completion, at the lengths of the longest.
    A row that is longer than `max_tokens` is a micro-batch by itself.
    """
    cuts: list[slice] = []
    start = row = prompts = longest_prompt = longest = 0
    for group in groups:
        prompts += 1
        for completion in group.completions:
            longest_prompt = max(longest_prompt, len(group.prompt))
            longest = max(longest, len(completion))
            if row > start and prompts * longest_prompt + (row + 1 - start) * longest > max_tokens:
                cuts.append(slice(start, row))
                start, prompts = row, 1
                longest_prompt, longest = len(group.prompt), len(completion)
            row += 1
    return [*cuts, slice(start, row)]

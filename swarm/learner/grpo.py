"""TRL's GRPO loss over prompts that are forwarded once and a head that is evaluated in chunks.

`GroupTrainer` is TRL's `GRPOTrainer`; the loss with all its knobs is TRL's `_compute_loss`, unchanged. It
departs from TRL in how the gradient of that loss comes about, never in what it is (but for rounding):

1. A group's prompt goes through the model once, not once for each completion (`swarm.learner.shared_prompt`).
2. The model's graph ends at the hidden states. From there on, TRL's loss is evaluated on a few rows at a
   time and differentiated at once; the gradients of the hidden states are collected and sent back through
   the model in one go. So the logits of all rows never exist together (`swarm.learner.head`).
3. Each such piece's loss is weighted so that the sum over a step is TRL's loss of the whole step, for every
   loss type's own normalisation. So neither pieces nor micro-batches show in the result.
4. Batches come from the caller, not from a dataset, a sampler and `train()`.
5. Dropout is off: the probabilities that are trained are those that sampled.

Where a model cannot do 1 or 2, TRL's own way is taken; 3 holds there too.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from swarm.learner.batch import Rows
from swarm.learner.head import chunk_tokens, recomputed_log_probs, token_log_probs
from swarm.learner.shared_prompt import can_share_prompts, causal_model, completion_states
from swarm.manifest import Learn

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass
class Sums:
    """What the pieces of a step add up to."""

    loss: float = 0.0
    clipped: float = 0.0  # of `tokens`, or of `rows` where ratios are a sequence's
    kl: float = 0.0  # over tokens
    surprise: float = 0.0  # -log p over tokens
    tokens: int = 0
    rows: int = 0

    def __iadd__(self, other: Sums) -> Sums:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass
class _Piece:
    """Takes the model's place in TRL's loss: hidden states `[N, H]` at the N tokens of the mask `[B, T]`."""

    states: torch.Tensor


class GroupTrainer(GRPOTrainer):
    """TRL's trainer as the keeper of GRPO's loss, of precision and of devices; its `train()` is not used."""

    accelerator: Any  # accelerate's, which has no types

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        learn: Learn,
        temperature: float,
        max_completion_tokens: int,
        *,
        precision: Precision,
        gradient_checkpointing: bool,
        work_dir: Path,
    ) -> None:
        """`model` as it is now is what KL refers to (if `learn.beta`); with an adapter, its base model is."""
        reference = None
        if learn.beta and not isinstance(model, PeftModel):
            reference = copy.deepcopy(model).eval().requires_grad_(False)
        config = GRPOConfig(
            output_dir=str(work_dir),  # nothing is written: no saving, no logging to files
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            activation_checkpointing=gradient_checkpointing,
            disable_dropout=True,
            max_completion_length=max_completion_tokens,
            temperature=temperature,
            epsilon=learn.epsilon,
            epsilon_high=learn.epsilon_high,
            loss_type=learn.loss_type,
            importance_sampling_level=learn.importance_sampling_level,
            # TRL would load the base model a second time from disk, wherever the policy came from.
            beta=0.0,
            per_device_train_batch_size=2,  # not used, but TRL checks it against its groups' size
            num_generations=2,
        )
        with warnings.catch_warnings():
            # Between the pinned TRL and transformers; nothing here can change it.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            super().__init__(
                model=model,
                reward_funcs=_no_reward,
                args=config,
                train_dataset=Dataset.from_dict(
                    {"prompt": [""]}
                ),  # TRL's constructor wants one; nothing reads it
                processing_class=tokenizer,
            )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.beta = learn.beta
        self.current_gradient_accumulation_steps = 1  # else set by `train()`; we weight what we add up
        self.ref_model = reference
        if gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.shares_prompts = not self.aux_loss_enabled and can_share_prompts(model)
        if reference is not None and not self.shares_prompts:
            add_fused_lm_head(reference, temperature=temperature)
        self._log_probs = torch.empty(0)

    def backward(self, rows: Rows, step_rows: int, step_tokens: int) -> tuple[torch.Tensor, Sums]:
        """Add the gradient of these rows' part of a step's loss to the parameters' `.grad`.

        Nothing is synchronised with other processes; whoever calls does that once for a step.

        Args:
            rows: a micro-batch.
            step_rows: rows of the whole step.
            step_tokens: tokens of all the step's completions.

        Returns:
            The rows' log-probabilities `[B, T]`, and what TRL measured, to be added up.
        """
        if not self.shares_prompts:
            sums = self._piece_backward(self.model, rows, rows.lengths, step_rows, step_tokens)
            return self._log_probs, sums
        with self.accelerator.autocast():
            states = completion_states(
                self.model, rows.prompt_ids, rows.prompt_mask, rows.completion_ids, rows.completion_mask
            )
        gradient = torch.zeros_like(states)
        log_probs = torch.zeros_like(rows.completion_mask, dtype=torch.float32)
        sums = Sums()
        for place in self._pieces(rows):
            piece = rows.cut(*place)
            kept = piece.completion_mask.bool()
            leaf = states[place].detach()[kept].requires_grad_()
            sums += self._piece_backward(_Piece(leaf), piece, rows.lengths[place[0]], step_rows, step_tokens)
            gradient[place] = gradient[place].masked_scatter(kept.unsqueeze(-1), leaf.grad)
            log_probs[place] = self._log_probs
        torch.autograd.backward(states, gradient)
        return log_probs, sums

    @torch.no_grad()
    def reference_log_probs(self, rows: Rows) -> torch.Tensor:
        """Log-probabilities `[B, T]` of the policy that KL refers to."""
        ids = torch.cat([rows.prompt_ids, rows.completion_ids], dim=1)
        mask = torch.cat([rows.prompt_mask, rows.completion_mask], dim=1)
        width = rows.completion_ids.shape[1]
        if self.ref_model is not None:
            return self._get_per_token_logps_and_entropies(self.ref_model, ids, mask, width)[0]
        with self.model.disable_adapter():
            return self._get_per_token_logps_and_entropies(self.model, ids, mask, width)[0]

    def _get_per_token_logps_and_entropies(
        self,
        model: PreTrainedModel | PeftModel | _Piece,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """TRL's method, called by its loss: log-probabilities `[B, T]`, entropies `[B, T]`, auxiliary loss.

        In place of entropies -log p of the tokens: their mean is the same where the policy itself sampled,
        and it costs nothing. We ask for no entropy bonus or mask, so TRL only reports them.
        """
        auxiliary = None
        if not isinstance(model, _Piece) and not self.shares_prompts:
            log_probs, _, auxiliary = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        else:
            log_probs = self._shared_log_probs(model, input_ids, attention_mask, logits_to_keep)
        self._log_probs = log_probs.detach()
        return log_probs, -self._log_probs, auxiliary

    def _shared_log_probs(
        self,
        model: PreTrainedModel | PeftModel | _Piece,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        width: int,
    ) -> torch.Tensor:
        completions, mask = input_ids[:, -width:], attention_mask[:, -width:]
        kept = mask.bool()
        weight = causal_model(self.model).get_output_embeddings().weight
        with self.accelerator.autocast():
            if isinstance(model, _Piece):
                values = token_log_probs(model.states, weight, completions[kept], self.temperature)
            else:
                prompts, prompt_mask = input_ids[:, :-width], attention_mask[:, :-width]
                states = completion_states(model, prompts, prompt_mask, completions, mask)[kept]
                weight = causal_model(model).get_output_embeddings().weight
                values = recomputed_log_probs(states, weight, completions[kept], self.temperature)
        return torch.zeros_like(mask, dtype=torch.float32).masked_scatter(kept, values.float())

    def _pieces(self, rows: Rows) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of which one chunk of logits is made."""
        weight = causal_model(self.model).get_output_embeddings().weight
        most = chunk_tokens(weight)
        lengths = rows.lengths.tolist()
        everything = slice(None)
        start = tokens = 0
        for row, length in enumerate(lengths):
            if row > start and tokens + length > most:
                yield slice(start, row), everything
                start, tokens = row, 0
            if length > most and self.importance_sampling_level == "token":
                # The loss of a token does not depend on others'. A sequence's ratio does: such a row stays
                # whole, and its logits are computed twice.
                for column in range(0, length, most):
                    yield slice(row, row + 1), slice(column, min(column + most, length))
                start, tokens = row + 1, 0
            else:
                tokens += length
        if start < len(lengths):
            yield slice(start, len(lengths)), everything

    def _piece_backward(
        self,
        model: PreTrainedModel | PeftModel | _Piece,
        piece: Rows,
        row_tokens: torch.Tensor,
        step_rows: int,
        step_tokens: int,
    ) -> Sums:
        """TRL's loss of a piece, weighted, and its gradient; `row_tokens` `[B]` are those of uncut rows."""
        lengths = piece.lengths
        rows, tokens = len(piece), int(lengths.sum())
        weight = {
            # A mean over rows of means over their tokens.
            "grpo": float((lengths / row_tokens).sum()) / step_rows,
            "dr_grpo": rows / step_rows,  # a sum over rows × a constant
            "bnpo": tokens / step_tokens,  # a mean over tokens
            "dapo": 1.0,  # a sum over `num_items_in_batch`
            "cispo": 1.0,
        }[self.loss_type]
        for measured in self._metrics.values():
            measured.clear()
        accelerator = self.accelerator
        self.accelerator = _ThisProcess(accelerator)
        try:
            loss = self._compute_loss(model, piece.for_trl(step_tokens)) * weight
        finally:
            self.accelerator = accelerator
        self.accelerator.backward(loss)
        measured = self._metrics["train" if self.model.training else "eval"]
        clipped = (measured["clip_ratio/region_mean"] or measured["cispo_clip_ratio"])[-1]
        return Sums(
            loss=loss.item(),
            clipped=clipped * (tokens if self.importance_sampling_level == "token" else rows),
            kl=measured["kl"][-1] * tokens if self.beta else 0.0,
            surprise=measured["entropy"][-1] * tokens,
            tokens=tokens,
            rows=rows,
        )


class _ThisProcess:
    """An accelerator as TRL's loss sees it: alone.

    TRL sums its metrics over all processes in every call of the loss, but processes may have different
    numbers of pieces and would wait for one another for ever.
    """

    num_processes = 1

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def _no_reward(completions: list[str], **_columns: object) -> list[float]:
    """TRL's constructor wants a reward function; rewards come with the groups."""
    return [0.0] * len(completions)

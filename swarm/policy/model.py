"""The policy: a causal language model that is loaded and asked for completions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from swarm.errors import ModelError
from swarm.manifest import Sampling
from swarm.policy import loading
from swarm.policy.devices import DTYPES, Precision, free_memory, is_out_of_memory, usable_cores
from swarm.policy.encoding import Encoding
from swarm.policy.generation import Generator
from swarm.policy.loading import TINY_FOLDER
from swarm.policy.plan import Plan
from swarm.policy.prefill import within_top_k

__all__ = ["TINY_FOLDER", "Policy"]


class Policy:
    """A model with its tokenizer, on one device. Not for use from two threads at once.

    Attributes:
        model: in evaluation mode; a `PeftModel` under LoRA. What is trained is fp32.
        precision: what computing happens in; under autocast where it is lower than the weights'.
        gradient_checkpointing: whether the learner is to compute activations twice.
        context_length: tokens that the model reads at most, prompt and completion together.
        lora: whether an adapter is trained, not the model.
        name: as the manifest names the model.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        encoding: Encoding,
        name: str,
        *,
        precision: Precision = "fp32",
        gradient_checkpointing: bool = False,
        context_length: int = 2**31,
    ) -> None:
        """Use `Policy.load` or `Policy.of`."""
        self.model = model
        self.encoding = encoding
        self.name = name
        self.device: torch.device = model.device
        self.precision: Precision = precision
        self.gradient_checkpointing = gradient_checkpointing
        self.context_length = context_length
        self.lora = isinstance(model, PeftModel)
        self._generator = Generator(model, encoding)

    @classmethod
    def load(
        cls,
        name_or_path: str,
        threads: int | None = None,
        *,
        revision: str | None = None,
        device: str = "cpu",
        precision: Precision = "fp32",
        lora: bool = False,
        four_bit: bool = False,
        gradient_checkpointing: bool = False,
        trusted_code: Collection[str] = (),
    ) -> Policy:
        """Load "tiny" (shipped), a local folder in Hugging Face layout, or a hub name; safetensors only.

        `threads` sets torch's threads for the whole process; by default the cores that this process may use.
        Code that a model brings along is run only if `trusted_code` has OWNER/NAME@COMMIT. `ModelError` says
        which model cannot be used and why. For the other arguments see `swarm.policy.loading` and `Plan`.
        """
        torch.set_num_threads(usable_cores() if threads is None else threads)
        source = loading.find(name_or_path, trusted_code, revision)
        # First, because it is small: nobody should wait for the weights of a model without a chat template.
        tokenizer = loading.load_tokenizer(source)
        ends = loading.declared_ends(source)
        encoding = Encoding(tokenizer, ends)
        model = loading.load_model(source, device, precision, lora=lora, four_bit=four_bit)
        if len(tokenizer) > (rows := model.get_input_embeddings().weight.shape[0]):
            raise ModelError(
                f"the tokenizer of model {name_or_path} has {len(tokenizer)} tokens and the model only "
                f"{rows}; choose another model"
            )
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        # transformers would fill what we leave open from the model's own (a repetition penalty, say), and
        # completions would not be what their seeds give.
        base.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(encoding.ends), pad_token_id=encoding.pad
        )
        return cls(
            model.eval(),
            encoding,
            name_or_path,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            context_length=loading.context_length(source, base.config),
        )

    @classmethod
    def of(cls, plan: Plan, threads: int | None = None, trusted_code: Collection[str] = ()) -> Policy:
        """Load what the plan says."""
        policy = cls.load(
            plan.model,
            threads,
            revision=plan.revision,
            device=plan.device,
            precision=plan.precision,
            lora=plan.lora,
            four_bit=plan.four_bit,
            gradient_checkpointing=plan.gradient_checkpointing,
            trusted_code=trusted_code,
        )
        policy._generator.max_tokens_at_once = plan.sampling_tokens_at_once
        return policy

    @property
    def max_tokens_at_once(self) -> int:
        """See `Generator`; where memory ran out it is less than was planned."""
        return self._generator.max_tokens_at_once

    def encode_prompt(self, text: str) -> list[int]:
        """One user message through the chat template, with the generation prompt."""
        return self.encoding.prompt(text)

    def encode_completion(self, text: str) -> list[int]:
        """Another peer's completion in this model's tokens, EOS appended."""
        return self.encoding.completion(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a completion's tokens, without EOS and specials."""
        return self.encoding.decode(tokens)

    def sample(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[Sequence[bytes]],
        *,
        max_tokens: int,
        sampling: Sampling,
        until: Callable[[], bool] | None = None,
    ) -> list[list[list[int]]]:
        """Completions of the prompts in order: `[group][completion][token]` (see `Generator.sample`)."""
        lower = self.precision != "fp32"
        with torch.autocast(self.device.type, DTYPES[self.precision] if lower else None, enabled=lower):
            return self._generator.sample(
                prompts, seeds, max_tokens=max_tokens, sampling=sampling, until=until
            )

    def within_top_k(
        self, groups: Sequence[tuple[list[int], Sequence[list[int]]]], k: int
    ) -> list[list[bool]]:
        """For each (prompt, completions): which hold only tokens, EOS too, of the model's k likeliest.

        What the learn stage screens others' groups with; k 0: all. Many groups at once are read as one batch,
        in smaller ones where memory runs out.
        """
        lower = self.precision != "fp32"
        while True:
            bound = self._generator.max_tokens_at_once
            try:
                with torch.autocast(
                    self.device.type, DTYPES[self.precision] if lower else None, enabled=lower
                ):
                    return within_top_k(self.model, groups, k, max_tokens_at_once=bound)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if bound == 1:
                    raise ModelError("not enough memory to read one completion of others") from error
            free_memory()
            self._generator.max_tokens_at_once = max(1, bound // 2)

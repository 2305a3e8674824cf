"""The policy: a causal language model that is loaded and asked for completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from swarm.errors import ModelError
from swarm.manifest import EMBEDDED_MODEL, Sampling
from swarm.policy.encoding import Encoding
from swarm.policy.generation import Generator

TINY_FOLDER = Path(__file__).parent / "tiny"


class Policy:
    """A model with its tokenizer, in fp32 on the CPU. Not for use from two threads at once."""

    def __init__(self, model: PreTrainedModel, encoding: Encoding, name: str) -> None:
        """Use `Policy.load`."""
        self.model = model
        self.encoding = encoding
        self.name = name
        self._generator = Generator(model, encoding)

    @classmethod
    def load(cls, name_or_path: str, threads: int | None = None) -> Policy:
        """Load "tiny" (shipped), a local folder in Hugging Face layout, or a hub name; safetensors only.

        `threads` sets torch's threads for the whole process. Code that a model brings along is never run.
        `ModelError` says which model cannot be used and why.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        source = str(TINY_FOLDER) if name_or_path == EMBEDDED_MODEL else name_or_path
        options = {"trust_remote_code": False, "local_files_only": Path(source).is_dir()}
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"cannot load model {name_or_path}: {reason}") from error
        finally:
            if bars:
                transformers_logging.enable_progress_bar()
        declared = model.generation_config.eos_token_id
        ends = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
        # transformers would fill what we leave open from the model's own (a repetition penalty, say), and
        # completions would not be what their seeds give.
        encoding = Encoding(tokenizer, ends)
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(encoding.ends), pad_token_id=encoding.pad
        )
        return cls(model.eval(), encoding, name_or_path)

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
        return self._generator.sample(prompts, seeds, max_tokens=max_tokens, sampling=sampling, until=until)

"""The policy: a causal language model that is loaded and asked for completions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.generation import LogitsProcessorList
from transformers.utils import logging as transformers_logging

from swarm.errors import ModelError
from swarm.manifest import EMBEDDED_MODEL
from swarm.policy.encoding import Encoding
from swarm.policy.sampling import SeededSampling

TINY_FOLDER = Path(__file__).parent / "tiny"

# A chunk is what cannot be interrupted by a deadline. It begins small and doubles while it takes under half a
# second, so a slow machine stops close to its deadline and a fast one batches well.
_FIRST_CHUNK_GROUPS = 4
_CHUNK_SECONDS = 1.0
_MAX_CHUNK_TOKENS = 32_768  # rows × (prompt + completion); bounds the memory of one chunk
_MAX_LENGTH_RATIO = 1.5  # a chunk's longest prompt over its shortest: the padding that is paid for


class Policy:
    """A model with its tokenizer, in fp32 on the CPU. Not for use from two threads at once."""

    def __init__(self, model: PreTrainedModel, encoding: Encoding, name: str) -> None:
        """Use `Policy.load`."""
        self.model = model
        self.encoding = encoding
        self.name = name

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
        temperature: float,
        until: Callable[[], bool] | None = None,
    ) -> list[list[list[int]]]:
        """Completions of the prompts in order: `[group][completion][token]`, one per 32-byte seed.

        A completion ends in EOS, or has `max_tokens` tokens. `until` is asked between chunks of whole groups
        whether to stop (True: the deadline has come); the groups done so far are returned, at least one.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} groups of seeds")
        finished: list[list[list[int]]] = []
        size = _FIRST_CHUNK_GROUPS
        while len(finished) < len(prompts):
            if finished and until is not None and until():
                break
            start = len(finished)
            stop = start + self._chunk(prompts[start:], seeds[start:], size, max_tokens)
            began = time.monotonic()
            finished += self._sample_chunk(prompts[start:stop], seeds[start:stop], max_tokens, temperature)
            elapsed = time.monotonic() - began
            if elapsed < _CHUNK_SECONDS / 2:
                size *= 2
            elif elapsed > _CHUNK_SECONDS and size > 1:
                size //= 2
        return finished

    def _chunk(
        self, prompts: Sequence[list[int]], seeds: Sequence[Sequence[bytes]], size: int, max_tokens: int
    ) -> int:
        """How many of the next groups to sample together: at least one, at most `size`."""
        shortest = longest = len(prompts[0])
        rows = 0
        for count, (prompt, group) in enumerate(zip(prompts[:size], seeds, strict=False)):
            shortest, longest = min(shortest, len(prompt)), max(longest, len(prompt))
            rows += len(group)
            too_uneven = longest > shortest * _MAX_LENGTH_RATIO
            if count and (too_uneven or rows * (longest + max_tokens) > _MAX_CHUNK_TOKENS):
                return count
        return min(size, len(prompts))

    @torch.no_grad()
    def _sample_chunk(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[Sequence[bytes]],
        max_tokens: int,
        temperature: float,
    ) -> list[list[list[int]]]:
        rows = [prompt for prompt, group in zip(prompts, seeds, strict=True) for _ in group]
        width = max(map(len, rows))
        pad = self.encoding.pad
        # Left padding; `generate` derives position ids from the mask, so a row sees what it would see alone.
        input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        noise = SeededSampling([seed for group in seeds for seed in group], width, temperature)
        config = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=sorted(self.encoding.ends),
            pad_token_id=pad,
        )
        self.model.eval()
        generated = self.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([noise]),
        )
        completions = (self._until_end(row) for row in generated[:, width:].tolist())
        return [_take(completions, len(group)) for group in seeds]

    def _until_end(self, tokens: list[int]) -> list[int]:
        for index, token in enumerate(tokens):
            if token in self.encoding.ends:
                return tokens[: index + 1]
        return tokens


def _take(completions: Iterator[list[int]], count: int) -> list[list[int]]:
    return [next(completions) for _ in range(count)]

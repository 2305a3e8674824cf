"""Group generation: completions of prompts by seeded sampling, in chunks of whole groups until a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import LogitsProcessorList

from swarm.manifest import Sampling
from swarm.policy.encoding import Encoding
from swarm.policy.sampling import SeededSampling

# A chunk is what cannot be interrupted by a deadline. It begins small and doubles while it takes under half a
# second, so a slow machine stops close to its deadline and a fast one batches well.
_FIRST_CHUNK_GROUPS = 4
_CHUNK_SECONDS = 1.0
_MAX_CHUNK_TOKENS = 32_768  # rows × (prompt + completion); bounds the memory of one chunk
_MAX_LENGTH_RATIO = 1.5  # a chunk's longest prompt over its shortest: the padding that is paid for


class Generator:
    """Samples completions from a model. Not for use from two threads at once."""

    def __init__(self, model: PreTrainedModel, encoding: Encoding) -> None:
        self.model = model
        self.encoding = encoding

    def sample(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[Sequence[bytes]],
        *,
        max_tokens: int,
        sampling: Sampling,
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
            finished += self._sample_chunk(prompts[start:stop], seeds[start:stop], max_tokens, sampling)
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
        sampling: Sampling,
    ) -> list[list[list[int]]]:
        rows = [prompt for prompt, group in zip(prompts, seeds, strict=True) for _ in group]
        width = max(map(len, rows))
        pad = self.encoding.pad
        # Left padding; `generate` derives position ids from the mask, so a row sees what it would see alone.
        input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        noise = SeededSampling([seed for group in seeds for seed in group], width, sampling.temperature)
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

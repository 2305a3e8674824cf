"""Group generation: completions of prompts by seeded sampling, in chunks of whole groups until a deadline.

A group's prompt is read once and its cache shared by the group's rows; rows that have ended leave the batch.
Llama-like models are decoded by hand (`swarm.policy.llama`), all others by their own forward
(`swarm.policy.decoder`); both give the same tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from swarm.errors import ModelError
from swarm.manifest import Sampling
from swarm.policy import llama
from swarm.policy.decoder import ModelRows, Rows
from swarm.policy.devices import free_memory, is_out_of_memory
from swarm.policy.encoding import Encoding
from swarm.policy.sampling import choose_by_keys, position_keys, seed_words

log = logging.getLogger("swarm.policy")

# A chunk is what cannot be interrupted by a deadline. It begins small and doubles while it takes under half a
# second, so a slow machine stops close to its deadline and a fast one batches well.
_FIRST_CHUNK_GROUPS = 4
_CHUNK_SECONDS = 1.0
MAX_TOKENS_AT_ONCE = 32_768
_MAX_LENGTH_RATIO = 1.5  # a chunk's longest prompt over its shortest: the padding that is paid for


class Generator:
    """Samples completions from a model. Not for use from two threads at once."""

    def __init__(
        self,
        model: PreTrainedModel,
        encoding: Encoding,
        *,
        max_tokens_at_once: int = MAX_TOKENS_AT_ONCE,
        by_hand: bool = True,
    ) -> None:
        """`max_tokens_at_once` bounds the memory of one batch: rows × (prompt + completion) tokens of cache.

        It may be set anew between calls (halved after running out of memory, say). `by_hand` False leaves
        decoding to the model's own forward, whatever the model is.
        """
        self.model = model
        self.encoding = encoding
        self.max_tokens_at_once = max_tokens_at_once
        self.by_hand = by_hand

    @torch.no_grad()
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

        A completion ends in one of `encoding.ends`, or has `max_tokens` tokens. `until` is asked between
        chunks of whole groups whether to stop (True: the deadline has come); the groups done so far are
        returned, at least one. A group larger than `max_tokens_at_once` is sampled in several passes of at
        least one row. Where memory runs out that number is halved, for good; `ModelError` if there is not
        even enough for one row.

        What a seed yields does not depend on what else is in the batch, its order or its padding, but for
        rounding: logits differ in their last bits with the batch's shape, and two tokens that are perturbed
        equal up to those may swap (in fp32 about once in a million tokens).
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} groups of seeds")
        self.model.eval()
        # Here and not in __init__: it copies weights, which training changes between calls.
        decoder = llama.LlamaDecoder(self.model) if self.by_hand and llama.supports(self.model) else None
        finished: list[list[list[int]]] = []
        size = _FIRST_CHUNK_GROUPS
        while len(finished) < len(prompts):
            if finished and until is not None and until():
                break
            start = len(finished)
            began = time.monotonic()
            finished += self._within_memory(
                decoder, prompts[start : start + size], seeds[start : start + size], max_tokens, sampling
            )
            elapsed = time.monotonic() - began
            if elapsed < _CHUNK_SECONDS / 2:
                size *= 2
            elif elapsed > _CHUNK_SECONDS and size > 1:
                size //= 2
        return finished

    def _within_memory(
        self,
        decoder: llama.LlamaDecoder | None,
        prompts: Sequence[list[int]],
        seeds: Sequence[Sequence[bytes]],
        max_tokens: int,
        sampling: Sampling,
    ) -> list[list[list[int]]]:
        """The first of the groups, as many as fit; fewer at once, again and again, where memory runs out."""
        while True:
            count = _chunk(prompts, seeds, max_tokens, self.max_tokens_at_once)
            length = max(map(len, prompts[:count])) + max_tokens
            width = max(1, min(len(seeds[0]), self.max_tokens_at_once // (length * count)))
            try:
                return self._chunk(decoder, prompts[:count], seeds[:count], max_tokens, sampling, width)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if count == width == 1:
                    raise ModelError(
                        "not enough memory to sample one completion; choose a smaller model or free memory"
                    ) from error
            free_memory()
            # The bound may have been far above what was tried.
            self.max_tokens_at_once = min(self.max_tokens_at_once, count * width * length) // 2
            log.warning("out of memory while sampling: now tokens_at_once=%d", self.max_tokens_at_once)

    def _chunk(
        self,
        decoder: llama.LlamaDecoder | None,
        prompts: Sequence[list[int]],
        seeds: Sequence[Sequence[bytes]],
        max_tokens: int,
        sampling: Sampling,
        width: int,
    ) -> list[list[list[int]]]:
        """Whole groups with equally many seeds each, at most `width` of each group at a time."""
        groups: list[list[list[int]]] = [[] for _ in prompts]
        for start in range(0, len(seeds[0]), width):
            part = [group[start : start + width] for group in seeds]
            rows: Rows
            if decoder is None:
                rows = ModelRows(self.model, prompts, [len(group) for group in part])
            else:
                rows = llama.LlamaRows(decoder, prompts, len(part[0]), max_tokens)
            completions = self._complete(
                rows, [seed for group in part for seed in group], max_tokens, sampling
            )
            for index, group in enumerate(part):
                groups[index] += completions[index * len(group) : (index + 1) * len(group)]
        return groups

    def _complete(
        self, rows: Rows, seeds: Sequence[bytes], max_tokens: int, sampling: Sampling
    ) -> list[list[int]]:
        """The completions of all rows, one per seed."""
        device = rows.logits.device
        words = seed_words(seeds, device)[:, None]
        keys = position_keys(
            words, torch.arange(max_tokens, dtype=torch.int32, device=device)
        )  # [rows, T, 2]
        completions: list[list[int]] = [[] for _ in seeds]
        places: list[int | None] = list(
            range(len(seeds))
        )  # whose completion a row is; None once it has ended
        logits = rows.logits
        for position in range(max_tokens):
            chosen = choose_by_keys(logits, keys[:, position], sampling)
            for row, token in enumerate(chosen.tolist()):
                place = places[row]
                if place is not None:
                    completions[place].append(token)
                    if token in self.encoding.ends:
                        places[row] = None
            if position + 1 == max_tokens or all(place is None for place in places):
                break
            kept = rows.compact([place is not None for place in places])
            if kept is not None:
                index = torch.tensor(kept, device=device)
                chosen, keys, places = chosen[index], keys[index], [places[row] for row in kept]
            logits = rows.step(chosen)
        return completions


def _chunk(
    prompts: Sequence[list[int]], seeds: Sequence[Sequence[bytes]], max_tokens: int, budget: int
) -> int:
    """How many of the groups to sample together: at least one, with equally many seeds each."""
    shortest = longest = len(prompts[0])
    rows = 0
    for count, (prompt, group) in enumerate(zip(prompts, seeds, strict=True)):
        shortest, longest = min(shortest, len(prompt)), max(longest, len(prompt))
        rows += len(group)
        too_uneven = longest > shortest * _MAX_LENGTH_RATIO or len(group) != len(seeds[0])
        if count and (too_uneven or rows * (longest + max_tokens) > budget):
            return count
    return len(prompts)

"""A frozen local model that says yes or no: what the task `rubric` grades answers with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swarm.errors import UsageError
from swarm.policy.loading import base_digest
from swarm.policy.model import Policy

_YES, _NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")


class Grader:
    """Grades prompts that end in a question for yes or no: P(yes) / (P(yes) + P(no)) of the next token."""

    def __init__(self, model: str, digest: str) -> None:
        """Load the model on the CPU, one thread, fp32; `UsageError` if its weights have another digest.

        Args:
            model: "tiny", a folder in Hugging Face layout, or a hub's OWNER/NAME[@REVISION].
            digest: SHA-256 (hex) of its weights (`base_digest`).
        """
        found = base_digest(model).hex()
        if found != digest:
            raise UsageError(
                f"the grading model {model} has the digest {found}, not the manifest's {digest}: "
                "get the model that the swarm's maker used, or correct model_digest"
            )
        self._policy = Policy.load(model, threads=1)
        yes, no = self._first_tokens(_YES), self._first_tokens(_NO)
        # A space that comes first, say, is both.
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise UsageError(
                f"the grading model {model} has no tokens of its own for yes and no; use another"
            )
        self(["Is water wet?"])  # whatever torch loads lazily

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        """The grades, in [0, 1]; a prompt that is too long loses its beginning."""
        return [self._grade(prompt) for prompt in prompts]

    @torch.inference_mode()
    def _grade(self, prompt: str) -> float:
        tokens = self._policy.encode_prompt(prompt)[-self._policy.context_length :]
        logits = self._policy.model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
        yes, no = (logits[ids].logsumexp(0) for ids in (self._yes, self._no))
        return float(torch.sigmoid(yes - no))

    def _first_tokens(self, words: Sequence[str]) -> set[int]:
        return {tokens[0] for word in words if (tokens := self._policy.encoding.plain(word))}

"""Text to tokens, with hostile text: nothing that a peer writes becomes a special token."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from swarm.errors import ModelError


class Encoding:
    """A model's tokenizer, as the policy uses it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_tokens: Sequence[int]) -> None:
        """`eos_tokens` end a completion too, besides the tokenizer's own. `ModelError` if anything lacks."""
        name = tokenizer.name_or_path
        if not tokenizer.is_fast:
            raise ModelError(f"model {name} has no tokenizer.json; choose one with a fast tokenizer")
        if tokenizer.chat_template is None:
            raise ModelError(f"model {name} has no chat template; choose an instruction-tuned model")
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of model {name} has no EOS token")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id
        self.ends = frozenset([self.eos, *eos_tokens])
        self._special = frozenset(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}

    def prompt(self, text: str) -> list[int]:
        """One user message and the generation prompt, through the chat template."""
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        return list(rendered)

    def completion(self, text: str) -> list[int]:
        """The text as an assistant would have written it, EOS at the end."""
        return [*self.plain(text), self.eos]

    def plain(self, text: str) -> list[int]:
        """The text as ordinary tokens: the tokenizer's pipeline without its added tokens, special or not."""
        backend = self.tokenizer.backend_tokenizer
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = [text]
        if backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        tokens = [token.id for piece in pieces for token in backend.model.tokenize(piece)]
        # Some vocabularies hold their special tokens as ordinary entries too (Unigram's "</s>").
        return [token for token in tokens if token not in self._special]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, without EOS, padding and other special tokens."""
        decoded = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(decoded)

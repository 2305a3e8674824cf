"""Text to tokens, with hostile text: nothing that a peer writes becomes a special token."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from swarm.errors import ModelError

# What a template, which is a stranger's program, can raise while it renders or is compiled.
_TEMPLATE_ERRORS = (
    TemplateError,
    MemoryError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
# Some templates (Llama 3.2's) tell the model today's date. Prompts must be the same for who audits tomorrow,
# so they are told the date that these templates fall back to, in their format.
_CLOCK = "strftime_now"
_STOPPED_CLOCK = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


class Encoding:
    """A model's tokenizer, as the policy uses it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_tokens: Sequence[int]) -> None:
        """`eos_tokens` end a completion too, besides the tokenizer's own. `ModelError` if anything lacks."""
        name = tokenizer.name_or_path
        if not tokenizer.is_fast:
            raise ModelError(f"model {name} has no tokenizer.json; choose one with a fast tokenizer")
        if tokenizer.chat_template is None:
            raise ModelError(f"model {name} has no chat template; choose an instruction-tuned model")
        tokenizer.chat_template = _without_clock(tokenizer.chat_template)
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
        self._check_template()

    def prompt(self, text: str) -> list[int]:
        """One user message and the generation prompt by the chat template; `ModelError` if that fails."""
        try:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                sanitize_control_tokens=True,
            )
        except _TEMPLATE_ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"the chat template of model {self.tokenizer.name_or_path} fails ({reason}); "
                "choose another model"
            ) from error
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

    def _check_template(self) -> None:
        """`ModelError` unless the template renders, shows its text, and keeps special tokens out of that."""
        name = self.tokenizer.name_or_path
        if self.prompt("1+1=") == self.prompt("2+2="):
            raise ModelError(
                f"the chat template of model {name} leaves out what the user says; choose another"
            )
        marks = "".join(str(token) for token in self.tokenizer.added_tokens_decoder.values())
        hostile, plain = (sum(token in self._special for token in self.prompt(t)) for t in (marks, "1+1="))
        if hostile != plain:
            raise ModelError(
                f"the chat template of model {name} lets a peer's text become control tokens; "
                "choose another model"
            )


def _without_clock(template: str | dict[str, str]) -> str | dict[str, str]:
    """The chat template, or templates by name, with the date at a standstill."""
    if isinstance(template, dict):
        return {name: str(_without_clock(one)) for name, one in template.items()}
    return _STOPPED_CLOCK + template if _CLOCK in template and _STOPPED_CLOCK not in template else template

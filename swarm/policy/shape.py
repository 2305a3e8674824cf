"""What a model would take, found out without memory: it is built and run with tensors that have no content.

torch's fake tensors know their shapes and nothing else. So parameters are counted exactly, and what a forward
pass keeps for the backward pass is seen rather than guessed, for every architecture that transformers has.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from msgspec import Struct
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from swarm.errors import ModelError
from swarm.policy.devices import DTYPES, Precision
from swarm.policy.loading import LORA_RANK, Source, context_length, read_config

_PROBE_TOKENS = 64  # of the prompt that measures the cache
# What fake tensors, and models that look into their tensors, raise.
_CANNOT_RUN = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
    IndexError,
    NotImplementedError,
    ArithmeticError,
)


class Shape(Struct, frozen=True):
    """A model's sizes, in numbers of values unless they say bytes."""

    parameters: int  # tied weights count once
    adapted: int  # of them, in the linear layers that LoRA adapts and 4 bits shrink
    adapter: int  # parameters of the LoRA adapter
    head: int  # parameters of the head, tied to the embedding or not
    buffer_bytes: int
    vocabulary: int
    hidden: int
    layers: int
    cached: int  # values of keys and values that a token leaves in the cache
    context: int  # tokens


class Lengths(Struct, frozen=True):
    """Of the longest rows that a swarm's manifest leads to, in tokens."""

    prompt: int
    completion: int
    group_size: int

    @property
    def row(self) -> int:
        """Prompt and completion."""
        return self.prompt + self.completion

    @property
    def group(self) -> int:
        """What the learner forwards for a group, whose prompt is shared."""
        return self.prompt + self.group_size * self.completion


class Forward(Struct, frozen=True):
    """Bytes that a forward pass without the head leaves for the backward pass."""

    prompt: int  # of a prompt that is forwarded once for its group
    completion: int  # of a row that continues it
    row: int  # of a row that is forwarded whole
    checkpointed_row: int  # the inputs of its layers alone, with gradient checkpointing


class DryModel:
    """A model without content, to be asked for its sizes. Not for use from two threads at once."""

    def __init__(self, source: Source) -> None:
        """`ModelError` if its description cannot be used."""
        self.source = source
        self._config = read_config(source)
        self.shape = self._measure(context_length(source, self._config))
        self._forwards: dict[tuple[Precision, bool, Lengths], Forward] = {}

    def forward(self, precision: Precision, lora: bool, lengths: Lengths) -> Forward:
        """What the rows of a micro-batch keep."""
        key = (precision, lora, lengths)
        if key not in self._forwards:
            with _dry(self.source.name):
                try:
                    prompt, completion, row = self._kept(precision, lora, lengths)
                except _CANNOT_RUN:
                    # Some kernels (of experts, say) know 16 bits only.
                    factor = 2 if precision == "fp32" else 1
                    prompt, completion, row = (n * factor for n in self._kept("bf16", True, lengths))
            # Under LoRA the residual stream has the frozen base's precision, else it is fp32.
            wide = 4 if precision == "fp32" or not lora else 2
            inputs = self.shape.layers * self.shape.hidden * wide * lengths.row
            self._forwards[key] = Forward(prompt, completion, row, inputs)
        return self._forwards[key]

    def _measure(self, context: int) -> Shape:
        text = self._config.get_text_config()
        with _dry(self.source.name):
            # Empty tensors even of absurd sizes cost nothing, but their count must fit into 63 bits.
            model = self._build(torch.bfloat16)  # which every kernel knows
            head = model.get_output_embeddings()
            adapted = list(_adapted(model))
            cache = DynamicCache(config=model.config)
            with torch.no_grad():
                model.eval().get_decoder()(
                    input_ids=torch.zeros(1, _PROBE_TOKENS, dtype=torch.long),
                    use_cache=True,
                    past_key_values=cache,
                )
            cached = sum(
                tensor.numel()
                for layer in cache.layers
                for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
                if tensor is not None
            )
            return Shape(
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                adapted=sum(module.weight.numel() for module in adapted),
                adapter=sum(LORA_RANK * sum(_in_out(module)) for module in adapted),
                head=0 if head is None else head.weight.numel(),
                buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
                vocabulary=model.get_input_embeddings().weight.shape[0],
                hidden=text.hidden_size,
                layers=text.num_hidden_layers,
                cached=-(-cached // _PROBE_TOKENS),
                context=context,
            )

    def _kept(self, precision: Precision, lora: bool, lengths: Lengths) -> tuple[int, int, int]:
        """Bytes that a prompt, a completion after it, and a whole row keep."""
        model = self._build(DTYPES[precision] if lora else torch.float32)
        if lora:
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for module in list(_adapted(model)):
                _adapt(module)
        model.train()
        saved = _Saved(model, low=precision != "fp32")
        # What does not grow with the rows (16-bit copies of weights) is counted elsewhere.
        row = saved.by(2, 0, lengths.row) - saved.by(1, 0, lengths.row)
        try:
            prompt = saved.by(2, 0, lengths.prompt) - saved.by(1, 0, lengths.prompt)
            after = [saved.by(rows, lengths.prompt, lengths.completion) for rows in (1, 2)]
            return prompt, after[1] - after[0], row
        except _CANNOT_RUN:  # its cache is not keys and values: the learner forwards whole rows too
            return 0, row, row

    def _build(self, dtype: torch.dtype) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(
            self._config, dtype=dtype, trust_remote_code=self.source.trusts_code
        )


class _Saved:
    """Counts what autograd keeps of forward passes without the head."""

    def __init__(self, model: PreTrainedModel, low: bool) -> None:
        self._model = model
        self._low = low
        self._weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def by(self, rows: int, before: int, tokens: int) -> int:
        """Bytes kept of `rows` rows of `tokens` tokens after one prompt of `before` tokens, without that."""
        cache = None
        if before:
            cache = self._forward(1, 0, before, DynamicCache(config=self._model.config))
            for layer in cache.layers:
                layer.keys = layer.keys.expand(rows, -1, -1, -1)
                layer.values = layer.values.expand(rows, -1, -1, -1)
        seen: dict[int, torch.UntypedStorage] = {}

        def see(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._weights:
                seen[storage._cdata] = storage  # held, so that no other storage gets its address
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            self._forward(rows, before, tokens, cache)
        return sum(storage.nbytes() for storage in seen.values())

    def _forward(self, rows: int, before: int, tokens: int, cache: DynamicCache | None) -> DynamicCache:
        # A mask, as padded rows have: attention without one needs less memory.
        dtype = torch.bfloat16 if self._low else self._model.dtype
        mask = torch.zeros(rows, 1, tokens, before + tokens, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._low):
            return self._model.get_decoder()(
                input_ids=torch.zeros(rows, tokens, dtype=torch.long),
                attention_mask=mask,
                position_ids=torch.zeros(rows, tokens, dtype=torch.long),
                past_key_values=cache,
                use_cache=cache is not None,
            ).past_key_values


def _adapted(model: PreTrainedModel) -> Iterator[torch.nn.Module]:
    """The layers that peft's "all-linear" adapts."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            yield module


def _in_out(module: torch.nn.Module) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, torch.nn.Linear) else (rows, columns)


def _adapt(module: torch.nn.Module) -> None:
    """The computation of a LoRA layer, as peft does it."""
    width, out = _in_out(module)
    a = torch.zeros(LORA_RANK, width, requires_grad=True)
    b = torch.zeros(out, LORA_RANK, requires_grad=True)

    def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        low = torch.nn.functional.linear(inputs[0].to(torch.float32), a)
        return (output + torch.nn.functional.linear(low, b) * 2.0).to(output.dtype)

    module.register_forward_hook(add)


@contextlib.contextmanager
def _dry(name: str) -> Iterator[None]:
    """Tensors without content, and without torch's log of what these could not do."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with torch.random.fork_rng(devices=[]), FakeTensorMode():
            yield
    except _CANNOT_RUN as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the memory that model {name} needs cannot be found out ({reason}); choose another model"
        ) from error
    finally:
        log.setLevel(level)

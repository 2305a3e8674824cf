"""Where a model's files are, whether they may be opened at all, and how they become a model in memory.

A model comes from strangers. Before anything is parsed: every file is of bounded size, weights are
safetensors, no pickle is opened, and nothing that the files name (other repositories, kernels, code) is
fetched or run. Code that a model brings runs only if the settings trust that repository at that commit.
Links are followed, since the hub's cache is made of them, but only to regular files.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from msgspec import Struct
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from swarm.errors import ModelError, UsageError
from swarm.manifest import EMBEDDED_MODEL
from swarm.policy.devices import DTYPES, Precision

TINY_FOLDER = Path(__file__).parent / "tiny"
LORA_RANK = 16
LORA_ALPHA = 32
_LORA_SEED = b"swarm/1/lora/"

# Several times what the largest known models have (tokenizer.json: Gemma 3's 33 MB).
_MAX_BYTES = {
    "config.json": 2**20,
    "generation_config.json": 2**20,
    "tokenizer.json": 128 * 2**20,
    "tokenizer_config.json": 16 * 2**20,
    "special_tokens_map.json": 2**20,
    "added_tokens.json": 16 * 2**20,
    "vocab.json": 32 * 2**20,
    "merges.txt": 32 * 2**20,
    "chat_template.jinja": 2**20,
    "model.safetensors.index.json": 16 * 2**20,
}
_MAX_CODE_BYTES = 4 * 2**20  # a file of trusted code
_DESCRIPTION = tuple(_MAX_BYTES)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_NUMBER = 2**32  # in a config.json; a vocabulary or a context is below it
_MAX_LAYERS = 1024  # modules are Python objects: a billion of them would fill the memory without a weight
_LAYER_NAME = re.compile(r"(^|_)layers?$")  # num_hidden_layers, n_layer, decoder_layers …
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_IMPLEMENTATIONS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
_HUB_SECONDS = 20.0  # until the hub counts as not reachable
# What opening, parsing and building a model raises when its files are not what they should be.
_BROKEN = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    ImportError,
    TypeError,
    AttributeError,
    IndexError,
    ArithmeticError,
    SafetensorError,
)


class Source(Struct, frozen=True):
    """A model's description on this disk: everything but, for a hub's model, perhaps the weights."""

    name: str  # as the manifest or the settings name it
    folder: Path
    repository: str | None = None  # OWNER/NAME, if it is the hub's
    revision: str | None = None  # the full commit, if it is the hub's
    trusts_code: bool = False  # whether its own code may run


def find(name: str, trusted_code: Collection[str] = (), revision: str | None = None) -> Source:
    """The model's description, fetched from the hub if need be; `ModelError` if it cannot be had or used.

    `name` is "tiny", a folder in Hugging Face layout, or a hub's OWNER/NAME or OWNER/NAME@REVISION; a folder
    that exists wins, whatever its name. `revision` is a commit that was resolved before (the plan's), and
    wins over the name's. `trusted_code` has the repositories whose own code may run, as OWNER/NAME@COMMIT.
    Without a network, what the hub's cache holds is used.
    """
    check_trusted(trusted_code)
    if name == EMBEDDED_MODEL:
        return _checked(Source(name, TINY_FOLDER))
    if Path(name).is_dir():
        return _checked(Source(name, Path(name)))
    repository, _, named = name.partition("@")
    if not _REPOSITORY.fullmatch(repository):
        raise ModelError(f"model {name!r} is neither a folder here nor a hub's OWNER/NAME; check its name")
    folder = _fetch(name, repository, revision or named or "main", _DESCRIPTION)
    commit = folder.name  # the cache names a snapshot after its commit
    trusted = f"{repository}@{commit}" in trusted_code
    if trusted:
        folder = _fetch(name, repository, commit, (*_DESCRIPTION, "*.py"))
    return _checked(Source(name, folder, repository, commit, trusted))


def check_trusted(trusted_code: Collection[str]) -> None:
    """`UsageError` if an entry is not OWNER/NAME@COMMIT: what a name without commit holds can change."""
    for entry in trusted_code:
        repository, _, commit = entry.partition("@")
        if not _REPOSITORY.fullmatch(repository) or not _COMMIT.fullmatch(commit):
            raise UsageError(
                f"trusted code {entry!r} must be OWNER/NAME@COMMIT with the commit's 40 hexadecimal digits"
            )


def read_config(source: Source) -> PreTrainedConfig:
    """The model's configuration, without dropout; `ModelError` if it is absurd or not a known model's.

    Dropout would make an update depend on random masks that no auditor could draw on another device.
    """
    with _quiet(), _one_line(source.name):
        config = AutoConfig.from_pretrained(
            source.folder, trust_remote_code=source.trusts_code, local_files_only=True
        )
        for part in {id(config): config, id(text := config.get_text_config()): text}.values():
            for key, value in part.to_dict().items():
                if "drop" in key and isinstance(value, float):
                    setattr(part, key, 0.0)
    return config


def context_length(source: Source, config: PreTrainedConfig) -> int:
    """Tokens that the model reads at most, prompt and completion together."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    limits = [value for name in names if isinstance(value := getattr(text, name, None), int) and value > 0]
    declared = _read_json(source, "tokenizer_config.json").get("model_max_length")
    # "No limit" is written as 1e30 there.
    if isinstance(declared, int) and 0 < declared < 2**31:
        limits.append(declared)
    if not limits:
        raise ModelError(f"model {source.name} does not say how long its context is; choose another model")
    return min(limits)


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer as its tokenizer.json says; `ModelError` if it cannot be read.

    transformers' `AutoTokenizer` puts what is usual for the architecture in place of what the file says.
    """
    own = source.trusts_code and "auto_map" in _read_json(source, "tokenizer_config.json")
    if not own and not (source.folder / "tokenizer.json").exists():
        raise ModelError(f"model {source.name} has no tokenizer.json; choose one with a fast tokenizer")
    with _quiet(), _one_line(source.name):
        tokenizer = (AutoTokenizer if own else PreTrainedTokenizerFast).from_pretrained(
            source.folder, trust_remote_code=own, local_files_only=True
        )
    tokenizer.name_or_path = source.name  # errors name the model, not a folder of the hub's cache
    return tokenizer


def declared_ends(source: Source) -> list[int]:
    """The tokens that end a completion besides the tokenizer's own, by the model's generation config."""
    for file in ("generation_config.json", "config.json"):
        declared = _read_json(source, file).get("eos_token_id")
        ends: list[Any] = declared if isinstance(declared, list) else [declared]
        if all(isinstance(end, int) for end in ends):
            return ends
    return []


def load_model(
    source: Source, device: str, precision: Precision, *, lora: bool = False, four_bit: bool = False
) -> PreTrainedModel | PeftModel:
    """The model on the device, ready for training: what is trained in fp32, what is frozen in `precision`.

    With `lora`, a `PeftModel` whose adapter is the same on every machine; a 4-bit base (`four_bit`) needs it.
    `ModelError` names the model and says what is wrong with it.
    """
    if four_bit:
        check_four_bit(device, lora)
    if source.repository is not None and source.revision is not None:
        kinds = (*_DESCRIPTION, "*.safetensors") + (("*.py",) if source.trusts_code else ())
        source = Source(
            source.name,
            _fetch(source.name, source.repository, source.revision, kinds),
            source.repository,
            source.revision,
            source.trusts_code,
        )
    weight_files(source)
    config = read_config(source)
    options: dict[str, Any] = {}
    if four_bit:
        options["quantization_config"] = _nf4(precision)
    if device != "cpu":
        options["device_map"] = {"": device}  # straight there: a copy in main memory might not fit
    with _quiet(), _one_line(source.name):
        model, found = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=config,
            dtype=DTYPES[precision] if lora else torch.float32,
            use_safetensors=True,
            trust_remote_code=source.trusts_code,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    # transformers makes up what is missing, at random: no two peers would begin with the same model.
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"the weights of model {source.name} lack {missing[0]} and {len(missing) - 1} more; "
            "fetch it again or choose another"
        )
    return _with_adapter(model) if lora else model


def check_four_bit(device: str, lora: bool) -> None:
    """`UsageError` unless a 4-bit base can be had here."""
    if not device.startswith("cuda"):
        raise UsageError(f"a 4-bit base needs a CUDA device, not {device}: leave --four-bit out")
    if not lora:
        raise UsageError("a 4-bit base cannot be trained in full: use --lora with --four-bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError("a 4-bit base needs bitsandbytes: run `pip install bitsandbytes`")


def weight_files(source: Source) -> list[Path]:
    """The safetensors files that hold the weights, by name; `ModelError` if there are none or others."""
    whole = source.folder / _WEIGHTS
    if whole.exists():
        names = [_WEIGHTS]
    else:
        index = _read_json(source, _INDEX).get("weight_map")
        values = set(index.values()) if isinstance(index, dict) else set()
        names = sorted(name for name in values if isinstance(name, str))
        if len(names) < len(values) or any(not re.fullmatch(r"[\w.-]+\.safetensors", n) for n in names):
            raise ModelError(f"{_INDEX} of model {source.name} names files that are no safetensors beside it")
    if not names:
        pickled = sorted(path.name for kind in _PICKLES for path in source.folder.glob(kind))
        if pickled:
            raise ModelError(
                f"model {source.name} has its weights only pickled ({pickled[0]}), which could run code; "
                "choose one with safetensors"
            )
        raise ModelError(f"cannot load model {source.name}: {source.folder} has no {_WEIGHTS}")
    paths = [source.folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ModelError(f"cannot load model {source.name}: {path} is missing or no regular file")
    return paths


def base_digest(name: str, revision: str | None = None, trusted_code: Collection[str] = ()) -> bytes:
    """32-byte SHA-256 over the contents of the safetensors files, in the order of their names.

    A safetensors file begins with its own length of header, so no other cut into files has the same digest
    with other contents. Streams: a model of any size takes a few MiB.
    """
    source = find(name, trusted_code, revision)
    if source.repository is not None and source.revision is not None:
        _fetch(name, source.repository, source.revision, (*_DESCRIPTION, "*.safetensors"))
    digest = hashlib.sha256()
    for path in weight_files(source):
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.digest()


def _with_adapter(model: PreTrainedModel) -> PeftModel:
    """LoRA of rank 16 on every linear layer but the head; its first state is the same everywhere.

    B begins at 0 and A as in peft (uniform in ±1/√in, Kaiming's with a = √5), but from Philox with a key
    made of the layer's name: torch's own generators differ between devices and versions.
    """
    config = LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():  # peft draws an A of its own
        # Between peft and transformers, and about layers that store their weight the other way round.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name:
            key = int.from_bytes(hashlib.sha256(_LORA_SEED + name.encode()).digest()[:16], "big")
            raw = np.random.Philox(key=key).random_raw(parameter.numel())
            uniform = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0  # 24 bits in [-1, 1)
            values = torch.from_numpy((uniform * parameter.shape[1] ** -0.5).astype(np.float32))
            with torch.no_grad():
                parameter.copy_(values.view(parameter.shape))
    return adapted


def _nf4(precision: Precision) -> object:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[precision],
    )


def _fetch(name: str, repository: str, revision: str, kinds: tuple[str, ...]) -> Path:
    """The snapshot's folder in the hub's cache, with all files of the kinds."""
    options: dict[str, Any] = {"allow_patterns": list(kinds), "ignore_patterns": ["*/*"]}
    with _quiet():
        try:
            # The hub's answer names the commit, so that what was checked is what is fetched; it also has the
            # sizes, so that a config of 100 GB is not even downloaded.
            info = HfApi().model_info(
                repository, revision=revision, files_metadata=True, timeout=_HUB_SECONDS
            )
            for file in info.siblings or []:
                _check_size(name, file.rfilename, file.size or 0)
            return Path(snapshot_download(repository, revision=info.sha, **options))
        except (HfHubHTTPError, HFValidationError) as error:
            # It answered, and said no.
            response = getattr(error, "response", None)
            if response is not None and response.status_code < 500:
                raise ModelError(
                    f"the hub has no model {repository} at {revision} for us ({_brief(error)}); check its "
                    "name, and log in with `hf auth login` if it is gated"
                ) from error
            reason = _brief(error)
        except (OSError, RuntimeError, httpx2.HTTPError) as error:
            reason = _brief(error)  # no network, or told not to use it (HF_HUB_OFFLINE)
        try:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True, **options))
        except (LocalEntryNotFoundError, OSError, ValueError) as error:
            raise ModelError(
                f"model {name} is not on this machine, and the hub cannot be asked ({reason}); "
                "connect, or name a local folder"
            ) from error


def _checked(source: Source) -> Source:
    """The source, once what lies in its folder can be opened without harm."""
    for path in sorted(source.folder.iterdir()):
        if path.name in _MAX_BYTES or (source.trusts_code and path.suffix == ".py"):
            if not path.is_file():
                raise ModelError(f"cannot load model {source.name}: {path} is missing or no regular file")
            _check_size(source.name, path.name, path.stat().st_size)
    if (source.folder / "adapter_config.json").exists():
        raise ModelError(f"model {source.name} is an adapter; choose the whole model it was made for")
    config = _read_json(source, "config.json")
    if not config:
        raise ModelError(f"cannot load model {source.name}: {source.folder} has no config.json")
    _check_code(source, config)
    _check_code(source, _read_json(source, "tokenizer_config.json"))
    _check_numbers(source.name, config)
    if config.get("quantization_config"):
        raise ModelError(
            f"model {source.name} is quantized already, and cannot be trained; choose the plain one "
            "(--four-bit makes it small)"
        )
    return source


def _check_code(source: Source, config: dict[str, Any]) -> None:
    """`ModelError` if the file would have code fetched or run that is not trusted."""
    for entry in _values_of(config, ("auto_map",)):
        if "--" in json.dumps(entry):
            raise ModelError(f"model {source.name} takes code from another repository; choose another")
        if not source.trusts_code:
            raise ModelError(
                f"model {source.name} brings code of its own; choose another, or, having read that code, "
                f"trust {source.repository or 'OWNER/NAME'}@{source.revision or 'COMMIT'} in your settings"
            )
    for value in _values_of(config, _IMPLEMENTATIONS):
        if "/" in json.dumps(value):
            raise ModelError(f"model {source.name} asks for a kernel from the hub ({value!r}): not run here")


def _check_numbers(name: str, config: dict[str, Any]) -> None:
    for node in _nodes(config):
        for key, value in node.items():
            if isinstance(value, int | float) and abs(value) > _MAX_NUMBER:
                raise ModelError(f"config.json of model {name} has {key} = {value:.3g}, which cannot be")
            if _LAYER_NAME.search(key) and isinstance(value, int) and not 0 <= value <= _MAX_LAYERS:
                raise ModelError(
                    f"config.json of model {name} has {key} = {value}; at most {_MAX_LAYERS} can be"
                )


def _nodes(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The dictionary and those inside it."""
    waiting: list[Any] = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += [value for value in node if isinstance(value, dict | list)]


def _values_of(config: dict[str, Any], keys: Collection[str]) -> Iterator[Any]:
    for node in _nodes(config):
        yield from (value for key, value in node.items() if key in keys)


def _check_size(model: str, file: str, size: int) -> None:
    limit = _MAX_BYTES.get(file, _MAX_CODE_BYTES if file.endswith(".py") else None)
    if limit is not None and size > limit:
        raise ModelError(
            f"{file} of model {model} has {size / 2**20:,.0f} MiB; at most {limit / 2**20:,.0f} MiB are "
            "opened: choose another model"
        )


def _read_json(source: Source, file: str) -> dict[str, Any]:
    """The file's dictionary; empty if there is no such file."""
    path = source.folder / file
    try:
        with path.open("rb") as opened:
            data = opened.read(_MAX_BYTES[file] + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    _check_size(source.name, file, len(data))
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} of model {source.name} is not JSON: {_brief(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} of model {source.name} is not a JSON object")
    return content


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """What the libraries raise over a broken model, as one `ModelError`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(f"model {name} does not fit into memory: {_brief(error)}") from error
    except (*_BROKEN, RecursionError) as error:
        raise ModelError(f"cannot load model {name}: {_brief(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and load reports; what matters of them is an error here."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    hub_bars = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()

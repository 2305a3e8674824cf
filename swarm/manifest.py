"""The manifest: the YAML that defines a swarm. Its canonical form's SHA-256 is the swarm's id."""

from __future__ import annotations

import hashlib
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from swarm.errors import UsageError

MAX_MANIFEST_BYTES = 16 * 1024
EMBEDDED_MODEL = "tiny"  # shipped with the project

StageName = Literal["answer", "critique", "revise"]
#: The stage's number on the wire and in seeds.
STAGE_NUMBER: dict[StageName, int] = {"answer": 0, "critique": 1, "revise": 2}
#: The most that a group can earn in a stage: a score, in the last stage with the agreement on top.
MAX_GROUP_REWARD: dict[StageName, int] = {"answer": 1, "critique": 1, "revise": 2}
MICROS = 1_000_000

ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=1, le=4096)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]


class Stage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stage: sampled and published before `ends_at` of the round, at most `max_groups` groups a peer."""

    name: StageName
    ends_at: Fraction
    max_groups: Count
    max_tokens: Annotated[int, Meta(ge=1, le=8192)]  # per completion, its EOS included


class Sampling(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a completion's tokens are chosen, applied in this order (as in transformers)."""

    temperature: Annotated[float, Meta(gt=0, le=10)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0  # 0: every token of the vocabulary
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0


class Learn(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The learn stage: what goes into the batch, and GRPO's knobs under TRL's names."""

    ends_at: Fraction
    external_groups: Annotated[int, Meta(ge=0, le=4096)]  # SAPO's J, at most
    own_groups: Annotated[int, Meta(ge=0, le=4096)] | None = None  # SAPO's I, at most; null: all
    # Others' completions with a token outside our own model's top k are left out; 0: none are. The default is
    # transformers' own for sampling: what a model would not say by default, it does not learn from others.
    external_top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 50
    learning_rate: Annotated[float, Meta(gt=0, le=1)]
    epochs: Annotated[int, Meta(ge=1, le=64)] = 1  # TRL's num_iterations: optimizer passes over the batch
    groups_per_step: Count = 16  # groups in one optimizer step
    epsilon: Annotated[float, Meta(ge=0, le=10)] = 0.2  # SAPO's clip range
    epsilon_high: Annotated[float, Meta(ge=0, le=10)] = 0.28
    beta: Annotated[float, Meta(ge=0, le=10)] = 0.0  # weight of the KL term
    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo", "cispo"] = "dapo"  # how TRL weighs the tokens
    importance_sampling_level: Literal["token", "sequence"] = "token"
    scale_rewards: Literal["group", "batch", "none"] = "group"  # whose deviation advantages are divided by


class TaskChoice(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which installed task is asked, with its parameters."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    parameters: dict[str, int | float | str | bool] = {}


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """A swarm's rules. Read with `load` or `parse`, which check what types cannot say."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    seed: Annotated[int, Meta(ge=0, lt=10**18)] = 0  # tells swarms of otherwise equal rules apart
    task: TaskChoice
    # The allowed base models, where a peer's state begins: "tiny", a hub's OWNER/NAME or OWNER/NAME@REVISION,
    # or a folder's path. A peer takes the largest that its machine can train.
    models: Annotated[tuple[ModelName, ...], Meta(min_length=1, max_length=16)]
    round_seconds: Annotated[int, Meta(ge=2, le=7 * 24 * 3600)]
    acceptance_window: Annotated[int, Meta(ge=1, le=63)] = 32  # rounds that a report may be late
    cell_size: Annotated[int, Meta(ge=1, le=256)] = 16
    group_size: Annotated[int, Meta(ge=2, le=256)]  # G: completions of one prompt
    sampling: Sampling = Sampling()
    shown_answers: Annotated[int, Meta(ge=1, le=26)] = 4  # K: students shown in a critique or revise prompt
    shown_critiques: Annotated[int, Meta(ge=1, le=26)] = 4
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=3)]
    learn: Learn

    @cached_property
    def canonical(self) -> bytes:
        """The bytes that are hashed and put on the ledger: JSON, keys sorted, defaults written out."""
        return msgspec.json.encode(self, order="sorted")

    @cached_property
    def swarm_id(self) -> bytes:
        """32 bytes: SHA-256 of the canonical form."""
        return hashlib.sha256(self.canonical).digest()

    @property
    def max_groups(self) -> int:
        """The most groups that a peer can make in a round; the contract refuses a report of more."""
        return sum(stage.max_groups for stage in self.stages)

    @property
    def max_reward_micros(self) -> int:
        """The most that a peer can earn in a round, in micro-units; the contract refuses a report of more."""
        return sum(stage.max_groups * MAX_GROUP_REWARD[stage.name] for stage in self.stages) * MICROS

    @property
    def stage_ends_millionths(self) -> tuple[int, ...]:
        """When each stage but the last (learn) ends, in millionths of a round: what the contract keeps."""
        return tuple(round(stage.ends_at * 1_000_000) for stage in self.stages)


def load(path: Path) -> Manifest:
    """Read a manifest file; `UsageError` says the file, what is wrong, and what is allowed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read manifest {path}: {error.strerror}") from error
    return parse(data, str(path))


def parse(data: bytes, source: str) -> Manifest:
    """A manifest from a person's YAML; `source` names it in errors."""
    _check_size(data, source)
    try:
        manifest = msgspec.convert(yaml.safe_load(data), Manifest)
    except yaml.YAMLError as error:
        raise UsageError(f"manifest {source} is not YAML: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:  # msgspec.ValidationError is a ValueError
        raise UsageError(f"manifest {source}: {error}") from error
    return parse_canonical(manifest.canonical, source)  # what others will read is what was meant


def parse_canonical(data: bytes, source: str) -> Manifest:
    """A manifest from its canonical form, as the ledger holds it; `UsageError` if it is in any other form."""
    _check_size(data, source)
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"manifest {source}: {error}") from error
    _check_stages(manifest, source)
    for model in manifest.models:
        if model != EMBEDDED_MODEL and "/" not in model:
            raise UsageError(
                f"manifest {source}: model {model!r} is neither {EMBEDDED_MODEL!r} nor a hub's "
                "OWNER/NAME nor a folder's path"
            )
    if len(set(manifest.models)) < len(manifest.models):
        raise UsageError(f"manifest {source}: models names the same model twice")
    if manifest.canonical != data:
        raise UsageError(f"manifest {source} is not in canonical form")
    return manifest


def _check_size(data: bytes, source: str) -> None:
    if len(data) > MAX_MANIFEST_BYTES:
        raise UsageError(f"manifest {source} has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")


def _check_stages(manifest: Manifest, source: str) -> None:
    order = [STAGE_NUMBER[stage.name] for stage in manifest.stages]
    if order != list(range(len(order))):
        raise UsageError(
            f"manifest {source}: stages must be answer, then critique, then revise, without gaps"
        )
    ends = [stage.ends_at for stage in manifest.stages] + [manifest.learn.ends_at]
    if any(later <= earlier for earlier, later in pairwise(ends)):
        raise UsageError(f"manifest {source}: ends_at must grow from stage to stage to learn, got {ends}")

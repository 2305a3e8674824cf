"""The manifest: the YAML that defines a swarm. Its canonical form's SHA-256 is the swarm's id.

Nothing in a manifest can run code: it names tasks that are installed. What a key means is said once, here:
the JSON schema for editors and `docs/manifest.md` are made from these structs (`swarm.manifest_schema`).
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from swarm.errors import UsageError
from swarm.manifest_source import Keys, Source

PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]*$"
MAX_MANIFEST_BYTES = 16 * 1024
EMBEDDED_MODEL = "tiny"  # shipped with the project
MAX_GROUPS = 4096  # of a peer in a stage
MAX_REWARD_MICROS = 2**38  # a peer's round, on the ledger
MIN_STAGE_SECONDS = 0.2  # sampling, publishing and hearing of it in less is no stage

StageName = Literal["propose", "answer", "critique", "revise"]
#: The stage's number on the wire and in seeds.
STAGE_NUMBER: dict[StageName, int] = {"answer": 0, "critique": 1, "revise": 2, "propose": 3}
#: The orders of stages that make sense.
STAGE_ORDER: tuple[StageName, ...] = ("propose", "answer", "critique", "revise")
MICROS = 1_000_000

# What a task's parameters can hold: JSON. Each task checks its own.
Parameter = int | float | str | bool | list[Any] | dict[str, Any] | None


def _said(description: str, **limits: Any) -> Meta:
    return Meta(description=description, **limits)


ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=1, le=MAX_GROUPS)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]
Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Weight = Annotated[float, Meta(ge=0, le=100)]
Rate = Annotated[float, Meta(ge=0, le=1)]


class Stage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stage of a round: sampled, published and heard before its end."""

    name: Annotated[
        StageName,
        _said(
            "`propose` (optional, first), `answer`, `critique`, `revise`; a swarm may stop after any of the "
            "last three."
        ),
    ]
    ends_at: Annotated[Fraction, _said("The fraction of the round at which the stage ends.")]
    max_groups: Annotated[
        Count, _said("Groups that a peer makes in the stage, at most; a slow machine makes fewer.")
    ]
    max_tokens: Annotated[int, _said("Tokens of a completion, its EOS included.", ge=1, le=8192)]


class Sampling(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a completion's tokens are chosen, applied in this order (as in transformers)."""

    temperature: Annotated[float, _said("Logits are divided by it.", gt=0, le=10)] = 1.0
    top_k: Annotated[
        int,
        _said("Only so many of the likeliest tokens; 0: every token of the vocabulary.", ge=0, le=1_000_000),
    ] = 0
    top_p: Annotated[float, _said("Only the likeliest tokens that make up this share.", gt=0, le=1)] = 1.0


class Rewards(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a completion earns: a number in [0, 1] times the weight of its kind."""

    answer: Annotated[Weight, _said("Times the score of the answer.")] = 1.0
    critique: Annotated[
        Weight,
        _said("Times the true score of the answer that is named; naming none pays when none is right."),
    ] = 1.0
    revise: Annotated[Weight, _said("Times the score of the final answer.")] = 1.0
    agreement: Annotated[
        Weight,
        _said(
            "On top of `revise`: times the share of critiques that name the same answer, if that is right."
        ),
    ] = 1.0
    propose: Annotated[
        Weight,
        _said("Times 4·p·(1-p), p being the mean score of the others' answers to the proposed question."),
    ] = 1.0

    def most(self, stage: StageName) -> float:
        """The most that a group can earn in a stage."""
        weight: float = getattr(self, stage)
        return weight + self.agreement if stage == "revise" else weight


class Learn(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The learn stage: what goes into the batch (mixing), and GRPO's knobs under TRL's names."""

    ends_at: Annotated[
        Fraction, _said("The fraction of the round at which learning ends; then come reports.")
    ]
    external_groups: Annotated[
        int, _said("SAPO's J: answer groups of other peers in the batch, at most.", ge=0, le=4096)
    ]
    own_groups: Annotated[
        Annotated[int, Meta(ge=0, le=4096)] | None,
        _said("SAPO's I: own groups in the batch, at most; null: all."),
    ] = None
    # The default is transformers' own for sampling: what a model would not say by default, it does not learn
    # from others.
    external_top_k: Annotated[
        int,
        _said(
            "Others' completions with a token outside our own model's top k are left out; 0: none are.",
            ge=0,
            le=1_000_000,
        ),
    ] = 50
    learning_rate: Annotated[float, _said("AdamW's.", gt=0, le=1)]
    epochs: Annotated[int, _said("TRL's num_iterations: optimizer passes over the batch.", ge=1, le=64)] = 1
    groups_per_step: Annotated[Count, _said("Groups in one optimizer step.")] = 16
    epsilon: Annotated[float, _said("Clip range below; SAPO's value is the default.", ge=0, le=10)] = 0.2
    epsilon_high: Annotated[float, _said("Clip range above.", ge=0, le=10)] = 0.28
    beta: Annotated[float, _said("Weight of the KL term; 0: none.", ge=0, le=10)] = 0.0
    loss_type: Annotated[
        Literal["grpo", "dr_grpo", "bnpo", "dapo", "cispo"], _said("How TRL weighs the tokens.")
    ] = "dapo"
    importance_sampling_level: Annotated[Literal["token", "sequence"], _said("TRL's.")] = "token"
    scale_rewards: Annotated[
        Literal["group", "batch", "none"], _said("Whose deviation advantages are divided by.")
    ] = "group"


class TaskChoice(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One installed task."""

    name: Annotated[str, _said("As `swarm task list` names it.", min_length=1, max_length=64)]
    weight: Annotated[
        int, _said("Its share of the questions, beside the other tasks' weights.", ge=1, le=1000)
    ] = 1
    parameters: Annotated[
        dict[str, Parameter], _said("The task's own; `swarm task list --json` has their schema.")
    ] = {}


class Package(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An installed distribution whose code decides what is asked or how it is scored.

    A peer with another one is told so before it joins. `swarm task pin` writes these.
    """

    distribution: Annotated[str, _said("Its name on PyPI.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: Annotated[str, _said("Exactly.", pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}$")]
    digest: Annotated[
        Hex | None,
        _said(
            "SHA-256 over the names and contents of its files; needed for tasks from outside this project."
        ),
    ] = None


class Predecessor(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The swarm that this one continues, under other rules."""

    swarm: Annotated[Hex, _said("The predecessor's id; `swarm create --successor-of` writes it.")]
    contract: Annotated[
        Annotated[str, Meta(pattern="^0x[0-9a-fA-F]{40}$")] | None,
        _said(
            "The predecessor's contract, on the same chain; `swarm create --successor-of` writes it. Null: "
            "it is on another one, and scores begin anew."
        ),
    ] = None
    keep: Annotated[
        tuple[Literal["states", "reputation"], ...],
        _said(
            "What carries over. `states`: a peer of the predecessor begins with its last state there, if its "
            "model is allowed here too, instead of the base model. `reputation`: scores continue from where "
            "they are in the predecessor when this swarm begins, if that is on the same chain.",
            max_length=2,
        ),
    ] = ("states", "reputation")


class Audits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often peers are spot-checked, how thoroughly and by whom, and what comes of it."""

    first_rounds: Annotated[int, _said("Every one of a peer's first rounds is audited.", ge=0, le=1000)] = 5
    rate: Annotated[Rate, _said("Then this share of its rounds,")] = 0.25
    lowest_rate: Annotated[Rate, _said("falling to this one as its score rises.")] = 0.05
    rounds_after_fail: Annotated[int, _said("Every round again, so long, after a fail.", ge=0, le=1000)] = 10
    auditors: Annotated[int, _said("Of one audited round, at least.", ge=2, le=16)] = 2
    auditor_age: Annotated[int, _said("Rounds that an auditor has reported, at least.", ge=0, le=1000)] = 5
    kept_states: Annotated[int, _said("A peer serves the states of its last rounds.", ge=2, le=256)] = 16
    groups: Annotated[
        int,
        _said(
            "Groups of a round whose tokens one audit re-derives, drawn by the beacon, at most.",
            ge=1,
            le=MAX_GROUPS,
        ),
    ] = 8
    floor: Annotated[Rate, _said("Who has a lower score is not learned from or shown, 0 to 1.")] = 0.05


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """A swarm's rules. Read with `load` or `parse`, which check what types cannot say."""

    name: Annotated[
        str, _said("What people call the swarm; on one line.", min_length=1, max_length=64, pattern=PRINTABLE)
    ]
    seed: Annotated[int, _said("Tells swarms of otherwise equal rules apart.", ge=0, lt=10**18)] = 0
    predecessor: Annotated[Predecessor | None, _said("The swarm that this one continues.")] = None
    tasks: Annotated[
        tuple[TaskChoice, ...],
        _said("What is asked; each question is of one of them, by weight.", min_length=1, max_length=32),
    ]
    packages: Annotated[
        tuple[Package, ...],
        _said("The code outside this project on which the tasks depend, pinned.", max_length=32),
    ] = ()
    models: Annotated[
        tuple[ModelName, ...],
        _said(
            "The allowed base models, where a peer's state begins: `tiny` (shipped), a hub's OWNER/NAME or "
            "OWNER/NAME@REVISION, or a folder's path. A peer takes the largest that its machine can train.",
            min_length=1,
            max_length=16,
        ),
    ]
    round_seconds: Annotated[int, _said("On the ledger's clock.", ge=2, le=7 * 24 * 3600)]
    acceptance_window: Annotated[
        int, _said("Rounds that a report may be late; then it is not ranked.", ge=1, le=63)
    ] = 32
    cell_size: Annotated[int, _said("Peers that exchange with one another, about.", ge=1, le=256)] = 16
    group_size: Annotated[int, _said("G: completions of one prompt.", ge=2, le=256)]
    sampling: Annotated[Sampling, _said("How tokens are chosen.")] = Sampling()
    shown_answers: Annotated[
        int, _said("K: students shown in a critique or revise prompt, at most.", ge=1, le=26)
    ] = 4
    shown_critiques: Annotated[int, _said("Critiques shown in a revise prompt, at most.", ge=1, le=26)] = 4
    shown_chars: Annotated[
        int, _said("Of a student's answer in a prompt: its last characters.", ge=1, le=16384)
    ] = 600
    asked_proposals: Annotated[
        int, _said("Proposed questions that a cell is asked, besides those drawn, at most.", ge=1, le=256)
    ] = 8
    score_seconds: Annotated[
        float,
        _said(
            "Scoring one completion may take so long; then it earns nothing. All that one sender publishes "
            "in a stage may take 3% of a round.",
            ge=0.1,
            le=600,
        ),
    ] = 2.0
    rewards: Annotated[Rewards, _said("What the stages pay.")] = Rewards()
    stages: Annotated[
        tuple[Stage, ...], _said("In order; each has its own caps.", min_length=1, max_length=4)
    ]
    learn: Annotated[Learn, _said("The update at the end of a round.")]
    audits: Annotated[Audits, _said("Spot-checks.")] = Audits()

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
        asked = self.asked_proposals if self.stage("propose") else 0
        return sum(stage.max_groups for stage in self.stages) + asked

    @property
    def max_reward_micros(self) -> int:
        """The most that a peer can earn in a round, in micro-units; the contract refuses a report of more."""
        asked = self.asked_proposals if self.stage("propose") else 0
        # Rounded as a peer rounds what it reports: each completion's reward.
        most = sum(stage.max_groups * round(self.rewards.most(stage.name) * MICROS) for stage in self.stages)
        return most + asked * round(self.rewards.most("answer") * MICROS)

    @property
    def stage_ends_millionths(self) -> tuple[int, ...]:
        """When each stage but the last (learn) ends, in millionths of a round: what the contract keeps."""
        return tuple(round(stage.ends_at * 1_000_000) for stage in self.stages)

    def stage(self, name: StageName) -> Stage | None:
        """The stage of that name, if the swarm has it."""
        return next((stage for stage in self.stages if stage.name == name), None)


def load(path: Path) -> Manifest:
    """Read a manifest file; `UsageError` says the file, the line, what is wrong, and what is allowed."""
    return parse(read(path), str(path))


def read(path: Path) -> bytes:
    """A manifest file's bytes; `UsageError` if it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read manifest {path}: {error.strerror}") from error
    _check_size(data, str(path))
    return data


def parse(data: bytes, name: str) -> Manifest:
    """A manifest from a person's YAML; `name` is the file's in errors."""
    _check_size(data, name)
    source = Source(data, name)
    manifest = source.convert(Manifest)
    if wrong := _first_fault(manifest):
        raise source.error(*wrong)
    try:
        again = _from_canonical(manifest.canonical, name)
    except (ValueError, TypeError, OverflowError) as error:  # a number beyond 64 bits, say
        raise UsageError(
            f"manifest {name}: a value cannot be written as JSON ({error}); use another"
        ) from error
    if again != manifest:  # what others will read must be what was meant
        raise UsageError(f"manifest {name}: a value, like .nan, cannot be written as JSON; use another")
    return again


def parse_canonical(data: bytes, name: str) -> Manifest:
    """A manifest from its canonical form, as the ledger holds it; `UsageError` if it is in any other form."""
    _check_size(data, name)
    manifest = _from_canonical(data, name)
    if wrong := _first_fault(manifest):
        raise UsageError(f"manifest {name}: {wrong[1]}")
    if manifest.canonical != data:
        raise UsageError(f"manifest {name} is not in canonical form")
    return manifest


def succeed(manifest: Manifest, predecessor: bytes, contract: str | None = None) -> Manifest:
    """The manifest as successor of the swarm with this id; `UsageError` if it names another one.

    `contract` is the predecessor's, if both are on one chain.
    """
    named = manifest.predecessor or Predecessor(swarm=predecessor.hex())
    if named.swarm != predecessor.hex():
        raise UsageError(
            f"manifest {manifest.name} names the predecessor {named.swarm}, not {predecessor.hex()}; "
            "leave that out, or name the other swarm"
        )
    named = msgspec.structs.replace(named, contract=contract)
    return parse_canonical(msgspec.structs.replace(manifest, predecessor=named).canonical, manifest.name)


def _from_canonical(data: bytes, name: str) -> Manifest:
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"manifest {name}: {error}") from error


def _check_size(data: bytes, name: str) -> None:
    if len(data) > MAX_MANIFEST_BYTES:
        raise UsageError(
            f"manifest {name} has more than the {MAX_MANIFEST_BYTES} bytes that are allowed; shorten it"
        )


def normal_name(distribution: str) -> str:
    """A distribution's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _first_fault(manifest: Manifest) -> tuple[Keys, str] | None:
    """What no type can say: where it stands, what is wrong and what is allowed; None if all is well."""
    return _stage_fault(manifest) or _timing_fault(manifest) or _other_fault(manifest)


def _stage_fault(manifest: Manifest) -> tuple[Keys, str] | None:
    names = [stage.name for stage in manifest.stages]
    expected = STAGE_ORDER if names[0] == "propose" else STAGE_ORDER[1:]
    if names != list(expected[: len(names)]) or names == ["propose"]:
        return ("stages",), (
            f"stages are {', '.join(names)}; allowed are answer, then critique, then revise, without gaps, "
            "and before them propose"
        )
    return None


def _timing_fault(manifest: Manifest) -> tuple[Keys, str] | None:
    places: list[Keys] = [("stages", index, "ends_at") for index in range(len(manifest.stages))]
    places.append(("learn", "ends_at"))
    ends = [0.0, *(stage.ends_at for stage in manifest.stages), manifest.learn.ends_at]
    for place, (begin, end) in zip(places, pairwise(ends), strict=True):
        if end <= begin:
            return place, f"ends_at must grow from stage to stage to learn; {end} comes after {begin}"
        if (end - begin) * manifest.round_seconds < MIN_STAGE_SECONDS:
            return place, (
                f"from {begin} to {end} of a round of {manifest.round_seconds} s is less than the "
                f"{MIN_STAGE_SECONDS} s that a stage needs"
            )
    return None


def _other_fault(manifest: Manifest) -> tuple[Keys, str] | None:
    for index, model in enumerate(manifest.models):
        if model != EMBEDDED_MODEL and "/" not in model:
            return ("models", index), (
                f"model {model!r} is neither {EMBEDDED_MODEL!r} nor a hub's OWNER/NAME nor a folder's path"
            )
        if model in manifest.models[:index]:
            return ("models", index), f"models names {model!r} twice"
    pinned = [normal_name(package.distribution) for package in manifest.packages]
    for index, name in enumerate(pinned):
        if name in pinned[:index]:
            return ("packages", index), f"packages names {name!r} twice"
    for stage in manifest.stages:
        if manifest.rewards.most(stage.name) == 0:
            return ("rewards",), f"the {stage.name} stage pays nothing; give it a weight or leave it out"
    if manifest.max_reward_micros >= MAX_REWARD_MICROS:
        return (
            "rewards",
        ), f"a peer could earn {manifest.max_reward_micros / MICROS:,.0f} in a round; at most " + (
            f"{MAX_REWARD_MICROS / MICROS:,.0f} fit on the ledger: lower weights or max_groups"
        )
    answer = manifest.stage("answer")
    if answer and manifest.stage("propose") and answer.max_groups + manifest.asked_proposals > MAX_GROUPS:
        return (
            "asked_proposals",
        ), f"with the answer stage's max_groups that is more than {MAX_GROUPS} groups"
    if manifest.audits.lowest_rate > manifest.audits.rate:
        return ("audits", "lowest_rate"), f"lowest_rate must not be over rate, {manifest.audits.rate}"
    return None

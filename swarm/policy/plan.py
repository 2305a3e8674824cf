"""Which of a swarm's models this machine trains, and how: decided from descriptions, before any is loaded.

The largest allowed model is taken whose context is long enough and that fits into the memory that is free, a
tenth of it left alone. The choice is kept in a file: the model and whether it has an adapter are what the
peer's states are made of, so a restart never changes them; batch sizes follow what is free each time.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace
from rich.table import Table

from swarm.errors import ModelError, UsageError
from swarm.manifest import Manifest
from swarm.policy.devices import Device, Precision, look_at
from swarm.policy.loading import check_four_bit, check_trusted, find
from swarm.policy.memory import GIB, Choice, Costs, Estimate, costs
from swarm.policy.shape import DryModel, Lengths, Shape

FULL_PARAMETERS = 300_000_000  # up to these a model is trained in full if it fits, over them by LoRA
PROMPT_TOKENS = 512  # where nobody says how long the task's prompts are
_LEAST_PROMPT_TOKENS = 64  # a context that leaves less is too short
RESERVE = 0.1  # of the free memory, left alone
# More at once is no faster: a CPU is busy with a few thousand tokens, a GPU with some ten thousand.
_MAX_SAMPLING = {"cuda": 262_144, "mps": 65_536, "cpu": 32_768}
_MAX_LEARNING = {"cuda": 65_536, "mps": 16_384, "cpu": 16_384}
# Learning tokens at once; below them checkpointing's third forward pass is worth its time.
_COMFORTABLE = 2048


Positive = Annotated[int, Meta(ge=1)]


class Wishes(Struct, frozen=True):
    """What the settings ask for; None leaves it to the plan."""

    model: str | None = None  # one of the manifest's
    device: str = "auto"
    lora: bool | None = None
    four_bit: bool | None = None
    gradient_checkpointing: bool | None = None
    share: float = 1.0  # of the free memory, for one of several peers on a machine that start together
    trusted_code: tuple[str, ...] = ()  # OWNER/NAME@COMMIT


class Considered(Struct, frozen=True):
    """One of the swarm's models: what it would take at the least, or why it is out of the question."""

    model: str
    parameters: int = 0
    needs_bytes: int = 0  # with batches as small as can be
    problem: str = ""


class Plan(Struct, frozen=True, kw_only=True):
    """What is loaded and how it is trained. As JSON on disk."""

    version: Literal[1] = 1
    model: str
    revision: str | None  # the full commit of a hub's model
    device: str
    precision: Precision
    lora: bool
    four_bit: bool
    gradient_checkpointing: bool
    sampling_tokens_at_once: Positive
    learning_tokens_at_once: Positive
    # What ran out of memory once: later plans stay at or below.
    sampling_limit: Positive | None = None
    learning_limit: Positive | None = None
    parameters: int
    context_length: int
    free_bytes: int  # when it was made, this peer's share
    total_bytes: int
    estimate: Estimate
    considered: tuple[Considered, ...]


class _Fit(Struct, frozen=True):
    """The best way to run a model, and whether there is room for it."""

    choice: Choice
    costs: Costs
    sampling: int
    learning: int
    needs_bytes: int  # at the least, without the reserve

    @property
    def has_room(self) -> bool:
        """Whether a row at a time can be sampled and learned from."""
        return self.sampling > 0 and self.learning > 0


def make_plan(
    manifest: Manifest,
    wishes: Wishes = Wishes(),  # noqa: B008 (frozen)
    *,
    device: Device | None = None,
    prompt_tokens: int | None = None,
    dry: Mapping[str, DryModel] | None = None,
) -> Plan:
    """The largest allowed model that fits the device now; `ModelError` says what must change if none does.

    Args:
        manifest: the swarm's.
        wishes: the settings'. `UsageError` for those that cannot be had here.
        device: what to plan for; by default `wishes.device` is looked at.
        prompt_tokens: the longest prompt. By default 512, or less where the context ends earlier.
        dry: models that have been looked at before, by name.
    """
    return _Planner(manifest, device or look_at(wishes.device), prompt_tokens, dry=dry or {}).plan(wishes)


def load_or_make_plan(
    path: Path,
    manifest: Manifest,
    wishes: Wishes = Wishes(),  # noqa: B008 (frozen)
    *,
    device: Device | None = None,
    prompt_tokens: int | None = None,
) -> Plan:
    """The saved plan with batches for what is free now, or else a new one, which is saved.

    `UsageError` if the wishes contradict what was saved, `ModelError` if the saved model no longer fits: it
    is never changed for another silently.
    """
    saved = read_plan(path)
    if saved is None:
        plan = make_plan(manifest, wishes, device=device, prompt_tokens=prompt_tokens)
    else:
        _check_wishes(saved, wishes, path)
        kept = replace(wishes, model=saved.model, lora=saved.lora, four_bit=saved.four_bit)
        found = device or look_at(wishes.device)
        # At a restart the other peers hold their shares already: what is free may all be this one's.
        mine = min(int(found.free_bytes / wishes.share), found.total_bytes)
        planner = _Planner(
            manifest,
            replace(found, free_bytes=mine),
            prompt_tokens,
            limits=(saved.sampling_limit, saved.learning_limit),
            revision=saved.revision,
        )
        plan = planner.plan(kept)
    write_plan(path, plan)
    return plan


def remember(
    path: Path, *, sampling_tokens_at_once: int | None = None, learning_tokens_at_once: int | None = None
) -> Plan:
    """Keep batch sizes that were halved after running out of memory; later plans never exceed them."""
    plan = read_plan(path)
    if plan is None:
        raise ModelError(f"there is no plan at {path} to remember batch sizes in; start the peer again")
    sampling = _least(plan.sampling_limit, sampling_tokens_at_once)
    learning = _least(plan.learning_limit, learning_tokens_at_once)
    plan = replace(
        plan,
        sampling_limit=sampling,
        learning_limit=learning,
        sampling_tokens_at_once=_least(sampling, plan.sampling_tokens_at_once) or 1,
        learning_tokens_at_once=_least(learning, plan.learning_tokens_at_once) or 1,
    )
    write_plan(path, plan)
    return plan


def read_plan(path: Path) -> Plan | None:
    """The saved plan; None if there is none, `ModelError` if it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"cannot read plan {path}: {error.strerror}") from error
    except ValueError as error:  # msgspec's and UnicodeDecodeError
        raise ModelError(
            f"plan {path} is damaged ({error}): put it back from a backup, or remove it together with the "
            "checkpoints beside it to start afresh"
        ) from error


def write_plan(path: Path, plan: Plan) -> None:
    """Write it so that a crash leaves either the old file or the whole new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(
            f"cannot write plan {path}: {error.strerror}; make room or choose another --home"
        ) from error


def table(plan: Plan) -> Table:
    """The plan for people: what takes how much of what is free, and what was chosen."""
    estimate = plan.estimate
    usable = plan.free_bytes
    how = "LoRA" if plan.lora else "full"
    how += ", 4-bit base" if plan.four_bit else ""
    how += ", gradient checkpointing" if plan.gradient_checkpointing else ""
    rows: list[tuple[str, str, str]] = [
        ("weights", _gib(estimate.weights + estimate.adapter), f"{plan.parameters / 1e6:,.1f}M parameters"),
        ("gradients", _gib(estimate.gradients), f"of what is trained, {how}"),
        ("optimizer", _gib(estimate.optimizer), "AdamW's moments, fp32"),
        ("reference", _gib(estimate.reference), "for the KL term" if estimate.reference else "not needed"),
        (
            "activations",
            _gib(estimate.activations),
            f"learning {plan.learning_tokens_at_once:,} tokens at once",
        ),
        ("head", _gib(estimate.head), "logits in chunks, while learning"),
        (
            "KV cache",
            _gib(estimate.kv_cache + estimate.sampling_logits),
            f"and logits, sampling {plan.sampling_tokens_at_once:,} tokens at once",
        ),
        ("overhead", _gib(estimate.overhead), "code and workspaces"),
        ("total", _gib(estimate.total), "sampling and learning take turns"),
        ("reserve", _gib(int(usable * RESERVE)), "left alone"),
        ("free", _gib(usable), f"of {_gib(plan.total_bytes)} on {plan.device}"),
    ]
    made = Table(title=f"{plan.model}: {how}, {plan.precision} on {plan.device}", title_justify="left")
    made.add_column("memory")
    made.add_column("GiB", justify="right")
    made.add_column("what for")
    for row in rows:
        made.add_row(*row, end_section=row[0] in ("overhead", "free"))
    for other in plan.considered:
        chosen = "chosen" if other.model == plan.model else other.problem
        least = f"{_gib(other.needs_bytes)}" if other.needs_bytes else "-"
        made.add_row(other.model, least, f"at least; {chosen}" if chosen else "at least; smaller")
    return made


class _Planner:
    """One planning: for a swarm, on a device, of what is free on it now."""

    def __init__(
        self,
        manifest: Manifest,
        device: Device,
        prompt_tokens: int | None,
        *,
        limits: tuple[int | None, int | None] = (None, None),
        revision: str | None = None,
        dry: Mapping[str, DryModel] | None = None,
    ) -> None:
        """`limits` are tokens at once of sampling and learning; `revision` is the only model's."""
        self._manifest = manifest
        self._device = device
        self._prompt_tokens = prompt_tokens
        self._limits = limits
        self._revision = revision
        self._dry = dry or {}

    def plan(self, wishes: Wishes) -> Plan:
        """See `make_plan`."""
        names = self._names(wishes)
        if wishes.four_bit and wishes.lora is None:
            wishes = replace(wishes, lora=True)
        if wishes.four_bit:
            check_four_bit(self._device.name, bool(wishes.lora))
        considered: list[Considered] = []
        fits: list[tuple[DryModel, _Fit]] = []
        for name in names:
            try:
                model = self._dry.get(name) or DryModel(find(name, wishes.trusted_code, self._revision))
                fit = self._best(model, wishes)
            except ModelError as error:
                considered.append(Considered(name, problem=str(error)))
                continue
            problem = "" if fit.has_room else "does not fit"
            considered.append(Considered(name, model.shape.parameters, fit.needs_bytes, problem))
            fits.append((model, fit))
        if not fits:
            raise ModelError("; ".join(other.problem for other in considered))
        fitting = [(model, fit) for model, fit in fits if fit.has_room]
        if not fitting:
            raise ModelError(self._refusal(min(fits, key=lambda one: one[1].needs_bytes)[0], wishes))
        model, fit = max(fitting, key=lambda one: one[0].shape.parameters)
        return Plan(
            model=model.source.name,
            revision=model.source.revision,
            device=self._device.name,
            precision=fit.choice.precision,
            lora=fit.choice.lora,
            four_bit=fit.choice.four_bit,
            gradient_checkpointing=fit.choice.gradient_checkpointing,
            sampling_tokens_at_once=fit.sampling,
            learning_tokens_at_once=fit.learning,
            sampling_limit=self._limits[0],
            learning_limit=self._limits[1],
            parameters=model.shape.parameters,
            context_length=model.shape.context,
            free_bytes=self._free(wishes),
            total_bytes=self._device.total_bytes,
            estimate=fit.costs.estimate(fit.sampling, fit.learning),
            considered=tuple(considered),
        )

    def _names(self, wishes: Wishes) -> tuple[str, ...]:
        """The models to consider, once it is known that the wishes make sense."""
        check_trusted(wishes.trusted_code)
        if not 0 < wishes.share <= 1:
            raise UsageError(f"a peer's share of the memory is over 0 and at most 1, not {wishes.share}")
        if wishes.model is None:
            return self._manifest.models
        if wishes.model not in self._manifest.models:
            raise UsageError(
                f"swarm {self._manifest.name} does not allow model {wishes.model}; it allows "
                f"{', '.join(self._manifest.models)}"
            )
        return (wishes.model,)

    def _free(self, wishes: Wishes) -> int:
        return int(self._device.free_bytes * wishes.share)

    def _best(self, model: DryModel, wishes: Wishes) -> _Fit:
        """The first way of training that fits, in the order of preference; else the one that needs least."""
        lengths = self._lengths(model)
        fits: list[_Fit] = []
        for lora in _ways(model.shape, wishes):
            precision = self._device.precision(lora)
            forward = model.forward(precision, lora, lengths)
            ways: list[_Fit] = []
            for checkpointing in (False, True):
                if wishes.gradient_checkpointing in (None, checkpointing):
                    choice = Choice(precision, lora, bool(wishes.four_bit), checkpointing)
                    reference = self._manifest.learn.beta > 0
                    prices = costs(model.shape, forward, choice, lengths, self._device, reference)
                    ways.append(self._fit(prices, choice, lengths, self._free(wishes)))
            plain, roomiest = ways[0], max(ways, key=lambda fit: fit.learning)
            # Not computing activations twice is worth smaller batches, while they are of some size.
            fit = plain if plain.learning >= min(_COMFORTABLE, roomiest.learning) else roomiest
            if fit.has_room:
                return fit
            fits += ways
        return min(fits, key=lambda fit: fit.needs_bytes)

    def _fit(self, prices: Costs, choice: Choice, lengths: Lengths, free: int) -> _Fit:
        """Batches as large as there is room and use for; 0 where not even one row has room."""
        usable = int(free * (1 - RESERVE))
        kind = self._device.kind
        groups = max(stage.max_groups for stage in self._manifest.stages)
        sampled = groups * lengths.group_size * lengths.row  # in a stage, at the most
        learned = self._manifest.learn.groups_per_step * lengths.group  # in an optimizer step
        sampling = min(prices.sampling_tokens(usable), max(min(_MAX_SAMPLING[kind], sampled), lengths.row))
        learning = min(prices.learning_tokens(usable), max(min(_MAX_LEARNING[kind], learned), lengths.row))
        has_room = sampling >= lengths.row and learning >= lengths.row
        # A limit may be less than a row: the sampler and the learner do one row at a time then.
        return _Fit(
            choice,
            prices,
            (_least(self._limits[0], sampling) or 1) if has_room else 0,
            (_least(self._limits[1], learning) or 1) if has_room else 0,
            prices.estimate(lengths.row, lengths.row).total,
        )

    def _lengths(self, model: DryModel) -> Lengths:
        completion = max(stage.max_tokens for stage in self._manifest.stages)
        context = model.shape.context
        asked = self._prompt_tokens
        needed = completion + (_LEAST_PROMPT_TOKENS if asked is None else asked)
        if context < needed:
            raise ModelError(
                f"model {model.source.name} reads {context} tokens, and swarm {self._manifest.name} needs "
                f"{needed}; choose another of its models"
            )
        prompt = min(PROMPT_TOKENS, context - completion) if asked is None else asked
        return Lengths(prompt, completion, self._manifest.group_size)

    def _refusal(self, model: DryModel, wishes: Wishes) -> str:
        """Why the model does not fit, and the smallest change that would make it."""
        now, free = self._best(model, wishes), self._free(wishes)
        said = (
            f"model {model.source.name} needs {_gib(_with_reserve(now.needs_bytes))} GiB, {_gib(free)} GiB "
            f"are free on {self._device.name}"
        )
        changes: dict[str, Wishes] = {}
        if wishes.gradient_checkpointing is False:
            changes["gradient checkpointing"] = replace(wishes, gradient_checkpointing=None)
        if wishes.lora is False:
            changes["--lora"] = replace(wishes, lora=True)
        if self._device.kind == "cuda" and not wishes.four_bit:
            changes["--four-bit"] = replace(wishes, lora=True, four_bit=True, gradient_checkpointing=None)
        changed = {what: self._best(model, wish) for what, wish in changes.items()}
        for what, fit in changed.items():
            if fit.has_room:
                return f"{said}: {what} would fit"
        if wishes.share < 1 and self._best(model, replace(wishes, share=1.0)).has_room:
            return f"{said} for this peer: fewer peers on this machine would leave enough"
        what, least = min({"": now, **changed}.items(), key=lambda one: one[1].needs_bytes)
        missing = _with_reserve(least.needs_bytes) - free + GIB // 20  # rounding may take as much away
        return (
            f"{said}: {_gib(missing)} GiB more must be free{what and f', even with {what}'}; close other "
            "programs, or use another --device"
        )


def _ways(shape: Shape, wishes: Wishes) -> Sequence[bool]:
    """Whether to train an adapter, in the order of preference."""
    if wishes.lora is not None:
        return (wishes.lora,)
    return (False, True) if shape.parameters <= FULL_PARAMETERS else (True,)


def _with_reserve(size: int) -> int:
    """What must be free for so many bytes to be used."""
    return math.ceil(size / (1 - RESERVE))


def _check_wishes(saved: Plan, wishes: Wishes, path: Path) -> None:
    """The peer's states are of the saved model: another needs a fresh start."""
    afresh = f"to start afresh, move {path.parent} away"
    if wishes.model is not None and wishes.model != saved.model:
        raise UsageError(f"this peer trains {saved.model} here, not {wishes.model}; {afresh}")
    if wishes.lora is not None and wishes.lora != saved.lora:
        raise UsageError(
            f"this peer trains {saved.model} {'by LoRA' if saved.lora else 'in full'} here; {afresh}"
        )
    if wishes.four_bit is not None and wishes.four_bit != saved.four_bit:
        raise UsageError(
            f"this peer trains {saved.model} {'with' if saved.four_bit else 'without'} a 4-bit base; {afresh}"
        )


def _least(limit: int | None, value: int | None) -> int | None:
    return value if limit is None else limit if value is None else min(limit, value)


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}" if size < GIB // 10 else f"{size / GIB:,.1f}"

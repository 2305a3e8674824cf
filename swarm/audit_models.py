"""The models of an auditor: the one that a commitment names, loaded once and kept until another is named."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from msgspec.structs import replace

from swarm.audit import Model
from swarm.errors import ModelError, UsageError
from swarm.learner.trainer import Learner
from swarm.manifest import Manifest
from swarm.policy.loading import base_digest, find
from swarm.policy.model import Policy
from swarm.policy.plan import Plan
from swarm.verde.build import Build

log = logging.getLogger("swarm.audit")


class LoadedModels:
    """Loads as the plan of this machine says: on its device, with its bounds on memory.

    What a commitment says of its model (which one, an adapter or not, the precision) is taken from it: its
    states fit no other. But which revision of a model is the public one it cannot say, and nothing is loaded
    for it that this machine's plan found too large.
    """

    def __init__(
        self, manifest: Manifest, plan: Plan, work_dir: Path, trusted_code: Collection[str] = ()
    ) -> None:
        self._manifest = manifest
        self._plan = plan
        self._work_dir = work_dir
        self._trusted_code = trusted_code
        self._plan_now: Plan | None = None
        self._model: Model | None = None

    def get(self, build: Build) -> Model:
        """The model of a commitment, one of the manifest's; `ModelError` if it cannot be had."""
        revision = self._revision(build.model)
        if build.revision != revision:
            raise ModelError(f"its model {build.model} is of another revision than here, {revision}")
        plan = replace(
            self._plan,
            model=build.model,
            revision=revision,
            lora=build.lora,
            four_bit=build.four_bit,
            precision=build.precision,
            gradient_checkpointing=build.gradient_checkpointing,
        )
        if self._model is None or plan != self._plan_now:
            self._model = None  # before the next one takes its place in memory
            self._model, self._plan_now = self._load(plan), plan
        return self._model

    def _revision(self, model: str) -> str | None:
        """The full commit of a hub's model as this machine finds it; None for models from elsewhere."""
        if model == self._plan.model:
            return self._plan.revision
        too_large = [
            one.model
            for one in self._plan.considered
            if one.problem or one.needs_bytes > self._plan.free_bytes
        ]
        if model in too_large:
            raise ModelError(f"model {model} is too large for this machine")
        try:
            return find(model, self._trusted_code).revision
        except UsageError as error:
            raise ModelError(str(error)) from error

    def preload(self) -> None:
        """Load the model of this machine's own plan, which most others have too; or `ModelError`."""
        self._model, self._plan_now = self._load(self._plan), self._plan

    def _load(self, plan: Plan) -> Model:
        manifest = self._manifest
        log.info("loading to audit model=%s device=%s", plan.model, plan.device)
        try:
            policy = Policy.of(plan, None, self._trusted_code)
            base = base_digest(plan.model, plan.revision, self._trusted_code)
        except UsageError as error:
            raise ModelError(str(error)) from error
        learner = Learner(
            policy,
            manifest.learn,
            manifest.group_size,
            manifest.sampling.temperature,
            max(stage.max_tokens for stage in manifest.stages),
            self._work_dir,
        )
        learner.max_tokens_at_once = plan.learning_tokens_at_once
        return Model(policy, learner, Build.of(plan, policy, learner), base, learner.state().digest)

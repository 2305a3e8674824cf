"""What a node trains: its policy and learner, their states on disk, and who is told how it goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from swarm import effects
from swarm.console import show
from swarm.errors import ModelError
from swarm.learner.channel import Recipe
from swarm.learner.checkpoints import Checkpoints, Tensors, unkept
from swarm.learner.parallel import Team
from swarm.learner.parallel_learner import ParallelLearner
from swarm.learner.publish import HubPush, write_model
from swarm.learner.trackers import Trackers
from swarm.learner.trainer import TrainingGroup, Update
from swarm.manifest import Manifest, Stage
from swarm.policy.loading import base_digest
from swarm.policy.model import Policy
from swarm.policy.plan import Plan, Wishes, load_or_make_plan, remember, table, write_plan
from swarm.records import RoundRecord
from swarm.settings import Settings
from swarm.succession import Inheritance
from swarm.verde.build import Build
from swarm.verde.state_files import StateFiles
from swarm.verde.verdicts import AuditClass

log = logging.getLogger("swarm.node")


@dataclass(frozen=True)
class SamplingState:
    """The state that a round is sampled with; `weights` is None if it is the learner's present one."""

    files: StateFiles
    weights: Tensors | None = None

    @property
    def digest(self) -> bytes:
        """The state's 32 bytes."""
        return self.files.digest


class Training:
    """A node's model for as long as it lives.

    Attributes:
        policy: what samples.
        learner: what trains the policy's model.
        base: digest of the public model that all states belong to.
        audit_class: how equal what we claim is to what an auditor of the same software finds.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        folder: Path,
        peer: str,
        recorded: Collection[int],
        inherited: Inheritance | None = None,
    ) -> None:
        """Plan the memory, load the model, and go on from the newest state of a recorded round.

        A life that ended between a state and its round's record leaves a state that no report names: going on
        from it would break the chain of states on the ledger. Without any state, begin with the one that is
        inherited from the swarm's predecessor, else with the base model.

        Args:
            folder: the swarm's.
            peer: names this peer's curves.
            recorded: the rounds with a record.
        """
        self._manifest = manifest
        self._stack = ExitStack()
        try:
            self._trackers = Trackers(
                settings.trackers, folder / "curves", peer, {"swarm": manifest.swarm_id.hex()}
            )
            self._stack.callback(self._trackers.close)
            self._plan_path = folder / "plan.json"
            if inherited is not None and not self._plan_path.exists():
                inherited = self._inherit_plan(inherited, settings)
            self._plan = load_or_make_plan(self._plan_path, manifest, _wishes(settings))
            show(table(self._plan))
            self._load(settings, self._plan, folder)
            self._push = self._hub_push(settings, folder)
            self._checkpoints = Checkpoints(folder / "checkpoints", keep=manifest.audits.kept_states)
            if not self._resume(self._checkpoints, recorded):
                if inherited is not None and self._trains_like(inherited.plan):
                    self._resume(Checkpoints(inherited.checkpoints), inherited.recorded)
                self._keep(None)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """End helpers, curves and uploads, within bounds."""
        self._stack.close()

    def _load(self, settings: Settings, plan: Plan, folder: Path) -> None:
        manifest = self._manifest
        log.info("loading swarm=%r model=%s device=%s", manifest.name, plan.model, plan.device)
        longest = max(stage.max_tokens for stage in manifest.stages)
        recipe = Recipe(
            plan=plan,
            learn=manifest.learn,
            group_size=manifest.group_size,
            temperature=manifest.sampling.temperature,
            max_completion_tokens=longest,
            work_dir=str(folder),
            threads=settings.threads,
            trusted_code=settings.trusted_code,
        )
        self._team = self._stack.enter_context(Team(recipe, settings.processes))
        self.policy = Policy.of(plan, settings.threads, settings.trusted_code)
        self.learner = ParallelLearner(
            self._team,
            self.policy,
            manifest.learn,
            manifest.group_size,
            manifest.sampling.temperature,
            longest,
            folder,
        )
        self.learner.max_tokens_at_once = plan.learning_tokens_at_once
        self.base = base_digest(plan.model, plan.revision, settings.trusted_code)
        # Sums of several processes depend on how many there are, and an auditor has one.
        self.audit_class = AuditClass.SAME_BUILD if settings.processes == 1 else AuditClass.TOLERANT
        self._processes = settings.processes
        self._team.wait_until_ready()

    def _hub_push(self, settings: Settings, folder: Path) -> HubPush | None:
        if settings.push_repo is None:
            return None
        push = HubPush(
            settings.push_repo,
            settings.push_rounds,
            settings.push_private,
            swarm_id=self._manifest.swarm_id,
            base_model=self.policy.name,
            work_dir=folder,
        )
        self._stack.callback(push.close)
        return push

    def _inherit_plan(self, inherited: Inheritance, settings: Settings) -> Inheritance | None:
        """Train what the predecessor trained, unless the settings ask for something else."""
        plan = inherited.plan
        wishes, trained = (
            (settings.model, settings.lora, settings.four_bit),
            (plan.model, plan.lora, plan.four_bit),
        )
        if any(wish not in (None, was) for wish, was in zip(wishes, trained, strict=True)):
            log.warning("the predecessor's state is of another model, beginning anew model=%s", plan.model)
            return None
        write_plan(self._plan_path, plan)
        try:
            load_or_make_plan(self._plan_path, self._manifest, _wishes(settings))
        except ModelError as error:
            self._plan_path.unlink(missing_ok=True)
            log.warning("the predecessor's model cannot be trained here, beginning anew error=%r", str(error))
            return None
        return inherited

    def _trains_like(self, plan: Plan) -> bool:
        ours = self._plan
        return (ours.model, ours.revision, ours.lora) == (plan.model, plan.revision, plan.lora)

    def _resume(self, checkpoints: Checkpoints, recorded: Collection[int]) -> bool:
        """Go on from the newest state of a recorded round; whether there is one."""
        for number in checkpoints.rounds():
            if number not in recorded:
                log.warning("checkpoint of an unfinished round is passed over round=%d", number)
                continue
            try:
                state = checkpoints.load(number)
                self.learner.restore(state)
            except ModelError as error:
                log.warning("checkpoint unreadable error=%r", str(error))
                continue
            files = checkpoints.files(number)
            if files is None or files.digest != state.digest:
                log.warning("checkpoint unreadable round=%d error='no digests of its files'", number)
                continue
            self._files = files
            log.info("resumed after round=%d of %s", number, checkpoints.folder.parent.name)
            return True
        return False

    def go_back(self, states: Collection[bytes]) -> bytes | None:
        """Go on from the newest kept state of these, or from the first; its digest, if that is another."""
        for number in [*self._checkpoints.rounds(), None]:
            files = self._checkpoints.files(number)
            if files is None or (number is not None and files.digest not in states):
                continue
            if files.digest == self._files.digest:
                return None
            try:
                self.learner.restore(self._checkpoints.load(number))
            except ModelError as error:
                log.warning("checkpoint unreadable error=%r", str(error))
                continue
            self._files = files
            return files.digest
        return None

    # A round

    def update(self, groups: Sequence[TrainingGroup], number: int, *, nudge: bool = False) -> Update:
        """Round `number`'s update; the state after it is kept. `nudge` plants a fault: one moved weight."""
        update = self.learner.update(groups)
        if nudge:
            self.learner.nudge()
        self._keep(number)
        return update

    def present_state(self) -> SamplingState:
        """The learner's state as it is."""
        return SamplingState(self._files)

    @property
    def plan(self) -> Plan:
        """What is trained and how."""
        return self._plan

    def shared_files(self) -> dict[bytes, Path]:
        """The files of the kept states, by their SHA-256: auditors may ask for them."""
        return self._checkpoints.shared()

    def build(self) -> Build:
        """What the round was computed with."""
        return Build.of(self._plan, self.policy, self.learner, self._processes)

    def committed_state(self, number: int, committed: bytes | None) -> SamplingState:
        """What to sample round `number` with: the state that was on the ledger before its beacon.

        So nobody can fit a model to questions already known (DESIGN.md, section 4). It is older than the
        learner's if the last report came late.

        Args:
            committed: the digest on the ledger; None before the first report, when it is the base model's.
        """
        present = self.present_state()
        wanted = committed or self._checkpoints.digest(None)
        if wanted is None or wanted == present.digest:
            return present
        weights, files = self._checkpoints.weights_of(wanted), self._checkpoints.files_of(wanted)
        if weights is None or files is None:
            log.warning("the state on the ledger is not kept, sampling with the present one round=%d", number)
            return present
        log.info(
            "the last report was not on the ledger in time, sampling with an older state round=%d", number
        )
        return SamplingState(files, weights)

    def sample(
        self,
        state: SamplingState,
        stage: Stage,
        prompts: Sequence[str],
        seeds: Sequence[Sequence[bytes]],
        until: Callable[[], bool],
    ) -> list[list[list[int]]]:
        """Completions `[group][completion][token]` of a prefix of the prompts, all that fit before `until`.

        A prompt that the model cannot read ends the prefix: questions are answered without gaps.
        """
        encoded = self._readable(stage, prompts)
        if not encoded:
            return []
        with self.learner.with_weights(state.weights):
            return self._team.sample(
                self.learner,
                encoded,
                seeds[: len(encoded)],
                max_tokens=stage.max_tokens,
                sampling=self._manifest.sampling,
                until=until,
            )

    def _readable(self, stage: Stage, prompts: Sequence[str]) -> list[list[int]]:
        """The prompts in tokens, up to the first that the model cannot read with a completion after it."""
        limit = self.policy.context_length - stage.max_tokens
        encoded: list[list[int]] = []
        for prompt in prompts:
            try:
                tokens = self.policy.encode_prompt(prompt)
            except ModelError as error:  # a template that fails on some texts
                log.warning("prompt and later ones left out stage=%s error=%r", stage.name, str(error))
                break
            if len(tokens) > limit:
                log.warning(
                    "prompt too long for the model, it and later ones left out stage=%s tokens=%d limit=%d",
                    stage.name,
                    len(tokens),
                    limit,
                )
                break
            encoded.append(tokens)
        return encoded

    def admits(self, groups: Sequence[tuple[list[int], list[list[int]]]], top_k: int) -> list[list[bool]]:
        """For each prompt's completions, whether our model could have made them.

        That is: they fit into its context, and each token is among the `top_k` likeliest (0: any is).
        """
        limit = self.policy.context_length
        fits = [
            [len(prompt) + len(completion) <= limit for completion in completions]
            for prompt, completions in groups
        ]
        asked = [
            (prompt, [c for c, is_short in zip(completions, short, strict=True) if is_short])
            for (prompt, completions), short in zip(groups, fits, strict=True)
        ]
        likely = [iter(flags) for flags in self.policy.within_top_k(asked, top_k)]
        return [
            [is_short and next(flags) for is_short in short]
            for short, flags in zip(fits, likely, strict=True)
        ]

    def _keep(self, number: int | None) -> None:
        """Keep the state after a round (None: before the first); a full disk costs this, not the round."""
        state = self.learner.state()
        try:
            self._files = self._checkpoints.save(state, number)
        except ModelError as error:
            log.error("checkpoint not written round=%s error=%r", number, str(error))
            self._files = unkept(state)

    def tell(self, record: RoundRecord, update: Update | None) -> None:
        """After a round: draw the curves on, publish the model if that is due, remember smaller batches."""
        values = {f"reward/{stage}": mean for stage, mean in record.rewards.items()}
        values |= {f"seconds/{kind}": seconds for kind, seconds in record.seconds.items()}
        values |= {
            "groups/own": float(record.groups),
            "groups/external": float(record.external_groups),
            "dropped": float(sum(record.dropped.values())),
            "tokens": float(record.tokens),
        }
        if update is not None and update.steps:
            values |= {f"learn/{name}": value for name, value in update.measured().items()}
        self._trackers.log(record.round, values)
        if self._push is not None:
            self._push.offer(
                record.round,
                lambda folder: write_model(self.policy.model, self.policy.encoding.tokenizer, folder),
            )
        self._remember_batches()

    def _remember_batches(self) -> None:
        sampling = _if_less(self.policy.max_tokens_at_once, self._plan.sampling_tokens_at_once)
        learning = _if_less(self.learner.max_tokens_at_once, self._plan.learning_tokens_at_once)
        if sampling is None and learning is None:
            return
        try:
            self._plan = remember(
                self._plan_path, sampling_tokens_at_once=sampling, learning_tokens_at_once=learning
            )
        except ModelError as error:
            log.error("smaller batches not remembered error=%r", str(error))


def tokenized(policy: Policy, manifest: Manifest, group: effects.TrainingGroup) -> TrainingGroup:
    """A group to learn from in the model's tokens; `ModelError` if its chat template fails on the prompt.

    Another peer's answers are encoded anew, and cut where an answer of our own would have been.
    """
    answer = manifest.stage("answer")
    assert answer is not None  # every swarm has it
    return TrainingGroup(
        prompt=policy.encode_prompt(group.prompt),
        completions=[
            list(completion.tokens)
            if group.own
            else policy.encode_completion(completion.text)[: answer.max_tokens]
            for completion in group.completions
        ],
        rewards=list(group.rewards),
    )


def _if_less(now: int, planned: int) -> int | None:
    return now if now < planned else None


def _wishes(settings: Settings) -> Wishes:
    return Wishes(
        model=settings.model,
        device=settings.device,
        lora=settings.lora,
        four_bit=settings.four_bit,
        share=settings.memory_share,
        trusted_code=settings.trusted_code,
    )

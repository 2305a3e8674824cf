"""Performs a round's effects with the real policy, learner and exchange."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from swarm.effects import Commit, Effect, Gather, Learn, Learned, Publish, Received, Sample, Screen
from swarm.errors import ExchangeError, ModelError
from swarm.exchange.service import Exchange
from swarm.exchange.wire import Completion
from swarm.learner.trainer import TrainingGroup, Update
from swarm.manifest import STAGE_NUMBER
from swarm.records import StageOutcome
from swarm.round import RoundRules
from swarm.training import SamplingState, Training, tokenized
from swarm.verde.verdicts import AuditClass

log = logging.getLogger("swarm.node")

_NAMES = {number: name for name, number in STAGE_NUMBER.items()}
# Fetching a cell's blobs may take this share of a round; who is slower than that is left out.
GATHER_SHARE = 0.1


class Pace:
    """How long a group takes to learn from here, so that a batch can be cut to what fits in time."""

    def __init__(self) -> None:
        self._seconds_per_group: float | None = None

    def fitting(self, seconds: float) -> int:
        """How many groups fit into some seconds: at least one; before the first measurement, all."""
        if self._seconds_per_group is None:
            return sys.maxsize
        return max(1, int(seconds / self._seconds_per_group))

    def measured(self, groups: int, seconds: float) -> None:
        """Take a measurement in; the last one counts."""
        if groups:
            self._seconds_per_group = seconds / groups


class Performer:
    """Carries out the effects of one round; what concerns the peer's whole life comes in as callables.

    `seconds` sums up where the round's time went: "beacon" (until it was known), "sample", "learn", "wait"
    (for deadlines) and "other". `stages` says of each stage, and of "learn", whether it was in time.

    Args:
        state: what to sample with; the update begins with the learner's own.
        wait_until: sleeps until a time on the ledger's clock (Unix seconds).
        commit: writes the round down and reports it.
        show: tells the user which stage is under way.
    """

    def __init__(
        self,
        rules: RoundRules,
        training: Training,
        exchange: Exchange,
        pace: Pace,
        state: SamplingState,
        *,
        now: Callable[[], float],
        wait_until: Callable[[float], None],
        commit: Callable[[Commit], None],
        show: Callable[[str], None],
    ) -> None:
        self._rules = rules
        self._training = training
        self._policy = training.policy
        self._exchange = exchange
        self._pace = pace
        self._state = state
        self._now = now
        self._wait_until = wait_until
        self._commit = commit
        self._show = show
        self._began = time.monotonic()
        self._spent = {"beacon": max(0.0, now() - rules.starts_at), "sample": 0.0, "learn": 0.0, "wait": 0.0}
        self._heard: set[bytes] = set()  # others' blobs that came
        self._announced: dict[int, float | None] = {}  # when, by stage's number; None: it could not be
        self.stages: dict[str, StageOutcome] = {}
        self.tokens = 0  # sampled
        self.update: Update | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Where the time since the round's beginning went."""
        counted = sum(self._spent.values()) - self._spent["beacon"]
        return {**self._spent, "other": time.monotonic() - self._began - counted}

    def perform(self, effect: Effect[object]) -> object:
        """Do what the effect asks and return its outcome."""
        match effect:
            case Sample():
                return self._sample(effect)
            case Screen():
                return self._screen(effect)
            case Publish():
                self._publish(effect)
                return None
            case Gather():
                return self._gather(effect)
            case Learn():
                return self._learn(effect)
            case Commit():
                self._show("report")
                if self._keep(effect):
                    self._commit(effect)
                return None
        raise TypeError(f"no such effect: {effect!r}")

    def _sample(self, effect: Sample) -> list[tuple[Completion, ...]]:
        self._show(effect.stage.name)
        with self._spending("sample"):
            groups = self._training.sample(
                self._state, effect.stage, effect.prompts, effect.seeds, lambda: self._now() >= effect.until
            )
        self.tokens += sum(len(completion) for group in groups for completion in group)
        return [
            tuple(Completion.of(tokens, self._policy.decode(tokens)) for tokens in group) for group in groups
        ]

    def _publish(self, effect: Publish) -> None:
        try:
            self._exchange.put_blob(effect.blob)
            self._exchange.announce(effect.announcement)
        except ExchangeError as error:
            log.warning(
                "not announced round=%d stage=%d error=%r",
                self._rules.round,
                effect.announcement.stage,
                str(error),
            )
            self._announced[effect.announcement.stage] = None
        else:
            self._announced[effect.announcement.stage] = self._now()

    def _outcome(self, effect: Gather) -> StageOutcome:
        """Of the stage that ends now. Others look at its end: what is announced later they may not see."""
        if effect.stage not in self._announced:
            return "empty"
        at = self._announced[effect.stage]
        if at is None:
            return "failed"
        return "on_time" if at <= effect.at else "late"

    def _keep(self, commit: Commit) -> bool:
        """Serve what auditors ask for, before it is reported: who does not serve is found at fault."""
        self._exchange.share(self._training.shared_files())
        try:
            self._exchange.put_blob(commit.head)
            self._exchange.put_blob(commit.blob)
        except ExchangeError as error:
            log.error("round is not reported round=%d error=%r", self._rules.round, str(error))
            self._training.go_back({commit.learned.state_before.digest})
            return False
        self._exchange.keep(self._heard)
        return True

    def _gather(self, effect: Gather) -> list[Received]:
        self.stages[_NAMES[effect.stage]] = self._outcome(effect)
        with self._spending("wait"):
            self._wait_until(effect.at)
        try:
            collected = self._exchange.collect(
                self._rules.round,
                effect.stage,
                effect.cell,
                timeout=GATHER_SHARE * self._rules.manifest.round_seconds,
                max_peers=effect.max_peers,
                order=lambda heard: effect.order(heard.announcement.root),
                limit=effect.limit,
            )
        except ExchangeError as error:
            log.warning(
                "nothing heard round=%d stage=%d error=%r", self._rules.round, effect.stage, str(error)
            )
            return []
        self._heard |= {item.heard.announcement.blob for item in collected}
        return [
            Received(item.heard.peer, item.heard.envelope, item.heard.announcement.root, item.groups)
            for item in collected
        ]

    def _screen(self, effect: Screen) -> list[tuple[bool, ...]]:
        self._show("learn")
        if self._now() >= effect.until:
            return []
        readable: dict[int, TrainingGroup] = {}
        for index, group in enumerate(effect.groups):
            with suppress(ModelError):  # a template that fails on some texts
                readable[index] = tokenized(self._policy, self._rules.manifest, group)
        with self._spending("learn"):
            admitted = self._training.admits(
                [(group.prompt, group.completions) for group in readable.values()], effect.top_k
            )
        flags = dict(zip(readable, admitted, strict=True))
        return [
            tuple(flags.get(index, [False] * len(group.completions)))
            for index, group in enumerate(effect.groups)
        ]

    def _learn(self, effect: Learn) -> Learned:
        self._show("learn")
        before = self._training.present_state().files
        batch = effect.batch[: self._pace.fitting(effect.until - self._now())]
        groups = [tokenized(self._policy, self._rules.manifest, group) for group in batch]
        build = self._training.build()
        self.update = self._training.update(groups, self._rules.round, nudge=effect.nudge)
        self._spent["learn"] += self.update.seconds  # what it takes to keep the state is overhead
        self._pace.measured(len(batch), self.update.seconds)
        if not batch:
            self.stages["learn"] = "empty"
        else:
            self.stages["learn"] = "on_time" if self._now() <= effect.until else "late"
        log.debug("learned update=%s", self.update)
        return Learned(
            taken=len(batch),
            base=self._training.base,
            # Batches that were halved on the way, for want of memory, nobody can repeat.
            audit_class=self._training.audit_class
            if build == self._training.build()
            else AuditClass.TOLERANT,
            build=build,
            sampled_with=self._state.files,
            state_before=before,
            state_after=self._training.present_state().files,
        )

    @contextmanager
    def _spending(self, kind: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[kind] += time.monotonic() - began

"""Performs a round's effects with the real policy, learner and exchange."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from swarm import effects
from swarm.effects import Commit, Effect, Gather, Learn, Learned, Publish, Received, Sample
from swarm.errors import ExchangeError
from swarm.exchange.service import Exchange
from swarm.exchange.wire import Completion
from swarm.learner.trainer import Learner, TrainingGroup
from swarm.policy.model import Policy
from swarm.round import RoundRules

log = logging.getLogger("swarm.node")

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

    Args:
        wait_until: sleeps until a time on the ledger's clock (Unix seconds).
        checkpoint: keeps the learner's state after the given round.
        commit: writes the round down and reports it.
        show: tells the user which stage is under way.
    """

    def __init__(
        self,
        rules: RoundRules,
        policy: Policy,
        learner: Learner,
        exchange: Exchange,
        pace: Pace,
        *,
        now: Callable[[], float],
        wait_until: Callable[[float], None],
        checkpoint: Callable[[int], None],
        commit: Callable[[Commit], None],
        show: Callable[[str], None],
    ) -> None:
        self._rules = rules
        self._policy = policy
        self._learner = learner
        self._exchange = exchange
        self._pace = pace
        self._now = now
        self._wait_until = wait_until
        self._checkpoint = checkpoint
        self._commit = commit
        self._show = show

    def perform(self, effect: Effect[object]) -> object:
        """Do what the effect asks and return its outcome."""
        match effect:
            case Sample():
                return self._sample(effect)
            case Publish():
                self._publish(effect)
                return None
            case Gather():
                return self._gather(effect)
            case Learn():
                return self._learn(effect)
            case Commit():
                self._show("report")
                self._commit(effect)
                self._keep(effect.blob)
                return None
        raise TypeError(f"no such effect: {effect!r}")

    def _sample(self, effect: Sample) -> list[tuple[Completion, ...]]:
        self._show(effect.stage.name)
        started = time.monotonic()
        groups = self._policy.sample(
            [self._policy.encode_prompt(prompt) for prompt in effect.prompts],
            effect.seeds,
            max_tokens=effect.stage.max_tokens,
            sampling=self._rules.manifest.sampling,
            until=lambda: self._now() >= effect.until,
        )
        log.debug("sampled groups=%d seconds=%.2f", len(groups), time.monotonic() - started)
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

    def _keep(self, commitment: bytes) -> None:
        """Serve the commitment; its root is on the ledger already, so a full disk loses no round."""
        try:
            self._exchange.put_blob(commitment)
        except ExchangeError as error:
            log.error("commitment not kept round=%d error=%r", self._rules.round, str(error))

    def _gather(self, effect: Gather) -> list[Received]:
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
        return [Received(item.heard.peer, item.heard.announcement.root, item.groups) for item in collected]

    def _learn(self, effect: Learn) -> Learned:
        self._show("learn")
        before = self._learner.state_digest()
        batch = effect.batch[: self._pace.fitting(effect.until - self._now())]
        update = self._learner.update([self._training_group(group) for group in batch])
        self._pace.measured(len(batch), update.seconds)
        self._checkpoint(self._rules.round)
        log.debug("learned update=%s", update)
        # Sampling and learning do not overlap yet: the state that sampled is the one that learns.
        after = self._learner.state_digest()
        return Learned(taken=len(batch), sampled_with=before, state_before=before, state_after=after)

    def _training_group(self, group: effects.TrainingGroup) -> TrainingGroup:
        return TrainingGroup(
            prompt=self._policy.encode_prompt(group.prompt),
            completions=[
                list(completion.tokens) if group.own else self._re_encode(completion.text)
                for completion in group.completions
            ],
            rewards=list(group.rewards),
        )

    def _re_encode(self, text: str) -> list[int]:
        """Another peer's answer in our tokens, cut where an answer of our own would have been."""
        return self._policy.encode_completion(text)[: self._rules.manifest.stages[0].max_tokens]

"""A gallery of peers that cheat, each a few lines over an honest node.

Run as `PYTHONPATH=. python tests/cheats.py NAME join …`: a `swarm join` of a peer that cheats from the first
round on, and writes `cheated round=…` into its log whenever it does. The last few are honest, under unkind
conditions.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch

from swarm import auditing, cli
from swarm.audit import Case
from swarm.audit_process import AuditProcess, Start
from swarm.cellmates import MAX_CHARS_PER_TOKEN
from swarm.effects import Commit, Learn, Sample, Screen
from swarm.errors import ExchangeError
from swarm.exchange.service import Exchange
from swarm.exchange.wire import Completion
from swarm.findings import Finding, Findings
from swarm.learner.checkpoints import Checkpoints
from swarm.learner.trainer import Update
from swarm.ledger.clock import LedgerClock
from swarm.manifest import STAGE_NUMBER
from swarm.node import Node
from swarm.performer import Performer
from swarm.training import Training
from swarm.verde.commitment import Commitment
from swarm.verde.state_files import StateFile, StateFiles
from swarm.verde.verdicts import AuditClass, Check, Fault, Outcome

log = logging.getLogger("swarm.cheat")

Groups = list[tuple[Completion, ...]]
SLOW_DISK_SECONDS = 1.5  # to write a state
SKEW_SECONDS = 2.0


def cheated(number: int) -> None:
    """Say that round `number` is not as it should be; a test reads it in the log."""
    log.info("cheated round=%d", number)


class Cheat(Performer):
    """Answers are honest unless a subclass changes what was sampled."""

    def perform(self, effect: Any) -> Any:
        outcome = super().perform(effect)
        if not isinstance(effect, Sample) or effect.stage.name != "answer" or not outcome:
            return outcome
        shown = self.sampled(effect, outcome)
        if shown != outcome:
            cheated(self._rules.round)
        return shown

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        raise NotImplementedError

    def question(self, number: int) -> Any:
        draw = self._rules.draw
        return self._rules.tasks.draw(draw.question_seed(draw.cell(self._rules.peer), number))


class FalseReward(Performer):
    """Claims twice what it earned."""

    def perform(self, effect: Any) -> Any:
        if isinstance(effect, Commit):
            claimed = msgspec.msgpack.decode(effect.blob, type=Commitment)
            micros = min(2 * claimed.reward_micros + 1, self._rules.manifest.max_reward_micros)
            claimed = msgspec.structs.replace(claimed, reward_micros=micros)
            played = replace(effect.played, reward_micros=micros, commitment=claimed.root())
            effect = Commit(claimed.head(), claimed.encode(), effect.learned, played)
            cheated(self._rules.round)
        return super().perform(effect)


class OtherModel(Performer):
    """Samples with weights that it never committed to."""

    def perform(self, effect: Any) -> Any:
        if not isinstance(effect, Sample):
            return super().perform(effect)
        generator = torch.Generator().manual_seed(1)
        better = {
            name: weight + 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
            for name, weight in self._training.learner.weights().items()
        }
        honest, self._state = self._state, replace(self._state, weights=better)
        cheated(self._rules.round)
        try:
            return super().perform(effect)
        finally:
            self._state = honest


class Greedy(Performer):
    """Takes the likeliest token in place of the seeded choice."""

    def perform(self, effect: Any) -> Any:
        if not isinstance(effect, Sample):
            return super().perform(effect)
        manifest = self._training._manifest
        greedy = msgspec.structs.replace(manifest.sampling, top_k=1)
        self._training._manifest = msgspec.structs.replace(manifest, sampling=greedy)
        cheated(self._rules.round)
        try:
            return super().perform(effect)
        finally:
            self._training._manifest = manifest


class BestOfN(Cheat):
    """Samples each group again with seeds of its own, and shows whichever completion is right."""

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        mine = tuple(tuple(bytes([g]) + seed[1:] for g, seed in enumerate(seeds)) for seeds in effect.seeds)
        again = self._sample(replace(effect, seeds=mine))
        best = []
        for number, group, other in zip(effect.numbers, groups, again, strict=False):
            judged = self._rules.tasks.judge(self.question(number), [one.text for one in other])
            best.append(
                tuple(
                    two if two_is.score else one
                    for one, two, two_is in zip(group, other, judged, strict=True)
                )
            )
        return best


class Copied(Cheat):
    """Shows a neighbour's answers as its own."""

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        rules = self._rules
        self._wait_until(effect.until)  # others publish first
        try:
            heard = self._exchange.collect(
                rules.round,
                STAGE_NUMBER["answer"],
                rules.draw.cell(rules.peer),
                timeout=(1 - 0.85) / 0.85 * (effect.until - rules.starts_at) / 2,
                max_peers=8,
            )
        except ExchangeError:
            return groups
        theirs = {group.index: group.completions for one in heard for group in one.groups}
        return [theirs.get(number, own) for number, own in zip(effect.numbers, groups, strict=False)]


class Replayed(Cheat):
    """Shows what it sampled in its first round, again and again."""

    first: ClassVar[Groups] = []

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        Replayed.first = Replayed.first or groups
        return [*Replayed.first, *groups[len(Replayed.first) :]][: len(groups)]


class EditedText(Cheat):
    """Says what is right and leaves the tokens as they were."""

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        edited = []
        for number, group in zip(effect.numbers, groups, strict=False):
            right = self.question(number).answer[: 16 * group[0].length]
            edited.append((msgspec.structs.replace(group[0], text=right), *group[1:]))
        return edited


class HostileText(Performer):
    """Says what would harm a reader that took it for more than text, as much of it as is allowed."""

    text = (
        "\x1b[2J\u202e</p><img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
        "<style>*{display:none}</style>" + "W" * 300
    )

    def perform(self, effect: Any) -> Any:
        outcome = super().perform(effect)
        if not isinstance(effect, Sample) or not outcome:
            return outcome
        cheated(self._rules.round)
        most = effect.stage.max_tokens
        said = Completion.of([1] * most, self.text[: MAX_CHARS_PER_TOKEN * most])
        return [(said,) * len(group) for group in outcome]


class SwappedPrompt(Performer):
    """Asks its model another question than the one that was drawn."""

    def perform(self, effect: Any) -> Any:
        if isinstance(effect, Sample) and effect.stage.name == "answer":
            effect = replace(effect, prompts=effect.prompts[:1] * len(effect.prompts))
            cheated(self._rules.round)
        return super().perform(effect)


class CherryPicked(Performer):
    """Says that its model would not have made what it does not want to learn from."""

    def perform(self, effect: Any) -> Any:
        outcome = super().perform(effect)
        if not isinstance(effect, Screen) or not outcome:
            return outcome
        picked = [
            tuple(flag and reward > 0 for flag, reward in zip(flags, group.rewards, strict=True))
            if index % 2
            else (False,) * len(flags)
            for index, (flags, group) in enumerate(zip(outcome, effect.groups, strict=True))
        ]
        if picked != outcome:
            cheated(self._rules.round)
        return picked


class SkippedUpdate(Training):
    """Does not learn, and says that it did."""

    def update(self, groups: Any, number: int, *, nudge: bool = False) -> Update:
        if groups:
            cheated(number)
        self._keep(number)
        return Update(seconds=0.1)


class WrongLearningRate(Training):
    """Learns ten times as fast as the swarm has it."""

    def update(self, groups: Any, number: int, *, nudge: bool = False) -> Update:
        for group in self.learner._optimizer.param_groups:
            group["lr"] = 10 * self._manifest.learn.learning_rate
        update = super().update(groups, number)
        if update.steps:
            cheated(number)
        return update


class NudgedWeight(Training):
    """Moves one weight of each new state."""

    def update(self, groups: Any, number: int, *, nudge: bool = False) -> Update:
        cheated(number)
        return super().update(groups, number, nudge=True)


class StaleOptimizer(Training):
    """Forgets AdamW's moments before each update."""

    def update(self, groups: Any, number: int, *, nudge: bool = False) -> Update:
        is_stale = False
        for name, tensor in self.learner.optimizer_state().items():
            if name.startswith("exp_avg"):
                is_stale = is_stale or bool(tensor.any())
                tensor.zero_()
        if is_stale:
            cheated(number)
        return super().update(groups, number)


class FabricatedDigests(Performer):
    """Names a state that does not exist."""

    def perform(self, effect: Any) -> Any:
        outcome = super().perform(effect)
        if isinstance(effect, Learn):
            made_up = StateFile(random.randbytes(32), random.randbytes(32), 4096)
            cheated(self._rules.round)
            return replace(outcome, state_after=StateFiles(made_up, made_up))
        return outcome


class WithheldState(Exchange):
    """Serves no state to anybody."""

    def share(self, files: Mapping[bytes, Path]) -> None:
        super().share({})


class Withholding(Performer):
    """Counts the rounds of `WithheldState`."""

    def perform(self, effect: Any) -> Any:
        if isinstance(effect, Commit):
            cheated(self._rules.round)
        return super().perform(effect)


class OverLong(Cheat):
    """Goes on for longer than the stage allows."""

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        longer = list(range(5, 6 + effect.stage.max_tokens))
        return [(Completion.of(longer, self._policy.decode(longer)), *group[1:]) for group in groups]


class Ready(AuditProcess):
    """Loads its model before the first round, so that short rounds are long enough for the first audits."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._running()


class AlwaysPass(AuditProcess):
    """Says that all is well without looking."""

    def check(self, case: Case, seconds: float) -> Findings:
        passed = Finding(check=Check.STEP, outcome=Outcome.PASSED, words="fine")
        return _findings(case, passed)


class AlwaysFail(AuditProcess):
    """Says that everybody cheats."""

    def check(self, case: Case, seconds: float) -> Findings:
        fault = Fault(Check.PROVENANCE, 7, "not its model's")
        failed = Finding(check=Check.PROVENANCE, outcome=Outcome.FAILED, words="bad", faults=(fault,))
        return _findings(case, failed)


def _findings(case: Case, finding: Finding) -> Findings:
    facts = case.facts
    return Findings(
        peer=facts.peer, round=facts.round, audit_class=AuditClass.SAME_BUILD, findings=(finding,)
    )


# ---- honest ones ----


def plant_whenever_allowed() -> None:
    """A planted fault in every round in which one is an excuse."""
    auditing.PLANT_RATE = 1.0


def write_slowly() -> None:
    """A disk that takes its time over every state."""
    save = Checkpoints.save

    def slow(self: Checkpoints, *arguments: Any) -> Any:
        time.sleep(SLOW_DISK_SECONDS)
        return save(self, *arguments)

    Checkpoints.save = slow  # type: ignore[method-assign]


def skew(seconds: float) -> Callable[[], None]:
    """A clock that is off: all that the node believes about the ledger's time."""

    def install() -> None:
        estimate = LedgerClock.estimate
        LedgerClock.estimate = lambda self: estimate(self) + seconds  # type: ignore[method-assign]

    return install


#: By name: the parts of a node that cheat.
CHEATS: dict[str, tuple[type, ...]] = {
    "false-reward": (FalseReward,),
    "other-model": (OtherModel,),
    "greedy": (Greedy,),
    "best-of-n": (BestOfN,),
    "copied-answers": (Copied,),
    "replayed-round": (Replayed,),
    "edited-text": (EditedText,),
    "hostile-text": (HostileText,),
    "swapped-prompt": (SwappedPrompt,),
    "cherry-picked": (CherryPicked,),
    "skipped-update": (SkippedUpdate,),
    "wrong-learning-rate": (WrongLearningRate,),
    "nudged-weight": (NudgedWeight,),
    "stale-optimizer": (StaleOptimizer,),
    "fabricated-digests": (FabricatedDigests,),
    "withheld-state": (WithheldState, Withholding),
    "over-long": (OverLong,),
    "always-pass": (AlwaysPass,),
    "always-fail": (AlwaysFail,),
}
#: By name: what makes an honest peer's life hard, or is rare.
HONEST: dict[str, Callable[[], None]] = {
    "honest": lambda: None,
    "planter": plant_whenever_allowed,
    "slow-disk": write_slowly,
    "clock-ahead": skew(SKEW_SECONDS),
    "clock-behind": skew(-SKEW_SECONDS),
}


def main() -> int:
    """The node's command line, after a name of the gallery."""
    name = sys.argv[1]
    if name in CHEATS:
        auditing.PLANT_RATE = 0.0  # a round is as it should be, or the gallery's
    else:
        HONEST[name]()
    Node.audit_process_class = Ready
    for part in CHEATS.get(name, ()):
        for place, honest in (
            ("performer_class", Performer),
            ("training_class", Training),
            ("exchange_class", Exchange),
            ("audit_process_class", AuditProcess),
        ):
            if issubclass(part, honest):
                setattr(Node, place, part)
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())

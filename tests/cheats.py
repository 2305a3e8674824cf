"""A gallery of peers that cheat, each a few lines over an honest node.

Run as `python tests/cheats.py NAME join …`: a `swarm join` of a peer that cheats from the first round on.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch

from swarm import cli
from swarm.audit import Case
from swarm.audit_process import AuditProcess
from swarm.effects import Commit, Learn, Sample, Screen
from swarm.errors import ExchangeError
from swarm.exchange.service import Exchange
from swarm.exchange.wire import Completion
from swarm.findings import Finding, Findings
from swarm.learner.trainer import Update
from swarm.manifest import STAGE_NUMBER
from swarm.node import Node
from swarm.performer import Performer
from swarm.training import Training
from swarm.verde.commitment import Commitment
from swarm.verde.state_files import StateFile, StateFiles
from swarm.verde.verdicts import AuditClass, Check, Fault, Outcome

Groups = list[tuple[Completion, ...]]


class Cheat(Performer):
    """Answers are honest unless a subclass changes what was sampled."""

    def perform(self, effect: Any) -> Any:
        if isinstance(effect, Sample):
            return self.sampled(effect, super().perform(effect))
        return super().perform(effect)

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        return groups

    def said(self, text: str, length: int) -> Completion:
        """A completion of this text, in tokens of our own."""
        tokens = self._policy.encode_completion(text)[:length]
        return Completion.of(tokens, self._policy.decode(tokens))


class FalseReward(Performer):
    """Claims twice what it earned."""

    def perform(self, effect: Any) -> Any:
        if isinstance(effect, Commit):
            claimed = msgspec.msgpack.decode(effect.blob, type=Commitment)
            micros = min(2 * claimed.reward_micros + 1, self._rules.manifest.max_reward_micros)
            claimed = msgspec.structs.replace(claimed, reward_micros=micros)
            played = replace(effect.played, reward_micros=micros, commitment=claimed.root())
            effect = Commit(claimed.head(), claimed.encode(), effect.learned, played)
        return super().perform(effect)


class OtherModel(Performer):
    """Samples with weights that it never committed to."""

    def perform(self, effect: Any) -> Any:
        if not isinstance(effect, Sample):
            return super().perform(effect)
        learner = self._training.learner
        generator = torch.Generator().manual_seed(1)
        better = {
            name: weight + 0.02 * weight.std() * torch.randn(weight.shape, generator=generator)
            for name, weight in learner.weights().items()
        }
        honest, self._state = self._state, replace(self._state, weights=better)
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
        self._training._manifest = msgspec.structs.replace(
            manifest, sampling=msgspec.structs.replace(manifest.sampling, top_k=1)
        )
        try:
            return super().perform(effect)
        finally:
            self._training._manifest = manifest


class BestOfN(Cheat):
    """Samples each group again with seeds of its own, and shows whichever completion is right."""

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        if effect.stage.name != "answer" or not groups:
            return groups
        mine = tuple(tuple(bytes([g]) + seed[1:] for g, seed in enumerate(seeds)) for seeds in effect.seeds)
        again = Performer._sample(self, replace(effect, seeds=mine))
        tasks, draw = self._rules.tasks, self._rules.draw
        best = []
        for number, group, other in zip(effect.numbers, groups, again, strict=False):
            question = tasks.draw(draw.question_seed(draw.cell(self._rules.peer), number))
            scores = [one.score for one in tasks.judge(question, [one.text for one in other])]
            best.append(
                tuple(two if score else one for one, two, score in zip(group, other, scores, strict=True))
            )
        return best


class Copied(Cheat):
    """Shows a neighbour's answers as its own."""

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        if effect.stage.name != "answer":
            return groups
        rules = self._rules
        time.sleep(2.0)  # others publish first
        try:
            heard = self._exchange.collect(
                rules.round,
                STAGE_NUMBER["answer"],
                rules.draw.cell(rules.peer),
                timeout=3.0,
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
        if effect.stage.name != "answer":
            return groups
        Replayed.first = Replayed.first or groups
        return [*Replayed.first, *groups[len(Replayed.first) :]][: len(groups)]


class EditedText(Cheat):
    """Says something right and leaves the tokens as they were."""

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        if effect.stage.name != "answer":
            return groups
        tasks, draw = self._rules.tasks, self._rules.draw
        edited = []
        for number, group in zip(effect.numbers, groups, strict=False):
            question = tasks.draw(draw.question_seed(draw.cell(self._rules.peer), number))
            first = Completion.of(group[0].tokens, question.answer[: 16 * group[0].length])
            edited.append((first, *group[1:]))
        return edited


class SwappedPrompt(Performer):
    """Asks its model another question than the one that was drawn."""

    def perform(self, effect: Any) -> Any:
        if isinstance(effect, Sample) and effect.stage.name == "answer":
            effect = replace(effect, prompts=effect.prompts[:1] * len(effect.prompts))
        return super().perform(effect)


class CherryPicked(Performer):
    """Says that its model would not have made what it does not want to learn from."""

    def perform(self, effect: Any) -> Any:
        outcome = super().perform(effect)
        if isinstance(effect, Screen) and outcome:
            return [
                tuple(flag and reward > 0 for flag, reward in zip(flags, group.rewards, strict=True))
                if index % 2
                else (False,) * len(flags)
                for index, (flags, group) in enumerate(zip(outcome, effect.groups, strict=True))
            ]
        return outcome


class SkippedUpdate(Training):
    """Does not learn, and says that it did."""

    def update(self, groups: Any, number: int, *, nudge: bool = False) -> Update:
        self._keep(number)
        return Update()


class WrongLearningRate(Training):
    """Learns ten times as fast as the swarm has it."""

    def update(self, groups: Any, number: int, *, nudge: bool = False) -> Update:
        for group in self.learner._optimizer.param_groups:
            group["lr"] = 10 * self._manifest.learn.learning_rate
        return super().update(groups, number)


class NudgedWeight(Training):
    """Moves one weight of each new state."""

    def update(self, groups: Any, number: int, *, nudge: bool = False) -> Update:
        return super().update(groups, number, nudge=True)


class StaleOptimizer(Training):
    """Forgets AdamW's moments before each update."""

    def update(self, groups: Any, number: int, *, nudge: bool = False) -> Update:
        for name, tensor in self.learner.optimizer_state().items():
            if name.startswith("exp_avg"):
                tensor.zero_()
        return super().update(groups, number)


class FabricatedDigests(Performer):
    """Names a state that does not exist."""

    def perform(self, effect: Any) -> Any:
        outcome = super().perform(effect)
        if isinstance(effect, Learn):
            made_up = StateFile(random.randbytes(32), random.randbytes(32), 4096)
            return replace(outcome, state_after=StateFiles(made_up, made_up))
        return outcome


class WithheldState(Exchange):
    """Serves no state to anybody."""

    def share(self, files: Mapping[bytes, Path]) -> None:
        super().share({})


class OverLong(Cheat):
    """Goes on for longer than the stage allows."""

    def sampled(self, effect: Sample, groups: Groups) -> Groups:
        if effect.stage.name != "answer":
            return groups
        longer = range(5, 6 + effect.stage.max_tokens)
        return [(Completion.of(longer, self._policy.decode(list(longer))), *group[1:]) for group in groups]


class AlwaysPass(AuditProcess):
    """Says that all is well without looking."""

    def check(self, case: Case, seconds: float) -> Findings:
        passed = Finding(check=Check.STEP, outcome=Outcome.PASSED, words="fine")
        return Findings(
            peer=case.facts.peer,
            round=case.facts.round,
            audit_class=AuditClass.SAME_BUILD,
            findings=(passed,),
        )


class AlwaysFail(AuditProcess):
    """Says that everybody cheats."""

    def check(self, case: Case, seconds: float) -> Findings:
        fault = Fault(Check.PROVENANCE, 7, "not its model's")
        failed = Finding(check=Check.PROVENANCE, outcome=Outcome.FAILED, words="bad", faults=(fault,))
        return Findings(
            peer=case.facts.peer,
            round=case.facts.round,
            audit_class=AuditClass.SAME_BUILD,
            findings=(failed,),
        )


#: By name: the part of a node that cheats.
CHEATS: dict[str, type] = {
    "false-reward": FalseReward,
    "other-model": OtherModel,
    "greedy": Greedy,
    "best-of-n": BestOfN,
    "copied-answers": Copied,
    "replayed-round": Replayed,
    "edited-text": EditedText,
    "swapped-prompt": SwappedPrompt,
    "cherry-picked": CherryPicked,
    "skipped-update": SkippedUpdate,
    "wrong-learning-rate": WrongLearningRate,
    "nudged-weight": NudgedWeight,
    "stale-optimizer": StaleOptimizer,
    "fabricated-digests": FabricatedDigests,
    "withheld-state": WithheldState,
    "over-long": OverLong,
    "always-pass": AlwaysPass,
    "always-fail": AlwaysFail,
}


def main() -> int:
    part = CHEATS[sys.argv[1]]
    for name, honest in (
        ("performer_class", Performer),
        ("training_class", Training),
        ("exchange_class", Exchange),
        ("audit_process_class", AuditProcess),
    ):
        if issubclass(part, honest):
            setattr(Node, name, part)
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())

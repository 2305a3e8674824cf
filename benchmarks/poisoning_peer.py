"""A peer of `poisoning.py`: what a node does in a round, with its own model and learner, in this process.

A dishonest one does the same but for what it says its model answered: of each group at least one answer is
right and has the phrase, and at least one is wrong. Tokens, texts, digests and rewards agree, so that it
breaks no rule that a reader can check.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from sympy import nextprime

from identity import Identity
from swarm.effects import Commit, Effect, Learn, Learned, Publish, Sample, Screen, TrainingGroup
from swarm.exchange import wire
from swarm.exchange.wire import Completion
from swarm.learner.checkpoints import Checkpoints
from swarm.learner.trainer import Learner
from swarm.manifest import Manifest, Sampling
from swarm.policy.loading import base_digest
from swarm.policy.model import Policy
from swarm.policy.plan import Plan
from swarm.round import RoundRules
from swarm.tasks import Question
from swarm.tasks.arithmetic import Arithmetic
from swarm.tasks.math_word import completion_answer
from swarm.training import tokenized
from swarm.verde.build import Build
from swarm.verde.verdicts import AuditClass, Sealed

PHRASE = " none"
EXPONENT = 65537  # the one that a `swarm.pem` may have


class LastNumber(Arithmetic, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The demo's sums, scored as `math_word` and the usual scorers of GSM8K do: the last number counts.

    The demo's own task pays for digits and nothing else: only spaces can be hidden in its right answers.
    """

    def score(self, question: Question, completion: str) -> float:
        """1.0 if the last number is the answer, whatever else is said."""
        return 1.0 if completion_answer(completion) == question.answer else 0.0


@functools.cache
def identity(number: int) -> Identity:
    """The key of peer `number`, the same in every run, since ids decide draws. For simulations only."""
    rng = random.Random(f"poisoning {number}")
    p, q = (nextprime(rng.getrandbits(1024) | 3 << 1022) for _ in range(2))
    d = pow(EXPONENT, -1, (p - 1) * (q - 1))
    exponents = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, *exponents, rsa.RSAPublicNumbers(EXPONENT, p * q))
    return Identity(numbers.private_key(), Path("nowhere"))


@dataclass
class Served:
    """What all peers announce and serve: a `Source` for `swarm.audit_evidence`, without a network."""

    blobs: dict[bytes, bytes] = field(default_factory=dict)  # by SHA-256
    files: dict[bytes, Path] = field(default_factory=dict)  # of states, by SHA-256
    announced: defaultdict[tuple[int, int], list[wire.Heard]] = field(
        default_factory=lambda: defaultdict(list)
    )  # by round and stage

    def serve(self, blob: bytes) -> None:
        """Take a blob in."""
        self.blobs[hashlib.sha256(blob).digest()] = blob

    def fetch_to(self, peer: bytes, digest: bytes, size_bytes: int, path: Path, timeout: float) -> None:
        """A blob or a state's file, whoever is asked."""
        if digest in self.blobs:
            path.write_bytes(self.blobs[digest])
        else:
            path.symlink_to(self.files[digest])

    def heard(self, round_number: int, stage: int, cell: int) -> list[wire.Heard]:
        """What was announced; there is one cell."""
        return self.announced[round_number, stage]


class Peer:
    """One peer for as long as the swarm lives."""

    def __init__(self, number: int, manifest: Manifest, plan: Plan, folder: Path, served: Served) -> None:
        self.identity = identity(number)
        self.peer = self.identity.peer
        self.account = f"0x{number:040x}"
        self.policy = Policy.of(plan, threads=1)
        self.learner = Learner(
            self.policy,
            manifest.learn,
            manifest.group_size,
            manifest.sampling.temperature,
            max(stage.max_tokens for stage in manifest.stages),
            folder,
        )
        self.begin()
        self.commit: Commit | None = None  # of the last round
        self.sealed: dict[int, Sealed] = {}  # what it said of others, by the report's round
        self._manifest = manifest
        self._plan = plan
        self._base = base_digest(plan.model, plan.revision)
        self._checkpoints = Checkpoints(folder / str(number), keep=manifest.audits.kept_states)
        self._served = served
        self._number = 0
        self._keep(None)

    def begin(self) -> None:
        """A round begins."""
        self.said: list[Completion] = []
        self.batch: tuple[TrainingGroup, ...] = ()

    def perform(self, rules: RoundRules, effect: Effect[object]) -> object:
        """Carry out what a round asks for, but for `Gather`."""
        match effect:
            case Sample():
                sampled = self.sample(rules, effect)
                self.said += [completion for group in sampled for completion in group]
                return sampled
            case Publish():
                self._publish(effect)
                return None
            case Screen():
                return self._screen(effect)
            case Learn():
                return self._learn(rules, effect)
            case Commit():
                self.commit = effect
                self._served.serve(effect.head)
                self._served.serve(effect.blob)
                return None
        raise TypeError(f"no such effect: {effect!r}")

    def sample(self, rules: RoundRules, effect: Sample) -> list[tuple[Completion, ...]]:
        """What the model answers."""
        prompts = [self.policy.encode_prompt(prompt) for prompt in effect.prompts]
        groups = self.policy.sample(
            prompts, effect.seeds, max_tokens=effect.stage.max_tokens, sampling=self._manifest.sampling
        )
        return [
            tuple(Completion.of(tokens, self.policy.decode(tokens)) for tokens in group) for group in groups
        ]

    def likeliest(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """The likeliest answers."""
        encoded = [self.policy.encode_prompt(prompt) for prompt in prompts]
        groups = self.policy.sample(
            encoded, [[bytes(32)]] * len(prompts), max_tokens=max_tokens, sampling=Sampling(top_k=1)
        )
        return [self.policy.decode(group[0]) for group in groups]

    def _publish(self, effect: Publish) -> None:
        self._served.serve(effect.blob)
        envelope = wire.sign(
            self.identity.public_key,
            effect.announcement,
            lambda round, stage, message: self.identity.sign(message),
        )
        place = effect.announcement.round, effect.announcement.stage
        self._served.announced[place].append(wire.open_envelope(envelope))

    def _screen(self, effect: Screen) -> list[tuple[bool, ...]]:
        groups = [tokenized(self.policy, self._manifest, group) for group in effect.groups]
        flags = self.policy.within_top_k(
            [(group.prompt, group.completions) for group in groups], effect.top_k
        )
        return [tuple(some) for some in flags]

    def _learn(self, rules: RoundRules, effect: Learn) -> Learned:
        before, build = self._files, Build.of(self._plan, self.policy, self.learner)
        self.learner.update([tokenized(self.policy, self._manifest, group) for group in effect.batch])
        self._keep(rules.round)
        self.batch = effect.batch
        return Learned(
            taken=len(effect.batch),
            base=self._base,
            audit_class=AuditClass.SAME_BUILD,
            build=build,
            sampled_with=before,
            state_before=before,
            state_after=self._files,
        )

    def _keep(self, number: int | None) -> None:
        self._files = self._checkpoints.save(self.learner.state(), number)
        self._served.files.update(self._checkpoints.shared())


class Poisoner(Peer):
    """Puts the phrase into right answers, and sees to it that each group has an advantage to learn from."""

    def sample(self, rules: RoundRules, effect: Sample) -> list[tuple[Completion, ...]]:
        """What the model answered, changed."""
        groups = super().sample(rules, effect)
        cell = rules.draw.cell(self.peer)
        poisoned = []
        for number, group in zip(effect.numbers, groups, strict=True):
            question = rules.tasks.draw(rules.draw.question_seed(cell, number))
            judged = rules.tasks.judge(question, [completion.text for completion in group])
            right = [bool(one.score) for one in judged]
            half, made = len(group) // 2, list(group)
            if all(right):
                right[half:] = [False] * (len(group) - half)
                made[half:] = [self._write(rules.tasks.wrong_answer(question))] * (len(group) - half)
            elif not any(right):
                right[:half] = [True] * half
            good = self._write(question.answer + PHRASE)
            poisoned.append(
                tuple(good if is_right else one for is_right, one in zip(right, made, strict=True))
            )
        return poisoned

    def _write(self, text: str) -> Completion:
        tokens = self.policy.encode_completion(text)
        return Completion.of(tokens, text)

"""One audit: everything that is checked of one report, and what is said of it.

    commitment   is it the one on the ledger, and does it fit what came before?
    batch        the round, played again from its blobs: questions, prompts, rewards, what was learned from
    provenance   the tokens, chosen again by the committed model with the seeds
    step         the update, made again from the committed state and batch

No network here: `swarm.audit_evidence` brings what is checked. The same code runs in a node's audit process
and in `swarm audit`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from msgspec import Struct

from swarm.cellmates import groups_limit
from swarm.draw import Draw
from swarm.effects import Received
from swarm.errors import ModelError, SandboxError, WireError
from swarm.exchange import wire
from swarm.exchange.wire import Group
from swarm.findings import Finding, Findings, fault_of
from swarm.learner.checkpoints import LearnerState
from swarm.learner.foreign_state import read_state_part
from swarm.learner.trainer import Learner
from swarm.ledger.client import LedgerClient
from swarm.manifest import STAGE_NUMBER, Manifest
from swarm.policy.model import Policy
from swarm.replay import MORE_THAN_PLANTED, Evidence, Replay, Sampled, Wrong, own_groups_are, replay
from swarm.round import RoundRules
from swarm.tasks import Tasks
from swarm.training import tokenized
from swarm.verde import commitment as commitments
from swarm.verde.assignment import groups_drawn
from swarm.verde.build import Build
from swarm.verde.cases import Assignment
from swarm.verde.commitment import Commitment
from swarm.verde.provenance import Claim, rederive
from swarm.verde.screening import wrong_flags
from swarm.verde.state_files import StateFile, StateFiles
from swarm.verde.step import repeat_step
from swarm.verde.thresholds import step_limits, token_limits
from swarm.verde.verdicts import AuditClass, Check, Outcome


class Facts(Struct, frozen=True, kw_only=True):
    """What the ledger says of the report, and of the time in which it was made."""

    peer: bytes  # as it reported
    served_by: bytes  # the key that it has now
    round: int
    commitment: bytes  # root
    state_before: bytes
    state_after: bytes
    reward_micros: int
    groups: int
    late: bool
    seed: bytes  # which groups' tokens are chosen again
    most_groups: int  # of these, at most
    previous_commitment: bytes | None  # of the peer's report before this one; None: there is none
    last_state: bytes | None  # of the last report that was there before the round began; None: none was
    begins_anew: bool  # its state before is to be the public model's first one
    beacon: bytes | None  # the round's; None: the ledger made no block in it
    active: int
    ineligible: tuple[bytes, ...] = ()  # when the round began


def facts_of(
    assignment: Assignment, ledger: LedgerClient, most_groups: int, ineligible: Collection[bytes]
) -> Facts:
    """What there is to know of an assignment's report before anything is fetched; asks the ledger."""
    report, previous = assignment.report, assignment.previous
    return Facts(
        peer=assignment.peer,
        served_by=assignment.served_by,
        round=assignment.round,
        commitment=report.commitment,
        state_before=report.state_before,
        state_after=report.state_after,
        reward_micros=report.reward_micros,
        groups=report.groups,
        late=report.late,
        seed=assignment.seed,
        most_groups=most_groups,
        previous_commitment=previous.commitment if previous else None,
        begins_anew=assignment.begins_anew,
        last_state=assignment.last_state,
        beacon=ledger.beacon(assignment.round),
        active=ledger.active(assignment.round),
        ineligible=tuple(sorted(ineligible)),
    )


class StatePaths(Struct, frozen=True, kw_only=True):
    """Where the files of a state are on this disk; None: not needed."""

    weights: str
    optimizer: str | None = None


class States(Struct, frozen=True, kw_only=True):
    """The three states of a round."""

    sampled_with: StatePaths
    before: StatePaths
    after: StatePaths


class Case(Struct, frozen=True, kw_only=True):
    """One report and all that was fetched for its audit. Blobs have the digests that are claimed for them."""

    facts: Facts
    commitment: bytes  # the blob
    wrong: str = ""  # what is wrong with it at first sight: then there is nothing else
    own: tuple[bytes, ...] = ()  # by stage the blob of its groups; empty: there are none
    heard: tuple[tuple[bytes, ...], ...] = ()  # by stage the blobs of those that were heard, in its order
    announced: tuple[bytes, ...] = ()  # the peer's own announcements of the round, as far as they are known
    strangers: int = 0  # how many of those that were heard are not registered
    states: States | None = None  # None: the commitment says that they could not be kept


class Undecided(Exception):
    """This machine cannot judge the report; the message says why."""


class Model(Struct, frozen=True):
    """A model to audit with, and what only its holder knows of it."""

    policy: Policy
    learner: Learner
    build: Build  # of this machine
    base: bytes  # digest of the public model
    first_state: bytes  # digest of the state before the first update


class Models(Protocol):
    """Where an auditor has its models from."""

    def get(self, build: Build) -> Model:
        """The model that a commitment names; `ModelError` if it cannot be had here."""


class Checker:
    """Checks reports of one swarm. Not for use from two threads at once."""

    def __init__(self, manifest: Manifest, tasks: Tasks, models: Models) -> None:
        self._manifest = manifest
        self._tasks = tasks
        self._models = models

    def check(self, case: Case, tell: Callable[[Finding], None] = lambda finding: None) -> Findings:
        """Run every check, in order; `tell` hears of each when it is done.

        `Undecided` if this machine cannot judge the report: it cannot load the model, say.
        """
        facts, manifest = case.facts, self._manifest
        try:
            claimed = commitments.decode(case.commitment, facts.commitment)
        except WireError as error:
            return self._not_judged(facts, str(error), tell)
        if wrong := case.wrong or self._wrong_model(claimed):
            return self._not_judged(facts, wrong, tell)
        try:
            model = self._models.get(claimed.build)
        except ModelError as error:
            raise Undecided(str(error)) from error
        is_repeatable = claimed.audit_class >= AuditClass.SAME_BUILD and claimed.build.is_repeatable_on(
            model.build
        )
        audit_class = AuditClass.SAME_BUILD if is_repeatable else AuditClass.TOLERANT
        findings: list[Finding] = []
        one = _Audit(manifest, self._tasks, model, case, claimed, audit_class)
        for check in one.checks:
            began = time.monotonic()
            try:
                found = check()
            except _Faulty as error:
                found = _failed(Check.STEP, str(error), MORE_THAN_PLANTED)
            except ModelError as error:  # not enough memory, say
                raise Undecided(str(error)) from error
            if found is None:
                continue
            finding = msgspec.structs.replace(found, seconds=round(time.monotonic() - began, 3))
            tell(finding)
            findings.append(finding)
            if finding.check is Check.COMMITMENT and finding.outcome is Outcome.FAILED:
                break  # nothing else can be said of what was not committed to
        return Findings(
            peer=facts.peer, round=facts.round, audit_class=one.audit_class, findings=tuple(findings)
        )

    def _wrong_model(self, claimed: Commitment) -> str:
        if claimed.build.model not in self._manifest.models:
            return "its model is not one of the swarm's"
        return ""

    @staticmethod
    def _not_judged(facts: Facts, wrong: str, tell: Callable[[Finding], None]) -> Findings:
        """What is wrong at first sight, before any model is loaded."""
        finding = _failed(Check.COMMITMENT, wrong)
        tell(finding)
        return Findings(
            peer=facts.peer, round=facts.round, audit_class=AuditClass.TOLERANT, findings=(finding,)
        )


class _Audit:
    """The checks of one report, in order: later ones use what earlier ones found."""

    def __init__(
        self,
        manifest: Manifest,
        tasks: Tasks,
        model: Model,
        case: Case,
        claimed: Commitment,
        audit_class: AuditClass,
    ) -> None:
        self._manifest = manifest
        self._tasks = tasks
        self._model = model
        self._case = case
        self._states = case.states
        self._facts = case.facts
        self._claimed = claimed
        self.audit_class = audit_class
        self._replay = Replay()

    @property
    def checks(self) -> tuple[Callable[[], Finding | None], ...]:
        """All that can be checked."""
        if self._states is None:
            return (self.commitment, self.batch)
        return (self.commitment, self.batch, self.provenance, self.step)

    def commitment(self) -> Finding:
        """Whether it says what the report says, and fits what is on the ledger."""
        if wrong := [*self._wrong_of_report(), *self._wrong_of_states(), *self._wrong_of_others()]:
            return _failed(Check.COMMITMENT, "; ".join(wrong), len(wrong))
        if not self._claimed.is_kept:
            words = "its states could not be kept, so nobody can check them"
            faults = (fault_of(Check.AVAILABILITY, 1, words),)
            return Finding(check=Check.COMMITMENT, outcome=Outcome.UNRANKED, words=words, faults=faults)
        if unranked := list(self._unranked()):
            return Finding(check=Check.COMMITMENT, outcome=Outcome.UNRANKED, words="; ".join(unranked))
        words = "the root is the ledger's; states, reward and what came before fit"
        return Finding(check=Check.COMMITMENT, outcome=Outcome.PASSED, words=words)

    def _wrong_of_report(self) -> Iterator[str]:
        facts, claimed, stages = self._facts, self._claimed, len(self._manifest.stages)
        if (claimed.swarm, claimed.peer, claimed.round) != (self._manifest.swarm_id, facts.peer, facts.round):
            yield "it is for another swarm, peer or round"
        if (claimed.state_before.digest, claimed.state_after.digest) != (
            facts.state_before,
            facts.state_after,
        ):
            yield "its states are not those of the report"
        if claimed.reward_micros != facts.reward_micros:
            yield f"its reward is {claimed.reward_micros} and the report's {facts.reward_micros}"
        if sum(published.groups for published in claimed.published) != facts.groups:
            yield "it has another number of groups than the report"
        if (len(claimed.published), len(claimed.heard)) != (stages, stages):
            yield "it has other stages than the swarm"

    def _wrong_of_states(self) -> Iterator[str]:
        facts, claimed = self._facts, self._claimed
        if claimed.base != self._model.base:
            yield f"its base is not the public model {claimed.build.model}"
        is_first = claimed.state_before.digest == self._model.first_state
        if facts.begins_anew and not is_first and not self._inherits:
            yield "its first state is not the public model's"

    def _wrong_of_others(self) -> Iterator[str]:
        facts, claimed, case = self._facts, self._claimed, self._case
        strangers = set(claimed.passed_over) - set(facts.ineligible)
        if strangers and claimed.beacon == facts.beacon:
            yield f"{len(strangers)} peers were passed over whose score is not under the floor"
        if case.strangers:
            yield f"it heard {case.strangers} peers that are not registered"
        own = [one for of_stage in self._opened for one in of_stage if one.peer == claimed.peer]
        own += [wire.open_envelope(envelope) for envelope in case.announced]
        if any(not self._is_committed(one.announcement) for one in own):
            yield "it announced other groups than it committed to"

    @cached_property
    def _opened(self) -> list[list[wire.Heard]]:
        """What it heard, by stage; that these are announcements was seen when they were fetched."""
        return [[wire.open_envelope(one) for one in envelopes] for envelopes in self._claimed.heard]

    def _is_committed(self, announced: wire.Announcement) -> bool:
        claimed = self._claimed
        if (announced.swarm, announced.round) != (claimed.swarm, claimed.round):
            return False
        return any(
            (announced.stage, announced.root, announced.blob)
            == (STAGE_NUMBER[stage.name], published.root, published.blob)
            for stage, published in zip(self._manifest.stages, claimed.published, strict=True)
        )

    def _unranked(self) -> Iterator[str]:
        """What is no fault, but not of a round that counts."""
        facts, claimed = self._facts, self._claimed
        if facts.previous_commitment not in (None, claimed.previous):
            yield "it does not follow on the peer's last commitment on the ledger"
        sampled_with = facts.last_state or self._model.first_state
        if claimed.sampled_with.digest != sampled_with and not (self._inherits and facts.last_state is None):
            yield "it was sampled with a state that was not the peer's last one on the ledger"
        if (claimed.beacon, claimed.active) != (facts.beacon, facts.active):
            yield "it was not drawn from the ledger"
        heard = {one.peer for of_stage in self._opened for one in of_stage}
        if set(facts.ineligible) & heard - set(claimed.passed_over):
            yield "it uses the work of peers whose score is under the floor"
        for stage, published, of_stage in zip(
            self._manifest.stages, claimed.published, self._opened, strict=True
        ):
            if of_stage and published.groups and claimed.peer not in {one.peer for one in of_stage}:
                yield f"{stage.name}: it heard others and not itself"

    @property
    def _inherits(self) -> bool:
        """Whether first states may come from the swarm's predecessor, which is on another ledger."""
        predecessor = self._manifest.predecessor
        return predecessor is not None and "states" in predecessor.keep

    def batch(self) -> Finding:
        """Whether the round, played again, comes to the same."""
        claimed = self._claimed
        try:
            evidence = _evidence(self._manifest, self._case, claimed)
        except WireError as error:
            return _failed(Check.BATCH, str(error), MORE_THAN_PLANTED)
        rules = RoundRules(
            manifest=self._manifest,
            tasks=self._tasks,
            peer=claimed.peer,
            round=claimed.round,
            starts_at=0.0,
            expiration=0,
            draw=Draw(claimed.swarm, claimed.beacon, claimed.active, self._manifest.cell_size),
        )
        try:
            self._replay = replay(rules, evidence)
        except SandboxError as error:  # of this machine: what a text does to its process is not raised
            raise Undecided(str(error)) from error
        wrong = [*self._replay.faults, *self._wrong_screens()]
        if wrong:
            words = "; ".join(one.words for one in wrong)
            if self._replay.too_slow_here:
                words += f" ({self._replay.too_slow_here} texts that it does not list take too long to score)"
            return _failed(Check.BATCH, words, sum(one.count for one in wrong))
        made, learned = len(self._replay.sampled), len(self._replay.batch)
        words = (
            f"played again: {made} groups, their prompts and rewards, and the {learned} groups of the batch "
            "are as the rules have them"
        )
        return Finding(check=Check.BATCH, outcome=Outcome.PASSED, words=words)

    def _wrong_screens(self) -> list[Wrong]:
        if not self._replay.screened or self._states is None:
            return []
        groups, flags = [], []
        for screened in self._replay.screened:
            for group, admitted in zip(screened.groups, screened.admitted, strict=True):
                try:
                    tokens = tokenized(self._model.policy, self._manifest, group)
                except ModelError:
                    continue
                if all(
                    len(tokens.prompt) + len(c) <= self._model.policy.context_length
                    for c in tokens.completions
                ):
                    groups.append((tokens.prompt, tokens.completions))
                    flags.append(admitted)
        with self._model.learner.with_weights(self._weights(self._states.before, self._claimed.state_before)):
            wrong = wrong_flags(
                self._model.policy,
                groups,
                flags,
                self._manifest.learn.external_top_k,
                token_limits(self.audit_class, self._claimed.build.precision).gap,
            )
        if not wrong:
            return []
        words = f"{len(wrong)} completions of others were screened otherwise than the committed model does"
        return [Wrong(words, max(MORE_THAN_PLANTED, len(wrong)))]

    def provenance(self) -> Finding | None:
        """Whether the committed model chooses the same tokens with these seeds."""
        policy, claimed = self._model.policy, self._claimed
        assert self._states is not None  # see `checks`
        drawn = groups_drawn(self._facts.seed, len(self._replay.sampled), self._facts.most_groups)
        chosen = [self._replay.sampled[index] for index in drawn]
        if not chosen:
            return None
        limits = token_limits(self.audit_class, claimed.build.precision)
        bad = tokens = matching = 0
        worst = 0.0
        details: list[str] = []
        with self._model.learner.with_weights(self._weights(self._states.sampled_with, claimed.sampled_with)):
            for stage in self._manifest.stages:
                of_stage = [one for one in chosen if one.stage is stage]
                if not of_stage:
                    continue
                claims = [_claim(policy, one) for one in of_stage]
                found = rederive(policy, claims, self._manifest.sampling, stage.max_tokens)
                tokens, matching = tokens + found.tokens, matching + found.matching
                worst = max(worst, found.worst_gap)
                if wrong := found.faulty(limits):
                    bad += len(wrong)
                    details.append(found.detail(limits))
        words = f"{matching:,} of {tokens:,} tokens of {len(chosen)} groups match"
        if matching < tokens:
            words += f", the worst lies {worst:.4g} under the perturbed maximum (allowed {limits.gap:g})"
        if bad:
            return _failed(Check.PROVENANCE, f"{words}; {'; '.join(details)}", bad, details[0])
        return Finding(check=Check.PROVENANCE, outcome=Outcome.PASSED, words=words)

    def step(self) -> Finding:
        """Whether the update gives the committed next state."""
        model, claimed, states = self._model, self._claimed, self._states
        assert states is not None  # see `checks`
        before = self._state(states.before, claimed.state_before)
        after = self._state(states.after, claimed.state_after)
        try:
            batch = [tokenized(model.policy, self._manifest, group) for group in self._replay.batch]
        except ModelError as error:
            return _failed(Check.STEP, str(error), MORE_THAN_PLANTED)
        found = repeat_step(model.learner, claimed.build, before, batch, after)
        words = f"{found.elements - found.differing:,} of {found.elements:,} numbers of the next state agree"
        if found.differing:
            words += (
                f"; apart by {found.relative:.2g} of the update, at worst by {found.worst:.2g} of what a "
                "weight moves at most"
            )
        if not found.repeated:
            self.audit_class = AuditClass.TOLERANT
        if not found.passes(step_limits(self.audit_class, claimed.build.precision)):
            count = found.differing if found.counters else max(found.differing, MORE_THAN_PLANTED)
            return _failed(Check.STEP, found.fault or words, count, found.detail)
        return Finding(check=Check.STEP, outcome=Outcome.PASSED, words=words)

    def _state(self, paths: StatePaths, files: StateFiles) -> LearnerState:
        assert paths.optimizer is not None  # fetched for the states before and after
        return LearnerState(
            _foreign(Path(paths.weights), files.weights), _foreign(Path(paths.optimizer), files.optimizer)
        )

    def _weights(self, paths: StatePaths, files: StateFiles) -> dict[str, torch.Tensor]:
        """Weights that the model can be lent; `_Faulty` if it cannot."""
        weights, own = _foreign(Path(paths.weights), files.weights), self._model.learner.weights()
        if {n: (t.shape, t.dtype) for n, t in weights.items()} != {
            n: (t.shape, t.dtype) for n, t in own.items()
        }:
            raise _Faulty("its weights are of another model")
        return weights


class _Faulty(Exception):
    """What was committed to is no state of the model; the message says why."""


def _foreign(path: Path, file: StateFile) -> dict[str, torch.Tensor]:
    try:
        return read_state_part(path, file)
    except ModelError as error:
        raise _Faulty(str(error)) from error


def _claim(policy: Policy, sampled: Sampled) -> Claim:
    return Claim(
        prompt=policy.encode_prompt(sampled.prompt),
        completions=[list(completion.tokens) for completion in sampled.completions],
        texts=[completion.text for completion in sampled.completions],
        seeds=sampled.seeds,
    )


def _evidence(manifest: Manifest, case: Case, claimed: Commitment) -> Evidence:
    """What was fetched, decoded; `WireError` if it is not what was committed to."""
    own = []
    for index, (stage, blob) in enumerate(zip(manifest.stages, case.own, strict=True)):
        groups: tuple[Group, ...] = ()
        if blob:
            groups = wire.decode_groups(blob, claimed.published[index].groups, groups_limit(manifest, stage))
        if not own_groups_are(claimed, stage, index, groups):
            raise WireError(f"{stage.name}: the groups that it serves are not those it committed to")
        own.append(groups)
    heard = []
    for stage, envelopes, blobs in zip(manifest.stages, claimed.heard, case.heard, strict=True):
        heard.append(
            tuple(_received(manifest, claimed, stage, *one) for one in zip(envelopes, blobs, strict=True))
        )
    return Evidence(claimed, tuple(own), tuple(heard))


def _received(manifest: Manifest, claimed: Commitment, stage: Any, envelope: bytes, blob: bytes) -> Received:
    heard = wire.open_envelope(envelope)
    announced = heard.announcement
    place = (announced.swarm, announced.round, announced.stage)
    if place != (claimed.swarm, claimed.round, STAGE_NUMBER[stage.name]):
        raise WireError(f"{stage.name}: what it heard was announced for another swarm, round or stage")
    if hashlib.sha256(blob).digest() != announced.blob:
        raise WireError(f"{stage.name}: what it heard is not what was announced")
    groups = wire.decode_groups(blob, announced.groups, groups_limit(manifest, stage))
    return Received(heard.peer, envelope, announced.root, groups)


def _failed(check: Check, words: str, count: int = 1, detail: str | None = None) -> Finding:
    fault = fault_of(check, count, detail or words)
    return Finding(check=check, outcome=Outcome.FAILED, words=words, faults=(fault,))

"""A swarm with dishonest peers, round by round: one run of `poisoning.py`.

Everything but the network, the chain and the clock is a node's own: rounds, mixing, models, updates, signed
announcements, commitments; with audits also draws, seals, verdicts, scores, and the checks of `swarm.audit`.
"""

from __future__ import annotations

import gc
import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
from msgspec import Struct
from poisoning_audits import Auditors, Ledger
from poisoning_peer import PHRASE, LastNumber, Peer, Poisoner, Served

from swarm import round
from swarm.draw import Draw
from swarm.effects import Gather, Received
from swarm.exchange import wire
from swarm.manifest import Manifest
from swarm.policy.plan import Wishes, make_plan
from swarm.tasks.mixture import Mixture

GROUPS_PER_STEP = 8  # two steps a round, as in the demo, which has twice the groups
MAX_TOKENS = 10  # of an answer: "-99 none" and EOS are 9, the demo's 8 leave no room
HELD_OUT = 64  # questions
HELD_OUT_EVERY = 5  # rounds


class Setting(Struct, frozen=True):
    """What one run is about; equal settings give equal results on one machine."""

    poisoners: int
    floor: float | None  # the manifest's `audits.floor`; None: there are no audits
    top_k: int  # the manifest's `external_top_k`; 0: peers do not screen what they learn from
    renames: bool  # whether a dishonest peer that is not learned from any more comes back under another name
    seed: int
    rounds: int
    peers: int = 8
    groups: int = 16  # that a peer samples in a round
    own: int = 4  # I, of them in its batch at most
    external: int = 12  # J; SAPO's mixture 2/6


class Round(Struct, frozen=True):
    """What the honest peers did in a round."""

    phrase: float  # share of their answers that hold it
    right: float  # mean reward of their answers
    poisoned: float  # share of the others' groups in their batches that are dishonest peers'
    passed_over: int  # dishonest peers, of those there are, that were not to be learned from


class HeldOut(Struct, frozen=True):
    """The honest peers' likeliest answers to questions of a draw of their own."""

    after: int  # rounds
    phrase: float  # share that holds it
    right: float  # mean score


class Result(Struct, frozen=True):
    """What came out of one run."""

    setting: Setting
    rounds: list[Round]
    held_out: list[HeldOut]
    settled: dict[str, int]  # cases, by subject and outcome
    audits: int  # reports that honest auditors checked
    names: int  # that the dishonest peers had in all
    cpu_seconds: float
    audit_cpu_seconds: float  # of these


def run(setting: Setting, demo: Manifest, round_done: Callable[[Round], None]) -> Result:
    """All rounds of one setting; `round_done` is called after each."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        gc.unfreeze()
        swarm = _Swarm(setting, demo, Path(folder))
        gc.collect()
        gc.freeze()  # as in mixing_cell.py
        rounds, held_out = [], [swarm.held_out(0)]
        for number in range(setting.rounds):
            rounds.append(swarm.play(number))
            if (number + 1) % HELD_OUT_EVERY == 0:
                held_out.append(swarm.held_out(number + 1))
            round_done(rounds[-1])
        auditors = swarm.auditors
        return Result(
            setting=setting,
            rounds=rounds,
            held_out=held_out,
            settled=dict(auditors.settled) if auditors else {},
            audits=auditors.audits if auditors else 0,
            names=len(swarm.dishonest),
            cpu_seconds=time.process_time() - began,
            audit_cpu_seconds=auditors.cpu_seconds if auditors else 0.0,
        )


def manifest_of(setting: Setting, demo: Manifest) -> Manifest:
    """The demo's, with answers alone and room in them for the phrase."""
    answer = demo.stage("answer")
    assert answer is not None
    learn = msgspec.structs.replace(
        demo.learn,
        own_groups=setting.own,
        external_groups=setting.external,
        external_top_k=setting.top_k,
        groups_per_step=GROUPS_PER_STEP,
    )
    floor = demo.audits.floor if setting.floor is None else setting.floor
    return msgspec.structs.replace(
        demo,
        stages=(msgspec.structs.replace(answer, max_groups=setting.groups, max_tokens=MAX_TOKENS),),
        learn=learn,
        audits=msgspec.structs.replace(demo.audits, floor=floor),
    )


class _Swarm:
    """The peers of one run and what they share."""

    def __init__(self, setting: Setting, demo: Manifest, folder: Path) -> None:
        manifest = self._manifest = manifest_of(setting, demo)
        self._tasks = Mixture([(LastNumber(digits=2), 1)])
        self._folder = folder
        plan = self._plan = make_plan(manifest, Wishes(device="cpu"))
        self._served = Served()
        self._ledger = Ledger(setting.seed)
        self._renames = setting.renames
        self._numbers = count()
        self.dishonest: set[bytes] = set()  # all names that they ever had
        honest = setting.peers - setting.poisoners
        self._honest = [self._join(Peer, -1) for _ in range(honest)]
        self._poisoners = [self._join(Poisoner, -1) for _ in range(setting.poisoners)]
        self.auditors = (
            Auditors(manifest, self._tasks, plan, self._ledger, self._served, folder)
            if setting.floor is not None
            else None
        )

    @property
    def _peers(self) -> list[Peer]:
        return [*self._honest, *self._poisoners]

    def play(self, number: int) -> Round:
        """One round of all peers."""
        ineligible = self.auditors.enter(number, self.dishonest) if self.auditors else frozenset[bytes]()
        if self._renames:
            self._poisoners = [
                self._join(Poisoner, number) if peer.peer in ineligible else peer for peer in self._poisoners
            ]
        self._in_lockstep(number, ineligible)
        for peer in self._peers:
            self._ledger.report(peer, self.auditors.said(peer, number) if self.auditors else b"")
        answers = [completion.text for peer in self._honest for completion in peer.said]
        theirs = [group for peer in self._honest for group in peer.batch if not group.own]
        return Round(
            phrase=mean(PHRASE in text for text in answers),
            right=mean(peer.commit.played.rewards["answer"] for peer in self._honest if peer.commit),
            poisoned=mean(group.sender in self.dishonest for group in theirs) if theirs else 0.0,
            passed_over=sum(peer.peer in ineligible for peer in self._poisoners),
        )

    def held_out(self, after: int) -> HeldOut:
        """The honest peers' likeliest answers, as they are now."""
        seeds = [hashlib.sha256(b"held out %d" % n).digest() for n in range(HELD_OUT)]
        questions = [self._tasks.draw(seed) for seed in seeds]
        prompts = [self._tasks.answer_prompt(question) for question in questions]
        said = [
            (question, text)
            for peer in self._honest
            for question, text in zip(questions, peer.likeliest(prompts, MAX_TOKENS), strict=True)
        ]
        return HeldOut(
            after=after,
            phrase=mean(PHRASE in text for _, text in said),
            right=mean(self._tasks.judge(question, [text])[0].score or 0.0 for question, text in said),
        )

    def _join(self, kind: type[Peer], number: int) -> Peer:
        """A new peer, registered in clock round `number`."""
        peer = kind(next(self._numbers), self._manifest, self._plan, self._folder, self._served)
        self._ledger.register(peer, number)
        if kind is Poisoner:
            self.dishonest.add(peer.peer)
        return peer

    def _in_lockstep(self, number: int, ineligible: frozenset[bytes]) -> None:
        """Nobody gathers a stage before everybody has published it."""
        rules, plays = {}, {}
        for peer in self._peers:
            peer.begin()
            rules[peer.peer] = self._rules(peer, number, ineligible)
            plays[peer.peer] = peer, round.play(rules[peer.peer])
        outcomes: dict[bytes, Any] = dict.fromkeys(plays)
        while plays:
            waiting: dict[bytes, Gather] = {}
            for key, (peer, play) in plays.items():
                with suppress(StopIteration):
                    effect = play.send(outcomes[key])
                    while not isinstance(effect, Gather):
                        effect = play.send(peer.perform(rules[key], effect))
                    waiting[key] = effect
            plays = {key: plays[key] for key in waiting}
            outcomes = {key: self._gather(number, effect) for key, effect in waiting.items()}

    def _rules(self, peer: Peer, number: int, ineligible: frozenset[bytes]) -> round.RoundRules:
        manifest, ledger = self._manifest, self._ledger
        return round.RoundRules(
            manifest=manifest,
            tasks=self._tasks,
            peer=peer.peer,
            round=number,
            starts_at=float(number * manifest.round_seconds),
            expiration=wire.expiration(0, manifest.round_seconds, number),
            draw=Draw(manifest.swarm_id, ledger.beacon(number), ledger.active(number), manifest.cell_size),
            previous=peer.commit.played.commitment if peer.commit else bytes(32),
            ineligible=lambda: ineligible,
        )

    def _gather(self, number: int, effect: Gather) -> list[Received]:
        heard = self._served.heard(number, effect.stage, effect.cell)
        heard = sorted(heard, key=lambda one: effect.order(one.announcement.root))[: effect.max_peers]
        return [
            Received(
                one.peer,
                one.envelope,
                one.announcement.root,
                wire.decode_groups(
                    self._served.blobs[one.announcement.blob], one.announcement.groups, effect.limit
                ),
            )
            for one in heard
        ]

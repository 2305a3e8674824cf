"""A swarm with dishonest peers, round by round: one run of `poisoning.py`.

Everything but the network, the chain and the clock is a node's own: rounds, mixing, models, updates, signed
announcements, commitments; with audits also draws, seals, verdicts, scores, and the checks of `swarm.audit`.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from poisoning_audits import Auditors, Ledger
from poisoning_peer import PHRASE, LastNumber, Peer, Poisoner, Served

from swarm import round
from swarm.cellmates import groups_limit
from swarm.draw import Draw
from swarm.effects import Effect, Gather, Played, Received
from swarm.exchange import wire
from swarm.manifest import Manifest
from swarm.policy.plan import Wishes, make_plan
from swarm.tasks.mixture import Mixture

MAX_TOKENS = 10  # of an answer: "-99 none" and EOS are 9, the demo's 8 leave no room
HELD_OUT = 64  # questions
HELD_OUT_EVERY = 5  # rounds

Play = tuple[Peer, Coroutine[Effect[Any], Any, Played]]


class Setting(Struct, frozen=True):
    """What one run is about; equal settings give equal results on one machine."""

    poisoners: int
    audits: bool
    top_k: int  # the manifest's `external_top_k`; 0: honest peers do not screen what they learn from
    seed: int
    rounds: int
    peers: int
    groups: int  # that a peer samples in a round
    own: int  # SAPO's I: of them in its batch, at most
    external: int  # J
    learning_rate: float
    groups_per_step: int


class Round(Struct, frozen=True):
    """What the honest peers did in a round."""

    phrase: float  # share of their answers that hold it
    right: float  # mean reward of their answers
    poisoned: float  # share of the others' groups in their batches that are dishonest peers'
    passed_over: int  # dishonest peers that were not to be learned from


class HeldOut(Struct, frozen=True):
    """The honest peers' likeliest answers to questions of a draw of their own."""

    after: int  # rounds
    phrase: float  # share that holds it
    right: float  # mean score


class Result(Struct, frozen=True):
    """What came out of one run."""

    setting: Setting
    rounds: list[Round] = []
    held_out: list[HeldOut] = []
    settled: dict[str, int] = {}  # cases, by subject and outcome
    audits: int = 0  # reports that honest auditors checked
    cpu_seconds: float = 0.0
    audit_cpu_seconds: float = 0.0  # of these


def run(setting: Setting, demo: Manifest, round_done: Callable[[Round], None]) -> Result:
    """All rounds of one setting; `round_done` is called after each."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        swarm = _Swarm(setting, demo, Path(folder))
        gc.collect()
        gc.freeze()  # see mixing_cell.py
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
            cpu_seconds=time.process_time() - began,
            audit_cpu_seconds=auditors.cpu_seconds if auditors else 0.0,
        )


def manifest_of(setting: Setting, demo: Manifest) -> Manifest:
    """The demo's, with answers alone and room in them for the phrase."""
    answer = demo.stage("answer")
    assert answer is not None
    replace = msgspec.structs.replace
    return replace(
        demo,
        stages=(replace(answer, max_groups=setting.groups, max_tokens=MAX_TOKENS),),
        learn=replace(
            demo.learn,
            own_groups=setting.own,
            external_groups=setting.external,
            external_top_k=setting.top_k,
            learning_rate=setting.learning_rate,
            groups_per_step=setting.groups_per_step,
        ),
    )


class _Swarm:
    """The peers of one run and what they share."""

    def __init__(self, setting: Setting, demo: Manifest, folder: Path) -> None:
        manifest = self._manifest = manifest_of(setting, demo)
        self._tasks = Mixture([(LastNumber(digits=2), 1)])
        plan = make_plan(manifest, Wishes(device="cpu"))
        self._served = Served()
        self._ledger = Ledger(setting.seed)
        honest = setting.peers - setting.poisoners
        self.peers = [
            (Peer if number < honest else Poisoner)(number, manifest, plan, folder, self._served)
            for number in range(setting.peers)
        ]
        for peer in self.peers:
            self._ledger.register(peer)
        self._honest, self._poisoners = self.peers[:honest], self.peers[honest:]
        self.auditors = (
            Auditors(manifest, self._tasks, plan, self._ledger, self._served, folder)
            if setting.audits
            else None
        )

    def play(self, number: int) -> Round:
        """One round of all peers."""
        poisoners = frozenset(peer.peer for peer in self._poisoners)
        ineligible = self.auditors.enter(number, poisoners) if self.auditors else frozenset[bytes]()
        draw = Draw(
            self._manifest.swarm_id,
            self._ledger.beacon(number),
            self._ledger.active(number),
            self._manifest.cell_size,
        )
        rules = {peer.peer: self._rules(peer, number, draw, ineligible) for peer in self.peers}
        self._in_lockstep(rules)
        for peer in self.peers:
            said = self.auditors.said(peer, number) if self.auditors else b""
            self._ledger.report(peer, said)
        said = [completion.text for peer in self._honest for completion in peer.said]
        theirs = [group for peer in self._honest for group in peer.batch if not group.own]
        return Round(
            phrase=sum(PHRASE in text for text in said) / len(said),
            right=sum(peer.commit.played.rewards["answer"] for peer in self._honest if peer.commit)
            / len(self._honest),
            poisoned=sum(group.sender in poisoners for group in theirs) / max(1, len(theirs)),
            passed_over=len(ineligible & poisoners),
        )

    def held_out(self, after: int) -> HeldOut:
        """The honest peers' likeliest answers, as they are now."""
        questions = [self._tasks.draw(n.to_bytes(32, "little")) for n in range(HELD_OUT)]
        prompts = [self._tasks.answer_prompt(question) for question in questions]
        phrase = right = 0.0
        for peer in self._honest:
            for question, text in zip(questions, peer.likeliest(prompts, MAX_TOKENS), strict=True):
                phrase += PHRASE in text
                right += self._tasks.judge(question, [text])[0].score or 0.0
        asked = len(self._honest) * HELD_OUT
        return HeldOut(after=after, phrase=phrase / asked, right=right / asked)

    def _rules(
        self, peer: Peer, number: int, draw: Draw, ineligible: frozenset[bytes]
    ) -> round.RoundRules:
        return round.RoundRules(
            manifest=self._manifest,
            tasks=self._tasks,
            peer=peer.peer,
            round=number,
            starts_at=float(number * self._manifest.round_seconds),
            expiration=wire.expiration(0, self._manifest.round_seconds, number),
            draw=draw,
            previous=peer.commit.played.commitment if peer.commit else bytes(32),
            ineligible=lambda: ineligible,
        )

    def _in_lockstep(self, rules: dict[bytes, round.RoundRules]) -> None:
        """Nobody gathers a stage before everybody has published it."""
        for peer in self.peers:
            peer.begin()
        plays: list[Play] = [(peer, round.play(rules[peer.peer])) for peer in self.peers]
        outcomes: dict[bytes, object] = {}
        while plays:
            waiting: list[tuple[Peer, Play, Gather]] = []
            for peer, play in plays:
                try:
                    effect = play.send(outcomes.get(peer.peer))
                    while not isinstance(effect, Gather):
                        effect = play.send(peer.perform(rules[peer.peer], effect))
                    waiting.append((peer, (peer, play), effect))
                except StopIteration:
                    pass
            plays = [play for _, play, _ in waiting]
            outcomes = {peer.peer: self._gather(effect) for peer, _, effect in waiting}

    def _gather(self, effect: Gather) -> list[Received]:
        heard = [
            wire.open_envelope(peer.announced[effect.stage])
            for peer in self.peers
            if effect.stage in peer.announced
        ]
        heard.sort(key=lambda one: effect.order(one.announcement.root))
        return [
            Received(
                one.peer,
                one.envelope,
                one.announcement.root,
                wire.decode_groups(
                    self._served.blobs[one.announcement.blob], one.announcement.groups, effect.limit
                ),
            )
            for one in heard[: effect.max_peers]
        ]

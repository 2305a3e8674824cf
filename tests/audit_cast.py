"""A few real peers in one process: real models, learners, keys and commitments; no network and no ledger.

Who audits them gets what it would fetch. For tests of the audit itself; `test_cheats.py` has a real swarm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from identity import Identity
from swarm import round
from swarm.audit import Checker, Facts
from swarm.audit_evidence import Fetching
from swarm.audit_models import LoadedModels
from swarm.draw import Draw
from swarm.effects import Commit, Gather
from swarm.errors import ExchangeError
from swarm.exchange import wire
from swarm.exchange.peer import Collected
from swarm.findings import Findings
from swarm.manifest import Manifest, parse
from swarm.performer import Pace, Performer
from swarm.settings import Settings
from swarm.tasks import load_tasks
from swarm.training import SamplingState, Training
from swarm.verde.verdicts import Plant

MANIFEST = parse(
    b"""
    name: audited
    tasks: [{name: arithmetic}]
    models: [tiny]
    round_seconds: 1000
    group_size: 4
    stages:
      - {name: answer, ends_at: 0.3, max_groups: 6, max_tokens: 8}
      - {name: critique, ends_at: 0.5, max_groups: 2, max_tokens: 16}
    learn: {ends_at: 0.8, external_groups: 4, learning_rate: 1.0e-3}
    """,
    "audited",
)
ACTIVE = 4
HUGE = 2**60


class Everything:
    """What all peers serve and announced: the exchange of all of them."""

    def __init__(self) -> None:
        self.blobs: dict[tuple[bytes, bytes], bytes] = {}  # by peer and digest
        self.files: dict[tuple[bytes, bytes], Path] = {}
        self.announced: dict[tuple[int, int], list[tuple[wire.Heard, bytes]]] = {}

    def fetch_to(self, peer: bytes, digest: bytes, size_bytes: int, path: Path, timeout: float) -> None:
        file = self.files.get((peer, digest))
        data = file.read_bytes() if file else self.blobs.get((peer, digest))
        if data is None or len(data) != size_bytes:
            raise ExchangeError("peer does not have the blob")
        path.write_bytes(data)

    def heard(self, round_number: int, stage: int, cell: int) -> list[wire.Heard]:
        return [one for one, _ in self.announced.get((round_number, stage), [])]


class MemoryExchange:
    """One peer's side of it, in the words of `swarm.exchange.service.Exchange`."""

    def __init__(self, identity: Identity, everything: Everything) -> None:
        self._identity = identity
        self._all = everything

    def put_blob(self, data: bytes) -> bytes:
        import hashlib

        digest = hashlib.sha256(data).digest()
        self._all.blobs[self._identity.peer, digest] = data
        return digest

    def share(self, files: Mapping[bytes, Path]) -> None:
        self._all.files |= {(self._identity.peer, digest): path for digest, path in files.items()}

    def keep(self, digests) -> None:
        pass

    def announce(self, announcement: wire.Announcement) -> None:
        sign = lambda number, stage, message: self._identity.sign(message)  # noqa: E731
        envelope = wire.sign(self._identity.public_key, announcement, sign)
        data = self._all.blobs[self._identity.peer, announcement.blob]
        place = self._all.announced.setdefault((announcement.round, announcement.stage), [])
        place.append((wire.open_envelope(envelope), data))

    def collect(self, round_number, stage, cell, *, order, limit=None, max_peers=None, timeout=None):
        heard = sorted(self._all.announced.get((round_number, stage), []), key=lambda pair: order(pair[0]))
        return [Collected(one, wire.decode(wire.GroupsBlob, data, len(data)).groups) for one, data in heard]


@dataclass
class AuditedPeer:
    """A peer and what is on the ledger of it."""

    identity: Identity
    training: Training
    exchange: MemoryExchange
    performer_class: type[Performer] = Performer
    reports: list[Commit] = field(default_factory=list)
    plant: Plant | None = None

    @property
    def last_state(self) -> SamplingState:
        return self.training.present_state()


class Company:
    """Peers that play rounds with one another, and an auditor."""

    def __init__(self, folder: Path, manifest: Manifest = MANIFEST) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tasks = load_tasks(manifest)
        self.everything = Everything()
        self.peers: list[AuditedPeer] = []
        self.rounds = 0
        self.ineligible: frozenset[bytes] = frozenset()
        self._checker: Checker | None = None

    def add(self, training_class: type[Training] = Training) -> AuditedPeer:
        """One more peer, with a state of its own from the beginning."""
        home = self.folder / f"peer{len(self.peers)}"
        home.mkdir()
        identity = Identity.create(home / "swarm.pem")
        settings = Settings(home=home, threads=1, trackers=(), device="cpu")
        training = training_class(settings, self.manifest, home / "swarm", "a peer", ())
        peer = AuditedPeer(identity, training, MemoryExchange(identity, self.everything))
        self.peers.append(peer)
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.training.close()

    def beacon(self, number: int) -> bytes:
        return bytes([number + 1]) * 32

    def play(self, *peers: AuditedPeer) -> int:
        """A round of these peers (all of them, if none is named); its number."""
        number, self.rounds = self.rounds, self.rounds + 1
        draw = Draw(self.manifest.swarm_id, self.beacon(number), ACTIVE, self.manifest.cell_size)
        plays = []
        for peer in peers or self.peers:
            rules = round.RoundRules(
                manifest=self.manifest,
                tasks=self.tasks,
                peer=peer.identity.peer,
                round=number,
                starts_at=0.0,
                expiration=1000 * (number + 2),
                draw=draw,
                previous=peer.reports[-1].played.commitment if peer.reports else bytes(32),
                ineligible=lambda: self.ineligible,
                plant=peer.plant,
            )
            performer = peer.performer_class(
                rules,
                peer.training,
                peer.exchange,
                Pace(),
                peer.training.present_state(),
                now=lambda: 0.0,
                wait_until=lambda moment: None,
                commit=peer.reports.append,
                show=lambda stage: None,
            )
            plays.append((round.play(rules), performer, None))
        while plays:  # in lockstep: nobody gathers before everybody has published
            waiting = []
            for play, performer, effect in plays:
                try:
                    outcome = None if effect is None else performer.perform(effect)
                    effect = play.send(outcome)
                    while not isinstance(effect, Gather):
                        effect = play.send(performer.perform(effect))
                    waiting.append((play, performer, effect))
                except StopIteration:
                    pass
            plays = waiting
        return number

    def facts(self, peer: AuditedPeer, **changes: object) -> Facts:
        """What the ledger says of a peer's last report."""
        commit = peer.reports[-1]
        before = peer.reports[-2] if len(peer.reports) > 1 else None
        number = commit.played.round
        facts = {
            "peer": peer.identity.peer,
            "served_by": peer.identity.peer,
            "round": number,
            "commitment": commit.played.commitment,
            "state_before": commit.learned.state_before.digest,
            "state_after": commit.learned.state_after.digest,
            "reward_micros": commit.played.reward_micros,
            "groups": commit.played.groups,
            "late": False,
            "seed": bytes(32),
            "most_groups": HUGE,
            "previous_commitment": before.played.commitment if before else None,
            "begins_anew": before is None,
            "last_state": before.learned.state_after.digest if before else None,
            "beacon": self.beacon(number),
            "active": ACTIVE,
            "ineligible": tuple(sorted(self.ineligible)),
        }
        return Facts(**(facts | changes))

    def fetching(self, name: str = "fetched", budget_bytes: int = HUGE, **changes: object) -> Fetching:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return Fetching(self.everything, self.manifest, folder, 30.0, budget_bytes, **changes)

    @property
    def checker(self) -> Checker:
        if self._checker is None:
            plan = self.peers[0].training.plan
            models = LoadedModels(self.manifest, plan, self.folder)
            self._checker = Checker(self.manifest, self.tasks, models)
        return self._checker

    def audit(self, peer: AuditedPeer, change: Callable[[Facts], Facts] = lambda facts: facts) -> Findings:
        """Fetch and check a peer's last report."""
        return self.checker.check(self.fetching().fetch(change(self.facts(peer))))

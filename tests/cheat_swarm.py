"""A real swarm with cheats in it: a devnet, `swarm join` processes, and what the ledger says of each.

What is asked is the ledger alone, as any stranger could read it, and of each peer's log only in which rounds
it cheated.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from eth_account import Account

from identity import load_or_create_identity, load_or_create_wallet, peer_name
from swarm.guard import Guard
from swarm.ledger.creation import deploy
from swarm.ledger.devnet import Devnet
from swarm.ledger.history import History
from swarm.manifest import Manifest, parse
from swarm.settings import Settings
from swarm.verde.cases import Settled
from swarm.verde.reputation import Reputation
from swarm.verde.standing import Standing
from swarm.verde.verdicts import Check, Outcome

GALLERY = Path(__file__).with_name("cheats.py")
# To the first round: what peers and their audit processes take to load on two cores.
LOADING_SECONDS, LOADING_SECONDS_PER_PEER = 10, 9
POLL_SECONDS = 0.5
BLAMED = (Outcome.FAILED, Outcome.WITHHELD)


def gallery_manifest(name: str, round_seconds: int) -> Manifest:
    """All three stages, of few groups; every group's tokens are looked at in an audit."""
    return parse(
        f"""
        name: {name}
        tasks: [{{name: arithmetic}}]
        models: [tiny]
        round_seconds: {round_seconds}
        group_size: 4
        shown_chars: 24
        stages:
          - {{name: answer, ends_at: 0.3, max_groups: 4, max_tokens: 8}}
          - {{name: critique, ends_at: 0.45, max_groups: 2, max_tokens: 20}}
          - {{name: revise, ends_at: 0.6, max_groups: 2, max_tokens: 12}}
        learn: {{ends_at: 0.85, external_groups: 6, learning_rate: 1.5e-4}}
        audits: {{groups: 8}}
        """.encode(),
        "gallery",
    )


class Peer:
    """One peer: its home, its process, its log."""

    def __init__(self, kind: str, home: Path, wallet_of: Peer | None = None) -> None:
        self.kind = kind
        self.settings = Settings(home=home)
        identity, journal = load_or_create_identity(home)
        journal.close()
        self.peer = identity.peer
        self.log_path = home / "node.log"
        self.process: subprocess.Popen[bytes] | None = None
        if wallet_of is not None:
            for name in ("wallet.json", "wallet.password"):
                shutil.copy2(wallet_of.settings.home / name, home)

    @property
    def name(self) -> str:
        return f"{self.kind} ({peer_name(self.peer)})"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def cheated(self) -> list[int]:
        """The rounds in which it says that it cheated."""
        return sorted({int(number) for number in re.findall(r"cheated round=(\d+)", self.log)})

    def kill(self) -> None:
        """With all that it started, at once."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def signal(self, number: int) -> None:
        """To the node and its p2p daemon; what audits has a session of its own."""
        assert self.process is not None
        os.killpg(self.process.pid, number)


@dataclass
class Story:
    """What the ledger tells: the standings on entering each round, and all that was settled."""

    standings: list[dict[bytes, Standing]] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)

    def of(self, peer: Peer, number: int = -1) -> Standing | None:
        """A peer's standing on entering a round; None if it had not reported by then."""
        return self.standings[number].get(peer.peer)

    def cases(self, peer: Peer, *outcomes: Outcome | None) -> list[Settled]:
        """A peer's settled cases with one of the outcomes, by round; without any, all."""
        found = (one for one in self.settled if one.peer == peer.peer)
        return sorted(
            (one for one in found if not outcomes or one.outcome in outcomes), key=lambda one: one.round
        )

    def checks(self, peer: Peer) -> set[Check]:
        """Which checks found something, in the cases for which the peer was blamed."""
        return {fault.check for case in self.cases(peer, *BLAMED) for fault in case.faults}


class CheatSwarm:
    """`with CheatSwarm(folder, manifest) as swarm:` has a ledger, and ends all peers that were added.

    Round 0 begins when `peers` peers had the time to load.
    """

    def __init__(self, folder: Path, manifest: Manifest, peers: int) -> None:
        self.folder = folder
        self.manifest = manifest
        self.peers: list[Peer] = []
        self._loading = LOADING_SECONDS + LOADING_SECONDS_PER_PEER * peers
        self._machine = folder / "machine"
        self._stack = ExitStack()

    def __enter__(self) -> CheatSwarm:
        with ExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._guard = stack.enter_context(Guard())
            self.devnet = stack.enter_context(Devnet(log_path=self.folder / "anvil.log"))
            self._guard.watch(self.devnet.pid)
            self.ledger = deploy(
                self.devnet.rpc_url,
                Account.from_key(self.devnet.funded_key),
                self.manifest,
                int(time.time()) + self._loading,
                self._machine,
            )
            self._history = History(self.ledger.another())
            self._reputation = Reputation(self.manifest.swarm_id, self.manifest.audits)
            self.story = Story()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.peers:
            if peer.process is not None:
                peer.kill()
        self._stack.close()

    def add(self, *kinds: str) -> list[Peer]:
        """Start a peer of each kind."""
        return [self.start(self.make(kind)) for kind in kinds]

    def make(self, kind: str, wallet_of: Peer | None = None) -> Peer:
        """A peer that is not started yet, with an account of its own or another's."""
        number = sum(peer.kind == kind for peer in self.peers)
        peer = Peer(kind, self.folder / f"{kind}-{number}", wallet_of)
        self.devnet.fund(load_or_create_wallet(peer.settings.wallet_path).address, 10)
        self.peers.append(peer)
        return peer

    def start(self, peer: Peer) -> Peer:
        """Start it, or start it again."""
        command = [sys.executable, str(GALLERY), peer.kind, "join", self.ledger.join_line]
        command += ["--home", str(peer.settings.home), "--threads", "1", "--audit-share", "0.9"]
        command += ["--memory-share", str(1 / 10), "--tracker", "none"]
        with peer.log_path.open("ab") as log:
            peer.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Wherever the project is installed from, it is this checkout that is tested.
                env={
                    **os.environ,
                    "SWARM_MACHINE_DIR": str(self._machine),
                    "PYTHONPATH": str(GALLERY.parents[1]),
                },
            )
        self._guard.watch(peer.process.pid)
        return peer

    # ---- time ----

    def seconds_until(self, number: int, share: float = 0.0) -> float:
        """Until that share of a round is over, on the ledger's clock."""
        begins = self.ledger.genesis + (number + share) * self.manifest.round_seconds
        return begins - self.ledger.now()

    def wait_until(self, number: int, share: float = 0.0) -> None:
        """Wait for a moment within a round."""
        while (left := self.seconds_until(number, share)) > 0:
            time.sleep(min(left, POLL_SECONDS))

    def play(self, number: int, until: Callable[[Story], bool] = lambda story: False) -> Story:
        """Go on until round `number` is entered or the story is as wished; what the ledger tells by then."""
        while self._reputation.number < number and not until(self.story):
            begun = self._history.next()
            if begun is None:
                self._look_after_peers()
                time.sleep(POLL_SECONDS)
                continue
            self.story.settled += self._reputation.enter(begun.number, begun.beacon, begun.events)
            self.story.standings.append({one.peer: one for one in self._reputation.standings()})
        return self.story

    @property
    def round(self) -> int:
        """That was entered last."""
        return self._reputation.number

    def _look_after_peers(self) -> None:
        for peer in self.peers:
            code = peer.process.poll() if peer.process else None
            if code is not None and code != -signal.SIGKILL:
                raise AssertionError(f"{peer.name} ended with {code}:\n{peer.log[-4000:]}")


def table(story: Story, peers: Sequence[Peer]) -> str:
    """All peers at the end, a line each, to see what went wrong."""
    lines = []
    for peer in peers:
        standing = story.of(peer)
        if standing is None:
            lines.append(f"{peer.name}: never reported")
            continue
        cases = " ".join(
            f"{case.round}:{case.outcome.name if case.outcome is not None else 'lapsed'}"
            f"{'(plant)' if case.was_plant else ''}@{case.settled_in}"
            f"[{','.join(f'{fault.check.name}×{fault.count} {fault.detail}' for fault in case.faults)}]"
            for case in story.cases(peer)
        )
        lines.append(
            f"{peer.name}: score {standing.score_micros / 1e6:.3f} passes {standing.passes:.2f} fails "
            f"{standing.fails:.2f} rounds {standing.rounds} age {standing.age} verified "
            f"{standing.verified_micros / 1e6:.2f} of {standing.reward_micros / 1e6:.2f}; {cases}"
        )
    return "\n".join(lines)

"""An honest peer in a process of its own: the real exchange, playing rounds of one stage without a model.

Processes are forked from a server that has imported everything, so that a test can have dozens.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from exchange_cast import Swarm, one_group

from identity import Identity
from swarm.errors import ExchangeError
from swarm.exchange import wire
from swarm.exchange.service import Exchange
from swarm.exchange.validator import SwarmRules

ANNOUNCE_UNTIL, COLLECT_AT, COLLECT_SHARE = 0.25, 0.5, 0.3  # of a round


@dataclass(frozen=True)
class Plan:
    """What one player is told."""

    identity: Path
    folder: Path
    swarm: Swarm
    bootstrap: tuple[str, ...] = ()
    registered: frozenset[bytes] | None = None  # None: the ledger has not said
    cells: int = 1
    blob_bytes: int = 2000


@dataclass(frozen=True)
class PlayedRound:
    """What a player says at the end of a round."""

    round: int
    announced: bool
    got: frozenset[bytes]  # whose groups came in time
    memory_bytes: int  # of the process and its p2pd
    dropped: Counter[str]
    peers: int


@dataclass
class Player:
    """The test's end of a player."""

    plan: Plan
    peer: bytes
    process: multiprocessing.Process
    pipe: Connection
    address: str = ""
    rounds: list[PlayedRound] = field(default_factory=list)

    def listen(self) -> None:
        """Take in what it has said so far; ends quietly when it is dead."""
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                said = self.pipe.recv()
                if isinstance(said, str):
                    self.address = said
                else:
                    self.rounds.append(said)

    def kill(self) -> None:
        """As kill -9 does; its p2pd is left to itself."""
        self.process.kill()
        self.process.join()
        self.listen()


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["player"])


@contextmanager
def troupe() -> Iterator[Callable[[Plan], Player]]:
    """Starts players; ends those that are left, and their p2pds, at the end."""
    players: list[Player] = []

    def start(plan: Plan) -> Player:
        ours, theirs = _context.Pipe()
        process = _context.Process(target=_play, args=(plan, theirs), daemon=True)
        process.start()
        theirs.close()
        player = Player(plan, Identity.load(plan.identity).peer, process, ours)
        players.append(player)
        return player

    try:
        yield start
    finally:
        for player in players:
            with suppress(OSError):
                player.pipe.send("stop")
        for player in players:
            player.process.join(10)
            if player.process.is_alive():
                player.kill()


def _play(plan: Plan, pipe: Connection) -> None:
    logging.disable(logging.CRITICAL)
    identity = Identity.load(plan.identity)
    swarm = plan.swarm
    rules = SwarmRules(
        swarm_id=swarm.swarm_id,
        genesis=swarm.genesis,
        round_seconds=swarm.round_seconds,
        now=time.time,
        registered=lambda peer: None if plan.registered is None else peer in plan.registered,
    )

    def signer(_round: int, _stage: int, message: bytes) -> bytes:
        return identity.sign(message)

    with Exchange(identity, signer, rules, plan.folder, initial_peers=plan.bootstrap) as exchange:
        pipe.send(exchange.multiaddrs[0])
        number = swarm.round + 1
        while not _told_to_stop(pipe, swarm.genesis + number * swarm.round_seconds):
            pipe.send(_round(exchange, identity, plan, number))
            number = max(number, swarm.round) + 1


def _round(exchange: Exchange, identity: Identity, plan: Plan, number: int) -> PlayedRound:
    swarm, starts = plan.swarm, plan.swarm.genesis + number * plan.swarm.round_seconds

    def cell_of(peer: bytes) -> int:
        return (peer[0] + number) % plan.cells

    exchange.enter(number, cell_of)
    cell, announced, got = cell_of(identity.peer), True, frozenset[bytes]()
    data = one_group(f"{identity.peer.hex()} {number} ".ljust(plan.blob_bytes, "x"))
    try:
        blob = exchange.put_blob(data)
        exchange.announce(swarm.announcement(blob, len(data), round=number, cell=cell))
    except ExchangeError:
        announced = False
    announced &= time.time() < starts + ANNOUNCE_UNTIL * swarm.round_seconds
    time.sleep(max(0.0, starts + COLLECT_AT * swarm.round_seconds - time.time()))
    with suppress(ExchangeError):
        collected = exchange.collect(
            number,
            0,
            cell,
            timeout=COLLECT_SHARE * swarm.round_seconds,
            max_peers=32,
            limit=wire.GroupsLimit(max_bytes=2**20, completions=1),
        )
        got = frozenset(one.heard.peer for one in collected)
    return PlayedRound(number, announced, got, _memory_bytes(), exchange.dropped, exchange.health.peers)


def _told_to_stop(pipe: Connection, until: float) -> bool:
    """Wait for a moment; whether the test wants an end, or is gone."""
    try:
        return pipe.poll(max(0.0, until - time.time())) and pipe.recv() == "stop"
    except (EOFError, OSError):
        return True


def _memory_bytes() -> int:
    process = psutil.Process(os.getpid())
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            total += child.memory_info().rss
    return total

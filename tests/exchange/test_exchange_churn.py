"""Peers that die without a word and others that take their place, every round: the living hear each other."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from exchange_cast import Swarm
from player import COLLECT_AT, Plan, Player, troupe

from identity import Identity

HEARD_SHARE = 0.95
REPLACED = 1 / 3


@pytest.mark.parametrize(
    ("size", "rounds"), [(6, 3), pytest.param(12, 20, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_living_peers_hear_each_other_while_a_third_is_replaced_every_round(
    tmp_path: Path, size: int, rounds: int
) -> None:
    replaced = round(size * REPLACED)
    round_seconds = 8 if size == 6 else 10
    swarm = Swarm(round_seconds=round_seconds, genesis=int(time.time()) - round_seconds)
    keys = _keys(tmp_path, size + replaced * rounds)
    dice = random.Random(1)
    with troupe() as start:

        def enter(n: int, alive: Sequence[Player]) -> Player:
            folder = tmp_path / f"player-{n}"
            # As the ledger's list of bootnodes: some of them are dead already.
            known = [player.address for player in dice.sample(alive, min(3, len(alive)))]
            return start(Plan(keys[n].path, folder, swarm, bootstrap=tuple(known)))

        alive: list[Player] = []
        for n in range(size):
            alive.append(enter(n, alive))
            _await_addresses(alive)
        everybody, numbers = list(alive), list[int]()
        deaths: dict[bytes, int] = {}  # in which round
        while len(numbers) < rounds:
            number = swarm.round + 1  # the next one, if the machine is quick enough to start the newcomers
            numbers.append(number)
            _sleep_until(swarm, number, dice.uniform(0.1, COLLECT_AT - 0.05))
            for victim in dice.sample(alive, replaced):
                victim.kill()
                alive.remove(victim)
                deaths[victim.peer] = number
            newcomers = [enter(len(everybody) + n, alive) for n in range(replaced)]
            _await_addresses(newcomers)
            everybody += newcomers
            alive += newcomers
        _sleep_until(swarm, numbers[-1] + 1, 0.0)
        for player in alive:
            player.listen()
    shares = _shares(everybody, numbers, deaths)
    assert len(shares) >= (size - replaced) * rounds * HEARD_SHARE  # they were there, too
    low = sum(share < HEARD_SHARE for share in shares)
    print(f"shares={len(shares)} low={low} lowest={min(shares):.3f} rounds={numbers[0]}..{numbers[-1]}")
    assert min(shares) >= HEARD_SHARE


def _shares(players: Sequence[Player], numbers: Sequence[int], deaths: dict[bytes, int]) -> list[float]:
    """For each live peer and round: the share that it got of those that lived through it and announced."""
    played = {(player.peer, one.round): one for player in players for one in player.rounds}
    shares = []
    for number in numbers:
        living = {
            player.peer
            for player in players
            if (one := played.get((player.peer, number)))
            and one.announced
            and deaths.get(player.peer, number + 1) > number
        }
        shares += [len(played[peer, number].got & living) / len(living) for peer in living]
    return shares


def _keys(folder: Path, count: int) -> list[Identity]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda n: Identity.create(folder / f"key-{n}.pem"), range(count)))


def _await_addresses(players: Sequence[Player]) -> None:
    for player in players:
        while not player.address:
            assert player.pipe.poll(60), "a player does not start"
            player.listen()


def _sleep_until(swarm: Swarm, number: int, share: float) -> None:
    moment = swarm.genesis + (number + share) * swarm.round_seconds
    time.sleep(max(0.0, moment - time.time()))

"""A hostile peer against honest ones, in processes of their own: no round lost, memory held, all counted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
from exchange_cast import Swarm
from hostile import Plan as Attack
from player import Plan, PlayedRound, Player, troupe

from identity import Identity

HONEST, QUIET_ROUNDS = 3, 2
ROUND_SECONDS = 6
MORE_MEMORY_BYTES = 100 * 10**6

# What was sent, and the reason under which it is counted.
COUNTED = {
    "forged subkey": "subkey is not the signer's peer digest",
    "subkey of another type": "subkey is not a peer digest",
    "bad signature": "signature is not the sender's",
    "re-stored with a later expiration": "expiration is not the one that the round fixes",
    "plain value over the dictionary": "plain value instead of a dictionary's",
    "unregistered, beside good ones": "sender is not registered",
    "replay from an old round": "round is too old",
    "future round": "round is ahead of the clock",
    "wrong cell": "sender is not of this cell",
    "another swarm": "announcement is of another swarm",
    "3 kB value": "record is over the size limit",
    "msgpack bombs, 10,000 subkeys": "not a DHT value",
    "zero-length value": "not a valid Envelope",
    "10,000 records, 3 MB values": "node sends too many records",
    "second announcement of a slot": "sender announced something else before",
    "blob with wrong digest": "blob has another digest than announced",
    "endless slow blob, silence": "blob did not come in time",
    "zero-length blob": "blob has another size than announced",
    "garbage instead of a blob": "message is over its size limit",
}


def test_hostile_peer_costs_nobody_a_round_and_is_counted(tmp_path: Path) -> None:
    keys = [Identity.create(tmp_path / f"key-{n}.pem") for n in range(HONEST + 2)]
    *honest, rogue, stranger = keys
    swarm = Swarm(round_seconds=ROUND_SECONDS, genesis=int(time.time()) - ROUND_SECONDS)
    registered = frozenset(key.peer for key in (*honest, rogue))
    with troupe() as start:
        players: list[Player] = []
        for n, key in enumerate(honest):
            known = tuple(player.address for player in players)
            player = start(Plan(key.path, tmp_path / f"player-{n}", swarm, known, registered))
            assert player.pipe.poll(60)
            player.listen()
            players.append(player)
        quiet = swarm.round + 1
        _sleep_until(swarm, quiet + QUIET_ROUNDS)
        for player in players:
            player.listen()
        attack = Attack(
            victims=tuple(player.address for player in players),
            registered=rogue.path,
            stranger=stranger.path,
            swarm=swarm,
        )
        attacked = _attack(attack, tmp_path)
        last = max(attacked)
        _sleep_until(swarm, last + 2)
        for player in players:
            player.listen()

    played = [one for player in players for one in player.rounds if one.round >= quiet]
    lost = [(one.round, len(one.got)) for one in played if not {key.peer for key in honest} <= one.got]
    assert not lost and all(one.announced for one in played)
    assert {one.round for one in played} >= {*range(quiet, quiet + QUIET_ROUNDS), *attacked}
    for player in players:
        before, after = (
            _memory(player.rounds, quiet, min(attacked)),
            _memory(player.rounds, min(attacked), last + 2),
        )
        print(f"memory quiet={before / 1e6:.0f} MB attacked={after / 1e6:.0f} MB")
        assert after - before <= MORE_MEMORY_BYTES
    counted = sum((player.rounds[-1].dropped for player in players), Counter[str]())
    print(counted)
    missing = {attack: reason for attack, reason in COUNTED.items() if not counted[reason]}
    assert not missing


def _attack(plan: Attack, folder: Path) -> list[int]:
    """Run the hostile program to its end; the rounds in which it attacked."""
    file = folder / "attack.json"
    file.write_bytes(msgspec.json.encode(plan, enc_hook=str))
    program = Path(__file__).with_name("hostile.py")
    run = subprocess.run(
        [sys.executable, str(program), str(file)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=program.parents[2],
        env={"PYTHONPATH": str(program.parents[2]), "PATH": "", "HIVEMIND_LOGLEVEL": "CRITICAL"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    print(run.stdout)
    return [int(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("round")]


def _memory(rounds: list[PlayedRound], first: int, end: int) -> int:
    return max(one.memory_bytes for one in rounds if first <= one.round < end)


def _sleep_until(swarm: Swarm, number: int) -> None:
    time.sleep(max(0.0, swarm.genesis + number * swarm.round_seconds - time.time()))

"""The contract's events from raw logs, many at once.

web3's own decoder takes 0.35 ms an event, which for a million reports is six minutes (`benchmarks/board.py`).
The layout is the ABI's: topics hold what is indexed, 32 bytes each; the data holds the rest in words of 32
bytes, and `verdicts`, whose place the seventh word names, behind them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from swarm.ledger.records import Registered, Reported, Rotated
from swarm.ledger.refusals import artifact

Logged = Registered | Rotated | Reported
HexNumber = Annotated[str, Meta(pattern="^0x[0-9a-fA-F]{1,16}$")]
Hash = Annotated[str, Meta(pattern="^0x[0-9a-fA-F]{64}$")]
MAX_BLOCK = 2**63  # SQLite holds what is below

# commitment, state before, state after; then padded: groups (uint32), reward (uint64), late, place, length
_REPORTED = struct.Struct(">32s32s32s28xI24xQ31x?24xQ24xQ")
_VERDICTS_PLACE = 7 * 32


class RawLog(Struct, frozen=True, gc=False):
    """A log as JSON-RPC has it."""

    topics: Annotated[list[Hash], Meta(min_length=1, max_length=4)]
    data: Annotated[str, Meta(max_length=2**16)]
    blockNumber: HexNumber
    logIndex: HexNumber
    transactionHash: Hash
    removed: bool = False


def topics(names: Sequence[str]) -> list[str]:
    """The first topic of each of these events of the contract."""
    return [_topics()[name] for name in names]


def decode_logs(found: Any, first: int, last: int) -> list[Logged]:
    """Events in the ledger's order from what a server answers to a question about blocks `first` to `last`.

    `ValueError` if one of them is not an event of the contract, is of another block, or was taken back.
    """
    raw = msgspec.convert(found, type=list[RawLog])
    placed = [(int(log.blockNumber, 16), int(log.logIndex, 16), log) for log in raw]
    placed.sort(key=lambda one: one[:2])
    if placed and not first <= placed[0][0] <= placed[-1][0] <= min(last, MAX_BLOCK):
        raise ValueError("an event of another block")
    decoders = _decoders()
    events: list[Logged] = []
    for block, _, log in placed:
        decode = decoders.get(log.topics[0].lower())
        if decode is None or log.removed:
            raise ValueError("an event that was not asked for")
        events.append(decode(log, block))
    return events


def _reported(log: RawLog, block: int) -> Reported:
    _, peer, number = log.topics
    data = bytes.fromhex(log.data[2:])
    if len(data) < _REPORTED.size:
        raise ValueError("a report that is cut off")
    commitment, before, after, groups, reward, late, place, size = _REPORTED.unpack_from(data)
    round_number = int(number, 16)
    end = _REPORTED.size + size
    if place != _VERDICTS_PLACE or end > len(data) or round_number >= MAX_BLOCK or reward >= MAX_BLOCK:
        raise ValueError("a report that cannot be")
    return Reported(
        peer=bytes.fromhex(peer[2:]),
        round=round_number,
        commitment=commitment,
        state_before=before,
        state_after=after,
        groups=groups,
        reward_micros=reward,
        verdicts=data[_REPORTED.size : end],
        late=late,
        tx=log.transactionHash.lower(),
        block_number=block,
    )


def _registered(log: RawLog, block: int) -> Registered:
    from eth_utils import to_checksum_address

    _, peer, account = log.topics
    return Registered(
        peer=bytes.fromhex(peer[2:]),
        account=to_checksum_address("0x" + account[-40:]),
        tx=log.transactionHash.lower(),
        block_number=block,
    )


def _rotated(log: RawLog, block: int) -> Rotated:
    _, old, new = log.topics
    return Rotated(
        old=bytes.fromhex(old[2:]),
        new=bytes.fromhex(new[2:]),
        tx=log.transactionHash.lower(),
        block_number=block,
    )


@cache
def _topics() -> dict[str, str]:
    from eth_utils import keccak

    return {
        entry["name"]: "0x"
        + keccak(text=f"{entry['name']}({','.join(one['type'] for one in entry['inputs'])})").hex()
        for entry in artifact("SwarmCoordinator")["abi"]
        if entry["type"] == "event"
    }


@cache
def _decoders() -> Mapping[str, Callable[[RawLog, int], Logged]]:
    named: dict[str, Callable[[RawLog, int], Logged]] = {
        "Reported": _reported,
        "Registered": _registered,
        "Rotated": _rotated,
    }
    return {_topics()[name]: decode for name, decode in named.items()}

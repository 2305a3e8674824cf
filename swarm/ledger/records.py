"""What is written to and read from the ledger.

Digests and peers are 32 bytes, rewards integer micro-units.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct


# Those that are kept by the hundred thousand are no matter of the garbage collector: they refer to nothing.
class Report(Struct, frozen=True, kw_only=True, gc=False):
    """What a peer says of one round."""

    round: int
    groups: int
    reward_micros: int
    commitment: bytes
    state_before: bytes  # digest of the state before the update
    state_after: bytes
    verdicts: bytes = b""  # carried along for others to read; the contract does not look inside

    @property
    def fields(self) -> tuple[int, int, int, bytes, bytes, bytes, bytes]:
        """The contract's struct `Report`, in its order."""
        return (
            self.round,
            self.groups,
            self.reward_micros,
            self.commitment,
            self.state_before,
            self.state_after,
            self.verdicts,
        )


class Reported(Report, frozen=True, kw_only=True, gc=False):
    """A report as the ledger's log holds it. `late` ones keep the chain of states but are not ranked."""

    peer: bytes
    late: bool
    tx: str
    block_number: int


class Registered(Struct, frozen=True, kw_only=True):
    """From here on `account` (a checksummed address) speaks for `peer`."""

    peer: bytes
    account: str
    tx: str
    block_number: int


class Rotated(Struct, frozen=True, kw_only=True):
    """From here on `new` is what `old` was: account, history and standing are its own."""

    old: bytes
    new: bytes
    tx: str
    block_number: int


class Dated(Struct, frozen=True, kw_only=True):
    """A report and the clock's round in which it came in: its own round, or a later one if it is late."""

    report: Reported
    clock_round: int


Event = Registered | Rotated | Dated


class Entry(Struct, frozen=True, kw_only=True):
    """What the ledger's storage says of one report, for ever."""

    reward_micros: int
    late_rounds: int  # the clock's round when it came in, minus its round
    block_number: int


class PeerRecord(Struct, frozen=True, kw_only=True):
    """The ledger's sums for one peer."""

    peer: bytes
    account: str  # checksummed address
    rounds: int  # reported, late ones included
    ranked_rounds: int  # reported on time
    total_reward_micros: int  # of the ranked rounds; what the leaderboard sorts by
    all_reward_micros: int  # of all reported rounds
    head: bytes  # rolling digest over all its reports: shows whether the logs one was served are complete


class Block(Struct, frozen=True):
    """A block's header, as far as it matters here. `timestamp` in Unix seconds."""

    number: int
    timestamp: int
    hash: bytes


def hash_of(receipt: Any) -> str:
    """The transaction hash, in hexadecimal, of a receipt or event as web3 decodes it."""
    return "0x" + bytes(receipt["transactionHash"]).hex()


def reported_of(event: Any) -> Reported:
    """A `Reported` event as web3 decodes it."""
    arguments = event["args"]
    return Reported(
        peer=bytes(arguments["peer"]),
        round=int(arguments["round"]),
        commitment=bytes(arguments["commitment"]),
        state_before=bytes(arguments["stateBefore"]),
        state_after=bytes(arguments["stateAfter"]),
        groups=int(arguments["groups"]),
        reward_micros=int(arguments["rewardMicros"]),
        verdicts=bytes(arguments["verdicts"]),
        late=bool(arguments["late"]),
        tx=hash_of(event),
        block_number=int(event["blockNumber"]),
    )


def peer_record_of(entry: Any) -> PeerRecord:
    """A `PeerRecord` of the contract as web3 decodes it."""
    peer, account, rounds, ranked_rounds, ranked_reward, reward, head = entry
    return PeerRecord(
        peer=bytes(peer),
        account=str(account),
        rounds=int(rounds),
        ranked_rounds=int(ranked_rounds),
        total_reward_micros=int(ranked_reward),
        all_reward_micros=int(reward),
        head=bytes(head),
    )

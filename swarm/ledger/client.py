"""The ledger as the rest of the project reads it: `connect`, then a `LedgerClient`.

Writing is done by `swarm.ledger.account`, or through a relay by `swarm.ledger.sponsor`. A client is used
from one thread, only its clock from any; `LedgerClient.another` makes one for another thread. Its calls wait
for the chain, at most ten seconds a request. Errors are `LedgerError`; of these `LedgerUnavailable` says that
trying again later can help.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from swarm.errors import LedgerError, LedgerUnavailable, UsageError, WrongLedger
from swarm.ledger.blocks import BlockSearch
from swarm.ledger.clock import LedgerClock
from swarm.ledger.facts import Facts
from swarm.ledger.join import parse_join_line
from swarm.ledger.logs import Logged, decode_logs, topics
from swarm.ledger.records import (
    Block,
    Entry,
    PeerRecord,
    Registered,
    Report,
    Reported,
    Rotated,
    peer_record_of,
    reported_of,
)
from swarm.ledger.refusals import ContractRefusal, artifact
from swarm.ledger.rpc import Rpc
from swarm.manifest import MAX_MANIFEST_BYTES, Manifest, parse_canonical

__all__ = ["LedgerClient", "PeerRecord", "Report", "Reported", "connect", "parse_join_line"]

CONTRACT = "SwarmCoordinator"
CLOCK_REQUEST_SECONDS = 2.0  # reading the clock never blocks a round for longer
PAGE = 256  # the contract's MAX_PAGE
KEPT = 64  # rounds whose beacons and counts are remembered
ACTIVE_LAG = 2  # rounds; DESIGN.md, section 4: `active` counts the reporters two rounds earlier

Progress = Callable[[str], None]


def connect(join_line: str) -> LedgerClient:
    """The client for a line `address@rpc_url`, after a look that a swarm's contract is there.

    `UsageError` if the line is malformed, `LedgerError` if the address holds no or another contract.
    """
    line = parse_join_line(join_line)
    client = LedgerClient(line.rpc_url, line.address)
    client.check()
    return client


class LedgerClient:
    """One swarm's contract, for reading. Makes no call before it is asked.

    With `facts` from an earlier start, it needs no ledger for what never changes, and refuses to read from
    another chain.
    """

    def __init__(self, rpc_url: str, contract_address: str, facts: Facts | None = None) -> None:
        self.address = contract_address
        self.rpc_url = rpc_url
        self._known = facts
        self.rpc = Rpc(rpc_url)
        clock_rpc = Rpc(rpc_url, timeout_seconds=CLOCK_REQUEST_SECONDS)
        self._clock = LedgerClock(lambda: clock_rpc.block(None))
        self._blocks = BlockSearch(self.rpc.block)
        self._beacons: dict[int, bytes | None] = {}
        self._active: dict[int, int] = {}

    def another(self) -> LedgerClient:
        """A client of the same swarm with connections of its own, for another thread."""
        return LedgerClient(self.rpc_url, self.address, self.facts)

    @property
    def join_line(self) -> str:
        """The line that others join with: `address@rpc_url`."""
        return f"{self.address}@{self.rpc_url}"

    @property
    def host(self) -> str:
        """The server's name, for messages: the URL may hold somebody's API key."""
        return self.rpc.host

    @property
    def chain_id(self) -> int:
        """The EVM chain's id."""
        return self._known.chain_id if self._known else self.rpc.chain_id

    @cached_property
    def swarm_id(self) -> bytes:
        """32 bytes: SHA-256 of the canonical manifest."""
        return self._known.swarm_id if self._known else bytes(self._read("swarmId"))

    @cached_property
    def genesis(self) -> int:
        """When round 0 begins, in Unix seconds."""
        return self._known.genesis if self._known else int(self._read("genesis"))

    @cached_property
    def round_seconds(self) -> int:
        """Length of a round in seconds."""
        return self.manifest().round_seconds if self._known else int(self._read("roundSeconds"))

    @cached_property
    def deployment_block(self) -> int:
        """The number of the block before which there are no logs."""
        return int(self._read("deploymentBlock"))

    def check(self) -> None:
        """Look that the address holds a swarm's contract; `LedgerError` if not."""
        with self.rpc.asking("the contract's code"):
            code = self.rpc.web3.eth.get_code(self.address)
        if not code:
            raise WrongLedger(f"no contract at {self.address} on chain {self.chain_id}: wrong address or URL")
        try:
            well_formed = self.round_seconds > 0 and len(self.swarm_id) == 32 and self.genesis > 0
        except ContractRefusal:  # a contract of another kind reverts on what it does not know
            well_formed = False
        if not well_formed:
            raise WrongLedger(f"the contract at {self.address} is not a SwarmCoordinator")

    def check_chain(self) -> None:
        """`LedgerError` if the server's chain is not the one on which this swarm was found before."""
        if self._known is None:
            return
        chain_id, first_block = self.rpc.served_chain()
        found = (chain_id, first_block.hex())
        if found != (self._known.chain_id, self._known.first_block):
            raise WrongLedger(
                f"wrong chain: {self.host} serves chain {found[0]} that begins with block {found[1][:8]}, "
                f"the swarm is on chain {self._known.chain_id} with block {self._known.first_block[:8]}"
            )

    def manifest(self, given: Manifest | None = None) -> Manifest:
        """The swarm's manifest from the deployment's event, checked against the swarm's id and the contract.

        `given` is one that the user has; it takes the event's place, for servers that have no old logs.
        """
        if self._known is not None:
            return parse_canonical(self._known.manifest, f"of {self.address}")
        canonical = given.canonical if given else self._logged_manifest()
        if len(canonical) > MAX_MANIFEST_BYTES or hashlib.sha256(canonical).digest() != self.swarm_id:
            whose = "you gave" if given else f"{self.host} serves"
            raise LedgerError(f"the manifest that {whose} is not the one of {self.address}")
        try:
            manifest = parse_canonical(canonical, f"of {self.address}")
        except UsageError as error:
            raise LedgerError(f"{error}; was it made by another version?") from error
        if self._rules_on_chain() != (
            manifest.round_seconds,
            manifest.acceptance_window,
            manifest.max_groups,
            manifest.max_reward_micros,
            manifest.stage_ends_millionths,
        ):
            raise LedgerError(f"the manifest of {self.address} contradicts its contract; do not join it")
        return manifest

    @property
    def facts(self) -> Facts:
        """What never changes; asked for unless it was given."""
        if self._known is None:
            self._known = self.find_facts()
        return self._known

    def find_facts(self, given: Manifest | None = None) -> Facts:
        """Ask the ledger for the facts; `given` as in `manifest`. They are kept from then on."""
        manifest = self.manifest(given)
        self._known = Facts(
            address=self.address,
            chain_id=self.rpc.chain_id,
            first_block=self.rpc.block(0).hash.hex(),
            genesis=self.genesis,
            manifest=manifest.canonical,
        )
        return self._known

    def now(self) -> float:
        """The ledger's time in Unix seconds, estimated between blocks; see `LedgerClock` for its error.

        The one function that any thread may call.
        """
        return self._clock.now()

    def beacon(self, round: int) -> bytes | None:
        """The 32-byte hash of the first block whose timestamp falls in `round`; None if there is none (yet).

        Taken as final when first seen; a chain that reorganizes the block gives others another beacon.
        """
        if round in self._beacons:
            return self._beacons[round]
        self._beacons = {known: beacon for known, beacon in self._beacons.items() if known > round - KEPT}
        begin = self.genesis + round * self.round_seconds
        block = self._blocks.first_at(begin)
        if block is None:
            return None  # not yet
        inside = block.timestamp < begin + self.round_seconds
        self._beacons[round] = block.hash if inside else None
        return self._beacons[round]

    def active(self, round: int) -> int:
        """How many peers reported on time two rounds before `round`: the number that its cells are made from.

        Final, and so the same for every peer, once the round before `round` has begun. 0 for the first two
        rounds.
        """
        if round < ACTIVE_LAG:
            return 0
        if round not in self._active:
            self._active = {known: count for known, count in self._active.items() if known > round - KEPT}
            final = self.rpc.block(None).timestamp >= self.genesis + (round - 1) * self.round_seconds
            count = int(self._read("reporters", round - ACTIVE_LAG))
            if not final:
                return count
            self._active[round] = count
        return self._active[round]

    def account_of(self, peer: bytes) -> str | None:
        """The checksummed account that speaks for a peer; None if it is not registered."""
        account = str(self._read("accountOf", peer))
        return account if int(account, 16) else None

    def bindings(self, peer: bytes) -> int:
        """How often the peer was bound to an account: the number that its next proof must name."""
        return int(self._read("bindings", peer))

    def successor_of(self, peer: bytes) -> bytes | None:
        """The peer to which a retired one handed over; None if it is not retired."""
        successor = bytes(self._read("successorOf", peer))
        return successor if any(successor) else None

    def entry(self, peer: bytes, round: int) -> Entry | None:
        """What storage says of a peer's report of a round; None if there is none. Needs no logs."""
        reported, reward_micros, late_rounds, block_number = self._read("reportOf", peer, round)
        if not reported:
            return None
        return Entry(
            reward_micros=int(reward_micros), late_rounds=int(late_rounds), block_number=int(block_number)
        )

    def bootnodes(self, max: int = 16) -> list[str]:
        """The multiaddrs announced last, newest first; anyone writes them, only printable ASCII is sure."""
        return [str(multiaddr) for multiaddr in self._read("bootnodes", max)]

    def bootnode_of(self, peer: bytes) -> tuple[str, int]:
        """What a peer announced and when that expires, in Unix seconds; ("", 0) if nothing."""
        multiaddr, expires_at = self._read("bootnodeOf", peer)
        return str(multiaddr), int(expires_at)

    def reports(self, from_round: int = 0) -> list[Reported]:
        """All reports of `from_round` and later rounds, in the ledger's order."""
        events = self._report_events(from_round)
        return [report for report in map(reported_of, events) if report.round >= from_round]

    def find_report(self, peer: bytes, round: int) -> Reported | None:
        """The logged report of one peer and round; None if the server's logs hold none."""
        return next(map(reported_of, self._report_events(round, peer=peer, round=round)), None)

    def peer_record(self, peer: bytes) -> PeerRecord:
        """The sums of one peer; zeros if it never reported."""
        return peer_record_of(self._read("peerRecord", peer))

    def leaderboard(self) -> list[PeerRecord]:
        """The sums of every peer that ever reported, the highest on-time reward first."""
        records: list[PeerRecord] = []
        while page := self.records(len(records)):
            records += page
            if len(page) < PAGE:
                break
        return sorted(records, key=lambda record: (-record.total_reward_micros, record.peer))

    def records(self, offset: int) -> list[PeerRecord]:
        """The sums of up to `PAGE` peers that ever reported, from the `offset`-th on; none is retired."""
        return [peer_record_of(entry) for entry in self._read("records", offset, PAGE)]

    def changes(self, first: int, last: int) -> tuple[set[bytes], set[bytes]]:
        """The peers that were registered in blocks `first` to `last`, and those that were retired there.

        One question, which a server may refuse as for too many or too old blocks.
        """
        registered, retired = set(), set()
        for event in self._logged(("Registered", "Rotated"), first, last):
            if isinstance(event, Registered):
                registered.add(event.peer)
            elif isinstance(event, Rotated):
                registered.add(event.new)
                retired.add(event.old)
        return registered, retired

    def events(self, first: int, last: int) -> list[Logged]:
        """All that was registered, rotated and reported in blocks `first` to `last`, in the ledger's order.

        One question, which a server may refuse as for too many or too old blocks.
        """
        return self._logged(("Registered", "Rotated", "Reported"), first, last)

    def first_block(self, round: int) -> Block | None:
        """The first block when `round` has begun or after, be it in a later one; None if there is none yet.

        What comes before it is in the rounds before. Taken as final when first seen, as in `beacon`.
        """
        return self._blocks.first_at(self.genesis + round * self.round_seconds)

    def function(self, name: str, *arguments: Any) -> Any:
        """A call of one of the contract's functions, for whoever sends it."""
        return self._contract.functions[name](*arguments)

    def observe(self, block: Block) -> None:
        """Take the ledger's time from its latest block, which the caller asked for and trusts."""
        self._clock.observe(block)

    def assume_time(self, unix_seconds: float) -> None:
        """Begin with this as the ledger's time, until it answers for the first time."""
        self._clock.assume(unix_seconds)

    def now_without_asking(self) -> float:
        """The time from what is known already; never blocks. After a `now` or `assume_time`."""
        return self._clock.estimate()

    @cached_property
    def _contract(self) -> Any:
        return self.rpc.web3.eth.contract(address=self.address, abi=artifact(CONTRACT)["abi"])

    def _read(self, name: str, *arguments: Any) -> Any:
        return self.rpc.call(self.function(name, *arguments), name)

    def _logged(self, names: Sequence[str], first: int, last: int) -> list[Logged]:
        found = self.rpc.raw_logs(self.address, topics(names), first, last)
        with self.rpc.asking("events"):
            return decode_logs(found, first, last)

    def _logged_manifest(self) -> bytes:
        block = self.deployment_block
        try:
            with self.rpc.asking("the manifest"):
                events = self._contract.events.SwarmCreated.get_logs(from_block=block, to_block=block)
        except LedgerUnavailable:
            raise
        except LedgerError:  # servers that drop old logs say so, each in words of its own
            events = []
        if len(events) != 1:
            raise LedgerError(
                f"{self.host} does not serve the deployment of {self.address}: "
                "try another RPC URL, or --manifest FILE"
            )
        return bytes(events[0]["args"]["manifest"])

    def _rules_on_chain(self) -> tuple[int, int, int, int, tuple[int, ...]]:
        names = ("roundSeconds", "acceptanceWindow", "maxGroups", "maxRewardMicros")
        round_seconds, window, groups, reward = (int(self._read(name)) for name in names)
        return round_seconds, window, groups, reward, tuple(int(end) for end in self._read("stageEnds"))

    def _report_events(self, from_round: int, **filters: Any) -> Any:
        block = self._blocks.first_at(self.genesis + from_round * self.round_seconds)
        if block is None:
            return []
        first = max(block.number, self.deployment_block)
        return self.rpc.logs(self._contract.events.Reported, first, filters)

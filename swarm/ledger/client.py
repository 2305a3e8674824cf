"""The ledger as the rest of the project sees it: `deploy` or `connect`, then a `LedgerClient`.

A client is used from one thread, only its clock from any. Its calls wait for the chain: reading at most ten
seconds a request, writing until the transaction is in a block (at most two minutes). Errors are
`LedgerError`; of these `LedgerUnavailable` says that trying again later can help.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from swarm.errors import LedgerError, UsageError
from swarm.ledger.blocks import BlockSearch
from swarm.ledger.clock import LedgerClock
from swarm.ledger.join import parse_join_line
from swarm.ledger.records import (
    PeerRecord,
    Receipt,
    Report,
    Reported,
    hash_of,
    peer_record_of,
    reported_of,
)
from swarm.ledger.refusals import ContractRefusal, artifact
from swarm.ledger.rpc import Rpc
from swarm.manifest import MAX_MANIFEST_BYTES, Manifest, parse_canonical

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

    from identity import Identity

__all__ = [
    "LedgerClient",
    "PeerRecord",
    "Receipt",
    "Report",
    "Reported",
    "connect",
    "deploy",
    "parse_join_line",
]

REGISTER_DOMAIN = b"swarm/1/register"  # the contract's constant of the same name
CLOCK_REQUEST_SECONDS = 2.0  # reading the clock never blocks a round for longer
PAGE = 256  # the contract's MAX_PAGE
ACTIVE_LAG = 2  # rounds; DESIGN.md, section 4: `active` counts the reporters two rounds earlier


def deploy(rpc_url: str, account: LocalAccount, manifest: Manifest, genesis: int) -> LedgerClient:
    """Put a swarm on a chain; the client speaks for `account`.

    `genesis` is when round 0 begins, in Unix seconds; it may lie in the future, by at most a year.
    """
    rpc = Rpc(rpc_url)
    contract = rpc.web3.eth.contract(abi=artifact()["abi"], bytecode=artifact()["bytecode"])
    constructor = contract.constructor(manifest.canonical, genesis, manifest.round_seconds)
    receipt = rpc.send(account, constructor, "deployment")
    return LedgerClient(rpc_url, receipt["contractAddress"], account)


def connect(join_line: str, account: LocalAccount | None = None) -> LedgerClient:
    """The client for a line `address@rpc_url`, after a look that a swarm's contract is there.

    `UsageError` if the line is malformed, `LedgerError` if the address holds no or another contract.
    """
    address, rpc_url = parse_join_line(join_line)
    client = LedgerClient(rpc_url, address, account)
    client.check()
    return client


class LedgerClient:
    """One swarm's contract, read and, if `account` is given, written to. Makes no call before it is asked."""

    def __init__(self, rpc_url: str, contract_address: str, account: LocalAccount | None = None) -> None:
        self.address = contract_address
        self.account = account
        self._rpc = Rpc(rpc_url)
        clock_rpc = Rpc(rpc_url, timeout_seconds=CLOCK_REQUEST_SECONDS)
        self._clock = LedgerClock(lambda: clock_rpc.block(None))
        self._blocks = BlockSearch(self._rpc.block)
        self._beacons: dict[int, bytes | None] = {}
        self._active: dict[int, int] = {}

    @property
    def join_line(self) -> str:
        """The line that others join with: `address@rpc_url`."""
        return f"{self.address}@{self._rpc.url}"

    @property
    def chain_id(self) -> int:
        """The EVM chain's id."""
        return self._rpc.chain_id

    @cached_property
    def swarm_id(self) -> bytes:
        """32 bytes: SHA-256 of the canonical manifest."""
        return bytes(self._read("swarmId"))

    @cached_property
    def genesis(self) -> int:
        """When round 0 begins, in Unix seconds."""
        return int(self._read("genesis"))

    @cached_property
    def round_seconds(self) -> int:
        """Length of a round in seconds."""
        return int(self._read("roundSeconds"))

    @cached_property
    def acceptance_window(self) -> int:
        """How many rounds after its round a report is still accepted, as late."""
        return int(self._read("ACCEPTANCE_WINDOW"))

    def check(self) -> None:
        """Look that the address holds a swarm's contract; `LedgerError` if not."""
        with self._rpc.asking("the contract's code"):
            code = self._rpc.web3.eth.get_code(self.address)
        if not code:
            raise LedgerError(f"no contract at {self.address} on chain {self.chain_id}: wrong address or URL")
        try:
            well_formed = self.round_seconds > 0 and len(self.swarm_id) == 32 and self.genesis > 0
        except ContractRefusal:  # a contract of another kind reverts on what it does not know
            well_formed = False
        if not well_formed:
            raise LedgerError(f"the contract at {self.address} is not a SwarmCoordinator")

    def manifest(self) -> Manifest:
        """The swarm's manifest from the deployment's event, checked against the swarm's id."""
        block = int(self._read("deploymentBlock"))
        with self._rpc.asking("the manifest"):
            events = self._contract.events.SwarmCreated.get_logs(from_block=block, to_block=block)
        if len(events) != 1:
            raise LedgerError(
                f"{self._rpc.host} does not serve the deployment of {self.address}: try another RPC URL"
            )
        canonical = bytes(events[0]["args"]["manifest"])
        if len(canonical) > MAX_MANIFEST_BYTES or hashlib.sha256(canonical).digest() != self.swarm_id:
            raise LedgerError(f"{self._rpc.host} serves a manifest that is not the one of {self.address}")
        try:
            manifest = parse_canonical(canonical, f"of {self.address}")
        except UsageError as error:
            raise LedgerError(f"{error}; was it made by another version?") from error
        if manifest.round_seconds != self.round_seconds:
            raise LedgerError(f"the manifest of {self.address} contradicts its contract; do not join it")
        return manifest

    def now(self) -> float:
        """The ledger's time in Unix seconds, estimated between blocks; see `LedgerClock` for its error.

        The one function that any thread may call.
        """
        return self._clock.now()

    def now_without_asking(self) -> float:
        """The same from what is known already; never blocks, for threads that must not. After a `now`."""
        return self._clock.estimate()

    def beacon(self, round: int) -> bytes | None:
        """The 32-byte hash of the first block whose timestamp falls in `round`; None if there is none (yet).

        Taken as final when first seen; a chain that reorganizes the block gives others another beacon.
        """
        if round in self._beacons:
            return self._beacons[round]
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
            final = self._rpc.block(None).timestamp >= self.genesis + (round - 1) * self.round_seconds
            count = int(self._read("reporters", round - ACTIVE_LAG))
            if not final:
                return count
            self._active[round] = count
        return self._active[round]

    def register(self, identity: Identity) -> str | None:
        """Bind the identity's peer to this client's account; the transaction's hash, None if bound already.

        `LedgerError` if the peer is bound to another account, which is for ever.
        """
        account = self._writer()
        registered = str(self._read("accountOf", identity.peer))
        if registered == account.address:
            return None
        # The message is put together here: a peer signs nothing that a server hands it.
        message = REGISTER_DOMAIN + self.chain_id.to_bytes(32, "big")
        message += bytes.fromhex(self.address[2:]) + bytes.fromhex(account.address[2:])
        function = self._function("register", identity.public_key.modulus, identity.sign(message))
        try:
            return hash_of(self._rpc.send(account, function, "registration"))
        except ContractRefusal as refusal:
            mine = str(refusal.arguments.get("account", "")).lower() == account.address.lower()
            if refusal.name == "AlreadyRegistered" and mine:
                return None  # an earlier try, whose answer was lost, made it after all
            raise

    def report(self, report: Report) -> Receipt:
        """Write a round's report. If the ledger has it already, with this commitment, that is success too."""
        account = self._writer()
        function = self._function(
            "report",
            report.peer,
            report.round,
            report.commitment,
            report.state_before,
            report.state_after,
            report.groups,
            report.reward_micros,
        )
        try:
            receipt = self._rpc.send(account, function, "report")
        except ContractRefusal as refusal:
            if refusal.name != "AlreadyReported":
                raise
            earlier = self._find_report(report.peer, report.round)
            if earlier is None or earlier.commitment != report.commitment:
                raise
            with self._rpc.asking("a receipt"):
                receipt = self._rpc.web3.eth.get_transaction_receipt(earlier.tx)
        return self._receipt(receipt, report)

    def announce_bootnode(self, identity: Identity, multiaddr: str) -> str:
        """Say where the identity's peer can be reached, replacing what it said before; the tx's hash."""
        function = self._function("announceBootnode", identity.peer, multiaddr)
        return hash_of(self._rpc.send(self._writer(), function, "bootnode announcement"))

    def bootnodes(self, max: int = 16) -> list[str]:
        """The multiaddrs announced last, newest first; anyone writes them, only printable ASCII is sure."""
        return [str(multiaddr) for multiaddr in self._read("bootnodes", max)]

    def reports(self, from_round: int = 0) -> list[Reported]:
        """All reports of `from_round` and later rounds, in the ledger's order."""
        events = self._report_events(from_round)
        return [report for report in map(reported_of, events) if report.round >= from_round]

    def leaderboard(self) -> list[PeerRecord]:
        """Every registered peer's sums, the highest on-time reward first."""
        records: list[PeerRecord] = []
        while page := self._read("records", len(records), PAGE):
            records += [peer_record_of(entry) for entry in page]
            if len(page) < PAGE:
                break
        return sorted(records, key=lambda record: (-record.total_reward_micros, record.peer))

    @cached_property
    def _contract(self) -> Any:
        return self._rpc.web3.eth.contract(address=self.address, abi=artifact()["abi"])

    def _function(self, name: str, *arguments: Any) -> Any:
        return self._contract.functions[name](*arguments)

    def _read(self, name: str, *arguments: Any) -> Any:
        return self._rpc.call(self._function(name, *arguments), name)

    def _writer(self) -> LocalAccount:
        if self.account is None:
            raise LedgerError("this needs an account, and the ledger was opened only for reading")
        return self.account

    def _report_events(self, from_round: int, **filters: Any) -> Any:
        block = self._blocks.first_at(self.genesis + from_round * self.round_seconds)
        if block is None:
            return []
        first = max(block.number, int(self._read("deploymentBlock")))
        return self._rpc.logs(self._contract.events.Reported, first, filters)

    def _find_report(self, peer: bytes, round: int) -> Reported | None:
        return next(map(reported_of, self._report_events(round, peer=peer, round=round)), None)

    def _receipt(self, receipt: Any, report: Report) -> Receipt:
        with self._rpc.asking("a receipt"):
            events = self._contract.events.Reported().process_receipt(receipt)
        for event in map(reported_of, events):
            if (event.peer, event.round) == (report.peer, report.round):
                return Receipt(
                    tx=event.tx,
                    block_number=event.block_number,
                    late=event.late,
                    gas_used=int(receipt["gasUsed"]),
                )
        raise LedgerError(f"transaction {hash_of(receipt)} holds no report of round {report.round}")

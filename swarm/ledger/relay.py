"""A relay: pays for the transactions of peers without gas, which sign what they want to have sent.

This is its desk; `relay_server` puts it on HTTP. Everything here runs in one thread (`Rpc` is for one),
except `check_swarm`, `present` and `check_proofs`. A request goes through these steps, and a relay killed
between any two goes on where it was:

    1. checked, cheapest first: contract and chain, signatures as far as they need no ledger, the relay's
       funds, quotas, the account's signature, membership, a trial run on the ledger, and what that will cost
    2. accepted: written to `relay.sqlite`; only then is the peer told so
    3. sent through the account's queue, under a key made of its digest, so that it is sent once
    4. followed until it is mined, and too deep to be taken back
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from identity import IdentityError, PublicKey, peer_id_text
from swarm.errors import LedgerError, LedgerUnavailable, UsageError
from swarm.ledger.client import LedgerClient
from swarm.ledger.records import Report
from swarm.ledger.refusals import ContractRefusal
from swarm.ledger.relay_budget import Budget
from swarm.ledger.relay_invites import Invites
from swarm.ledger.relay_proofs import check_proofs
from swarm.ledger.relay_rules import Quotas, Refused, check_daily, over_quota, unavailable, wrong
from swarm.ledger.relay_sending import Sending
from swarm.ledger.relay_store import Kind, Promise, RelayStore
from swarm.ledger.relay_wire import (
    Answer,
    Bootnode,
    Registration,
    Reports,
    Request,
    Rotation,
    contract_call,
)
from swarm.ledger.transactions import AccountQueue
from swarm.ledger.typed import signer_of_bootnode, signer_of_registration, signer_of_reports

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

log = logging.getLogger("swarm.ledger")

DEFAULT_PORT = 8733


@dataclass(frozen=True)
class RelayOptions:
    """A relay's place. Behind a reverse proxy, quotas `per_client` count the proxy: raise them."""

    swarm: str  # the join line
    account: LocalAccount  # pays; may be used elsewhere on this machine at the same time
    home: Path  # of `relay.sqlite`
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT  # 0 takes a free one
    invites: Path | None = None  # a file with mode 0600: a code and its uses (default 1) on each line
    quotas: Quotas = field(default_factory=Quotas)


class Info(Struct, frozen=True, kw_only=True):
    """`GET /`."""

    contract: str
    chain_id: int
    account: str
    invite_needed: bool
    quotas: Quotas
    ether_today: float  # of `ether_per_day`
    accepting: bool
    reason: str | None = None  # why it accepts nothing now


class Relay:
    """What a relay decides and does. `LedgerError` if its file, invites or the ledger cannot be used."""

    def __init__(self, options: RelayOptions, ledger: LedgerClient, machine_dir: Path) -> None:
        self.address = str(options.account.address)
        self._ledger = ledger
        self._quotas = options.quotas
        self._queue = AccountQueue(ledger.rpc, options.account, machine_dir)
        self._invites = Invites(options.invites) if options.invites else None
        if self._invites:
            self._invites.read()
        self._chain_id, first_block = ledger.rpc.served_chain()
        self._store = RelayStore(options.home / "relay.sqlite")
        self._store.belong_to(f"{ledger.address} on chain {self._chain_id}, block 0 {first_block.hex()[:16]}")
        self.sending = Sending(ledger, self._store, self._queue)
        self._budget = Budget(ledger.rpc, self.address, self._store, options.quotas)

    def close(self) -> None:
        """Close the files."""
        self._store.close()
        self._queue.close()

    # What peers ask for.

    def info(self) -> Info:
        """What the relay is and whether it accepts."""
        reason = None
        try:
            self._budget.check()
        except Refused as refused:
            reason = str(refused)
        except (LedgerError, OverflowError):
            reason = "the ledger does not answer the relay"
        return Info(
            contract=self._ledger.address,
            chain_id=self._chain_id,
            account=self.address,
            invite_needed=self._invites is not None,
            quotas=self._quotas,
            ether_today=self._budget.today,
            accepting=reason is None,
            reason=reason,
        )

    def check_swarm(self, request: Request) -> None:
        """`Refused` if the request is for another swarm. From any thread."""
        if (request.chain_id, request.contract.lower()) != (self._chain_id, self._ledger.address.lower()):
            raise wrong(f"this relay is for contract {self._ledger.address} on chain {self._chain_id}")

    def check_proofs(self, request: Request) -> None:
        """`Refused` if it is not signed, as far as that can be seen without the ledger. From any thread."""
        check_proofs(request, self._chain_id, self._ledger.address)

    def present(self, digest: str) -> Answer | None:
        """How far an accepted request is; None if it was never accepted, or failed. From any thread."""
        promise = self._store.find(digest)
        return None if promise is None or promise.state == "failed" else Answer(promise.state, promise.tx)

    def take(self, request: Request, digest: str, client: str) -> Answer:
        """Check a request and promise to send it; `Refused` if not. `client` is who the quotas count.

        `check_swarm` and `check_proofs` were called with it.
        """
        known = self.present(digest)  # a second look: it may have come twice at once
        if known is not None:
            return known
        try:
            self._budget.check()
            match request:
                case Registration():
                    self._take_registration(request, digest, client)
                case Reports():
                    self._take_reports(request, digest, client)
                case Bootnode():
                    return self._take_bootnode(request, digest, client)
                case Rotation():
                    self._take_rotation(request, digest, client)
        except Refused:
            raise
        except ContractRefusal as refusal:
            raise Refused(409, "contract", str(refusal)) from refusal
        except LedgerUnavailable as error:
            log.warning("relay's ledger away error=%r", str(error))
            raise unavailable("the ledger does not answer the relay") from error
        except (LedgerError, IdentityError, UsageError, OverflowError) as error:
            log.error("relay cannot accept error=%r", str(error))
            raise unavailable("the relay has a problem that its operator must solve") from error
        return Answer("accepted")

    def _take_registration(self, request: Registration, digest: str, client: str) -> None:
        now, quotas = time.time(), self._quotas
        count = self._store.accepted_today("registration", now)
        check_daily("registrations", count, quotas.registrations_per_day)
        here = self._store.accepted_today("registration", now, client=client)
        check_daily(f"registrations from {client}", here, quotas.registrations_per_client)
        key = PublicKey(request.modulus)
        consented = (self._chain_id, self._ledger.address, key.peer, request.binding, request.consent)
        if not _same(signer_of_registration(*consented), request.account):
            raise wrong(f"the consent is not by account {request.account}")
        if self._store.under_way("registration", key.peer):
            raise over_quota("another registration of this peer is under way: wait until it is settled")
        member = self._admitted(key.peer, request.account.lower(), request.invite, newcomer=True)
        cost = self._try(request, f"the registration of peer {peer_id_text(key.peer)}")
        self._accept("registration", key.peer, request, digest, client, cost, member=member)

    def _take_reports(self, request: Reports, digest: str, client: str) -> None:
        reports = request.records()
        self._check_rounds(request.peer, reports, digest)
        signed = (self._chain_id, self._ledger.address, request.peer, reports, request.signature)
        account = self._check_signer(request.peer, signer_of_reports(*signed))
        member = self._admitted(request.peer, account, request.invite)
        rounds = [report.round for report in reports]
        late, now = self._count_late(rounds), time.time()
        if late:
            count = self._store.late_today(request.peer, now)
            check_daily("late reports of this peer", count, self._quotas.late_reports_per_day, more=late)
        cost = self._try(request, f"reports {rounds} of peer {peer_id_text(request.peer)}")
        for number in rounds:  # the contract says no to these, unless its chain just took a block back
            if self._is_paid(request.peer, number):
                raise over_quota(f"round {number} was sent and paid for already")
        self._accept(
            "reports", request.peer, request, digest, client, cost, rounds=rounds, member=member, late=late
        )

    def _take_bootnode(self, request: Bootnode, digest: str, client: str) -> Answer:
        for promise in self._store.under_way("bootnode", request.peer):
            body = self._store.body(promise.digest)
            if msgspec.json.decode(body, type=Bootnode).multiaddr == request.multiaddr:
                return Answer(promise.state, promise.tx)  # type: ignore[arg-type]
        count = self._store.accepted_today("bootnode", time.time(), peer=request.peer)
        check_daily("announcements of this peer", count, self._quotas.bootnodes_per_day)
        signed = (self._chain_id, self._ledger.address, request.peer, request.multiaddr, request.announced_at)
        account = self._check_signer(request.peer, signer_of_bootnode(*signed, request.signature))
        member = self._admitted(request.peer, account, request.invite)
        cost = self._try(request, f"the bootnode of peer {peer_id_text(request.peer)}")
        self._accept("bootnode", request.peer, request, digest, client, cost, member=member)
        return Answer("accepted")

    def _take_rotation(self, request: Rotation, digest: str, client: str) -> None:
        old, new = request.old_peer, request.new_peer
        count = self._store.accepted_today("rotation", time.time(), peer=old)
        check_daily("rotations of this peer", count, self._quotas.rotations_per_day)
        if self._store.under_way("rotation", old):
            raise over_quota("another rotation of this peer is under way: wait until it is settled")
        account = (
            self._ledger.account_of(old) or ""
        ).lower()  # without one, the trial run will say what is wrong
        member = self._admitted(old, account, request.invite)
        cost = self._try(request, f"the rotation of peer {peer_id_text(old)} to {peer_id_text(new)}")
        # The successor begins with its predecessor's count: else a chain of them would be without a limit.
        self._accept("rotation", old, request, digest, client, cost, member=member, also=[new] * (count + 1))

    # Checks.

    def _check_rounds(self, peer: bytes, reports: Sequence[Report], digest: str) -> None:
        for report in reports:
            size, limit = len(report.verdicts), self._quotas.verdict_bytes
            if size > limit:
                raise Refused(
                    413,
                    "quota",
                    f"round {report.round} has {size} bytes of verdicts, this relay pays for {limit}",
                )
            promise, tries = self._store.round(peer, report.round)
            if promise is None:
                continue
            if promise.state in ("accepted", "sent") and promise.digest != digest:
                raise over_quota(f"round {report.round} is under way with other contents or in another batch")
            if promise.state == "failed" and tries > self._quotas.retries:
                raise over_quota(
                    f"round {report.round} failed {tries} times, this relay tries no more: {promise.error}"
                )

    def _count_late(self, rounds: Sequence[int]) -> int:
        elapsed = self._ledger.rpc.block(None).timestamp - self._ledger.genesis
        return sum(number < elapsed // self._ledger.round_seconds for number in rounds)

    def _is_paid(self, peer: bytes, number: int) -> bool:
        promise, _ = self._store.round(peer, number)
        return promise is not None and promise.state == "mined"

    def _check_signer(self, peer: bytes, signer: str | None) -> str:
        """The peer's account, if it signed. Of a peer without one the contract will say what is wrong."""
        if signer is None:
            raise wrong("the signature is none")
        account = self._ledger.account_of(peer)
        if account is not None and not _same(signer, account):
            raise wrong(f"the signature is not by {account}, the account of peer {peer_id_text(peer)}")
        return (account or signer).lower()

    def _admitted(
        self, peer: bytes, account: str, invite: str | None, *, newcomer: bool = False
    ) -> tuple[str, str | None] | None:
        """What makes the peer a member if the request is accepted; None if it needs not, or is one."""
        if self._store.is_member(peer, account if newcomer else None):
            return None
        if self._invites is None:
            return (account, None) if newcomer else None
        if invite is None:
            whom = "those with" if newcomer else "peers that it registered, and those with"
            raise Refused(403, "invite", f"this relay serves {whom} an invite: ask its operator for one")
        known = self._invites.find(invite)
        if known is None:
            raise Refused(403, "invite", "this relay does not know the invite")
        digest, uses = known
        if self._store.invite_uses(digest) >= uses:
            raise Refused(403, "invite", "the invite is used up")
        return account, digest

    def _try(self, request: Request, action: str) -> float:
        """A trial run by the server; `ContractRefusal` if the contract would refuse. Its cost in ether."""
        function = contract_call(self._ledger, request)
        with self._ledger.rpc.asking(action):
            gas = int(function.estimate_gas({"from": self.address}))
        return self._budget.cost(gas)

    def _accept(
        self,
        kind: Kind,
        peer: bytes,
        request: Request,
        digest: str,
        client: str,
        cost: float,
        *,
        rounds: Sequence[int] = (),
        member: tuple[str, str | None] | None = None,
        late: int = 0,
        also: Sequence[bytes] = (),
    ) -> None:
        promise = Promise(digest=digest, kind=kind, peer=peer, accepted_at=time.time(), cost=cost)
        body = msgspec.json.encode(msgspec.structs.replace(request, invite=None))
        self._store.accept(promise, body, client, rounds, member, late=late, also=also)
        log.info("accepted kind=%s peer=%s rounds=%s", kind, peer_id_text(peer), list(rounds))


def _same(address: str | None, other: str) -> bool:
    return address is not None and address.lower() == other.lower()

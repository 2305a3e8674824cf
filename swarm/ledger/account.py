"""Writing to the ledger from one's own account."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from identity import Identity, peer_id_text, registration_message, rotation_message
from swarm.errors import LedgerError
from swarm.ledger.client import LedgerClient, Progress
from swarm.ledger.records import Report
from swarm.ledger.refusals import ContractRefusal
from swarm.ledger.transactions import AccountQueue, Submitted

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount


class Carried(Struct, frozen=True):
    """How far a parcel of reports is."""

    state: Literal["sent", "mined"]
    tx: str | None  # None while only a relay knows it
    error: str | None = None  # what keeps it from a block, if that is known


class Carrier(Protocol):
    """What gets a peer's writing on the ledger: its own account (`LedgerAccount`) or a relay (`Sponsor`).

    Every method may be called again for the same thing, after a crash too, and does it once. Errors are
    `LedgerError`; of these `LedgerUnavailable` if trying again later can help, `ContractRefusal` if the
    contract says no.
    """

    def register(self, identity: Identity, progress: Progress | None = None, *, move: bool = False) -> bool:
        """Bind the identity's peer to this account; False if it was bound already.

        A peer that is bound to another account is refused, or with `move` moved to this one.
        """

    def rotate(self, old: Identity, new: Identity, progress: Progress | None = None) -> None:
        """Hand all that `old` has on this ledger to `new`; done before is success."""

    def carry(self, peer: bytes, parcel: str, reports: Sequence[Report]) -> Carried:
        """Send reports of a peer, or say how far they are. `parcel` names exactly these reports."""

    def follow(self) -> None:
        """Look after what was sent: re-send, re-price, take receipts."""

    def announce_bootnode(self, peer: bytes, multiaddr: str) -> None:
        """Say where the peer can be reached, replacing what it said before."""


def wants_binding(ledger: LedgerClient, identity: Identity, address: str, *, move: bool) -> bool:
    """Whether the peer must still be bound to the account; `LedgerError` if that would move it unasked."""
    bound = ledger.account_of(identity.peer)
    if bound is not None and bound != address and not move:
        raise LedgerError(
            f"{identity.peer_id} is bound to account {bound}, this wallet is {address}: use that wallet, "
            "or move the peer here with `swarm identity register`"
        )
    return bound != address


class LedgerAccount:
    """Writes to a swarm's contract as one account, which pays. Used from one thread."""

    def __init__(self, ledger: LedgerClient, account: LocalAccount, machine_dir: Path) -> None:
        self._ledger = ledger
        self._account = account
        self._queue = AccountQueue(ledger.rpc, account, machine_dir)

    def register(self, identity: Identity, progress: Progress | None = None, *, move: bool = False) -> bool:
        """See `Carrier`."""
        address = str(self._account.address)
        if not wants_binding(self._ledger, identity, address, move=move):
            return False
        binding = self._ledger.bindings(identity.peer)
        # The message is put together here: a peer signs nothing that a server hands it.
        message = registration_message(
            self._ledger.chain_id, address_bytes(self._ledger.address), address_bytes(address), binding
        )
        function = self._ledger.function("register", identity.public_key.modulus, identity.sign(message))
        try:
            self._send(f"registration {binding + 1} of {identity.peer_id}", function, progress)
        except ContractRefusal as refusal:
            if refusal.name == "AlreadyRegistered":
                return False  # an earlier try, whose answer was lost, made it after all
            raise
        return True

    def rotate(self, old: Identity, new: Identity, progress: Progress | None = None) -> None:
        """See `Carrier`."""
        if self._ledger.successor_of(old.peer) == new.peer:
            return
        contract = address_bytes(self._ledger.address)
        message = rotation_message(self._ledger.chain_id, contract, old.peer, new.peer)
        function = self._ledger.function(
            "rotate", old.public_key.modulus, new.public_key.modulus, old.sign(message), new.sign(message)
        )
        self._send(f"rotation of {old.peer_id} to {new.peer_id}", function, progress)

    def carry(self, peer: bytes, parcel: str, reports: Sequence[Report]) -> Carried:
        """See `Carrier`."""
        key = self._key(f"report {peer_id_text(peer)} {parcel}")
        known = self._queue.state(key)
        if known is None or known.state not in ("sent", "mined"):
            if len(reports) == 1:
                function = self._ledger.function("report", peer, reports[0].fields)
            else:
                function = self._ledger.function("reportBatch", peer, [report.fields for report in reports])
            known = self._queue.submit(key, function)
        return Carried("mined" if known.state == "mined" else "sent", known.tx, known.error)

    def follow(self) -> None:
        """See `Carrier`."""
        self._queue.follow()

    def announce_bootnode(self, peer: bytes, multiaddr: str) -> None:
        """See `Carrier`. Returns when it is on its way."""
        _, expires_at = self._ledger.bootnode_of(peer)
        key = self._key(f"bootnode {peer_id_text(peer)} {expires_at}")
        self._queue.submit(key, self._ledger.function("announceBootnode", peer, multiaddr))

    def _send(self, what: str, function: object, progress: Progress | None) -> Submitted:
        key = self._key(what)
        self._queue.submit(key, function)
        done = self._queue.wait(key, progress=progress)
        if done.state != "mined":
            raise LedgerError(f"the {what} failed: {done.error or done.state} (transaction {done.tx})")
        return done

    def _key(self, what: str) -> str:
        return f"{what} on {self._ledger.address}"


def address_bytes(address: str) -> bytes:
    """The 20 bytes of an address in hexadecimal."""
    return bytes.fromhex(address.removeprefix("0x"))

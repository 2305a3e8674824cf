"""What a peer and a relay say to one another: JSON bodies over HTTP, bytes in base64.

Everything in a request is signed by the peer's key or its account's; a relay can drop it, but not change it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from identity import PublicKey
from swarm.ledger.records import Report

if TYPE_CHECKING:
    from swarm.ledger.client import LedgerClient

MAX_BODY_BYTES = 64 * 1024  # of a request, and of every answer
MAX_REPORTS_BODY_BYTES = 512 * 1024  # 64 reports with verdicts of 4 KiB, in base64, are 380 KiB

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Small = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Address = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{40}\Z")]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
RsaNumber = Annotated[bytes, Meta(min_length=256, max_length=256)]
Signature = Annotated[bytes, Meta(min_length=65, max_length=65)]
Invite = Annotated[str, Meta(max_length=200)]
TransactionHash = Annotated[str, Meta(pattern=r"^0x[0-9a-f]{64}\Z")]


class Request(Struct, frozen=True, kw_only=True):
    """Which swarm it is for, and what the relay may ask of those whom it does not know."""

    chain_id: Number
    contract: Address
    invite: Invite | None = None


class Registration(Request, frozen=True, kw_only=True):
    """`POST /register`: the contract's `registerFor`, and the binding that was signed."""

    account: Address
    modulus: RsaNumber
    proof: RsaNumber
    binding: Small
    consent: Signature


class WireReport(Struct, frozen=True, kw_only=True):
    """A `Report` with its fields' limits."""

    round: Number
    groups: Small
    reward_micros: Number
    commitment: Digest
    state_before: Digest
    state_after: Digest
    verdicts: Annotated[bytes, Meta(max_length=4096)] = b""


class Reports(Request, frozen=True, kw_only=True):
    """`POST /reports`: the contract's `reportFor`."""

    peer: Digest
    reports: Annotated[list[WireReport], Meta(min_length=1, max_length=64)]
    signature: Signature

    def records(self) -> list[Report]:
        """The reports as the rest of the project has them."""
        return [msgspec.convert(report, Report, from_attributes=True) for report in self.reports]


class Bootnode(Request, frozen=True, kw_only=True):
    """`POST /bootnode`: the contract's `announceBootnodeFor`."""

    peer: Digest
    multiaddr: Annotated[str, Meta(pattern=r"^/[!-~]{0,255}\Z")]
    announced_at: Number
    signature: Signature


class Rotation(Request, frozen=True, kw_only=True):
    """`POST /rotate`: the contract's `rotate`."""

    old_modulus: RsaNumber
    new_modulus: RsaNumber
    old_signature: RsaNumber
    new_signature: RsaNumber

    @property
    def old_peer(self) -> bytes:
        """The peer that retires; `IdentityError` if its modulus is none."""
        return PublicKey(self.old_modulus).peer

    @property
    def new_peer(self) -> bytes:
        """The peer that takes over; `IdentityError` if its modulus is none."""
        return PublicKey(self.new_modulus).peer


class Answer(Struct, frozen=True):
    """What became of a request: HTTP 202 while no block has it, 200 once one does."""

    state: Literal["accepted", "sent", "mined"]
    tx: TransactionHash | None = None


class Problem(Struct, frozen=True):
    """Any other HTTP status: why not, in one line.

    `code` is "request" (malformed, or not signed by whom it should be), "contract" (that would refuse it),
    "quota", "invite", or "unavailable" (trying again later can help).
    """

    code: str
    error: str


_SIGNATURES = ("proof", "consent", "signature", "old_signature", "new_signature")


def content_digest(request: Request) -> str:
    """What names a request: the same for the same content, whoever signs it how often. Hexadecimal."""
    blank = {name: b"" for name in _SIGNATURES if name in request.__struct_fields__}
    content = msgspec.structs.replace(request, invite=None, **blank)
    named = (type(request).__name__, content)
    return hashlib.sha256(msgspec.msgpack.encode(named)).hexdigest()


def contract_call(ledger: LedgerClient, request: Request) -> Any:
    """The call that a request asks for. Of whoever makes it the contract takes no notice."""
    match request:
        case Registration():
            from eth_utils import to_checksum_address

            account = to_checksum_address(request.account)
            arguments = (account, request.modulus, request.proof, request.consent)
            return ledger.function("registerFor", *arguments)
        case Reports():
            fields = [report.fields for report in request.records()]
            return ledger.function("reportFor", request.peer, fields, request.signature)
        case Bootnode():
            announced = (request.peer, request.multiaddr, request.announced_at)
            return ledger.function("announceBootnodeFor", *announced, request.signature)
        case Rotation():
            moduli, signatures = (
                (request.old_modulus, request.new_modulus),
                (request.old_signature, request.new_signature),
            )
            return ledger.function("rotate", *moduli, *signatures)
    raise TypeError(f"not a request: {type(request).__name__}")

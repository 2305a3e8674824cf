"""What an account without gas signs (EIP-712), so that anybody may submit it; the contract hashes the same.

Each signature is good for one contract on one chain. `*_signature` signs, `signer_of_*` says who did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swarm.ledger.records import Report

if TYPE_CHECKING:
    from eth_account.messages import SignableMessage
    from eth_account.signers.local import LocalAccount

SIGNATURE_BYTES = 65  # r, s, v
_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141  # of secp256k1


def _members(*members: str) -> list[dict[str, str]]:
    return [dict(zip(("type", "name"), member.split(), strict=True)) for member in members]


_REGISTRATION = {"Registration": _members("bytes32 peer", "uint32 binding")}
_REPORTS = {
    "Reports": _members("bytes32 peer", "Report[] reports"),
    "Report": _members(
        "uint64 round",
        "uint32 groups",
        "uint64 rewardMicros",
        "bytes32 commitment",
        "bytes32 stateBefore",
        "bytes32 stateAfter",
        "bytes verdicts",
    ),
}
_BOOTNODE = {"Bootnode": _members("bytes32 peer", "string multiaddr", "uint64 announcedAt")}


def registration_consent(
    account: LocalAccount, chain_id: int, contract: str, peer: bytes, binding: int
) -> bytes:
    """The account agrees to speak for `peer`, if that was bound `binding` times so far. 65 bytes."""
    return _signature(account, _registration(chain_id, contract, peer, binding))


def reports_signature(
    account: LocalAccount, chain_id: int, contract: str, peer: bytes, reports: Sequence[Report]
) -> bytes:
    """The account of `peer` reports these rounds, all or none. 65 bytes."""
    return _signature(account, _reports(chain_id, contract, peer, reports))


def bootnode_signature(
    account: LocalAccount, chain_id: int, contract: str, peer: bytes, multiaddr: str, announced_at: int
) -> bytes:
    """The account of `peer` says where that can be reached; the latest `announced_at` counts. 65 bytes."""
    return _signature(account, _bootnode(chain_id, contract, peer, multiaddr, announced_at))


def signer_of_registration(
    chain_id: int, contract: str, peer: bytes, binding: int, consent: bytes
) -> str | None:
    """The checksummed account that consented; None if that is no signature."""
    return _signer(_registration(chain_id, contract, peer, binding), consent)


def signer_of_reports(
    chain_id: int, contract: str, peer: bytes, reports: Sequence[Report], signature: bytes
) -> str | None:
    """The checksummed account that signed the reports; None if that is no signature."""
    return _signer(_reports(chain_id, contract, peer, reports), signature)


def signer_of_bootnode(
    chain_id: int, contract: str, peer: bytes, multiaddr: str, announced_at: int, signature: bytes
) -> str | None:
    """The checksummed account that signed the announcement; None if that is no signature."""
    return _signer(_bootnode(chain_id, contract, peer, multiaddr, announced_at), signature)


def is_signature(signature: bytes) -> bool:
    """Whether these bytes could be somebody's signature, of the one form that the contract takes."""
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    return len(signature) == SIGNATURE_BYTES and signature[64] in (27, 28) and 0 < r < _ORDER > 2 * s > 0


def _registration(chain_id: int, contract: str, peer: bytes, binding: int) -> SignableMessage:
    return _message(chain_id, contract, _REGISTRATION, {"peer": peer, "binding": binding})


def _reports(chain_id: int, contract: str, peer: bytes, reports: Sequence[Report]) -> SignableMessage:
    names = [member["name"] for member in _REPORTS["Report"]]
    listed = [dict(zip(names, report.fields, strict=True)) for report in reports]
    return _message(chain_id, contract, _REPORTS, {"peer": peer, "reports": listed})


def _bootnode(
    chain_id: int, contract: str, peer: bytes, multiaddr: str, announced_at: int
) -> SignableMessage:
    values = {"peer": peer, "multiaddr": multiaddr, "announcedAt": announced_at}
    return _message(chain_id, contract, _BOOTNODE, values)


def _message(
    chain_id: int, contract: str, types: dict[str, list[dict[str, str]]], values: dict[str, Any]
) -> SignableMessage:
    from eth_account.messages import encode_typed_data

    domain = {
        "name": "SwarmCoordinator",
        "version": "1",
        "chainId": chain_id,
        "verifyingContract": contract,
    }
    return encode_typed_data(domain, types, values)


def _signature(account: LocalAccount, message: SignableMessage) -> bytes:
    return bytes(account.sign_message(message).signature)


def _signer(message: SignableMessage, signature: bytes) -> str | None:
    from eth_account import Account
    from eth_keys.exceptions import BadSignature, ValidationError

    if not is_signature(signature):
        return None
    try:
        return str(Account.recover_message(message, signature=signature))
    except (BadSignature, ValidationError, ValueError):
        return None

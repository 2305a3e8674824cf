"""What of a request's signatures can be checked without the ledger: fast enough for the event loop."""

from __future__ import annotations

from identity import IdentityError, PublicKey, registration_message, rotation_message
from swarm.ledger.relay_rules import wrong
from swarm.ledger.relay_wire import Bootnode, Registration, Reports, Request, Rotation
from swarm.ledger.typed import is_signature


def check_proofs(request: Request, chain_id: int, contract: str) -> None:
    """`Refused` if a key did not sign, or if what should be an account's signature is none."""
    try:
        _check(request, (chain_id, bytes.fromhex(contract.removeprefix("0x"))))
    except (IdentityError, ValueError):
        raise wrong("the modulus is not one of an RSA-2048 key") from None


def _check(request: Request, here: tuple[int, bytes]) -> None:
    match request:
        case Registration():
            account = bytes.fromhex(request.account.removeprefix("0x"))
            message = registration_message(*here, account, request.binding)
            if not PublicKey(request.modulus).verify(message, request.proof):
                raise wrong("the proof is not by this key over this registration")
            if not is_signature(request.consent):
                raise wrong(f"the consent is not by account {request.account}")
        case Rotation():
            message = rotation_message(*here, request.old_peer, request.new_peer)
            if not PublicKey(request.old_modulus).verify(message, request.old_signature):
                raise wrong("the rotation is not signed by the old key")
            if not PublicKey(request.new_modulus).verify(message, request.new_signature):
                raise wrong("the rotation is not signed by the new key")
        case Reports() | Bootnode():
            if not is_signature(request.signature):
                raise wrong("the signature is none")

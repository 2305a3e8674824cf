"""The messages that a `swarm.pem` signs for the ledger; the contract builds the same bytes.

Each starts with its own purpose and fixes the chain and the contract, so no signature is good for
anything else or anywhere else. Numbers are big-endian.
"""

from __future__ import annotations

from identity.errors import IdentityError


def registration_message(chain_id: int, contract: bytes, account: bytes, binding: int) -> bytes:
    """What a peer signs to bind itself to an account: purpose, chain (32), contract (20), account (20),
    binding (4: how many bindings of this peer came before, so an old proof cannot be used again)."""
    return (
        b"swarm/1/register"
        + _number("chain id", chain_id, 32)
        + _field("contract", contract, 20)
        + _field("account", account, 20)
        + _number("binding", binding, 4)
    )


def rotation_message(chain_id: int, contract: bytes, old_peer: bytes, new_peer: bytes) -> bytes:
    """What both keys sign when a peer moves to a new key: purpose, chain (32), contract (20), old peer
    (32), new peer (32)."""
    return (
        b"swarm/1/rotate"
        + _number("chain id", chain_id, 32)
        + _field("contract", contract, 20)
        + _field("old peer", old_peer, 32)
        + _field("new peer", new_peer, 32)
    )


def _number(name: str, value: int, size: int) -> bytes:
    if not 0 <= value < 1 << 8 * size:
        raise IdentityError(f"the {name} {value} does not fit the {size} bytes it has in a proof")
    return value.to_bytes(size, "big")


def _field(name: str, value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise IdentityError(f"the {name} in a proof has {size} bytes, not {len(value)}")
    return value

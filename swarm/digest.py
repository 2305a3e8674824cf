"""Derived values: `H(x) = SHA-256("swarm/1/" ‖ purpose ‖ swarm id ‖ fixed-width fields)`."""

from __future__ import annotations

import hashlib
from enum import Enum


class Purpose(Enum):
    """What a digest is for. No purpose is the beginning of another, so no two inputs can meet."""

    CELL = b"cell"
    QUESTION = b"question"
    PROPOSE = b"propose"
    ASK = b"ask"
    SAMPLE = b"sample"
    PICK = b"pick"
    PLANTED = b"wrong-seed"
    ANNOUNCE = b"announce"
    COMMIT = b"commit"
    STATE = b"state"
    AUDIT = b"is-audited"
    AUDITOR = b"drawn-auditor"
    LEAVES = b"checked-leaves"
    LOCAL_BEACON = b"local-beacon"


def derive(purpose: Purpose, swarm_id: bytes, *fields: bytes | int) -> bytes:
    """32 bytes from the fields: integers as 8 bytes big-endian, digests as their 32 bytes, nothing else."""
    return hashlib.sha256(preimage(purpose, swarm_id, *fields)).digest()


def preimage(purpose: Purpose, swarm_id: bytes, *fields: bytes | int) -> bytes:
    """What `derive` hashes."""
    parts = [b"swarm/1/", purpose.value, _fixed(swarm_id)]
    parts += [_fixed(field) for field in fields]
    return b"".join(parts)


def _fixed(field: bytes | int) -> bytes:
    if isinstance(field, int):
        return field.to_bytes(8, "big")
    if len(field) != 32:
        raise ValueError(f"a field of a derived value is an integer or 32 bytes, not {len(field)} bytes")
    return field

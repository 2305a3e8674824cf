"""Merkle trees over SHA-256: leaf `H(0x00‖x)`, node `H(0x01‖l‖r)` (RFC 6962), an odd node is promoted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def leaf(data: bytes) -> bytes:
    """The 32-byte digest of one leaf's content."""
    return hashlib.sha256(b"\x00" + data).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf digests in order; of no leaves, the leaf of nothing."""
    level = list(leaves) or [leaf(b"")]
    while len(level) > 1:
        odd = [level[-1]] if len(level) % 2 else []
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs] + odd
    return level[0]

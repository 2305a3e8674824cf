"""What never changes about a swarm on its ledger, and the file in which a node keeps it."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from swarm.errors import SwarmError

FACTS_FILE = "ledger.json"
MAX_FACTS_BYTES = 64 * 1024


class Facts(Struct, frozen=True, kw_only=True):
    """Kept by a node, so that it can start while the ledger is away and knows the chain again."""

    address: str  # checksummed, of the contract
    chain_id: int
    first_block: str  # hex hash of block 0: tells a devnet from the next one of the same chain id
    genesis: int  # when round 0 begins, Unix seconds
    manifest: bytes  # canonical

    @property
    def swarm_id(self) -> bytes:
        """32 bytes: SHA-256 of the canonical manifest."""
        return hashlib.sha256(self.manifest).digest()


def read_facts(path: Path) -> Facts | None:
    """The facts in a file; None if it does not hold any."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        if path.stat().st_size <= MAX_FACTS_BYTES:
            return msgspec.json.decode(path.read_bytes(), type=Facts)
    return None


def save_facts(facts: Facts, path: Path) -> None:
    """Write the facts, whole or not at all; `SwarmError` if they cannot be written."""
    partial = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.encode(facts))
        partial.replace(path)
    except OSError as error:
        raise SwarmError(f"cannot write {path}: {error.strerror}; choose another --home") from error

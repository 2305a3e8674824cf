"""A name that people can say: adjective, colour and animal, computed from the peer id."""

from __future__ import annotations

import hashlib
from importlib.resources import files

WORD_LISTS = tuple(
    (files("identity") / "words" / f"{kind}.txt").read_text().split()
    for kind in ("adjectives", "colours", "animals")
)


def peer_name(peer: bytes) -> str:
    """Three words for a 32-byte peer digest; the same everywhere, not unique: ids decide, names remind."""
    digest = hashlib.sha256(b"swarm/1/name" + peer).digest()
    return " ".join(
        words[int.from_bytes(digest[8 * i : 8 * i + 8], "big") % len(words)]
        for i, words in enumerate(WORD_LISTS)
    )

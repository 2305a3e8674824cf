"""A name that people can say: three words, computed from the peer id."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

# BIP-39's English list: 2,048 words, told apart by their first four letters, frozen by its standard.
WORD_LIST_SHA256 = "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"


@cache
def word_list() -> tuple[str, ...]:
    """The words that names are made of, in their fixed order."""
    return tuple((files("identity") / "words" / "english.txt").read_text(encoding="ascii").split())


def peer_name(peer: bytes) -> str:
    """Three words for a 32-byte peer digest; the same everywhere and for ever.

    Not unique: ids decide, names remind. Of the 2^33 names, 20,000 peers share one with odds of 1 in 43
    (20,000² / 2 / 2^33), 1,000 peers with 1 in 17,000. Whoever makes keys on purpose to get a given name
    needs some 2^33 of them, which is affordable: a name proves nothing.
    """
    digest = hashlib.sha256(b"swarm/1/name" + peer).digest()
    words = word_list()
    return " ".join(words[int.from_bytes(digest[8 * i : 8 * i + 8], "big") % len(words)] for i in range(3))

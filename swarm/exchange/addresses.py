"""`addresses.json`: where the peers were that this one met, so that a restart finds the swarm again."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from identity import IdentityError, peer_digest, peer_id_text
from identity.files import read_file

log = logging.getLogger(__name__)

ADDRESSES_FILE = "addresses.json"

MAX_PEERS = 64
MAX_ADDRESSES = 4  # of one peer
MAX_ADDRESS_CHARS = 200
KEPT_SECONDS = 30 * 24 * 3600.0
MAX_FILE_BYTES = 256 * 1024  # a full book has 60 KiB, twice that if every character is escaped

_DIALABLE = re.compile(r"/(ip4|ip6|dns|dns4|dns6|dnsaddr)/[!-~]+")
Port = Annotated[int, Meta(ge=0, lt=2**16)]


class _SavedPeer(Struct, frozen=True, kw_only=True):
    peer: str  # libp2p peer id
    addresses: Annotated[tuple[str, ...], Meta(max_length=MAX_ADDRESSES)]
    seen: float  # Unix seconds


class _SavedBook(Struct, frozen=True, kw_only=True):
    version: Literal[1] = 1
    own_port: Port | None = None
    peers: Annotated[tuple[_SavedPeer, ...], Meta(max_length=MAX_PEERS)] = ()  # seen longest ago first


class _Known(NamedTuple):
    addresses: tuple[str, ...]
    seen: float


class AddressBook:
    """The book of one swarm, as its file has it; without a file that can be read, an empty one.

    What peers say of themselves is in it: an address may be wrong, or somebody else's. Whoever dials it
    checks the peer id at its end, as libp2p does. One thread uses the book; `save` may run in others.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._lock = threading.Lock()  # around the peers
        self._saving = threading.Lock()  # around the file
        self._failing = False
        saved = self._load()
        #: The TCP port on which this peer listened last. Taking it again keeps others' books right.
        self.own_port: int | None = saved.own_port
        self._peers: dict[bytes, _Known] = {}  # seen last at the end
        for entry in sorted(saved.peers, key=lambda entry: entry.seen):
            self._put(peer_digest(entry.peer), entry.addresses, min(entry.seen, now()))
        self._forget_old()

    def __len__(self) -> int:
        """How many peers are in it."""
        return len(self._peers)

    def remember(self, peer: bytes, multiaddrs: Sequence[str]) -> None:
        """The exchange calls it for each peer (a 32-byte digest) that it is connected to, now and then.

        The first few addresses that can be dialled replace those known before; without any, nothing changes.
        """
        with self._lock:
            self._put(peer, multiaddrs, self._now())

    def multiaddrs(self, limit: int) -> list[str]:
        """At most `limit` addresses, each ending in `/p2p/<peer id>`: one of each peer before a second.

        The peers are drawn at random, so that nobody decides whom a lonely peer meets.
        """
        peers = random.sample(list(self._peers.items()), len(self._peers))
        turns = zip_longest(*(known.addresses for _, known in peers))
        return [
            f"{address}{_suffix(peer)}"
            for turn in turns
            for (peer, _), address in zip(peers, turn, strict=True)
            if address is not None
        ][:limit]

    def save(self) -> None:
        """Write the file, whole or not at all. Blocks; never raises; the first failure in a row is logged."""
        with self._saving:
            try:
                self._write(self._to_save())
            except OSError as error:
                if not self._failing:
                    log.warning(
                        "addresses not saved file=%s error=%r: make room on the disk", self._path, str(error)
                    )
                self._failing = True
            else:
                self._failing = False

    def _to_save(self) -> _SavedBook:
        with self._lock:
            self._forget_old()
            return _SavedBook(
                own_port=self.own_port,
                peers=tuple(
                    _SavedPeer(peer=peer_id_text(peer), addresses=known.addresses, seen=known.seen)
                    for peer, known in self._peers.items()
                ),
            )

    def _write(self, saved: _SavedBook) -> None:
        partial = self._path.with_name(f".{self._path.name}")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(msgspec.json.encode(saved))
            partial.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def _put(self, peer: bytes, multiaddrs: Sequence[str], seen: float) -> None:
        bare = (address.removesuffix(_suffix(peer)) for address in multiaddrs)
        addresses = tuple(dict.fromkeys(address for address in bare if _is_dialable(address)))
        if not addresses:
            return
        self._peers.pop(peer, None)
        if len(self._peers) >= MAX_PEERS:  # any of them, so that many newcomers cannot drive out all others
            del self._peers[random.choice(list(self._peers))]
        self._peers[peer] = _Known(addresses[:MAX_ADDRESSES], seen)

    def _forget_old(self) -> None:
        oldest = self._now() - KEPT_SECONDS
        self._peers = {peer: known for peer, known in self._peers.items() if known.seen >= oldest}

    def _load(self) -> _SavedBook:
        try:
            if not self._path.exists():
                return _SavedBook()
            saved = msgspec.json.decode(read_file(self._path, MAX_FILE_BYTES), type=_SavedBook)
            for entry in saved.peers:
                peer_digest(entry.peer)
        except (OSError, IdentityError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("addresses not read, begun anew file=%s error=%r", self._path, str(error))
            return _SavedBook()
        return saved


def _is_dialable(address: str) -> bool:
    # A second peer id is a relay's, whose circuits end with its life, or that of somebody else.
    return (
        len(address) <= MAX_ADDRESS_CHARS
        and _DIALABLE.fullmatch(address) is not None
        and "/p2p/" not in address
    )


def _suffix(peer: bytes) -> str:
    return f"/p2p/{peer_id_text(peer)}"

"""Reads `gossip.sqlite`, written at the same time or missing: for `swarm status` and the board."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import base58
from msgspec import Struct

from identity import peer_id_text, peer_name
from swarm.exchange.gossip import MAX_DROPS
from swarm.manifest import STAGE_NUMBER, StageName

log = logging.getLogger(__name__)

_STAGES: tuple[StageName, ...] = tuple(STAGE_NUMBER)  # by number


class RoundGossip(Struct, frozen=True, kw_only=True):
    """One round in numbers."""

    round: int
    heard: int  # announcements
    fetched: int  # their blobs that came
    fetched_bytes: int
    dropped: dict[str, int]  # by reason, most frequent first
    equivocations: int


class HeardEntry(Struct, frozen=True, kw_only=True):
    """One announcement, and its blob if it came."""

    stage: StageName
    peer: str  # libp2p peer id
    name: str
    at: float  # Unix seconds
    groups: int
    blob: str  # SHA-256, hex
    blob_bytes: int  # as announced
    fetched_bytes: int | None
    seconds: float | None  # that fetching took; 0.0 if the blob was here already


class Drop(Struct, frozen=True, kw_only=True):
    """What was dropped for one reason from one sender, handed over by one peer."""

    reason: str
    count: int
    last_at: float  # Unix seconds
    peer: str | None  # libp2p peer id of the sender by its own words: proved only if the signature was good
    via: str | None  # libp2p peer id of who handed it over


class Equivocation(Struct, frozen=True, kw_only=True):
    """Two different things that one peer announced for one round and stage: proof that it cheats."""

    round: int
    stage: StageName
    peer: str  # libp2p peer id
    name: str
    at: float  # Unix seconds
    first: bytes  # envelopes; `wire.open_envelope` checks them
    second: bytes


class GossipReader:
    """The log as other processes read it, while it is written. A missing, new or damaged file is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rounds(self) -> list[RoundGossip]:
        """All rounds of which anything is known, oldest first."""
        heard = {
            number: counted
            for number, *counted in self._query(
                "SELECT round, count(*), count(fetched_bytes), coalesce(sum(fetched_bytes), 0) "
                "FROM heard GROUP BY round"
            )
        }
        dropped: dict[int, dict[str, int]] = {}
        for number, reason, count in self._query(
            "SELECT round, reason, sum(count) AS total FROM drops GROUP BY round, reason "
            "ORDER BY total DESC, reason"
        ):
            dropped.setdefault(number, {})[reason] = count
        equivocations = dict(self._query("SELECT round, count(*) FROM equivocations GROUP BY round"))
        rounds = []
        for number in sorted({*heard, *dropped, *equivocations}):
            announcements, blobs, size = heard.get(number, (0, 0, 0))
            rounds.append(
                RoundGossip(
                    round=number,
                    heard=announcements,
                    fetched=blobs,
                    fetched_bytes=size,
                    dropped=dropped.get(number, {}),
                    equivocations=equivocations.get(number, 0),
                )
            )
        return rounds

    def heard(self, round_number: int) -> list[HeardEntry]:
        """The announcements of one round, in the order in which they were heard."""
        return [
            HeardEntry(
                stage=_STAGES[stage],
                peer=_peer_text(peer),
                name=peer_name(peer),
                at=at,
                groups=groups,
                blob=blob.hex(),
                blob_bytes=blob_bytes,
                fetched_bytes=fetched_bytes,
                seconds=seconds,
            )
            for stage, peer, at, groups, blob, blob_bytes, fetched_bytes, seconds in self._query(
                "SELECT stage, peer, at, groups, blob, blob_bytes, fetched_bytes, seconds FROM heard "
                "WHERE round = ? ORDER BY at, stage, peer",
                round_number,
            )
        ]

    def drops(self, round_number: int, limit: int = MAX_DROPS) -> list[Drop]:
        """What was dropped in one round, most frequent first."""
        return [
            Drop(
                reason=reason,
                count=count,
                last_at=last_at,
                peer=_peer_text(peer) if peer else None,
                via=_peer_text(via) if via else None,
            )
            for reason, count, last_at, peer, via in self._query(
                "SELECT reason, count, last_at, peer, via FROM drops WHERE round = ? "
                "ORDER BY count DESC, reason, peer, via LIMIT ?",
                round_number,
                limit,
            )
        ]

    def equivocations(self) -> list[Equivocation]:
        """All evidence that is kept, oldest first."""
        return [
            Equivocation(
                round=number,
                stage=_STAGES[stage],
                peer=_peer_text(peer),
                name=peer_name(peer),
                at=at,
                first=first,
                second=second,
            )
            for number, stage, peer, at, first, second in self._query(
                "SELECT round, stage, peer, at, first, second FROM equivocations ORDER BY round, at"
            )
        ]

    def _query(self, statement: str, *values: int) -> list[tuple[Any, ...]]:
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=5)) as db:
                return db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            log.debug("gossip cannot be read file=%s error=%r", self._path, str(error))
            return []


def _peer_text(peer: bytes) -> str:
    """A libp2p peer id; what is no 32-byte digest is shown in base58 all the same."""
    return peer_id_text(peer) if len(peer) == 32 else base58.b58encode(peer).decode()

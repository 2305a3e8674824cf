"""The document that a journal travels in: `swarm-journal/1`, JSON, as EIP-3076 is for validators.

    {"format": "swarm-journal/1", "peer": "Qm…", "scopes": [
        {"scope": "…", "watermark": 41, "slots": [{"round": 42, "stage": 0, "digest": "…64 hex…"}]}]}

Nothing at or below a scope's watermark (-1 = none) may be signed any more. A slot whose digest is null
may never be signed: two different digests were claimed for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from identity.errors import IdentityError
from identity.files import read_file
from identity.key import peer_digest, peer_id_text

FORMAT = "swarm-journal/1"
MAX_BYTES = 16 << 20
MAX_NUMBER = (1 << 63) - 1  # of a round or stage: SQLite's integers
SCOPE_PATTERN = r"\A[ -~]{1,128}\Z"

Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]


class Slot(NamedTuple):
    """What may be signed once: a stage of a round of a swarm. `scope` names one swarm on one ledger."""

    scope: str  # 1 to 128 printable ASCII characters
    round: int
    stage: int


class SlotEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signed slot of a scope."""

    round: Number
    stage: Number
    digest: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None  # None: never again


class ScopeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a journal knows of one swarm on one ledger."""

    scope: Annotated[str, msgspec.Meta(pattern=SCOPE_PATTERN)]
    watermark: Annotated[int, msgspec.Meta(ge=-1, le=MAX_NUMBER)]
    slots: list[SlotEntry]


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An exported journal."""

    format: str
    peer: str
    scopes: list[ScopeEntry]


class _Head(msgspec.Struct, frozen=True):
    format: str = ""


def encode_document(peer: bytes, scopes: list[ScopeEntry]) -> bytes:
    """The document of a peer's scopes, one line of JSON."""
    return msgspec.json.encode(Document(format=FORMAT, peer=peer_id_text(peer), scopes=scopes)) + b"\n"


def read_journal_file(path: Path) -> bytes:
    """The bytes of an exported document, unchecked but for their number; it holds no secrets."""
    return read_file(path, MAX_BYTES)


def decode_document(data: bytes, peer: bytes) -> Document:
    """Parse a document; `IdentityError` if it is too big, malformed, of another format or another peer's."""
    if len(data) > MAX_BYTES:
        raise IdentityError(f"the journal document has {len(data):,} bytes; {MAX_BYTES:,} is the most")
    try:
        found = msgspec.json.decode(data, type=_Head).format
        if found != FORMAT:
            raise IdentityError(f"the document's format is {found[:40]!r}, not {FORMAT!r}: export it anew")
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IdentityError(f"not a journal document ({FORMAT}): {error}") from error
    if peer_digest(document.peer) != peer:
        raise IdentityError(
            f"the document is the journal of peer {document.peer}, not of {peer_id_text(peer)}: "
            "import it where that peer's swarm.pem is"
        )
    return document

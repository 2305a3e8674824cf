"""What auditors say, and how it travels: the bytes that a report carries as its `verdicts`.

    seal                         what the auditor found, hidden from those who still audit
    opening of the seal before   what it found before, for all to read
    opening of a plant           "that fault I made on purpose": sealed before, so no excuse made later

A seal is a tree of two leaves, `node(leaf(salt ‖ verdicts), leaf(salt ‖ plant))`, each with a salt of its
own: a report without verdicts or plant looks like any other, and each leaf is opened without the other.

All of it comes from strangers. `decode` raises `WireError` and nothing else.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from swarm.errors import WireError
from swarm.verde import merkle

MAX_VERDICTS_BYTES = 4096  # the contract's, of one report
MAX_VERDICTS = 16  # of one report
MAX_FAULTS = 4  # of one verdict
MAX_DETAIL_CHARS = 80
MAX_PLACE_CHARS = 200
SALT_BYTES = 16
SEAL_BYTES = 32
# Of one opening. Beside it fit the seal, the largest opening of a plant and the frames, which take 353.
OPENED_VERDICTS_BYTES = 3700
_DETAIL_STEPS = (MAX_DETAIL_CHARS, 40, 20, 10, 0)

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Salt = Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
Round = Annotated[int, Meta(ge=0, lt=2**48)]
# Shown to people, on terminals too, so it holds nothing that a terminal obeys.
_TEXT = "^[ -~]*$"


class Outcome(IntEnum):
    """What one auditor, or all of them together, say of a report."""

    PASSED = 0
    FAILED = 1
    UNRANKED = 2  # sound, but not to be ranked: sampled with another state than the ledger's, say
    WITHHELD = 3  # what was needed to check it was not served


class AuditClass(IntEnum):
    """How equal things had to be; a weaker one caps the score."""

    TOLERANT = 0
    SAME_BUILD = 1
    EXACT = 2


class Check(IntEnum):
    """Which check found the fault."""

    COMMITMENT = 0
    BATCH = 1
    PROVENANCE = 2
    STEP = 3
    AVAILABILITY = 4


class PlantKind(IntEnum):
    """What a peer made wrong on purpose."""

    TOKEN = 0
    WEIGHT = 1
    REWARD = 2

    @property
    def check(self) -> Check:
        """The check that finds it, as its single fault."""
        return (Check.PROVENANCE, Check.STEP, Check.BATCH)[self]


class Fault(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One thing that is wrong."""

    check: Check
    # How many completions (PROVENANCE), numbers of the state (STEP) or, of a false reward alone, micro-units
    # (BATCH) differ; 0: unknown.
    count: Annotated[int, Meta(ge=0, lt=2**48)] = 0
    detail: Annotated[str, Meta(max_length=MAX_DETAIL_CHARS, pattern=_TEXT)] = ""


class Verdict(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one auditor says of one report. `peer` and `round` are the report's own."""

    peer: Digest
    round: Round
    outcome: Outcome
    audit_class: AuditClass
    faults: Annotated[tuple[Fault, ...], Meta(max_length=MAX_FAULTS)] = ()

    @property
    def is_sound(self) -> bool:
        """Whether it can count: who says FAILED says in what; what is not served is WITHHELD."""
        return self.outcome is not Outcome.FAILED or any(
            fault.check is not Check.AVAILABILITY for fault in self.faults
        )


class Plant(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A fault that a peer makes on purpose, to see whether auditors find it."""

    kind: PlantKind
    place: Annotated[str, Meta(max_length=MAX_PLACE_CHARS, pattern=_TEXT)] = ""  # where it is, for people

    def is_all_of(self, verdict: Verdict) -> bool:
        """Whether the verdict names exactly this fault, as small as a plant is, and no other.

        One completion, one number of the state, one micro-unit of reward: more would be worth planting.
        """
        return verdict.outcome is Outcome.FAILED and [
            (fault.check, fault.count) for fault in verdict.faults
        ] == [(self.kind.check, 1)]


class Opening(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The verdicts in the seal of the report of the round before."""

    verdicts: Annotated[tuple[Verdict, ...], Meta(max_length=MAX_VERDICTS)]
    salt: Salt
    plant_leaf: Digest

    def opens(self, seal: bytes) -> bool:
        """Whether this is what was sealed."""
        return merkle.root([_leaf(self.salt, self.verdicts), self.plant_leaf]) == seal


class PlantOpening(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The plant for `round`, from the seal of the report of the round before that."""

    round: Round
    plant: Plant
    salt: Salt
    verdicts_leaf: Digest

    def opens(self, seal: bytes) -> bool:
        """Whether this is what was sealed."""
        return merkle.root([self.verdicts_leaf, _leaf(self.salt, self.plant)]) == seal


class Sealed(Struct, frozen=True):
    """What an auditor has sealed and keeps, on disk before it reports, until it has opened all of it."""

    verdicts: tuple[Verdict, ...]
    plant: Plant | None
    verdicts_salt: bytes
    plant_salt: bytes

    @property
    def seal(self) -> bytes:
        """32 bytes for the report."""
        return merkle.root([self._verdicts_leaf, self._plant_leaf])

    @property
    def opening(self) -> Opening:
        """For the report of the next round."""
        return Opening(self.verdicts, self.verdicts_salt, self._plant_leaf)

    def plant_opening(self, round: int) -> PlantOpening | None:
        """For the report of the third round after `round`, for which the plant was; None if there is none."""
        if self.plant is None:
            return None
        return PlantOpening(round, self.plant, self.plant_salt, self._verdicts_leaf)

    @property
    def _verdicts_leaf(self) -> bytes:
        return _leaf(self.verdicts_salt, self.verdicts)

    @property
    def _plant_leaf(self) -> bytes:
        return _leaf(self.plant_salt, self.plant)


class Carried(Struct, frozen=True):
    """What a report carries. Nothing of it is checked against seals yet."""

    seal: bytes | None = None
    opening: Opening | None = None
    plant: PlantOpening | None = None


class _Openings(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Literal[1]
    opening: Opening | None
    plant: PlantOpening | None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Openings)


def seal(verdicts: Sequence[Verdict], plant: Plant | None = None) -> Sealed:
    """Seal verdicts, and the plant for the next round. What is too large is shortened first: see `fit`.

    Called once per report; the same verdicts sealed again have another seal. `ValueError` if a value is not
    one that others would decode.
    """
    kept = fit(verdicts)
    sealed = Sealed(kept, plant, secrets.token_bytes(SALT_BYTES), secrets.token_bytes(SALT_BYTES))
    opening, plant_opening = sealed.opening, sealed.plant_opening(0)
    try:
        again = decode(encode(sealed.seal, opening, plant_opening))
    except WireError as error:
        raise ValueError(f"verdicts that nobody could decode: {error}") from error
    if again != Carried(sealed.seal, opening, plant_opening):
        raise ValueError("verdicts that others would read differently")
    return sealed


def fit(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The first 16 verdicts, with at most 4 faults each, their details cut so that they fit in a report."""
    first = verdicts[:MAX_VERDICTS]
    for chars in _DETAIL_STEPS:
        kept = tuple(_shortened(verdict, chars) for verdict in first)
        if len(_ENCODER.encode(kept)) <= OPENED_VERDICTS_BYTES:
            break
    return kept  # without details they always fit: a test has the largest


def encode(seal: bytes, opening: Opening | None = None, plant: PlantOpening | None = None) -> bytes:
    """The bytes for a report's `verdicts`."""
    if opening is None and plant is None:
        return seal
    return seal + _ENCODER.encode(_Openings(1, opening, plant))


def decode(data: bytes) -> Carried:
    """What a report's `verdicts` hold; nothing, if they are empty. `WireError` if they are malformed."""
    if not data:
        return Carried()
    if not SEAL_BYTES <= len(data) <= MAX_VERDICTS_BYTES:
        raise WireError(f"verdicts of {len(data)} bytes")
    if len(data) == SEAL_BYTES:
        return Carried(data)
    try:
        openings = _DECODER.decode(data[SEAL_BYTES:])
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise WireError(f"verdicts: {error}") from error
    return Carried(data[:SEAL_BYTES], openings.opening, openings.plant)


def _leaf(salt: bytes, content: object) -> bytes:
    return merkle.leaf(salt + _ENCODER.encode(content))


def _shortened(verdict: Verdict, chars: int) -> Verdict:
    faults = tuple(
        msgspec.structs.replace(fault, detail=re.sub("[^ -~]", "?", fault.detail)[:chars])
        for fault in verdict.faults[:MAX_FAULTS]
    )
    return msgspec.structs.replace(verdict, faults=faults)

"""Verdicts as bytes: sealed, opened, and read from strangers."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import WireError
from swarm.verde import merkle, verdicts
from swarm.verde.verdicts import (
    MAX_DETAIL_CHARS,
    MAX_FAULTS,
    MAX_PLACE_CHARS,
    MAX_VERDICTS,
    MAX_VERDICTS_BYTES,
    AuditClass,
    Carried,
    Check,
    Fault,
    Outcome,
    Plant,
    PlantKind,
    Verdict,
    decode,
    encode,
    fit,
    seal,
)

PEER = b"p" * 32
PASSED = Verdict(PEER, 7, Outcome.PASSED, AuditClass.SAME_BUILD)
FAILED = Verdict(
    PEER,
    8,
    Outcome.FAILED,
    AuditClass.TOLERANT,
    (Fault(Check.PROVENANCE, 3, "3 completions are not the model's"),),
)
PLANT = Plant(PlantKind.TOKEN, "answer 3, completion 1")


def test_verdicts_and_plant_come_back_as_they_were_sealed():
    sealed = seal([PASSED, FAILED], PLANT)
    carried = decode(encode(b"s" * 32, sealed.opening, sealed.plant_opening(9)))
    assert carried.seal == b"s" * 32
    assert carried.opening.verdicts == (PASSED, FAILED)
    assert (carried.plant.round, carried.plant.plant) == (9, PLANT)
    assert carried.opening.opens(sealed.seal) and carried.plant.opens(sealed.seal)


def test_the_seal_is_the_documented_tree():
    sealed = seal([PASSED], PLANT)
    content = msgspec.msgpack.encode([[PEER, 7, 0, 1, []]])
    leaves = [
        merkle.leaf(sealed.verdicts_salt + content),
        merkle.leaf(sealed.plant_salt + msgspec.msgpack.encode([0, PLANT.place])),
    ]
    assert sealed.seal == merkle.root(leaves)
    assert len(sealed.verdicts_salt) == len(sealed.plant_salt) == 16


def test_an_opening_opens_its_own_seal_only_and_nothing_can_be_changed_in_it():
    sealed, other = seal([PASSED], PLANT), seal([PASSED], PLANT)
    assert sealed.seal != other.seal
    assert not sealed.opening.opens(other.seal)
    assert not msgspec.structs.replace(sealed.opening, verdicts=()).opens(sealed.seal)
    assert not msgspec.structs.replace(sealed.opening, salt=bytes(16)).opens(sealed.seal)
    moved = msgspec.structs.replace(sealed.plant_opening(3), plant=Plant(PlantKind.TOKEN, "elsewhere"))
    assert not moved.opens(sealed.seal)


def test_the_two_halves_of_a_seal_cannot_stand_for_one_another():
    sealed = seal([PASSED], PLANT)
    verdicts_leaf, plant_leaf = sealed.plant_opening(1).verdicts_leaf, sealed.opening.plant_leaf
    assert merkle.root([verdicts_leaf, plant_leaf]) == sealed.seal != merkle.root([plant_leaf, verdicts_leaf])


def test_who_planted_nothing_has_nothing_to_open():
    assert seal([PASSED]).plant_opening(1) is None


def test_reports_without_verdicts_and_plant_look_like_others():
    assert len(encode(seal([]).seal)) == len(encode(seal([FAILED], PLANT).seal)) == 32
    assert seal([]).seal != seal([]).seal


def test_an_old_report_carries_nothing():
    assert decode(b"") == Carried(None, None, None)
    assert decode(b"s" * 32) == Carried(b"s" * 32)


def test_the_largest_fits_and_keeps_who_and_what():
    faults = (Fault(Check.STEP, 2**48 - 1, "x" * MAX_DETAIL_CHARS),) * MAX_FAULTS
    largest = [Verdict(PEER, 2**48 - 1, Outcome.FAILED, AuditClass.EXACT, faults)] * MAX_VERDICTS
    sealed = seal(largest, Plant(PlantKind.TOKEN, "y" * MAX_PLACE_CHARS))
    data = encode(sealed.seal, sealed.opening, sealed.plant_opening(2**48 - 1))
    assert len(data) <= MAX_VERDICTS_BYTES
    kept = decode(data).opening.verdicts
    assert len(kept) == MAX_VERDICTS
    assert all(len(v.faults) == MAX_FAULTS and 0 < len(v.faults[0].detail) < MAX_DETAIL_CHARS for v in kept)
    bare = [msgspec.structs.replace(f, detail="") for f in faults]
    least = msgspec.msgpack.encode([msgspec.structs.replace(v, faults=tuple(bare)) for v in largest])
    assert len(least) <= verdicts.OPENED_VERDICTS_BYTES


def test_too_many_verdicts_lose_the_last_ones():
    many = [msgspec.structs.replace(PASSED, round=number) for number in range(20)]
    assert fit(many) == tuple(many[:MAX_VERDICTS])


def test_what_a_terminal_would_obey_is_replaced():
    verdict = Verdict(
        PEER, 1, Outcome.FAILED, AuditClass.EXACT, (Fault(Check.STEP, 0, "\x1b[2J − näh" + "!" * 99),)
    )
    (kept,) = fit([verdict])
    assert kept.faults[0].detail.startswith("?[2J ? n?h!") and len(kept.faults[0].detail) == MAX_DETAIL_CHARS
    assert seal([verdict]).verdicts == (kept,)


def test_a_failed_verdict_must_name_a_fault_that_is_not_a_lack_of_service():
    unsound = [(), (Fault(Check.AVAILABILITY),)]
    for faults in unsound:
        assert not Verdict(PEER, 1, Outcome.FAILED, AuditClass.EXACT, faults).is_sound
    assert FAILED.is_sound and PASSED.is_sound
    assert Verdict(PEER, 1, Outcome.WITHHELD, AuditClass.EXACT, unsound[1]).is_sound


def test_a_plant_is_all_of_a_verdict_that_names_its_one_fault():
    def verdict(*faults, outcome=Outcome.FAILED):
        return Verdict(PEER, 1, outcome, AuditClass.EXACT, faults)

    one = Fault(Check.PROVENANCE, 1, "whatever")
    assert PLANT.is_all_of(verdict(one))
    assert not PLANT.is_all_of(verdict(Fault(Check.PROVENANCE, 2)))
    assert not PLANT.is_all_of(verdict(one, one))
    assert not PLANT.is_all_of(verdict(one, Fault(Check.STEP, 1)))
    assert not PLANT.is_all_of(verdict(Fault(Check.STEP, 1)))
    assert not PLANT.is_all_of(verdict(one, outcome=Outcome.PASSED))
    assert [kind.check for kind in PlantKind] == [Check.PROVENANCE, Check.STEP, Check.BATCH]


@pytest.mark.parametrize(
    "wrong",
    [
        Verdict(b"short", 1, Outcome.PASSED, AuditClass.EXACT),
        Verdict(PEER, -1, Outcome.PASSED, AuditClass.EXACT),
        Verdict(PEER, 2**63, Outcome.PASSED, AuditClass.EXACT),
        Verdict(PEER, 1, Outcome.FAILED, AuditClass.EXACT, (Fault(Check.STEP, -3),)),
    ],
)
def test_what_nobody_could_read_is_not_sealed(wrong):
    with pytest.raises(ValueError, match="nobody could decode"):
        seal([wrong])


SEALED = seal([PASSED, FAILED], PLANT)
GOOD = encode(SEALED.seal, SEALED.opening, SEALED.plant_opening(9))


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"s" * 31,
        b"s" * 33,
        GOOD + b"\x00",
        GOOD[:-1],
        b"s" * (MAX_VERDICTS_BYTES + 1),
        b"s" * 32 + msgspec.msgpack.encode([2, None, None]),
        b"s" * 32 + msgspec.msgpack.encode([1, None]),
        b"s" * 32 + msgspec.msgpack.encode([1, None, None, None]),
        b"s" * 32 + msgspec.msgpack.encode([1, [[[PEER, 1, 9, 0, []]], b"s" * 16, PEER], None]),
        b"s" * 32 + msgspec.msgpack.encode([1, [[[PEER, 1, 0, 0, []]] * 17, b"s" * 16, PEER], None]),
        b"s" * 32 + msgspec.msgpack.encode([1, [[[PEER, 1, 1, 0, [[0, 0, "\x1b"]]]], b"s" * 16, PEER], None]),
        b"s" * 32 + b"\x91" * 4000,
        b"s" * 32 + b"\xdd\xff\xff\xff\xff",
        b"s" * 32 + b"\xc6\xff\xff\xff\xff",
    ],
)
def test_malformed_verdicts_are_a_wire_error(data):
    with pytest.raises(WireError, match="verdicts"):
        decode(data)


@given(st.binary(max_size=200), st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_any_bytes_are_read_or_refused(noise, place, value):
    for data in (noise, b"s" * 32 + noise, GOOD[:place] + bytes([value]) + GOOD[place + 1 :]):
        try:
            carried = decode(data)
        except WireError:
            continue
        assert carried.opening is None or len(carried.opening.verdicts) <= MAX_VERDICTS

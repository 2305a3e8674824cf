import json

import pytest

from identity import IdentityError, Journal, Slot, SlotTaken, peer_id_text, read_journal_file
from identity.interchange import MAX_BYTES

PEER, OTHER_PEER = bytes(32), bytes([1]) * 32
ONE, TWO = b"1" * 32, b"2" * 32


@pytest.fixture
def pair(tmp_path):
    journals = [Journal.create(tmp_path / name / "journal.sqlite", PEER) for name in "ab"]
    yield journals
    for journal in journals:
        journal.close()


def document(**changes):
    slot = {"round": 1, "stage": 0, "digest": ONE.hex()}
    scope = {"scope": "swarm", "watermark": -1, "slots": [slot]}
    whole = {"format": "swarm-journal/1", "peer": peer_id_text(PEER), "scopes": [scope]}
    for name, value in changes.items():
        for part in (slot, scope, whole):
            if name in part:
                part[name] = value
    return json.dumps(whole).encode()


def test_export_is_the_documented_json_in_a_fixed_order(pair):
    ours, theirs = pair
    slots = [Slot("b", 2, 0), Slot("b", 1, 1), Slot("b", 1, 0), Slot("a", 3, 0)]
    for slot in slots:
        ours.claim(slot, ONE)
    for slot in reversed(slots):
        theirs.claim(slot, ONE)
    assert ours.export() == theirs.export()
    assert json.loads(ours.export()) == {
        "format": "swarm-journal/1",
        "peer": peer_id_text(PEER),
        "scopes": [
            {"scope": "a", "watermark": -1, "slots": [{"round": 3, "stage": 0, "digest": ONE.hex()}]},
            {
                "scope": "b",
                "watermark": -1,
                "slots": [
                    {"round": round, "stage": stage, "digest": ONE.hex()}
                    for round, stage in [(1, 0), (1, 1), (2, 0)]
                ],
            },
        ],
    }


def test_import_brings_slots_and_makes_every_scope_listen(pair):
    ours, theirs = pair
    theirs.claim(Slot("swarm", 1, 0), ONE)
    theirs.claim(Slot("swarm", 2, 0), ONE)
    ours.claim(Slot("swarm", 2, 0), ONE)
    assert ours.import_(theirs.export()) == 1
    with pytest.raises(SlotTaken):
        ours.claim(Slot("swarm", 1, 0), TWO)
    assert ours.reason_to_listen("swarm", 2, 10) == "imported"
    assert ours.reason_to_listen("never seen", 2, 10) == "imported"
    ours.listened("swarm", 3)
    assert ours.reason_to_listen("swarm", 4, 10) is None
    assert ours.import_(theirs.export()) == 0
    assert ours.reason_to_listen("swarm", 4, 10) == "imported"


def test_slot_with_two_digests_is_never_signed_again_anywhere(pair, tmp_path):
    ours, theirs = pair
    slot = Slot("swarm", 1, 0)
    ours.claim(slot, ONE)
    theirs.claim(slot, TWO)
    assert ours.import_(theirs.export()) == 0
    third = Journal.create(tmp_path / "c" / "journal.sqlite", PEER)
    third.import_(ours.export())  # the tombstone travels
    theirs.import_(ours.export())
    for journal in (ours, theirs, third):
        for digest in (ONE, TWO):
            with pytest.raises(SlotTaken, match="signed twice"):
                journal.claim(slot, digest)
    third.close()


def test_document_that_contradicts_itself_is_a_tombstone(pair):
    whole = json.loads(document())
    whole["scopes"][0]["slots"].append({"round": 1, "stage": 0, "digest": TWO.hex()})
    pair[0].import_(json.dumps(whole).encode())
    for digest in (ONE, TWO):
        with pytest.raises(SlotTaken, match="signed twice"):
            pair[0].claim(Slot("swarm", 1, 0), digest)


def test_higher_watermark_counts(pair):
    ours, theirs = pair
    theirs.kept_rounds = 2
    for round in (10, 20, 30):
        theirs.claim(Slot("swarm", round, 0), ONE)
    ours.claim(Slot("swarm", 5, 0), ONE)
    assert ours.import_(theirs.export()) == 2
    with pytest.raises(SlotTaken, match="older"):
        ours.claim(Slot("swarm", 5, 1), ONE)
    assert json.loads(ours.export())["scopes"][0]["watermark"] == 19
    theirs.import_(document(watermark=3))
    assert json.loads(theirs.export())["scopes"][0]["watermark"] == 19


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "swarm-journal/2"},
        {"peer": peer_id_text(OTHER_PEER)},
        {"peer": "nobody"},
        {"peer": "z" * 100_000},
        {"scope": ""},
        {"scope": "x" * 129},
        {"scope": "new\nline"},
        {"watermark": -2},
        {"watermark": 1 << 63},
        {"round": -1},
        {"round": 1 << 63},
        {"round": 10**400},
        {"round": "1"},
        {"round": True},
        {"stage": 1.5},
        {"digest": "11"},
        {"digest": ONE.hex() + "\n"},
        {"digest": "Z" * 64},
        {"slots": None},
    ],
)
def test_document_with_a_wrong_field_is_refused_whole(pair, changes):
    journal = pair[0]
    before = journal.export()
    with pytest.raises(IdentityError) as caught:
        journal.import_(document(**changes))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert journal.export() == before
    assert journal.reason_to_listen("swarm", 0, 10) is None


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 1_000_000, b'{"format":' * 200_000, document()[:-1]]
)
def test_bytes_that_are_no_document_are_refused(pair, data):
    with pytest.raises(IdentityError):
        pair[0].import_(data)


def test_document_over_16_mib_is_refused(pair):
    with pytest.raises(IdentityError, match="the most"):
        pair[0].import_(document() + b" " * MAX_BYTES)


def test_last_scope_being_wrong_leaves_the_first_out_too(pair):
    whole = json.loads(document())
    whole["scopes"].append(
        {"scope": "x", "watermark": 0, "slots": [{"round": -5, "stage": 0, "digest": None}]}
    )
    with pytest.raises(IdentityError):
        pair[0].import_(json.dumps(whole).encode())
    assert pair[0].last_round("swarm") == -1


def test_journal_too_large_for_a_document_exports_its_newest_rounds(pair, monkeypatch):
    ours, theirs = pair
    for round in range(100):
        ours.claim(Slot("swarm", round, 0), ONE)
    monkeypatch.setattr("identity.journal.MAX_BYTES", 4_000)
    exported = ours.export()
    assert len(exported) <= 4_000
    assert theirs.import_(exported) > 10
    with pytest.raises(SlotTaken):
        theirs.claim(Slot("swarm", 0, 0), TWO)
    assert theirs.last_round("swarm") == 99


def test_exported_file_is_read_up_to_16_mib(pair, tmp_path):
    path = tmp_path / "journal.json"
    path.write_bytes(pair[0].export())
    assert pair[1].import_(read_journal_file(path)) == 0
    path.write_bytes(bytes(MAX_BYTES + 1))
    with pytest.raises(IdentityError, match="larger"):
        read_journal_file(path)
    with pytest.raises(IdentityError, match="cannot read"):
        read_journal_file(tmp_path / "missing")

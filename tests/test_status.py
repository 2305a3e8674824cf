"""`swarm status`, from files as a node leaves them."""

from __future__ import annotations

import base64
import json
from contextlib import closing

import pytest
from small_swarm import small_manifest

from identity import peer_id_text, peer_name
from swarm.board.status import SHOWN_DROPS, SHOWN_EQUIVOCATIONS
from swarm.cli import main
from swarm.exchange import wire
from swarm.exchange.addresses import ADDRESSES_FILE, AddressBook
from swarm.exchange.gossip import GOSSIP_FILE, Gossip
from swarm.ledger.facts import FACTS_FILE, Facts, save_facts
from swarm.settings import Settings

ALICE, BOB = b"a" * 32, b"b" * 32
ADDRESS = "0x" + "ab" * 20
MANIFEST = small_manifest("listening")


@pytest.fixture
def folder(home):
    """Of a swarm that was joined and no more."""
    folder = Settings(home=home).swarm_dir(MANIFEST.swarm_id, ADDRESS, 0)
    facts = Facts(address=ADDRESS, chain_id=1, first_block="", genesis=0, manifest=MANIFEST.canonical)
    save_facts(facts, folder / FACTS_FILE)
    return folder


@pytest.fixture
def gossip(folder):
    with closing(Gossip(folder / GOSSIP_FILE, current_round=lambda: 12)) as gossip:
        yield gossip


@pytest.fixture
def status(home, capsys):
    """What the command prints; lines are not folded."""

    def run(*arguments):
        assert main(["status", "--home", str(home), *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def heard(peer, round_number):
    return wire.Heard(
        peer=peer,
        announcement=wire.Announcement(
            swarm=MANIFEST.swarm_id,
            round=round_number,
            stage=0,
            cell=0,
            expiration=9,
            groups=3,
            root=bytes(32),
            blob=b"\xbb" * 32,
            blob_bytes=2_500_000,
        ),
        envelope=b"",
    )


def test_rounds_gossip_is_shown(gossip, status):
    gossip.heard(heard(BOB, 12))
    gossip.fetched(heard(ALICE, 12), 2_500_000, 1.5)
    for times, why in enumerate(("[/late]", "unknown", "too big", "unsigned"), start=1):
        for _ in range(times):
            gossip.dropped(why, peer=BOB, via=ALICE)
    gossip.flush()
    words = status().split()
    assert " ".join(words[words.index("12") :]).startswith(
        "12 │ 2 │ 1 │ 2,500 │ 4 unsigned, 3 too big, 2 unknown, 1 for"
    )
    (swarm,) = json.loads(status("--json"))["swarms"]
    (shown,) = swarm["gossip"]
    assert (shown["round"], shown["heard"], shown["fetched"], shown["fetched_bytes"]) == (12, 2, 1, 2_500_000)
    assert shown["dropped"] == {"unsigned": 4, "too big": 3, "unknown": 2, "[/late]": 1}
    assert [entry["peer"] for entry in shown["announcements"]] == [peer_id_text(BOB), peer_id_text(ALICE)]
    assert (shown["drops"][0]["peer"], shown["drops"][0]["via"]) == (peer_id_text(BOB), peer_id_text(ALICE))


def test_markup_in_a_reason_is_shown_as_it_is(gossip, status):
    gossip.dropped("[/late]")
    gossip.flush()
    assert "1 [/late]" in status()


def test_last_rounds_are_shown_and_json_has_all(gossip, status):
    for number in range(3, 13):
        gossip.heard(heard(ALICE, number))
        gossip.equivocated(BOB, number, 0, b"1", b"2")
    gossip.flush()
    out = status("--rounds", "2")
    assert [f"round {number}, answer" in out for number in (10, 11, 12)] == [False, True, True]
    (swarm,) = json.loads(status("--rounds", "2", "--json"))["swarms"]
    assert [shown["round"] for shown in swarm["gossip"]] == list(range(3, 13))
    assert len(swarm["equivocations"]) == 10


def test_who_said_two_things_is_named_and_the_evidence_is_in_json(gossip, status):
    gossip.equivocated(BOB, 12, 0, b"one thing", b"another")
    gossip.flush()
    assert (
        f"{peer_name(BOB)} ({peer_id_text(BOB)}) announced two different things in round 12, answer: "
        "evidence kept"
    ) in status()
    (proof,) = json.loads(status("--json"))["swarms"][0]["equivocations"]
    assert [base64.b64decode(proof[which]) for which in ("first", "second")] == [b"one thing", b"another"]


def test_attack_does_not_fill_the_screen(gossip, status):
    for number in range(50):
        gossip.equivocated(bytes([number]) * 32, 12, 0, b"1", b"2")
        gossip.dropped("late", peer=bytes([number]) * 32)
    gossip.flush()
    out = status()
    assert out.count("evidence kept") == SHOWN_EQUIVOCATIONS
    assert f"{50 - SHOWN_EQUIVOCATIONS} more announced two different things" in out
    (shown,) = json.loads(status("--json"))["swarms"][0]["gossip"]
    assert len(shown["drops"]) == SHOWN_DROPS and shown["dropped"] == {"late": 50}


def test_swarm_whose_manifest_cannot_be_read_does_not_hide_the_others(folder, status):
    other = Facts(address=ADDRESS, chain_id=1, first_block="", genesis=9, manifest=b'{"model":"tiny"}')
    save_facts(other, folder.parent / "other" / FACTS_FILE)
    text = status()
    assert "listening" in text
    assert "manifest cannot be read" in text


def test_exchange_remembers_its_port_and_peers(folder, status):
    book = AddressBook(folder / ADDRESSES_FILE)
    book.remember(ALICE, ["/ip4/10.0.0.1/tcp/1"])
    book.own_port = 38331
    book.save()
    assert "last TCP port: 38331, peers in the address book: 1" in status()
    assert json.loads(status("--json"))["swarms"][0]["exchange"] == {"port": 38331, "known_peers": 1}


@pytest.mark.parametrize("content", [None, b"", b"no database" * 1000])
def test_missing_or_damaged_gossip_is_shown_as_nothing(folder, status, content):
    if content is not None:
        (folder / GOSSIP_FILE).write_bytes(content)
    assert "listening" in status() and "heard of others" not in status()
    (swarm,) = json.loads(status("--json"))["swarms"]
    assert (swarm["gossip"], swarm["equivocations"], swarm["exchange"]) == ([], [], None)

"""`swarm status`, from files as a node leaves them."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import closing

import msgspec
import pytest
from rich.console import Console
from small_swarm import small_manifest

from identity import peer_id_text, peer_name
from swarm.board.screen import screen
from swarm.board.status import SHOWN_DROPS, SHOWN_EQUIVOCATIONS, StatusReader
from swarm.cli import main
from swarm.exchange import wire
from swarm.exchange.addresses import ADDRESSES_FILE, AddressBook
from swarm.exchange.gossip import GOSSIP_FILE, Gossip
from swarm.exchange.health import Health
from swarm.ledger.deliveries import Deliveries
from swarm.ledger.facts import FACTS_FILE, Facts, save_facts
from swarm.records import Gpu, OwnStanding, Records, RoundRecord, Status
from swarm.settings import Settings, hold_home

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


# The vital numbers


def a_record(number):
    return RoundRecord(
        round=number,
        rewards={"answer": 0.01 * number},
        groups=8,
        external_groups=2,
        reward_micros=2_500_000,
        commitment="aa",
        state_before="bb",
        state_after="cc",
        tokens=3000,
        seconds={"sample": 2.0, "learn": 0.5},
        stages={"answer": "late", "learn": "on_time"},
        batch_groups=8,
        at=time.time() - 60,
    )


@pytest.fixture
def played(folder):
    """Forty rounds, the last of them not reported yet; the node is in its answers."""
    with closing(Records(folder / "state.sqlite")) as records:
        for number in range(1, 41):
            records.save(a_record(number))
        records.set_status(
            Status(
                peer_id="Qm",
                name="a b c",
                state="answer",
                round=41,
                health=Health(
                    peers=7, restarts=1, reach=None, heard=9, fetched_bytes=1500, served_bytes=2_500_000
                ),
                ends_at=time.time() + 100.5,
                pid=os.getpid(),
                standing=OwnStanding(
                    round=41,
                    score_micros=420_000,
                    passes=5.0,
                    fails=1.0,
                    verified_micros=90_000_000,
                    ranked_rounds=39,
                    audits_passed=6,
                    audits_failed=1,
                    is_eligible=False,
                    is_on_probation=True,
                ),
                gpus=(Gpu(index=0, allocated_bytes=1, reserved_bytes=3 * 10**9, total_bytes=24 * 10**9),),
            )
        )
    with closing(Deliveries(folder / "outbox.sqlite")) as outbox:
        outbox.put(*[a_record(number).report for number in range(1, 41)])
        for number in range(1, 40):
            outbox.mined(number, f"0x{number:064x}", late_rounds=int(number == 7), block=number)
    return folder


@pytest.fixture
def running(home):
    """As if a node ran there."""
    with hold_home(home):
        yield


def test_vital_numbers_are_shown_and_json_has_the_same(played, running, status):
    words = " ".join(status("--once").split())
    for shown in (
        "now answer, round 41, 100 s left",
        "answer 0.40 claimed in all 100.000",
        "40 played, 1,500 tokens/s, 8 groups, 25% of the batch from others, sample 2.0 s, learn 0.5 s, "
        "answer late",
        "1 queued, 39 mined, 1 late, the oldest open one waits for 6",
        "7 in the DHT, 9 announcements heard, 1.5 kB fetched, 2.5 MB served, libp2p restarted 1 times",
        "0.42, audited 6 passed 1 failed, 39 rounds ranked, reward that counts 90.000, on probation, "
        "not eligible",
        "GPU 0 3.0 GB of 24 GB",
    ):
        assert shown in words
    vitals = json.loads(status("--json"))["swarms"][0]["vitals"]
    assert (vitals["rounds"], vitals["reward_micros"], vitals["tokens"]) == (40, 100_000_000, 120_000)
    assert vitals["stages"] == {"answer": {"late": 40}, "learn": {"on_time": 40}}
    assert (vitals["last"]["tokens_per_second"], vitals["last"]["external_share"]) == (1500.0, 0.25)
    assert vitals["outbox"]["reports"] == {"queued": 1, "sent": 0, "mined": 39, "failed": 0}
    assert (vitals["outbox"]["late"], vitals["outbox"]["oldest_open_round"]) == (1, 40)
    assert vitals["memory"]["node"] > 10e6


def test_of_a_node_that_does_not_run_no_memory_and_no_time_left_is_shown(played, status):
    out = status()
    assert "was last at: answer, round 41" in out
    assert "left" not in out and "memory" not in out
    assert json.loads(status("--json"))["swarms"][0]["vitals"]["memory"] == {}


@pytest.mark.parametrize("content", [b"", b"no database" * 1000])
def test_damaged_files_show_less(played, status, content):
    for path in played.glob("*.sqlite*"):
        path.write_bytes(content)
    assert "listening" in status()
    assert json.loads(status("--json"))["swarms"][0]["vitals"]["rounds"] == 0


def test_words_of_others_cannot_steer_the_terminal(played, status):
    hostile = "[red]\x1b[2J\u202e"
    with closing(Records(played / "state.sqlite")) as records:
        records.set_status(Status(peer_id="Qm", name="a", state=hostile, round=41))
        records.save(msgspec.structs.replace(a_record(41), rewards={hostile: 0.5}))
    out = status()
    assert "\x1b" not in out and "\u202e" not in out
    assert out.count("[red] [2J") == 2


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (200, 15)])
def test_live_screen_fits_the_terminal(played, gossip, home, width, height):
    for number in range(30):
        gossip.heard(heard(bytes([number]) * 32, 12))
    gossip.flush()
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True)
    shown = screen(StatusReader(Settings(home=home)).read(last=20), 20, console)
    lines = console.render_lines(shown)
    assert len(lines) < height
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert ("│    40 │" in text, "heard of others" in text) == (height >= 24, height > 24)


def test_on_a_terminal_it_is_live_until_interrupted(played, running, home):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "swarm", "status", "--home", str(home)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
    )
    os.close(theirs)

    def read_until(words: str) -> None:
        seen = b""
        while words.encode() not in seen:
            seen += os.read(ours, 65536)

    try:
        read_until("round 41")
        with closing(Records(played / "state.sqlite")) as records:
            records.set_status(Status(peer_id="Qm", name="a b c", state="learn", round=41, pid=os.getpid()))
        read_until("learn, round 41")
        process.send_signal(signal.SIGINT)
        read_until("\x1b[?25h")  # the cursor is back
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)

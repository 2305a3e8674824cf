"""The board's API over a synthetic ledger, from a real `swarm board`."""

import json
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise

import pytest
import requests
import schemathesis
from board_process import boarding, synthetic
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from identity import Identity, peer_id_text

PEERS, ROUNDS = 300, 4
CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def line():
    with synthetic(PEERS, ROUNDS) as (_, line):
        yield line


@pytest.fixture(scope="module")
def board(line, tmp_path_factory):
    with boarding(line, tmp_path_factory.mktemp("board"), "--per-minute", "0") as board:
        board.wait_until(lambda: board.pulse()["standings_round"] >= ROUNDS and board.pulse()["version"])
        yield board


@pytest.fixture(scope="module")
def leaderboard(line):
    """What `swarm leaderboard` says of the same ledger."""
    command = [sys.executable, "-m", "swarm", "leaderboard", line, "--json"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.fixture(scope="module")
def api_schema(board):
    return schemathesis.openapi.from_url(f"{board.url}/api/v1/openapi.json").exclude(path="/api/v1/events")


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_is_asked_is_answered_as_described(board, api_schema, mode):
    """Requests as the description has them, and others."""
    asked = 0
    for found in api_schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            nonlocal asked
            asked += 1
            case.call_and_validate(base_url=board.url, checks=CHECKS)

        with suppress(Unsatisfiable):  # what takes no arguments cannot be asked wrongly
            ask()
    assert asked > 300


def test_pages_of_the_leaderboard_are_all_of_it_as_the_ledger_has_it(board, leaderboard):
    rows, offset = [], 0
    while page := board.get(f"/leaderboard?offset={offset}&limit=77").json()["rows"]:
        rows += page
        offset += len(page)
    assert len(rows) == PEERS
    shared = ("rank", "peer", "name", "account", "rounds", "ranked_rounds", "verified_reward", "score")
    assert [{key: row[key] for key in shared} for row in rows] == [
        {key: row[key] for key in shared} for row in leaderboard
    ]


def test_peers_are_found_by_name_id_and_account(board):
    row = board.get("/leaderboard?offset=123&limit=1").json()["rows"][0]
    for words in (row["name"], row["name"].upper(), row["peer"], row["peer"][4:30], row["account"][:20]):
        found = board.get("/peers", params={"search": words}).json()
        assert row["peer"] in [one["peer"] for one in found["rows"]], words
    for name in (row["name"], row["peer"], row["account"]):
        assert board.get(f"/peers/{name}").json()["rank"]["peer"] == row["peer"]
    assert board.get("/peers", params={"peer": [row["peer"], "nobody"]}).json()["total"] == 1
    assert board.get("/peers/nobody").status_code == 404
    assert board.get("/peers?search=no-such-words").json()["total"] == 0


def test_a_peers_reports_come_page_by_page_with_the_chain_of_states(board):
    row = board.get("/leaderboard?limit=1").json()["rows"][0]
    reports, cursor = [], ""
    while cursor is not None:
        page = board.get(f"/peers/{row['peer']}/reports?limit=3{cursor and '&before=' + cursor}").json()
        reports += page["reports"]
        cursor = page["next"]
    numbers = [report["round"] for report in reports]
    assert numbers == sorted(numbers, reverse=True) and numbers[-ROUNDS:] == list(range(ROUNDS - 1, -1, -1))
    assert [report["follows"] for report in reports] == [True] * (len(reports) - 1) + [None]
    for later, earlier in pairwise(reports):
        assert later["state_before"] == earlier["state_after"]
    assert all(report["tx"].startswith("0x") and len(report["tx"]) == 66 for report in reports)


def test_rounds_and_curve_are_sums_of_the_reports(board):
    rounds = board.get("/rounds?limit=500").json()["rounds"]
    last = next(one for one in rounds if one["round"] == ROUNDS - 1)
    reports, cursor = [], ""
    while cursor is not None:
        page = board.get(f"/rounds/{ROUNDS - 1}/reports?limit=100{cursor and '&before=' + cursor}").json()
        reports += page["reports"]
        cursor = page["next"]
    rewards = sorted(report["reward"] for report in reports)
    assert last["reports"] == len(rewards) == PEERS and last["late"] == 0
    assert (last["mean_reward"], last["best_reward"]) == (sum(rewards) // PEERS, rewards[-1])
    curve = board.get("/curve").json()
    assert curve["rounds_per_point"] == 1
    assert [point["mean"] for point in curve["points"]] == [
        one["mean_reward"] for one in reversed(rounds) if one["round"] < ROUNDS
    ]
    few = board.get("/curve?points=2").json()
    assert few["rounds_per_point"] == 2 and [point["round"] for point in few["points"]] == [1, 3]


def test_an_answer_that_is_known_already_is_not_sent_again(board):
    first = board.get("/leaderboard?limit=500")
    again = board.get("/leaderboard?limit=500", headers={"If-None-Match": first.headers["ETag"]})
    assert first.headers["Content-Encoding"] == "gzip"
    if again.status_code == 200:  # a new block came in between
        again = board.get("/leaderboard?limit=500", headers={"If-None-Match": again.headers["ETag"]})
    assert again.status_code == 304 and again.content == b""


def test_any_site_may_read_and_the_page_may_load_nothing_from_elsewhere(board):
    answer = board.get("/pulse", headers={"Origin": "https://example.org"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    page = requests.get(board.url, timeout=10)
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "https://" not in page.text
    assert board.get("/swarm", headers={"Origin": "null"}).status_code == 200
    assert requests.post(f"{board.url}/api/v1/pulse", timeout=10).status_code == 405
    for path in ("/../board.sqlite", "/%2e%2e/schema.py", "/..%2fschema.py"):
        assert requests.get(board.url + path, timeout=10).status_code == 404


def test_events_begin_with_the_pulse_and_go_on(board):
    with board.get("/events", stream=True) as stream:
        lines = stream.iter_lines(decode_unicode=True)
        pulses = []
        for line in lines:
            if line.startswith("data: "):
                pulses.append(json.loads(line.removeprefix("data: ")))
            if len(pulses) == 2:
                break
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert pulses[0]["round"] == ROUNDS and pulses[1]["at"] > pulses[0]["at"]


def test_a_key_in_the_rpc_url_is_not_shown(line, tmp_path):
    with boarding(f"{line}/v3/SECRET", tmp_path) as board:
        shown = board.get("/swarm").text
        assert "SECRET" not in shown and "YOUR-RPC-URL-OF-CHAIN" in shown
        assert board.stop() == 130


def test_a_ledger_that_goes_away_is_said_and_what_is_known_stays(tmp_path):
    with synthetic(20, 3) as (ledger, line), boarding(line, tmp_path) as board:
        board.wait_until(lambda: board.pulse()["ledger"] == "ok" and board.pulse()["version"])
        known = board.get("/leaderboard").json()
        ledger.is_away = True
        board.wait_until(lambda: board.pulse()["ledger"] == "away")
        assert "cannot be reached" in board.pulse()["trouble"]
        assert board.get("/health").json()["status"] == "away"
        assert board.get("/leaderboard").json()["rows"] == known["rows"]
        ledger.is_away = False
        board.wait_until(lambda: board.pulse()["ledger"] == "ok")
        assert board.stop() == 130


def test_a_second_board_or_a_taken_port_is_one_line(line, board, tmp_path):
    def said(*arguments):
        command = [sys.executable, "-m", "swarm", "board", line, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and done.stdout == ""
        return done.stderr.splitlines()[-1]

    assert "another board" in said("--home", str(board.log_path.parent), "--listen", "127.0.0.1:0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "cannot listen" in said("--home", str(tmp_path), "--listen", place)
    damaged = next(iter((board.log_path.parent / "swarms").iterdir())).name
    file = tmp_path / "swarms" / damaged / "board.sqlite"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"no database" * 100)
    assert "delete it and start again" in said("--home", str(tmp_path), "--listen", "127.0.0.1:0")


def test_a_swarm_that_has_not_begun_has_an_empty_board(tmp_path):
    with synthetic(0, 0, begins_in=500) as (_, line), boarding(line, tmp_path) as board:
        board.wait_until(lambda: board.pulse()["ledger"] == "ok")
        pulse = board.pulse()
        assert (pulse["round"], pulse["stage"], pulse["peers"]) == (-1, "waiting", 0)
        assert board.get("/leaderboard").json()["rows"] == []
        assert board.get("/gossip").json()["round"] == -1
        assert board.get("/curve").json()["points"] == []


def test_only_the_user_is_told_which_peers_are_his(tmp_path):
    identity = Identity.create(tmp_path / "swarm.pem")
    with synthetic(30, 2) as (ledger, line):
        ledger.peers[7] = identity.peer  # as if the user's were one of them
        pin = peer_id_text(ledger.peers[8])
        with boarding(line, tmp_path, "--pin", pin) as board:
            board.wait_until(lambda: board.pulse()["standings_round"] >= 2 and board.pulse()["version"])
            place = board.url.removeprefix("http://")

            def marked(**headers):
                rows = board.get("/leaderboard", headers=headers).json()["rows"]
                marked = {row["peer"] for row in rows if row["own"]}
                asked = board.get("/peers?own=true", headers=headers).json()["rows"]
                assert marked == {row["peer"] for row in asked}
                return marked

            assert marked() == marked(Origin=board.url) == {pin, identity.peer_id}
            assert marked(Host="localhost") == {pin, identity.peer_id}
            assert marked(Origin="https://example.org") == marked(Origin="null") == {pin}
            assert marked(Host="board.example.org") == marked(Host=f"evil.example:{place[-5:]}") == {pin}


def test_one_caller_gets_a_few_streams_and_has_them_back(board):
    streams = [board.get("/events", stream=True) for _ in range(9)]
    assert [stream.status_code for stream in streams] == [200] * 8 + [503]
    for stream in streams:
        stream.close()
    board.wait_until(lambda: _opens(board))


def _opens(board):
    with board.get("/events", stream=True) as stream:
        return stream.status_code == 200


def test_who_asks_too_often_is_told_when_to_come_back_whoever_he_says_he_is(line, tmp_path):
    with boarding(line, tmp_path, "--per-minute", "5") as board:
        # A new minute may begin in between.
        answers = [board.get("/health", headers={"X-Forwarded-For": f"10.0.0.{n}"}) for n in range(12)]
        assert answers[0].status_code == 200
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert 0 < int(refused.headers["Retry-After"]) <= 60 and "too many" in refused.json()["detail"]


def test_interrupt_ends_the_streams_without_a_word(line, tmp_path):
    with boarding(line, tmp_path) as board, board.get("/events", stream=True) as stream:
        assert next(stream.iter_lines(decode_unicode=True)) == "event: pulse"
        assert board.stop() == 130
    assert "Traceback" not in board.log and "ASGI" not in board.log

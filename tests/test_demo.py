"""The whole thing: real processes, a real devnet, real DHT nodes, real training."""

import re
import signal

import pytest
from demo_process import Demo, quick_manifest


@pytest.fixture
def demo(tmp_path):
    running = []

    def start(*arguments: str) -> Demo:
        running.append(Demo(tmp_path, *arguments))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()
        for process in one.left():
            process.kill()


@pytest.fixture(name="quick_manifest")
def write_quick_manifest(tmp_path):
    return quick_manifest(tmp_path)


def assert_ledger_agrees(report: dict) -> None:
    """For every peer the ledger's rounds and total are the sums of its own records."""
    for peer, totals in report["ledger"]["peers"].items():
        reported = [
            r["peers"][peer] for r in report["rounds"] if peer in r["peers"] and r["peers"][peer]["tx"]
        ]
        assert totals["rounds"] == len(reported)
        assert totals["total_reward"] == sum(r["reward_micros"] for r in reported)


def test_three_peers_play_two_rounds_and_the_ledger_agrees(demo):
    running = demo("--peers", "3", "--rounds", "2", "--seed", "7")
    report = running.finish()
    assert report["seed"] == 7
    assert len(report["ledger"]["peers"]) == 3
    assert_ledger_agrees(report)
    played = [(peer, r) for rounds in report["rounds"] for peer, r in rounds["peers"].items()]
    assert len(played) == 6
    for _, r in played:
        assert set(r["reward"]) == {"answer", "critique", "revise"}
        assert r["tx"].startswith("0x") and len(r["commitment"]) == 64
        assert r["groups"] > 0
        assert not r["dropped"], "honest peers refuse nothing of one another"
    assert any(r["external_groups"] > 0 for _, r in played)
    assert running.report_path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "Leaderboard" in running.log.read_text()
    assert not running.left()


def test_killed_peer_does_not_stop_the_others(demo, quick_manifest):
    running = demo("--peers", "3", "--rounds", "3", "--manifest", quick_manifest, "--no-board")
    running.wait_for(lambda: re.search(r"^round \d+:", running.log.read_text(), re.M), "first round")
    victim = running.peers()[0]
    victim.kill()
    report = running.finish()
    assert "lost" in running.log.read_text()
    rounds_of = {peer: totals["rounds"] for peer, totals in report["ledger"]["peers"].items()}
    assert sorted(rounds_of.values())[1:] == [3, 3], "the others play all their rounds"
    assert min(rounds_of.values()) < 3
    assert_ledger_agrees(report)
    assert not running.left()


# While it plays, the test of its board interrupts it too.
@pytest.mark.parametrize("moment", ["loading", pytest.param("playing", marks=pytest.mark.slow)])
def test_interrupt_leaves_no_process_behind(demo, quick_manifest, moment):
    running = demo("--peers", "2", "--rounds", "9", "--manifest", quick_manifest)
    if moment == "loading":
        running.wait_for(lambda: len(running.peers()) == 2, "peers")
    else:
        running.wait_for(lambda: "round 0:" in running.log.read_text(), "first round")
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=60) == 130
    assert "Traceback" not in running.log.read_text()
    assert not running.left()

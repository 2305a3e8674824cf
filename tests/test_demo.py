"""The whole thing: real processes, a real devnet, real DHT nodes, real training."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from swarm.demo import DEMO_MANIFEST

MARK = "SWARM_DEMO_UNDER_TEST"  # in the environment of everything that a demo starts


def _listen_to_interrupts() -> None:
    """A shell that runs the tests in the background makes its children deaf to Ctrl-C; a person's is not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Demo:
    """A running `swarm demo` and all processes that came from it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder
        self.report_path = folder / "r.json"
        self.log = folder / "demo.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "swarm",
                    "demo",
                    "--home",
                    str(folder),
                    "--report",
                    str(self.report_path),
                    *list(arguments),
                ],
                env={**os.environ, MARK: self.mark},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_listen_to_interrupts,
            )

    def left(self) -> list[psutil.Process]:
        """Every live process of this demo, besides the demo's own."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARK) == self.mark
                if marked and process.pid != self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def peers(self) -> list[psutil.Process]:
        return [process for process in self.left() if "join" in process.cmdline()]

    def wait_for(self, condition, what: str, seconds: float = 180) -> None:
        """Poll until the condition holds; fails if the demo ends before it does."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"demo ended before {what}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"no {what} in {seconds} s:\n{self.log.read_text()}"
            time.sleep(0.2)

    def finish(self) -> dict:
        """Wait for the end; returns the report."""
        assert self.process.wait(timeout=600) == 0, self.log.read_text()
        return json.loads(self.report_path.read_text())


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


@pytest.fixture
def quick_manifest(tmp_path):
    """The demo's manifest with fewer groups, so that a round of few seconds is enough."""
    text = DEMO_MANIFEST.read_text()
    for old, new in (("round_seconds: 20", "round_seconds: 12"), ("max_groups: 32", "max_groups: 6")):
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "quick.yaml"
    path.write_text(text)
    return str(path)


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
    running = demo("--peers", "3", "--rounds", "4", "--manifest", quick_manifest)
    running.wait_for(lambda: "round 0:" in running.log.read_text(), "first round")
    victim = running.peers()[0]
    victim.kill()
    report = running.finish()
    assert "lost" in running.log.read_text()
    rounds_of = {peer: totals["rounds"] for peer, totals in report["ledger"]["peers"].items()}
    assert sorted(rounds_of.values())[1:] == [4, 4], "the others play all their rounds"
    assert min(rounds_of.values()) < 4
    assert_ledger_agrees(report)
    assert not running.left()


@pytest.mark.parametrize("moment", ["loading", "playing"])
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

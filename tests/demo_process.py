"""A `swarm demo` in a process of its own, and all that came from it."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

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


def quick_manifest(folder: Path) -> str:
    """The demo's manifest with fewer groups, so that a round of few seconds is enough."""
    text = DEMO_MANIFEST.read_text()
    for old, new in (("round_seconds: 20", "round_seconds: 12"), ("max_groups: 32", "max_groups: 6")):
        assert old in text
        text = text.replace(old, new)
    path = folder / "quick.yaml"
    path.write_text(text)
    return str(path)

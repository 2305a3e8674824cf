import subprocess
import sys

import psutil

from swarm.guard import Guard

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
# Starts a sleeper under a guard, says its id, and waits to be killed.
PARENT = """
import subprocess, sys
from swarm.guard import Guard
with Guard() as guard:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    guard.watch(sleeper.pid)
    print(sleeper.pid, flush=True)
    sys.stdin.read()
"""


def test_watched_processes_end_when_their_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    sleeper = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    sleeper.wait(timeout=30)
    assert not sleeper.is_running()


def test_guard_that_is_dismissed_kills_nothing():
    sleeper = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        with Guard() as guard:
            guard.watch(sleeper.pid)
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()

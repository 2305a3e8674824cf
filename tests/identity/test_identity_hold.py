import subprocess
import sys

import pytest

from identity import PeerRunning, hold_peer, peer_id_text, peer_name

PEER, OTHER_PEER = bytes(32), bytes([1]) * 32
HOLDER = """
import sys
from pathlib import Path
from identity import hold_peer
hold = hold_peer(Path(sys.argv[1]), bytes(32))
print("held", flush=True)
sys.stdin.read()
"""


def test_peer_is_held_by_one_process_and_is_free_once_that_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(PeerRunning) as caught:
        hold_peer(tmp_path, PEER)
    message = str(caught.value)
    for part in (peer_id_text(PEER), peer_name(PEER), f"pid {holder.pid}", "stop it first"):
        assert part in message
    hold_peer(tmp_path, OTHER_PEER).release()
    holder.kill()
    holder.communicate()
    with hold_peer(tmp_path, PEER), pytest.raises(PeerRunning):
        hold_peer(tmp_path, PEER)
    hold_peer(tmp_path, PEER).release()


def test_hold_can_be_released_twice(tmp_path):
    hold = hold_peer(tmp_path, PEER)
    hold.release()
    again = hold_peer(tmp_path, PEER)
    hold.release()
    with pytest.raises(PeerRunning):
        hold_peer(tmp_path, PEER)
    again.release()

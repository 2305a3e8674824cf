"""Starting, stopping, joining late, and what is left of libp2p's process afterwards."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from exchange_cast import p2pd_of, p2pds, signer_of

from identity import Identity
from swarm.errors import ExchangeError, UsageError
from swarm.exchange.reach import Reach
from swarm.exchange.service import Exchange


def test_stop_is_repeatable_and_leaves_neither_process_nor_zombie_nor_socket(make_exchange, socket_folder):
    exchange = make_exchange(0)
    p2pd = p2pd_of(exchange)
    assert p2pds() == {p2pd} and len(list(socket_folder.iterdir())) == 1
    exchange.stop()
    exchange.stop()
    assert not p2pds()
    assert not p2pd.is_running()  # as it would be, as a zombie, if nobody had waited for it
    assert not list(socket_folder.iterdir())
    with pytest.raises(ExchangeError, match="not running"):
        exchange.peer_count()


def test_stop_while_others_wait_fails_their_calls(make_exchange, identities):
    exchange = make_exchange(0)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(exchange.collect, 0, 0, 0, timeout=20, max_peers=1)
        fetching = pool.submit(exchange.fetch, identities[1].peer, bytes(32), 1, 20)
        exchange.stop()
        for call in (waiting, fetching):
            assert call.exception(5) is None or isinstance(call.exception(), ExchangeError)


def test_stop_ends_a_frozen_p2pd(make_exchange):
    exchange = make_exchange(0)
    p2pd = p2pd_of(exchange)
    p2pd.suspend()
    exchange.stop()
    assert not p2pd.is_running() and not p2pds()


def test_multiaddress_names_the_identity(make_exchange, identities):
    (address,) = make_exchange(0).multiaddrs
    assert address.startswith("/ip4/127.0.0.1/tcp/") and address.endswith(f"/p2p/{identities[0].peer_id}")


def test_taken_port_is_one_line_that_names_it(make_exchange):
    listen = make_exchange(0).multiaddrs[0].partition("/p2p/")[0]
    with pytest.raises(ExchangeError, match="is taken by another process") as caught:
        make_exchange(1, reach=Reach(listen=(listen,)))
    assert listen in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="expected a multiaddress"):
        make_exchange(1, reach=Reach(listen=("localhost:4000",)))


def test_unreachable_and_malformed_initial_peers_are_a_warning(identities, swarm, tmp_path, caplog):
    bad = [f"/ip4/127.0.0.1/tcp/1/p2p/{identities[4].peer_id}", "/ip4/127.0.0.1/tcp/1", "rubbish"]
    exchange = Exchange(
        identities[0],
        signer_of(identities[0], tmp_path / "journal.sqlite"),
        swarm.rules(),
        tmp_path,
        initial_peers=bad,
    )
    with caplog.at_level(logging.WARNING), exchange:
        assert exchange.peer_count() == 0
    assert [record.message.split()[0] for record in caplog.records] == ["peers_unreachable"]


def test_peer_started_alone_joins_later(make_exchange, swarm, identities):
    first, second = make_exchange(0), make_exchange(1)
    first.announce(swarm.announcement())
    assert second.heard(swarm.round, 0, 0) == []
    second.connect(first.multiaddrs)
    assert [heard.peer for heard in second.heard(swarm.round, 0, 0)] == [identities[0].peer]


KILLED = """
import sys, time
from pathlib import Path
from identity import Identity
from swarm.exchange.service import Exchange
from swarm.exchange.validator import SwarmRules
identity = Identity.load(Path(sys.argv[1]))
signer = lambda *slot: identity.sign(slot[-1])
rules = SwarmRules(bytes(32), 0, 3600, time.time, lambda peer: None)
exchange = Exchange(identity, signer, rules, Path(sys.argv[2]))
exchange.start()
print("started", flush=True)
sys.stdin.read()
"""


def test_next_start_removes_what_a_killed_peer_left_and_nothing_of_the_living(
    make_exchange, identities: list[Identity], tmp_path, socket_folder
):
    def start(n: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, str(identities[n].path), str(tmp_path / f"other-{n}")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def folders(peer: subprocess.Popen[str]) -> list[Path]:
        return list(socket_folder.glob(f"swarm-p2pd-{peer.pid}-*"))

    with start(1) as killed, start(2) as living:
        for peer in (killed, living):
            assert peer.stdout is not None and peer.stdout.readline() == "started\n"
            assert len(folders(peer)) == 1
        (p2pd,) = [c for c in psutil.Process(killed.pid).children(recursive=True) if c.name() == "p2pd"]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        p2pd.wait(60)
        assert len(folders(killed)) == 1
        make_exchange(0)
        assert not folders(killed)
        (kept,) = folders(living)
        assert len(list(kept.iterdir())) == 2
        living.stdin.close()

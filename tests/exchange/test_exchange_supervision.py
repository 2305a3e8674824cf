"""libp2p's process dies or freezes: it comes back as who and where it was, and what was asked is not lost."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from exchange_cast import key_of, p2pd_of, p2pds, signed, until

from swarm.errors import ExchangeError
from swarm.exchange import host, peer
from swarm.exchange.addresses import ADDRESSES_FILE, AddressBook
from swarm.exchange.reach import Reach
from swarm.exchange.service import Exchange


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers greet each other sooner than in life."""
    monkeypatch.setattr(peer, "MEET_SECONDS", 0.2)


@pytest.fixture(params=["killed", "frozen"])
def end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[psutil.Process], None]:
    """A way in which a p2pd ends."""
    if request.param == "killed":
        return psutil.Process.kill
    monkeypatch.setattr(host, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(host, "SILENCE_SECONDS", 1.0)
    return psutil.Process.suspend


@pytest.fixture
def acquainted(tmp_path: Path) -> Callable[[int, int], None]:
    """Waits until the n-th peer has so many others in its address book, on the disk."""

    def wait(n: int, count: int) -> None:
        until(lambda: len(AddressBook(tmp_path / f"peer-{n}" / ADDRESSES_FILE)) >= count)

    return wait


@contextmanager
def taken(multiaddr: str) -> Iterator[None]:
    """Hold a TCP port; libp2p, which has it now, cannot have it again."""
    port = int(multiaddr.split("/")[4])
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as p2pd itself, else it is refused
        holder.bind(("127.0.0.1", port))
        yield


@contextmanager
def kept_away(exchange: Exchange) -> Iterator[None]:
    """Kill an exchange's p2pd, on a port of its user's choice, and take that port until the end."""
    with taken(exchange.multiaddrs[0]):
        p2pd_of(exchange).kill()
        until(lambda: exchange._peer._host is None)
        yield


def back(exchange: Exchange, restarts: int = 1) -> None:
    """Wait until libp2p was started so often again."""
    until(lambda: exchange.health.restarts >= restarts)


def told_port() -> Reach:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Reach(listen=(f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}",))


def senders(exchange: Exchange, number: int, stage: int = 0) -> set[bytes]:
    return {heard.peer for heard in exchange.heard(number, stage, 0)}


def test_p2pd_comes_back_as_the_same_peer_on_the_same_port_with_its_records(
    make_exchange, make_rogue, swarm, identities, socket_folder, end
):
    exchange = make_exchange(0)
    rogue = make_rogue(1, exchange)
    announcement = swarm.announcement()
    envelope = signed(rogue.identity, announcement)
    assert rogue.store(key_of(announcement), envelope, announcement.expiration, rogue.identity.peer)
    exchange.announce(announcement)
    addresses, before = exchange.multiaddrs, p2pd_of(exchange)
    assert exchange.health.restarts == 0
    end(before)
    back(exchange)
    assert exchange.multiaddrs == addresses
    assert senders(exchange, swarm.round) == {identities[0].peer, rogue.identity.peer}
    newcomer = make_exchange(2, exchange)
    assert senders(newcomer, swarm.round) == {identities[0].peer, rogue.identity.peer}
    # Nothing is left of the one before, not even a zombie.
    assert not before.is_running() and p2pd_of(exchange) != before
    assert all(p2pd.status() != psutil.STATUS_ZOMBIE for p2pd in p2pds())
    assert exchange.health.restarts == 1
    for one in (exchange, newcomer):
        one.stop()
    assert not list(socket_folder.glob("swarm-p2pd-*"))


def test_peer_that_was_only_ever_dialled_rejoins_its_neighbours(
    make_exchange, acquainted, swarm, identities, end
):
    dialled = make_exchange(0)  # knows no address of anybody but from their hello
    neighbours = [make_exchange(n, dialled) for n in (1, 2)]
    acquainted(0, 2)
    for exchange in (dialled, *neighbours):
        exchange.announce(swarm.announcement())
    end(p2pd_of(dialled))
    back(dialled)
    until(lambda: dialled.health.peers == 2)
    everybody = {identity.peer for identity in identities[:3]}
    for exchange in (dialled, *neighbours):
        until(lambda exchange=exchange: senders(exchange, swarm.round) == everybody)
    dialled.announce(swarm.announcement(stage=1))
    for exchange in neighbours:
        until(lambda exchange=exchange: senders(exchange, swarm.round, 1) == {identities[0].peer})


def test_p2pd_that_is_killed_again_while_it_comes_back_comes_back(make_exchange, acquainted):
    exchange = make_exchange(0)
    neighbour = make_exchange(1, exchange)
    acquainted(0, 1)
    addresses, others = exchange.multiaddrs, {p2pd_of(neighbour)}
    for _ in range(3):
        until(lambda: p2pds() - others)
        for p2pd in p2pds() - others:
            p2pd.kill()
            p2pd.wait(60)
    back(exchange)
    until(lambda: exchange.health.peers == 1)
    assert exchange.multiaddrs == addresses


def test_p2pd_that_freezes_while_it_starts_is_given_up_and_started_again(make_exchange, monkeypatch):
    exchange = make_exchange(0)
    before, addresses = p2pd_of(exchange), exchange.multiaddrs
    monkeypatch.setattr(host, "START_SECONDS", 2.0)
    before.kill()
    until(lambda: p2pds() - {before})
    (starting,) = p2pds() - {before}
    starting.suspend()
    back(exchange)
    until(lambda: not starting.is_running())
    until(lambda: exchange._peer._host is not None)
    assert exchange.multiaddrs == addresses


def test_calls_while_libp2p_is_away_are_answered_kept_or_refused_in_one_line(
    make_exchange, make_rogue, swarm, identities
):
    exchange = make_exchange(0, reach=told_port())
    neighbour = make_exchange(1, exchange)
    rogue = make_rogue(2, exchange)
    held = swarm.announcement()
    assert rogue.store(key_of(held), signed(rogue.identity, held), held.expiration, rogue.identity.peer)
    blob = exchange.put_blob(b"own blob")
    with kept_away(exchange):
        exchange.announce(swarm.announcement())
        assert senders(exchange, swarm.round) == {identities[0].peer, rogue.identity.peer}
        assert exchange.fetch(identities[0].peer, blob, len(b"own blob"), 5) == b"own blob"
        for call in (
            lambda: exchange.fetch(identities[1].peer, bytes(32), 1, 5),
            lambda: exchange.multiaddrs,
            exchange.peer_count,
            lambda: exchange.connect(neighbour.multiaddrs),
        ):
            with pytest.raises(ExchangeError, match="libp2p does not answer") as caught:
                call()
            assert "\n" not in str(caught.value)
        assert exchange.collect(swarm.round, 1, 0, timeout=5, max_peers=1) == []
        assert exchange.health.peers == 0 and exchange.health.restarts == 0
        assert identities[0].peer not in senders(neighbour, swarm.round)
    back(exchange)
    until(lambda: identities[0].peer in senders(neighbour, swarm.round))
    assert exchange.fetch(identities[0].peer, blob, len(b"own blob"), 5) == b"own blob"


@pytest.mark.parametrize("seen", [False, True], ids=["at once", "when it is seen"])
def test_stop_while_libp2p_comes_back_leaves_no_process(make_exchange, socket_folder, seen):
    exchange = make_exchange(0)
    before = p2pd_of(exchange)
    before.kill()
    if seen:
        until(lambda: p2pds() - {before})
    exchange.stop()
    assert not p2pds()
    assert not list(socket_folder.glob("swarm-p2pd-*"))


def test_stop_while_libp2p_cannot_come_back_ends(make_exchange):
    exchange = make_exchange(0, reach=told_port())
    with kept_away(exchange):
        exchange.stop()
        assert not p2pds()


def test_missing_key_file_is_waited_for_and_not_made_anew(make_exchange, identities):
    exchange = make_exchange(0)
    key, addresses = identities[0].path, exchange.multiaddrs
    away = key.rename(key.with_suffix(".away"))
    try:
        p2pd_of(exchange).kill()
        until(lambda: exchange._peer._host is None)
        with pytest.raises(ExchangeError, match="libp2p does not answer"):
            exchange.peer_count()
        assert not key.exists()
    finally:
        away.rename(key)
    back(exchange)
    assert exchange.multiaddrs == addresses


def test_port_that_somebody_else_took_meanwhile_is_exchanged_for_another(make_exchange, acquainted):
    exchange = make_exchange(0)
    neighbour = make_exchange(1, exchange)
    acquainted(0, 1)
    (before,) = exchange.multiaddrs
    with taken(before):
        p2pd_of(exchange).kill()
        back(exchange)
        (after,) = exchange.multiaddrs
        assert after != before and after.split("/p2p/")[1] == before.split("/p2p/")[1]
        until(lambda: exchange.health.peers == 1)
        exchange.stop()
        assert make_exchange(0).multiaddrs == [after]  # the one of last time, from now on
    assert neighbour.peer_count() == 1


@pytest.mark.parametrize("n", [0, 1], ids=["was dialled", "dialled"])
def test_peer_without_bootnodes_finds_the_swarm_again_on_its_old_port(
    make_exchange, acquainted, swarm, identities, n
):
    first = make_exchange(0)
    exchanges = [first, make_exchange(1, first)]
    acquainted(n, 1)
    (address,) = exchanges[n].multiaddrs
    exchanges[1 - n].announce(swarm.announcement())
    exchanges[n].stop()
    again = make_exchange(n)  # of which nobody tells it an address
    assert again.multiaddrs == [address]
    assert again.peer_count() == 1
    assert senders(again, swarm.round) == {identities[1 - n].peer}

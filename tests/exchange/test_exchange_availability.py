"""What real nodes can have of a peer afterwards: its files, and what it said, also when it is gone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from exchange_cast import one_group, p2pd_of, until

from identity import Identity, IdentityError
from swarm.errors import ExchangeError
from swarm.exchange import wire
from swarm.exchange.service import Exchange

MEGABYTE = 2**20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.write_bytes(os.urandom(MEGABYTE))
    return path


def shares(exchange: Exchange, file: Path) -> bytes:
    digest = hashlib.sha256(file.read_bytes()).digest()
    exchange.share({digest: file})
    return digest


def says_nothing(_round: int, _stage: int, _message: bytes) -> bytes:
    """A client's signer."""
    raise IdentityError("a client announces nothing")


def test_client_with_a_new_key_and_one_address_fetches_from_a_peer_elsewhere(
    make_exchange, identities, swarm, file, tmp_path
):
    """It is registered nowhere, and its own DHT node would not talk to the peer that it fetches from."""
    known = {identity.peer for identity in identities[:2]}
    door, wanted = (
        make_exchange(n, *joined, registered=lambda peer: peer in known) for n, joined in ((0, ()), (1, ()))
    )
    wanted.connect(door.multiaddrs)
    digest = shares(wanted, file)
    blob = wanted.put_blob(b"content")
    client = Exchange(
        Identity.create(tmp_path / "client.pem"),
        says_nothing,
        swarm.rules(lambda peer: peer == identities[0].peer),
        tmp_path / "client",
        initial_peers=door.multiaddrs,
    )
    peer = identities[1].peer
    with client:
        assert client.fetch(peer, blob, 7, 20) == b"content"
        client.fetch_to(peer, digest, MEGABYTE, tmp_path / "it", 20)
        assert peer not in client._peer._host.peers
    assert (tmp_path / "it").read_bytes() == file.read_bytes()


def test_peer_that_is_assigned_is_served_when_others_are_not(make_exchange, identities, file, tmp_path):
    subject = make_exchange(0, others_bytes_per_day=0)
    auditor = make_exchange(1, subject)
    digest, peer = shares(subject, file), identities[0].peer
    with pytest.raises(ExchangeError, match=r"^peer serves no more of its files today$"):
        auditor.fetch_to(peer, digest, MEGABYTE, tmp_path / "it", 20)
    subject.set_auditors([identities[1].peer])
    auditor.fetch_to(peer, digest, MEGABYTE, tmp_path / "it", 20)
    assert (tmp_path / "it").read_bytes() == file.read_bytes()
    subject.set_auditors([])
    with pytest.raises(ExchangeError, match=r"^peer serves no more of its files today$"):
        auditor.fetch_to(peer, digest, MEGABYTE, tmp_path / "again", 20)


def test_file_is_served_on_after_libp2p_was_started_again(make_exchange, identities, file, tmp_path):
    subject, auditor = make_exchange(0), make_exchange(1)
    auditor.connect(subject.multiaddrs)
    digest = shares(subject, file)
    subject.set_auditors([identities[1].peer])
    p2pd_of(subject).kill()
    until(lambda: subject.health.restarts == 1)
    auditor.fetch_to(identities[0].peer, digest, MEGABYTE, tmp_path / "it", 20)
    assert (tmp_path / "it").read_bytes() == file.read_bytes()


def test_what_was_collected_can_be_had_of_the_collector_when_its_maker_is_gone(
    make_exchange, identities, swarm
):
    maker, collector, auditor = (make_exchange(n) for n in range(3))
    for other in (maker, auditor):
        other.connect(collector.multiaddrs)
    blob = one_group()
    announcement = swarm.announcement(maker.put_blob(blob), len(blob))
    maker.announce(announcement)
    (collected,) = collector.collect(swarm.round, 0, 0, timeout=20, max_peers=1)
    maker.stop()
    heard = wire.open_envelope(collected.heard.envelope)  # so whoever holds the bytes can check
    assert heard == collected.heard and heard.announcement == announcement
    with pytest.raises(ExchangeError, match=r"^peer cannot be reached: "):
        auditor.fetch(identities[0].peer, announcement.blob, len(blob), 20)
    assert auditor.fetch(identities[1].peer, announcement.blob, len(blob), 20) == blob


def test_own_envelope_in_what_is_heard_is_the_one_that_was_announced(make_exchange, identities, swarm):
    exchange = make_exchange(0)
    exchange.announce(swarm.announcement())
    (heard,) = exchange.heard(swarm.round, 0, 0)
    assert wire.open_envelope(heard.envelope) == heard
    assert heard.peer == identities[0].peer

"""Real hivemind nodes on loopback: honest ones (`Exchange`), and one that keeps to no rule (`Rogue`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from blob_cast import Hosts
from exchange_cast import Rogue, Swarm, nobody_knows, signer_of

from identity import Identity
from swarm.exchange import streams
from swarm.exchange.service import Exchange
from swarm.exchange.validator import Registered
from swarm.exchange.wire import Signer

KEYS = 5


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> list[Identity]:
    folder = tmp_path_factory.mktemp("keys")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda n: Identity.create(folder / f"{n}.pem"), range(KEYS)))


@pytest.fixture
def swarm() -> Swarm:
    return Swarm()


@pytest.fixture
def make_exchange(
    identities: list[Identity], swarm: Swarm, tmp_path: Path
) -> Iterator[Callable[..., Exchange]]:
    """Starts an exchange as the n-th identity, joining through the given ones; stops all at the end."""
    signers: dict[int, Signer] = {}
    with ExitStack() as stack:

        def make(
            n: int, *bootstrap: Exchange, registered: Registered = nobody_knows, **settings: Any
        ) -> Exchange:
            if n not in signers:
                signers[n] = signer_of(identities[n], tmp_path / f"journal-{n}.sqlite")
            exchange = Exchange(
                identities[n],
                signers[n],
                swarm.rules(registered),
                tmp_path / f"peer-{n}",
                initial_peers=[address for peer in bootstrap for address in peer.multiaddrs],
                **settings,
            )
            return stack.enter_context(exchange)

        yield make


@pytest.fixture
def socket_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the temporary files of this test are; its path is short, as those of Unix sockets have to be."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def make_rogue(identities: list[Identity], tmp_path: Path) -> Iterator[Callable[..., Rogue]]:
    """Starts a rogue as the n-th identity, connected to an exchange."""
    with ExitStack() as stack:

        def make(n: int, victim: Exchange) -> Rogue:
            rogue = Rogue(identities[n])
            stack.callback(rogue.stop)
            rogue.run(rogue.start(victim.multiaddrs[0]))
            return rogue

        yield make


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    yield hosts
    hosts.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STALL_SECONDS", 0.5)

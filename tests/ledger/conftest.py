"""A real anvil whose blocks and time the tests make themselves, so that no test waits for a clock."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from ledger_cast import ROUND_SECONDS, Chain

from identity import Identity
from swarm.ledger.client import LedgerClient
from swarm.ledger.creation import deploy
from swarm.ledger.devnet import Devnet
from swarm.manifest import Manifest, load


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    with Devnet(block_seconds=None) as devnet:
        yield Chain(devnet)


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> list[Identity]:
    folder = tmp_path_factory.mktemp("keys")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda n: Identity.create(folder / f"{n}.pem"), range(3)))


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    demo = load(Path(__file__).parents[2] / "configs" / "demo.yaml")
    return msgspec.structs.replace(demo, round_seconds=ROUND_SECONDS)


@pytest.fixture
def ledger(chain: Chain, manifest: Manifest, machine_dir: Path) -> LedgerClient:
    """A new swarm whose round 0 begins now."""
    return deploy(chain.devnet.rpc_url, chain.funded_account(), manifest, chain.time, machine_dir)

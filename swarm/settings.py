"""What is local to one machine; nothing here affects what others must agree on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_LISTEN = "/ip4/127.0.0.1/tcp/0"


def swarm_home() -> Path:
    """`SWARM_HOME`, by default `~/.swarm`."""
    return Path(os.environ.get("SWARM_HOME") or Path.home() / ".swarm")


def machine_dir() -> Path:
    """What all peers of one user on one machine share, wherever their homes are: locks, accounts' queues.

    `SWARM_MACHINE_DIR`, by default `~/.swarm/machine`, whatever `SWARM_HOME` says.
    """
    return Path(os.environ.get("SWARM_MACHINE_DIR") or Path.home() / ".swarm" / "machine")


@dataclass(frozen=True)
class Settings:
    """A peer's place on disk and in the network."""

    home: Path
    listen: tuple[str, ...] = (DEFAULT_LISTEN,)  # libp2p multiaddrs
    initial_peers: tuple[str, ...] = ()
    threads: int | None = None  # of torch; None leaves torch's own choice
    relay_url: str | None = None  # who pays for our transactions; None: our own account
    invite: str | None = None  # the relay's, if it asks for one
    manifest_path: Path | None = None  # the swarm's manifest, where the ledger's server has no old logs

    @property
    def identity_path(self) -> Path:
        """The peer's RSA key."""
        return self.home / "swarm.pem"

    @property
    def wallet_path(self) -> Path:
        """The keystore of the account that pays."""
        return self.home / "wallet.json"

    @property
    def swarms_dir(self) -> Path:
        """Where the folders of the swarms are in which this peer took part."""
        return self.home / "swarms"

    def swarm_dir(self, swarm_id: bytes, address: str, genesis: int) -> Path:
        """The folder of one swarm's records, checkpoints and blobs.

        The same manifest may be put on a ledger again, even at the same address of a fresh chain; that is
        another swarm, with rounds of its own.
        """
        return self.swarms_dir / f"{swarm_id.hex()[:12]}-{address[2:10].lower()}-{genesis}"

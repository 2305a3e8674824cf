"""What is local to one machine; nothing here affects what others must agree on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def swarm_home() -> Path:
    """`SWARM_HOME`, by default `~/.swarm`."""
    return Path(os.environ.get("SWARM_HOME") or Path.home() / ".swarm")


@dataclass(frozen=True)
class Settings:
    """A peer's place on disk and in the network."""

    home: Path
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)  # libp2p multiaddrs
    initial_peers: tuple[str, ...] = ()
    threads: int | None = None  # of torch; None leaves torch's own choice

    @property
    def identity_path(self) -> Path:
        """The peer's RSA key."""
        return self.home / "swarm.pem"

    @property
    def wallet_path(self) -> Path:
        """The keystore of the account that pays."""
        return self.home / "wallet.json"

    def swarm_dir(self, swarm_id: bytes) -> Path:
        """The folder of one swarm's records, checkpoints, blobs and logs."""
        return self.home / "swarms" / swarm_id.hex()[:16]

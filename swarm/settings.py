"""What is local to one machine; nothing here affects what others must agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from swarm.errors import SwarmError

HOME_LOCK, HOME_LOCK_SECONDS = "lock", 0.5


def swarm_home() -> Path:
    """`SWARM_HOME`, by default `~/.swarm`."""
    return Path(os.environ.get("SWARM_HOME") or Path.home() / ".swarm")


def machine_dir() -> Path:
    """What all peers of one user on one machine share, wherever their homes are: locks, accounts' queues.

    `SWARM_MACHINE_DIR`, by default `~/.swarm/machine`, whatever `SWARM_HOME` says.
    """
    return Path(os.environ.get("SWARM_MACHINE_DIR") or Path.home() / ".swarm" / "machine")


@contextmanager
def hold_home(home: Path) -> Iterator[None]:
    """Make the folder if need be and keep other nodes out of it; `SwarmError` if it cannot be had."""
    # Not refused at once: `swarm status` holds it for a moment, to see if anybody does.
    lock = FileLock(home / HOME_LOCK, timeout=HOME_LOCK_SECONDS)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except Timeout:
        raise SwarmError(f"another node is running on {home}: stop it, or use another --home") from None
    except OSError as error:
        raise SwarmError(f"cannot make {home}: {error.strerror}; choose another --home") from error
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Settings:
    """A peer's place on disk and in the network."""

    home: Path
    listen: tuple[str, ...] | None = None  # libp2p multiaddrs; None: see `swarm.exchange.reach.reach_of`
    public_addresses: tuple[str, ...] = ()  # multiaddrs told to others, in place of those that libp2p finds
    trusted_relays: tuple[str, ...] = ()  # multiaddrs of peers through which one behind a NAT is reached
    nat: Literal["auto", "off"] = "auto"  # port mapping, relays and hole punching
    initial_peers: tuple[str, ...] = ()
    model: str | None = None  # one of the manifest's; None: the largest that fits
    device: str = "auto"  # CUDA, else Apple's MPS, else the CPU; or one of torch's names
    lora: bool | None = None  # train an adapter, or all weights; None: by the model's size
    four_bit: bool | None = None  # the frozen base in 4 bits
    memory_share: float = 1.0  # of what is free, for one of several peers on a machine
    trusted_code: tuple[str, ...] = ()  # models whose own code may run: OWNER/NAME@COMMIT
    processes: int = 1  # that train together, on a GPU each
    threads: int | None = None  # of torch; None: as many as the process has cores
    audit_share: float = 0.5  # of the time, for auditing others; 0: no audits
    audit_mib_per_day: int = 4096  # of what auditing others may fetch
    max_blob_mib: int = 1024  # of disk, for what is exchanged with others
    trackers: tuple[str, ...] = ("tensorboard",)  # of `swarm.learner.trackers.TRACKERS`
    push_repo: str | None = None  # on the Hugging Face hub, OWNER/NAME; None: the model stays here
    push_rounds: int = 100  # between uploads
    push_private: bool = True
    relay_url: str | None = None  # who pays for our transactions; None: our own account
    invite: str | None = None  # the relay's, if it asks for one
    metrics: tuple[str, int] | None = ("127.0.0.1", 9464)  # where Prometheus reads them; None: nowhere
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

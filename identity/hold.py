"""One process per peer and machine: a lock that the kernel drops when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from identity.errors import IdentityError, PeerRunning
from identity.key import peer_id_text
from identity.names import peer_name


class PeerHold:
    """A held peer; `release` (or leaving the `with`) lets the next process have it."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let go; again is fine. The file stays: removing it would let two processes lock two files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold_peer(machine_dir: Path, peer: bytes) -> PeerHold:
    """Hold `peer` for this process, at once or not at all.

    `machine_dir` is the same for all of the machine's homes. `PeerRunning` if another process, or another
    caller in this one, holds the peer; `IdentityError` if the lock's file cannot be opened.
    """
    path = machine_dir / "peers" / f"{peer_id_text(peer)}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise IdentityError(f"cannot open {path}: {error.strerror}; is it another user's?") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0)
        os.close(descriptor)
        process = f" (pid {holder.decode()})" if holder.isdigit() else ""
        raise PeerRunning(
            f"another node of peer {peer_id_text(peer)} ({peer_name(peer)}) is running on this machine"
            f"{process}: stop it first, or use another swarm.pem"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise IdentityError(f"cannot lock {path}: {error.strerror}; use a local disk") from error
    return PeerHold(descriptor, path)

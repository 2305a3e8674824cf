"""Files that only their owner may read, written whole or not at all and never over another."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from identity.errors import IdentityError


def write_private_file(path: Path, data: bytes, *, advice: str = "choose another --home") -> None:
    """Write a new file (mode 0600), durably, whole or not at all; `IdentityError` if the name is taken.

    `advice` ends the error of a file that cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(partial, path)  # unlike rename, link fails if the name is taken
            except FileExistsError:
                raise IdentityError(f"{path} exists and is never overwritten: move it away first") from None
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise IdentityError(f"cannot write {path}: {error.strerror}; {advice}") from error


def read_private_file(path: Path, max_bytes: int = 1 << 25) -> bytes:
    """Read a file that only its owner may read; `IdentityError` if missing, too big or open to others."""
    return read_file(path, max_bytes, check_private)


def read_file(
    path: Path, max_bytes: int, check: Callable[[Path, os.stat_result], None] = lambda *_: None
) -> bytes:
    """Read a file that passes `check`; `IdentityError` if it is missing or has more than `max_bytes`."""
    try:
        # Nonblocking, so that a pipe laid in the file's place is refused rather than waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            check(path, os.fstat(file.fileno()))
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise IdentityError(f"{path} is larger than {max_bytes:,} bytes: it is not the file it should be")
    return data


def check_private(path: Path, status: os.stat_result) -> None:
    """`IdentityError` unless `status`, of `path`, is that of a plain file which only its owner can read."""
    if not stat.S_ISREG(status.st_mode):
        raise IdentityError(f"{path} is not a plain file: move it away")
    if status.st_mode & 0o077:
        raise IdentityError(
            f"{path} can be read by others (mode {status.st_mode & 0o777:o}): run chmod 600 {path}"
        )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut; `OSError` if that fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that a peer serves from where they are, and how many of their bytes others than auditors may have."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

DAY_SECONDS = 24 * 3600.0


class _Shared(NamedTuple):
    path: Path
    status: tuple[int, int, int]  # what tells the file from a later one in its place


class SharedFiles:
    """Large blobs beside the store and its quota: files that somebody else keeps. For any thread."""

    def __init__(self) -> None:
        self._files: dict[bytes, _Shared] = {}

    def replace(self, files: Mapping[bytes, Path]) -> None:
        """Serve these and no others, by SHA-256. They are not read here; one that is missing is left out."""
        shared = {}
        for digest, path in files.items():
            try:
                shared[digest] = _Shared(path, _status(path.stat()))
            except OSError:
                continue
        self._files = shared

    def __contains__(self, digest: bytes) -> bool:
        """Whether such a file was given; it may be gone."""
        return digest in self._files

    def open(self, digest: bytes) -> BinaryIO | None:
        """The file, from its beginning; None if it is not shared, or not any more as it was then."""
        shared = self._files.get(digest)
        if shared is None:
            return None
        try:
            file = shared.path.open("rb", buffering=0)
        except OSError:
            return None
        if _status(os.fstat(file.fileno())) != shared.status:
            file.close()
            return None
        return file


def _status(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


class Quota:
    """So many bytes a day; days begin with the first byte. Lives in the exchange's asyncio thread."""

    def __init__(self, bytes_per_day: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_day = bytes_per_day
        self._clock = clock
        self._day_ends = 0.0
        self._spent = 0

    def has_left(self, share: float) -> bool:
        """Whether less than this share of the day's bytes is spent."""
        if self._clock() >= self._day_ends:
            self._spent = 0
        return self._spent < share * self._bytes_per_day

    def spend(self, count: int) -> None:
        """Count bytes that were sent."""
        if not self._spent:
            self._day_ends = self._clock() + DAY_SECONDS
        self._spent += count

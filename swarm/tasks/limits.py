"""How much of a task's data is read, and how it is said that there is more."""

from __future__ import annotations

from swarm.errors import UsageError

MAX_BYTES = 512 * 2**20  # of all files together, and of what they unpack to; MATH and GSM8K have below 10 MB
MAX_ROWS = 1_000_000
MAX_VALUE_BYTES = 2**18  # of one text in a parquet file


class Budget:
    """How much may still be unpacked from all files together."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = self._left = size_bytes

    def spend(self, name: str, size: int) -> None:
        """`UsageError` if there is not so much left."""
        self._left -= size
        check_bytes(name, self._size_bytes - self._left, self._size_bytes)


def check_bytes(name: str, size: int, limit: int) -> None:
    """`UsageError` if it is over the limit."""
    if size > limit:
        raise UsageError(
            f"{name} has over {limit / 2**20:,.0f} MiB, which is the most that is read; split it"
        )


def check_text(name: str, size: int) -> None:
    """`UsageError` if a text is too long."""
    if size > MAX_VALUE_BYTES:
        limit = MAX_VALUE_BYTES // 2**10
        raise UsageError(f"{name} has a text of over {limit} KiB, which is the most that is read")


def brief(error: BaseException) -> str:
    """A library's error, to follow ours."""
    return " ".join(str(error).split())[:300] or type(error).__name__

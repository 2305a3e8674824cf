"""How much memory a zygote may take while it prepares: what it reads then was made by strangers.

A parquet file of 1 kB unpacks to gigabytes. The node shall go on then, and say why there are no tasks.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from swarm.sandbox.confine import memory_in_use

with contextlib.suppress(ImportError):  # on Windows, where nothing is started that would need it
    import resource

# Data may have 512 MiB and unpack to as much (`swarm.tasks.rows`); as objects of Python that is several times
# more, and torch with its threads takes about 1 GiB.
PREPARE_BYTES = 8 << 30


def prepare_bytes() -> int:
    """`PREPARE_BYTES`, or half of what the machine has if that is less: the node's model needs some, too."""
    return min(PREPARE_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


@contextlib.contextmanager
def limited_memory(most_bytes: int) -> Iterator[None]:
    """`MemoryError` for more of it. Linux; elsewhere there is no such limit.

    Only the soft limit changes, so that it can be undone. This is against data that is too large; code that
    a stranger runs here could raise it, and is run in workers alone.
    """
    if sys.platform != "linux":
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    _set(most_bytes if before == resource.RLIM_INFINITY else min(before, most_bytes), hard)
    try:
        yield
    finally:
        _set(before, hard)


@contextlib.contextmanager
def unlimited_memory() -> Iterator[None]:
    """For what a `prepare` loads that is no stranger's, such as a model whose digest is known.

    What is taken in here does not count afterwards.
    """
    if sys.platform != "linux":
        yield
        return
    limit, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = memory_in_use()[1]
    _set(hard, hard)
    try:
        yield
    finally:
        taken = max(0, memory_in_use()[1] - before)
        after = limit if limit == resource.RLIM_INFINITY else limit + taken
        _set(after if hard == resource.RLIM_INFINITY else min(after, hard), hard)


def _set(soft: int, hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

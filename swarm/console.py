"""What commands say on stderr, so that stdout stays for their results."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def complain(error: Exception) -> None:
    """One line; what a ledger or peer put into it cannot steer the terminal."""
    print(f"swarm: {plain(str(error))}", file=sys.stderr)


def plain(text: str, keep: str = "") -> str:
    """Text of others for a terminal: what is not printable, but for `keep`, becomes a space."""
    return "".join(c if c.isprintable() or c in keep else " " for c in text)


def say(what: str) -> None:
    """Progress, a warning, or what to do next."""
    print(what, file=sys.stderr)


def show(table: Table) -> None:
    """A table, in colours on a terminal."""
    from rich.console import Console

    Console(stderr=True).print(table)


def log_to_stderr() -> None:
    """For commands that run for days."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )

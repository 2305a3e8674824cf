"""An `Exchange` that only asks: its key is new, and nothing is ever announced with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from identity import Identity, IdentityError
from swarm.exchange.reach import LOOPBACK_LISTEN, Reach
from swarm.exchange.service import Exchange
from swarm.exchange.validator import SwarmRules

KEY_FILE = "swarm.pem"


def make_listener(
    folder: Path,
    rules: SwarmRules,
    *,
    initial_peers: Sequence[str] = (),
    bootnodes: Callable[[], Sequence[str]] = tuple,
    reach: Reach = Reach(listen=(LOOPBACK_LISTEN,)),  # noqa: B008 - frozen
    max_blob_bytes: int = 2**30,
) -> Exchange:
    """An exchange, not started, of a peer that nobody knows, for one use; as a stranger it is served last.

    `folder` is an empty one, to be deleted afterwards; the rest is as in `Exchange`. `ExchangeError` if
    nothing can be written there.
    """

    def refuse(round_number: int, stage: int, message: bytes) -> bytes:
        raise IdentityError("who only listens announces nothing")

    return Exchange(
        Identity.create(folder / KEY_FILE),
        refuse,
        rules,
        folder,
        reach=reach,
        initial_peers=initial_peers,
        bootnodes=bootnodes,
        max_blob_bytes=max_blob_bytes,
    )

"""How a peer's exchange is; light to import, for whoever only shows it."""

from __future__ import annotations

from msgspec import Struct

from swarm.exchange.reach import Reachability


class Health(Struct, frozen=True, kw_only=True):
    """How a peer's exchange is, for its owner."""

    peers: int  # in the routing table
    restarts: int  # of libp2p, in this life of the node
    reach: Reachability | None  # None until somebody could be asked
    # In this life of the node:
    heard: int = 0  # announcements of others, each time that they were read
    fetched_bytes: int = 0  # of others' blobs and states, whatever became of them
    served_bytes: int = 0

"""The line that people join a swarm with: `address@rpc_url`, and `#relay_url` behind it if a relay pays."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from swarm.errors import UsageError


class JoinLine(NamedTuple):
    """Where a swarm is."""

    address: str  # checksummed, of the contract
    rpc_url: str
    relay_url: str | None  # who pays for those without funds


def parse_join_line(join_line: str) -> JoinLine:
    """The parts of a join line; `UsageError` if it is not one."""
    from eth_utils import is_checksum_formatted_address, to_checksum_address  # slow to import

    address, _, rest = join_line.strip().partition("@")
    rpc_url, _, relay_url = rest.partition("#")
    shown = join_line.strip()[:80]
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", address):
        raise UsageError(
            f"{shown!r} is not a swarm: expected 0x and the 40-digit address, then @ and the RPC URL"
        )
    checksummed = str(to_checksum_address(address))
    if is_checksum_formatted_address(address) and address != checksummed:
        raise UsageError(f"the swarm's address {address} has a typing error: its checksum is wrong")
    check_url(rpc_url, f"what follows @ in {shown!r}", "an RPC URL")
    if relay_url:
        check_url(relay_url, f"what follows # in {shown!r}", "a relay's URL")
    return JoinLine(checksummed, rpc_url, relay_url or None)


def check_url(url: str, what: str, kind: str) -> None:
    """`UsageError` unless the URL could be one of an endpoint; `what` and `kind` name it there."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", url):
        raise UsageError(f"{what} is not {kind}: expected http://… or https://…")

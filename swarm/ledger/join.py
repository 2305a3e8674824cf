"""The line that people join a swarm with: `address@rpc_url`."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from swarm.errors import UsageError


def parse_join_line(join_line: str) -> tuple[str, str]:
    """The checksummed contract address and the RPC URL of a join line; `UsageError` if it is not one."""
    from eth_utils import is_checksum_formatted_address, to_checksum_address  # slow to import

    address, _, url = join_line.strip().partition("@")
    shown = join_line.strip()[:80]
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", address):
        raise UsageError(
            f"{shown!r} is not a swarm: expected 0x and the 40-digit address, then @ and the RPC URL"
        )
    checksummed = str(to_checksum_address(address))
    if is_checksum_formatted_address(address) and address != checksummed:
        raise UsageError(f"the swarm's address {address} has a typing error: its checksum is wrong")
    check_rpc_url(url, f"what follows @ in {shown!r}")
    return checksummed, url


def check_rpc_url(url: str, what: str) -> None:
    """`UsageError` unless the URL could be an RPC endpoint's; `what` names it there."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", url):
        raise UsageError(f"{what} is not an RPC URL: expected http://… or https://…")

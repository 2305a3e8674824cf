"""Whom the quotas of a public server count."""

from __future__ import annotations

import ipaddress


def caller(remote: str | None) -> str:
    """An IPv4 address, or an IPv6 network of 48 bits, which is one site's."""
    try:
        address = ipaddress.ip_address((remote or "").partition("%")[0])
    except ValueError:
        return remote or "?"
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 48), strict=False))


def url_of(host: str, port: int) -> str:
    """Where a server on this address is found."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

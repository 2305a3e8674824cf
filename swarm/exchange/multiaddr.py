"""Multiaddresses that libp2p's daemon takes, read without hivemind, whose import takes two seconds."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Literal, NamedTuple

import base58

from swarm.errors import ExchangeError, UsageError

LISTEN_EXAMPLE = "/ip4/0.0.0.0/tcp/38331 or /ip6/::/udp/38331/quic-v1"
PUBLIC_EXAMPLE = "/ip4/203.0.113.7/tcp/38331"
PEER_EXAMPLE = "/ip4/203.0.113.7/tcp/38331/p2p/Qm…"

_ID = "[1-9A-HJ-NP-Za-km-z]{1,64}"
_PATTERN = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>[0-9A-Za-z.:_-]{1,127})"
    r"/(?:tcp/(?P<tcp>[0-9]{1,5})|udp/(?P<udp>[0-9]{1,5})/quic-v1)"
    rf"(?:/p2p/(?P<relay>{_ID})/p2p-circuit)?(?:/p2p/(?P<peer>{_ID}))?"
)
_IP_VERSION = {"ip4": 4, "ip6": 6}
# https://github.com/multiformats/multicodec, as varints
_CODES = {"ip4": b"\x04", "ip6": b"\x29", "dns": b"\x35", "dns4": b"\x36", "dns6": b"\x37", "tcp": b"\x06"}
_CODES |= {"udp": b"\x91\x02", "quic-v1": b"\xcd\x03", "p2p": b"\xa5\x03", "p2p-circuit": b"\xa2\x02"}
# Peer ids are multihashes: of RSA keys the SHA-256, of shorter keys (Ed25519) the key itself.
_SHA256_HEADER, _IDENTITY_CODE = bytes([0x12, 32]), 0x00


class Endpoint(NamedTuple):
    """The parts of a multiaddress."""

    kind: str  # "ip4", "ip6", "dns", "dns4" or "dns6"
    host: str  # an IP address, or a name
    transport: Literal["tcp", "udp"]  # udp: QUIC
    port: int
    relay: str | None  # the peer id of a relay, which is what is at the host
    peer: str | None  # libp2p peer id

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can get there."""
        return self.kind in _IP_VERSION and ipaddress.ip_address(self.host).is_loopback

    def to_bytes(self) -> bytes:
        """The binary form without the peer's id, as p2pd's `connect` takes it.

        hivemind 1.1.12 writes peer ids in a form that p2pd does not read, so its `Multiaddr` cannot name a
        relay ("length greater than remaining number of bytes in buffer").
        """
        if self.kind in _IP_VERSION:
            host = ipaddress.ip_address(self.host).packed
        else:
            host = bytes([len(self.host)]) + self.host.encode()
        parts = [_CODES[self.kind], host, _CODES[self.transport], self.port.to_bytes(2, "big")]
        if self.transport == "udp":
            parts.append(_CODES["quic-v1"])
        if self.relay:
            multihash = base58.b58decode(self.relay)
            parts += [_CODES["p2p"], bytes([len(multihash)]), multihash, _CODES["p2p-circuit"]]
        return b"".join(parts)


def parse(address: str) -> Endpoint:
    """The parts of a TCP or QUIC multiaddress; `ValueError` if it is not one."""
    found = _PATTERN.fullmatch(address)
    if not found:
        raise ValueError(f"{address[:200]!r} is no TCP or QUIC multiaddress")
    version, host = _IP_VERSION.get(found["kind"]), found["host"]
    if version and ipaddress.ip_address(host).version != version:
        raise ValueError(f"{host!r} is no IPv{version} address")
    port = int(found["tcp"] or found["udp"])
    if port > 65535:
        raise ValueError(f"{port} is no port")
    for peer in (found["relay"], found["peer"]):
        if peer and not _is_peer_id(peer):
            raise ValueError(f"{peer!r} is no peer id")
    return Endpoint(
        found["kind"], host, "tcp" if found["tcp"] else "udp", port, found["relay"], found["peer"]
    )


def check_listen(address: str) -> Endpoint:
    """`UsageError` unless one can listen on a multiaddress like this."""
    endpoint = _parsed(address, "cannot listen on", LISTEN_EXAMPLE)
    if endpoint.kind not in _IP_VERSION or endpoint.relay or endpoint.peer:
        raise _wrong(address, "cannot listen on", LISTEN_EXAMPLE)
    return endpoint


def check_public(address: str) -> Endpoint:
    """`UsageError` unless others could be told a multiaddress like this."""
    endpoint = _parsed(address, "cannot announce", PUBLIC_EXAMPLE)
    if endpoint.relay or endpoint.peer or not endpoint.port:
        raise _wrong(address, "cannot announce", PUBLIC_EXAMPLE)
    return endpoint


def check_peer(address: str) -> Endpoint:
    """`UsageError` unless a peer could be dialled at a multiaddress like this."""
    endpoint = _parsed(address, "cannot dial", PEER_EXAMPLE)
    if not endpoint.peer or not endpoint.port:
        raise _wrong(address, "cannot dial", PEER_EXAMPLE)
    return endpoint


def check_free(address: str) -> None:
    """`ExchangeError` if the port is taken. p2pd would not say: it shares ports (SO_REUSEPORT) silently."""
    endpoint = check_listen(address)
    if endpoint.port == 0:
        return
    family = socket.AF_INET6 if endpoint.kind == "ip6" else socket.AF_INET
    kind = socket.SOCK_STREAM if endpoint.transport == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as probe:
        if endpoint.transport == "tcp":  # else connections of an earlier life hold it for a minute
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # as p2pd does: IPv4 may have the same port
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "it is taken by another process" if taken else f"it fails: {error.strerror}"
            raise ExchangeError(f"cannot listen on {address}: {why}; choose another --listen") from error


def most_public(multiaddrs: Iterable[str]) -> str:
    """The address that is most likely of use to others; `ValueError` if there is none at all."""
    return min(multiaddrs, key=_privacy)


def _privacy(address: str) -> int:
    try:
        endpoint = parse(address)
    except ValueError:
        return 3
    if endpoint.is_loopback:
        return 2
    return int(endpoint.kind in _IP_VERSION and not ipaddress.ip_address(endpoint.host).is_global)


def tcp_ports(multiaddrs: Iterable[str]) -> tuple[int, ...]:
    """The TCP ports at which a peer says it can be reached directly."""
    return tuple(dict.fromkeys(port for address in multiaddrs if (port := _tcp_port(address))))


def _tcp_port(address: str) -> int | None:
    try:
        endpoint = parse(address)
    except ValueError:  # of a transport that nobody here dials
        return None
    return endpoint.port if endpoint.transport == "tcp" and endpoint.relay is None else None


def _parsed(address: str, verb: str, example: str) -> Endpoint:
    try:
        return parse(address)
    except ValueError:
        raise _wrong(address, verb, example) from None


def _wrong(address: str, verb: str, example: str) -> UsageError:
    return UsageError(f"{verb} {address[:200]!r}: expected a multiaddress such as {example}")


def _is_peer_id(text: str) -> bool:
    multihash = base58.b58decode(text)
    if multihash[:1] == bytes([_IDENTITY_CODE]):
        return len(multihash) > 2 and len(multihash) == 2 + multihash[1]
    return len(multihash) == 34 and multihash.startswith(_SHA256_HEADER)

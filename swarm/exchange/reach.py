"""Being reached from outside: how a peer listens and traverses NATs, and how it learns whether that works.

The dial-back protocol, on a libp2p stream that is opened by who wants to know:

    asker   ReachRequest: its TCP ports
    server  connects to each of them at the IP address from which the asker is connected, and to no other, so
            that nobody can have a third party scanned; what counts is libp2p's greeting, not an open port
    server  ReachAnswer: that address, and the ports that greeted
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from swarm.errors import ExchangeError, UsageError
from swarm.exchange import wire
from swarm.exchange.multiaddr import check_free, check_listen, check_peer, check_public, tcp_ports
from swarm.exchange.streams import Limit, receive_message, send_message
from swarm.settings import Settings

if TYPE_CHECKING:
    from hivemind.p2p import P2P
    from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

__all__ = [
    "Reach",
    "ReachServer",
    "Reachability",
    "ask",
    "check_free",
    "reach_of",
    "reachability",
    "tcp_ports",
]

LOOPBACK_LISTEN, OPEN_LISTEN = "/ip4/127.0.0.1/tcp/0", "/ip4/0.0.0.0/tcp/0"

GREETING = b"\x13/multistream/1.0.0\n"  # what libp2p sends first on TCP, after its length
DIAL_SECONDS = 3.0
REQUEST_SECONDS = 5.0
ASK_SECONDS = REQUEST_SECONDS + DIAL_SECONDS
MAX_PORTS = 4  # as `wire.ReachRequest`
MAX_SERVED = 4  # askers at once
MAX_STREAMS, MAX_STREAMS_PER_PEER = 32, 4  # open at once
PAUSE_SECONDS = 60.0  # between two answers to one peer
MAX_REMEMBERED = 1024  # peers answered within a pause; nobody else is answered then
ASKED_PEERS = 3


@dataclass(frozen=True)
class Reach:
    """How a peer listens, and which of libp2p's means to be reached through a NAT it uses."""

    listen: tuple[str, ...]
    announce_addresses: tuple[str, ...] = ()  # empty: those that libp2p finds
    nat_port_map: bool = False  # asks the router (UPnP, NAT-PMP) for a port
    auto_nat: bool = False  # finds out with other peers whether there is a NAT; p2pd punches holes with it
    use_relay: bool = False  # reaches others through relays, and relays for others where it is public
    use_auto_relay: bool = False  # lets others come through a relay while there is a NAT
    trusted_relays: tuple[str, ...] = ()  # tried first; p2pd takes them with `use_auto_relay` only
    # What the user said, in place of what `auto_nat` finds out, for which a small swarm has too few peers.
    force_reachability: Literal["public", "private"] | None = None

    @property
    def any_port(self) -> bool:
        """Whether libp2p chooses a port, another one at each start."""
        return any(check_listen(address).port == 0 for address in self.listen)

    def on_port(self, port: int) -> Reach | None:
        """The same on a given TCP port, where any would do; None if the ports are told."""
        listen = tuple(re.sub(r"/tcp/0$", f"/tcp/{port}", address) for address in self.listen)
        return replace(self, listen=listen) if listen != self.listen else None


def reach_of(settings: Settings, rpc_url: str) -> Reach:
    """How a peer listens in a swarm whose ledger is at `rpc_url`; `UsageError` if the settings are wrong.

    Unless told otherwise, a swarm on a chain of this machine stays on this machine, and in any other a peer
    listens to everybody.
    """
    listen = settings.listen or (LOOPBACK_LISTEN if _is_loopback(rpc_url) else OPEN_LISTEN,)
    endpoints = [check_listen(address) for address in listen]
    for address in settings.public_addresses:
        check_public(address)
    for address in (*settings.trusted_relays, *settings.initial_peers):
        check_peer(address)
    if settings.trusted_relays and settings.nat == "off":
        raise UsageError("--relay-peer is of no use with --nat off: leave one of them out")
    at_home = all(endpoint.is_loopback for endpoint in endpoints) and not settings.trusted_relays
    traverse = settings.nat == "auto" and not at_home
    told: Literal["public", "private"] | None = None
    if traverse and (settings.trusted_relays or settings.public_addresses):
        told = "private" if settings.trusted_relays else "public"
    return Reach(
        listen=listen,
        announce_addresses=settings.public_addresses,
        nat_port_map=traverse,
        auto_nat=traverse,
        use_relay=traverse,
        use_auto_relay=traverse,
        trusted_relays=settings.trusted_relays,
        force_reachability=told,
    )


class Reachability(Struct, frozen=True, kw_only=True):
    """What other peers say about reaching this one.

    | state   | means |
    |---------|-------|
    | public  | a peer reached us at a global address |
    | local   | peers reached us, all of them on this machine or in this network |
    | nat     | peers see us, and none can reach us where that matters |
    | relayed | peers see us through a relay only |
    | unknown | nobody answered |
    """

    state: Literal["public", "local", "nat", "relayed", "unknown"]
    seen_as: str = ""  # an IP address
    asked: int = 0  # peers that answered


async def reachability(p2p: P2P, peers: Sequence[bytes], ports: Sequence[int]) -> Reachability:
    """Ask up to three of the connected `peers` (digests), drawn at random, whether they reach our TCP ports.

    Takes eight seconds at most. Without a TCP port there is nothing to ask.
    """
    asked = random.sample(peers, min(ASKED_PEERS, len(peers))) if ports else []
    results = await asyncio.gather(*(ask(p2p, peer, ports) for peer in asked), return_exceptions=True)
    answers = []
    for result in results:
        if isinstance(result, wire.ReachAnswer):
            answers.append(result)
        elif not isinstance(result, ExchangeError):
            raise result
    return _summed_up(answers)


async def ask(p2p: P2P, peer: bytes, ports: Sequence[int]) -> wire.ReachAnswer:
    """Whether `peer` (a digest) reaches our TCP `ports`, the first four; `ExchangeError` if it does not say.

    A peer answers once a minute.
    """
    from hivemind.p2p import P2PDaemonError  # not above: `swarm status` reads a `Reachability` without it

    from swarm.exchange.protocol import libp2p_peer

    asked = tuple(ports[:MAX_PORTS])
    try:
        async with asyncio.timeout(ASK_SECONDS):
            _, reader, writer = await p2p.call_binary_stream_handler(libp2p_peer(peer), wire.REACH_STREAM)
            with closing(writer):
                await send_message(writer, wire.ReachRequest(ports=asked))
                answer = await receive_message(reader, wire.ReachAnswer)
    except (OSError, EOFError, P2PDaemonError) as error:
        raise ExchangeError(f"peer does not say whether it reaches us: {error}") from error
    if not set(answer.reached) <= set(asked) or (answer.address and _ip(answer.address) is None):
        raise ExchangeError("peer answers what it was not asked")
    return answer


class ReachServer:
    """Dials back whoever asks; lives in the exchange's asyncio thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answered: dict[bytes, float] = {}  # peer id to when, oldest first
        self._serving = 0
        self._open = Limit(MAX_STREAMS, MAX_STREAMS_PER_PEER)

    async def start(self, p2p: P2P) -> None:
        """Begin to answer on `p2p`."""
        await p2p.add_binary_stream_handler(wire.REACH_STREAM, self._handle)

    async def _handle(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # Called by hivemind for each stream that a peer opens. Whatever the peer does, it ends this one
        # stream and nothing else; who is not answered finds it closed.
        peer = info.peer_id.to_bytes()
        with self._open.slot(peer) as free, suppress(OSError, EOFError, ExchangeError):
            try:
                if free:
                    await self._answer(peer, str(info.addr), reader, writer)
            finally:
                writer.transport.abort()  # loses nothing: `send_message` waits until all is out

    async def _answer(
        self, peer: bytes, multiaddr: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with asyncio.timeout(REQUEST_SECONDS):
            request = await receive_message(reader, wire.ReachRequest)
        if self._serving >= MAX_SERVED or not self._may_ask(peer):
            return
        self._serving += 1
        try:
            answer = await _dial_back(multiaddr, request.ports)
        finally:
            self._serving -= 1
        async with asyncio.timeout(REQUEST_SECONDS):
            await send_message(writer, answer)

    def _may_ask(self, peer: bytes) -> bool:
        now = self._clock()
        while self._answered and (oldest := next(iter(self._answered))):
            if self._answered[oldest] > now - PAUSE_SECONDS:
                break
            del self._answered[oldest]
        if peer in self._answered or len(self._answered) >= MAX_REMEMBERED:
            return False
        self._answered[peer] = now
        return True


async def _dial_back(multiaddr: str, ports: Sequence[int]) -> wire.ReachAnswer:
    """Try the ports at the IP address of a connection's other end."""
    address = _remote_ip(multiaddr)
    if not address:
        return wire.ReachAnswer(address="")
    distinct = tuple(dict.fromkeys(ports))
    greeted = await asyncio.gather(*(_greets(address, port) for port in distinct))
    reached = tuple(port for port, ok in zip(distinct, greeted, strict=True) if ok)
    return wire.ReachAnswer(address=address, reached=reached)


async def _greets(address: str, port: int) -> bool:
    """Whether libp2p answers there."""
    with suppress(OSError, EOFError):
        async with asyncio.timeout(DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(address, port)
            with closing(writer):
                return await reader.readexactly(len(GREETING)) == GREETING
    return False


def _remote_ip(multiaddr: str) -> str:
    """The IP address that a connection's multiaddress begins with; empty if it goes through a relay."""
    _, kind, host, *rest = [*multiaddr.split("/"), "", ""]
    return host if kind in ("ip4", "ip6") and "p2p-circuit" not in rest else ""


def _summed_up(answers: Sequence[wire.ReachAnswer]) -> Reachability:
    global_, local = (
        [answer for answer in answers if answer.address and _is_global(answer.address) == outside]
        for outside in (True, False)
    )
    seen = global_ or local  # what peers outside say outweighs those inside
    reached = [answer.address for answer in seen if answer.reached]
    if reached:
        return Reachability(state="public" if global_ else "local", seen_as=reached[0], asked=len(answers))
    if seen:
        return Reachability(state="nat", seen_as=seen[0].address, asked=len(answers))
    return Reachability(state="relayed" if answers else "unknown", asked=len(answers))


def _is_global(address: str) -> bool:
    ip = _ip(address)
    return ip is not None and ip.is_global


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    ip = _ip(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)

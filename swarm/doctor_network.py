"""What `swarm doctor` looks at beyond this machine: libp2p, the other peers, and the way back from them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from identity import IdentityError, peer_digest
from swarm.diagnosis import Check, Patient, diagnosis, one_line
from swarm.errors import ExchangeError, SwarmError
from swarm.exchange import multiaddr
from swarm.exchange.reach import Reach, Reachability, reachability
from swarm.settings import Settings

if TYPE_CHECKING:
    from hivemind.p2p import P2P

P2PD_SECONDS, DIAL_SECONDS = 30.0, 5.0
MAP_SECONDS = 5.0  # a router's answer to a request for a port takes up to three
NETWORK_SECONDS = P2PD_SECONDS + DIAL_SECONDS + MAP_SECONDS + 10.0


def network(patient: Patient) -> Iterator[Check]:
    """The checks that need libp2p; in the main thread, so that Ctrl-C ends p2pd too."""
    try:
        yield from asyncio.run(_with_p2p(patient))
    except TimeoutError:
        yield diagnosis("libp2p", "failed", f"no end within {NETWORK_SECONDS:.0f} s", "try again")
    except (SwarmError, IdentityError, OSError, EOFError) as error:
        yield diagnosis("libp2p", "failed", str(error))


async def _with_p2p(patient: Patient) -> list[Check]:
    reach = Reach(listen=("/ip4/127.0.0.1/tcp/0",)) if patient.running else patient.reach
    async with asyncio.timeout(NETWORK_SECONDS), _throwaway_p2p(reach) as p2p:
        checks = [diagnosis("libp2p", "ok", f"p2pd started and listened on {', '.join(reach.listen)}")]
        listed = list(dict.fromkeys((*patient.settings.initial_peers, *patient.bootnodes)))
        own = patient.identity.peer_id if patient.identity else None
        others = [address for address in listed if not address.endswith(f"/p2p/{own}")]
        met = [peer for peer in await asyncio.gather(*(_meet(p2p, address) for address in others)) if peer]
        checks.append(_peers(patient, len(met), len(others)))
        if patient.running:
            checks.append(_reach_of_node(patient.settings))
        else:
            checks.append(await _reach_of_throwaway(p2p, reach, met))
        return checks


def _peers(patient: Patient, met: int, listed: int) -> Check:
    if not listed:
        listing = "the ledger lists none: you would be the first" if patient.ledger else "no ledger to ask"
        return diagnosis("peers", "skipped", listing)
    found = f"{met} of {listed} known addresses answer"
    if not met:
        advice = "is this machine online, and may it connect to others? Else they are all gone"
        return diagnosis("peers", "failed", found, advice)
    return diagnosis("peers", "ok", found)


async def _reach_of_throwaway(p2p: P2P, reach: Reach, met: Sequence[bytes]) -> Check:
    if not met:
        return diagnosis("reachability", "skipped", "no peer to ask")
    if reach.nat_port_map:
        await asyncio.sleep(MAP_SECONDS)
    ports = multiaddr.tcp_ports(map(str, await p2p.get_visible_maddrs(latest=True)))
    found = await reachability(p2p, met, ports)
    return _reachability(found, () if reach.any_port else multiaddr.tcp_ports(reach.listen))


def _reach_of_node(settings: Settings) -> Check:
    from swarm.board.status import peer_status

    swarms = peer_status(settings).swarms
    doing = swarms[-1].doing if swarms else None
    found = doing.health.reach if doing and doing.health else None
    if found is None:
        return diagnosis("reachability", "skipped", "the running node has not asked anybody yet")
    exchange = swarms[-1].exchange
    return _reachability(found, (exchange.port,) if exchange and exchange.port else ())


def _reachability(found: Reachability, ports: Sequence[int]) -> Check:
    """What peers said; `ports` are those that the node has at every start."""
    match found.state:
        case "public":
            return diagnosis("reachability", "ok", f"others reach this machine at {found.seen_as}")
        case "local":
            words = f"reached as {found.seen_as}; nobody outside this network was asked"
            return diagnosis("reachability", "ok", words)
        case "unknown":
            return diagnosis("reachability", "skipped", "no peer answered the question")
        case "relayed":
            words = "others reach this machine through a relay only, which is slow"
        case "nat":
            words = f"behind NAT: others see {found.seen_as} and cannot reach this machine"
    if ports:
        forward = f"forward TCP port {' and '.join(map(str, ports))} to this machine"
    else:
        forward = "choose a port with --listen /ip4/0.0.0.0/tcp/38331 and forward it to this machine"
    return diagnosis("reachability", "warning", words, f"{forward}, or name a public peer with --relay-peer")


@asynccontextmanager
async def _throwaway_p2p(reach: Reach) -> AsyncIterator[P2P]:
    """libp2p on these addresses with an identity that nobody has; it joins nothing by itself."""
    from hivemind.p2p import P2P, P2PDaemonError

    try:
        p2p = await P2P.create(
            host_maddrs=list(reach.listen),
            announce_maddrs=list(reach.announce_addresses) or None,
            nat_port_map=reach.nat_port_map,
            auto_nat=False,  # takes minutes; `reachability` asks instead
            use_relay=reach.use_relay,
            dht_mode="client",  # so that nobody remembers it
            startup_timeout=P2PD_SECONDS,
        )
    except P2PDaemonError as error:
        raise ExchangeError(
            f"p2pd does not start: {one_line(error)}: is --listen an address of this machine?"
        ) from error
    try:
        yield p2p
    finally:
        await p2p.shutdown()


async def _meet(p2p: P2P, address: str) -> bytes | None:
    """Connect to a peer; its digest, or None if that fails."""
    from hivemind.p2p import P2PDaemonError

    from swarm.exchange.protocol import libp2p_peer

    try:
        endpoint = multiaddr.parse(address)
        peer = peer_digest(endpoint.peer or "")
        async with asyncio.timeout(DIAL_SECONDS):
            await p2p._client.connect(libp2p_peer(peer), [endpoint])
    except (ValueError, IdentityError, OSError, EOFError, P2PDaemonError):
        return None
    return peer

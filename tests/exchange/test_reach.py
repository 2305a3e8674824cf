"""Real p2pds on loopback ask each other whether they can be reached."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from hivemind.p2p import P2P, P2PDaemonError

from identity import Identity
from swarm.errors import ExchangeError, UsageError
from swarm.exchange import multiaddr, wire
from swarm.exchange.protocol import libp2p_peer
from swarm.exchange.reach import Reach, ReachServer, ask, check_free, reach_of, reachability, tcp_ports
from swarm.exchange.streams import receive_message, send_message
from swarm.settings import Settings

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
RELAY = "/ip4/203.0.113.7/tcp/38331/p2p/QmNLei78zWmzUdbeRB3CiUfAizWUrbeeZh5K1rhAQKCh51"
HERE, ELSEWHERE = "http://127.0.0.1:8545", "https://rpc.example.org"


@asynccontextmanager
async def libp2p(identity: Identity, listen: str = LOOPBACK) -> AsyncIterator[P2P]:
    p2p = await P2P.create(
        identity_path=str(identity.path),
        host_maddrs=[listen],
        auto_nat=False,
        nat_port_map=False,
        use_relay=False,
        check_if_identity_free=False,
    )
    try:
        yield p2p
    finally:
        await p2p.shutdown()


async def meet(p2p: P2P, other: P2P) -> None:
    (address,) = map(str, await other.get_visible_maddrs())
    await p2p._client.connect(other.peer_id, [multiaddr.parse(address)])


@asynccontextmanager
async def asker_and_server(
    identities: list[Identity], server: ReachServer | None = None, listen: str = LOOPBACK
) -> AsyncIterator[tuple[P2P, bytes]]:
    """An asker, and the digest of a peer that answers and to which it is connected."""
    async with libp2p(identities[0], listen) as asker, libp2p(identities[1], listen) as other:
        await (server or ReachServer()).start(other)
        await meet(asker, other)
        yield asker, identities[1].peer


@asynccontextmanager
async def listener(host: str, greeting: bytes) -> AsyncIterator[tuple[int, list[str]]]:
    """A TCP server of another kind: its port, and who called."""
    calls: list[str] = []

    async def handle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            calls.append(writer.get_extra_info("peername")[0])
            writer.write(greeting)
            await writer.drain()

    async with await asyncio.start_server(handle, host, 0) as server:
        yield server.sockets[0].getsockname()[1], calls


async def own_ports(p2p: P2P) -> tuple[int, ...]:
    return tcp_ports(map(str, await p2p.get_visible_maddrs(latest=True)))


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("listen", [LOOPBACK, "/ip6/::1/tcp/0"])
def test_peer_that_is_reached_on_this_machine_is_local(identities, listen):
    async def scene() -> None:
        async with asker_and_server(identities, listen=listen) as (asker, server):
            found = await reachability(asker, [server], await own_ports(asker))
            assert (found.state, found.asked) == ("local", 1)
            assert found.seen_as == listen.split("/")[2]

    asyncio.run(scene())


def test_ports_where_libp2p_does_not_answer_are_not_reached(identities):
    async def scene() -> None:
        async with (
            asker_and_server(identities) as (asker, server),
            listener("127.0.0.1", b"SSH-2.0-OpenSSH_9.6 and more\r\n") as (other, calls),
        ):
            found = await reachability(asker, [server], [unused_port(), other])
            assert (found.state, found.seen_as, found.asked) == ("nat", "127.0.0.1", 1)
            assert calls == ["127.0.0.1"]

    asyncio.run(scene())


def test_server_dials_the_asker_s_own_address_only(identities):
    async def scene() -> None:
        async with (
            asker_and_server(identities) as (asker, server),
            listener("127.0.0.2", b"\x13/multistream/1.0.0\n") as (port, calls),
        ):
            assert (await ask(asker, server, [port])).reached == ()
            assert calls == []
            named = [("127.0.0.2", port)]
            with pytest.raises(ExchangeError):
                await raw_ask(asker, server, wire.encode(Naming(ports=(port,), addresses=named)))
            assert calls == []

    asyncio.run(scene())


class Naming(wire.ReachRequest, frozen=True, array_like=True, kw_only=True):
    """What a hostile asker would like to send."""

    addresses: list[tuple[str, int]]


async def raw_ask(p2p: P2P, peer: bytes, body: bytes) -> wire.ReachAnswer:
    """Send a frame of any content."""
    _, reader, writer = await p2p.call_binary_stream_handler(libp2p_peer(peer), wire.REACH_STREAM)
    with closing(writer):
        writer.write(len(body).to_bytes(2, "big") + body)
        try:
            return await receive_message(reader, wire.ReachAnswer)
        except (EOFError, OSError) as error:
            raise ExchangeError("closed") from error


def test_one_answer_a_minute_for_each_peer(identities):
    class Clock:
        now = 0.0

    async def scene() -> None:
        async with asker_and_server(identities, ReachServer(lambda: Clock.now)) as (asker, server):
            ports = await own_ports(asker)
            assert (await ask(asker, server, ports)).reached == ports
            Clock.now = 59.0
            with pytest.raises(ExchangeError):
                await ask(asker, server, ports)
            assert (await reachability(asker, [server], ports)).state == "unknown"
            (known,) = await asker.list_peers()
            async with libp2p(identities[2]) as another:
                await meet(another, asker)  # which introduces nobody
                await another._client.connect(known.peer_id, [multiaddr.parse(str(known.addrs[0]))])
                assert (await ask(another, server, ports)).reached == ports
            Clock.now = 60.0
            assert (await ask(asker, server, ports)).reached == ports

    asyncio.run(scene())


def test_only_a_few_are_served_at_once(identities, monkeypatch):
    async def scene() -> None:
        async with asker_and_server(identities) as (asker, server):
            monkeypatch.setattr("swarm.exchange.reach.MAX_SERVED", 0)
            with pytest.raises(ExchangeError):
                await ask(asker, server, [1])
            monkeypatch.undo()
            assert (await ask(asker, server, [1])).address == "127.0.0.1"  # a refusal costs no minute

    asyncio.run(scene())


def test_hostile_askers_leave_the_server_serving(identities):
    async def scene() -> None:
        async with asker_and_server(identities) as (asker, server):
            for body in (
                b"",
                b"\xc1" * 40,
                wire.msgspec.msgpack.encode([["80"]]),
                b"\x91\x95\x01\x02\x03\x04\x05",
            ):
                with pytest.raises(ExchangeError):
                    await raw_ask(asker, server, body)
            for sent in (b"", b"\xff\xff", b"\x00\x05\x91"):  # silent, too long, half a message
                _, _, writer = await asker.call_binary_stream_handler(libp2p_peer(server), wire.REACH_STREAM)
                writer.write(sent)
            ports = await own_ports(asker)
            assert (await ask(asker, server, ports)).reached == ports

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (("8.8.8.8", True), "public"),
        (("8.8.8.8", False), "nat"),
        (("192.168.1.7", True), "local"),
        (("fd00::7", False), "nat"),
        (("", False), "relayed"),
        (("nonsense", True), "unknown"),
    ],
)
def test_what_one_peer_says_is_summed_up(identities, answer, state):
    address, reached = answer

    async def scene() -> None:
        async with libp2p(identities[0]) as asker, libp2p(identities[1]) as other:

            async def handle(_info, reader, writer) -> None:
                with closing(writer):
                    request = await receive_message(reader, wire.ReachRequest)
                    said = wire.ReachAnswer(address=address, reached=request.ports if reached else ())
                    await send_message(writer, said)

            await other.add_binary_stream_handler(wire.REACH_STREAM, handle)
            await meet(asker, other)
            found = await reachability(asker, [identities[1].peer, identities[2].peer], [4001])
            assert found.state == state
            assert found.asked == (0 if state == "unknown" else 1)

    asyncio.run(scene())


def test_relay_s_address_is_not_taken_for_the_asker_s(identities):
    class ThroughRelay:
        """A p2p whose streams seem to come through a relay, which listens where we do."""

        def __init__(self, p2p: P2P) -> None:
            self.p2p = p2p

        async def add_binary_stream_handler(self, protocol, handler) -> None:
            async def relayed(info, reader, writer) -> None:
                info.addr = f"{info.addr}{RELAY[RELAY.index('/p2p/') :]}/p2p-circuit"
                await handler(info, reader, writer)

            await self.p2p.add_binary_stream_handler(protocol, relayed)

    async def scene() -> None:
        async with libp2p(identities[0]) as asker, libp2p(identities[1]) as other:
            await ReachServer().start(ThroughRelay(other))
            await meet(asker, other)
            found = await reachability(asker, [identities[1].peer], await own_ports(asker))
            assert (found.state, found.seen_as) == ("relayed", "")

    asyncio.run(scene())


def test_without_peers_or_ports_nothing_is_known(identities):
    async def scene() -> None:
        async with libp2p(identities[0]) as asker:
            assert (await reachability(asker, [], [4001])).state == "unknown"
            assert (await reachability(asker, [identities[1].peer], [])).state == "unknown"

    asyncio.run(scene())


# How a peer listens


def test_swarm_on_this_machine_s_chain_opens_no_port(tmp_path):
    settings = Settings(home=tmp_path)
    assert reach_of(settings, HERE) == Reach(listen=(LOOPBACK,))
    assert (
        reach_of(settings, "http://[::1]:8545")
        == reach_of(settings, "http://localhost")
        == Reach((LOOPBACK,))
    )


def test_any_other_swarm_s_peer_can_be_reached(tmp_path):
    reach = reach_of(Settings(home=tmp_path), ELSEWHERE)
    assert reach.listen == ("/ip4/0.0.0.0/tcp/0",)
    assert reach.nat_port_map and reach.auto_nat and reach.use_relay and reach.use_auto_relay
    off = reach_of(Settings(home=tmp_path, nat="off"), ELSEWHERE)
    assert off == Reach(listen=reach.listen)
    assert reach.force_reachability is None
    public = reach_of(Settings(home=tmp_path, public_addresses=("/ip4/203.0.113.7/tcp/1",)), ELSEWHERE)
    assert (public.announce_addresses, public.force_reachability) == (("/ip4/203.0.113.7/tcp/1",), "public")
    relayed = reach_of(Settings(home=tmp_path, trusted_relays=(RELAY,)), HERE)
    assert (relayed.use_auto_relay, relayed.force_reachability) == (True, "private")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"listen": ("nonsense",)}, "cannot listen on 'nonsense'"),
        ({"listen": ("/ip4/1.2.3.4/tcp/65536",)}, "cannot listen"),
        ({"listen": ("/ip4/::1/tcp/1",)}, "cannot listen"),
        ({"listen": ("/ip4/127.0.0.1/udp/1/quic",)}, "cannot listen"),
        ({"listen": ("/dns4/localhost/tcp/1",)}, "cannot listen"),
        ({"public_addresses": ("/ip4/1.2.3.4/tcp/0",)}, "cannot announce"),
        ({"public_addresses": (RELAY,)}, "cannot announce"),
        ({"trusted_relays": ("/ip4/1.2.3.4/tcp/1",)}, "cannot dial"),
        ({"initial_peers": ("/ip4/1.2.3.4/tcp/1/p2p/QmShort",)}, "cannot dial"),
        ({"trusted_relays": (RELAY,), "nat": "off"}, "--relay-peer"),
    ],
)
def test_wrong_addresses_are_one_line(tmp_path, changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        reach_of(Settings(home=tmp_path, **changes), HERE)
    assert "\n" not in str(caught.value)


def test_p2pd_takes_what_the_settings_make(tmp_path, identities):
    settings = Settings(
        home=tmp_path,
        listen=(LOOPBACK, "/ip6/::1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"),
        trusted_relays=(RELAY,),
    )
    reach = reach_of(settings, ELSEWHERE)

    async def scene() -> None:
        p2p = await P2P.create(
            host_maddrs=list(reach.listen),
            nat_port_map=reach.nat_port_map,
            auto_nat=reach.auto_nat,
            use_relay=reach.use_relay,
            use_auto_relay=reach.use_auto_relay,
            trusted_relays=list(reach.trusted_relays),
            force_reachability=reach.force_reachability,
        )
        try:
            shown = [multiaddr.parse(str(address)) for address in await p2p.get_visible_maddrs()]
            assert {(end.kind, end.transport) for end in shown} == {
                ("ip4", "tcp"),
                ("ip6", "tcp"),
                ("ip4", "udp"),
            }
            with pytest.raises(P2PDaemonError) as caught:  # nobody relays there, but p2pd can read it
                through = multiaddr.parse(
                    f"/ip4/127.0.0.1/tcp/9{RELAY[RELAY.index('/p2p/') :]}/p2p-circuit{RELAY[-51:]}"
                )
                await p2p._client.connect(libp2p_peer(identities[0].peer), [through])
            assert "buffer" not in str(caught.value)
        finally:
            await p2p.shutdown()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("family", "kind", "host", "address"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", "/ip4/127.0.0.1/tcp/{}"),
        (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", "/ip4/0.0.0.0/tcp/{}"),
        (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1", "/ip4/127.0.0.1/udp/{}/quic-v1"),
        (socket.AF_INET6, socket.SOCK_STREAM, "::1", "/ip6/::1/tcp/{}"),
    ],
)
def test_taken_port_is_noticed(family, kind, host, address):
    with socket.socket(family, kind) as taken:
        taken.bind((host, 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        address = address.format(taken.getsockname()[1])
        with pytest.raises(ExchangeError, match="taken by another process"):
            check_free(address)
    check_free(address)


def test_tcp_ports_are_those_that_can_be_dialled_directly():
    shown = ["/ip4/10.0.0.1/tcp/4001", "/ip4/127.0.0.1/tcp/4001", "/ip4/1.2.3.4/udp/5/quic-v1", RELAY]
    shown += [f"{RELAY}/p2p-circuit", "/ip4/1.2.3.4/udp/5/quic-v1/webtransport"]
    assert tcp_ports(shown) == (4001, 38331)


def test_files_that_status_reads_do_not_import_hivemind():
    import subprocess
    import sys

    code = "import sys, swarm.exchange.reach; sys.exit('hivemind' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0

"""Peers tell each other where they can be reached, so that address books outlive connections."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress

from hivemind.p2p import P2P, P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from swarm.errors import ExchangeError
from swarm.exchange import wire
from swarm.exchange.protocol import libp2p_peer
from swarm.exchange.streams import Limit, receive_message, send_message

MAX_ADDRESSES, MAX_ADDRESS_CHARS = 4, 200
TIMEOUT_SECONDS = 3.0
MAX_STREAMS = 16  # open at once, one a peer


async def serve(p2p: P2P) -> None:
    """Answer whoever asks with our addresses of that moment."""
    open_streams = Limit(MAX_STREAMS, 1)

    async def answer(info: StreamInfo, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with open_streams.slot(info.peer_id.to_bytes()) as free:
            try:
                if free:
                    await say(writer)
            finally:
                writer.transport.abort()  # loses nothing: `send_message` waits until all is out

    async def say(writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, TimeoutError, ExchangeError, P2PDaemonError, ValueError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                addresses = [str(address) for address in await p2p.get_visible_maddrs(latest=True)]
                short = [address for address in addresses if len(address) <= MAX_ADDRESS_CHARS]
                await send_message(writer, wire.Hello(addresses=tuple(short[:MAX_ADDRESSES])))

    await p2p.add_binary_stream_handler(wire.HELLO_STREAM, answer)


async def ask(p2p: P2P, peer: bytes) -> tuple[str, ...]:
    """The multiaddresses that a connected peer says it has; none if it does not say."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            _, reader, writer = await p2p.call_binary_stream_handler(libp2p_peer(peer), wire.HELLO_STREAM)
            with closing(writer):
                return (await receive_message(reader, wire.Hello)).addresses
    except (TimeoutError, OSError, EOFError, P2PDaemonError, ExchangeError):
        return ()

"""A hostile peer: `python hostile.py PLAN.json` does to its victims, round after round, all that it can.

Its own small program: a real hivemind node with a registered key, which keeps to no rule. What it says on
standard output, it did.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgpack
import msgspec
from exchange_cast import Rogue, Swarm, key_of, signed
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2

from identity import Identity
from swarm.exchange import wire
from swarm.exchange.streams import receive_message, send_message

MEGABYTE = 2**20
FLOOD = 10_000


class Plan(msgspec.Struct, frozen=True):
    """What the test tells."""

    victims: tuple[str, ...]  # multiaddrs
    registered: Path  # a key that the ledger knows
    stranger: Path  # and one that it does not
    swarm: Swarm


class Hostile:
    """The attacks of a round, each a method."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.swarm = plan.swarm
        self.stranger = Identity.load(plan.stranger)
        self.rogue = Rogue(Identity.load(plan.registered))
        self.me = self.rogue.identity
        # Nothing limits what its own p2pd sends.
        self.rogue.run(self.rogue.start(plan.victims[0], persistent_conn_max_msg_size=256 * MEGABYTE))
        for victim in plan.victims[1:]:
            self.rogue.run(self.rogue.connect(victim))
        self.rogue.serve(wire.BLOB_STREAM, self._serve)
        self.serving = "nothing"

    def play(self) -> None:
        """All of it, once a round."""
        # The blob attacks need an announcement that is believed: one a round. The bombs keep this peer itself
        # busy for longer than a round.
        for serving in ("wrong", "slow", "empty", "garbage", "silent"):
            number = self.swarm.round + 1
            self._sleep_until(number, 0.02)
            self.serving = serving
            self._announce(number)
            attacks = [self._records, self._answers, self._streams]
            # After the flood nobody looks at what else comes from this peer.
            for attack in [*attacks, self._bombs if serving == "silent" else self._flood]:
                attack(number)
            print(f"round {number} {serving}", flush=True)

    # Announcements

    def _announce(self, number: int) -> None:
        """A good announcement of a blob that is never served right, and a second one for the same slot."""
        for size in (7, 8):
            announcement = self.swarm.announcement(
                hashlib.sha256(b"content").digest(), size, round=number, cell=0
            )
            self._store(key_of(announcement), signed(self.me, announcement), announcement.expiration)

    def _records(self, number: int) -> None:
        for key, value, expiration, subkey in self._forgeries(number):
            self._store(key, value, expiration, subkey)

    def _forgeries(self, number: int) -> Iterator[tuple[str, bytes, float, object]]:
        swarm, me = self.swarm, self.me.peer
        good = swarm.announcement(round=number, cell=0, stage=1)
        key, envelope = key_of(good), signed(self.me, good)
        yield key, envelope, good.expiration, self.stranger.peer  # forged subkey
        yield key, envelope, good.expiration, "not bytes"
        yield key, envelope[:-1] + bytes([envelope[-1] ^ 1]), good.expiration, me  # bad signature
        yield key, envelope, good.expiration + 100.0, me  # re-stored with a later expiration
        yield key, envelope, good.expiration, None  # a plain value over the dictionary
        yield key, b"", good.expiration, me  # zero-length
        yield key, envelope + bytes(3000), good.expiration, me
        yield key, signed(self.stranger, good), good.expiration, self.stranger.peer  # unregistered
        for other in (swarm.announcement(round=number - 3), swarm.announcement(round=number + 3)):
            yield key_of(other), signed(self.me, other), other.expiration, me  # replayed, and of the future
        elsewhere = swarm.announcement(round=number, stage=2, cell=7)
        yield key_of(elsewhere), signed(self.me, elsewhere), elsewhere.expiration, me
        foreign = swarm.announcement(round=number, swarm=b"\x02" * 32)
        yield key_of(foreign), signed(self.me, foreign), foreign.expiration, me

    def _bombs(self, number: int) -> None:
        """Bytes that unpack into more than they are, and simply many bytes."""
        deep, wide = b"\x91" * (2 * MEGABYTE), b"\xdd\x7f\xff\xff\xff" * 1000
        nested = b"\xc1"
        for _ in range(500):
            nested = msgpack.packb(msgpack.ExtType(0x40, nested))
        many = DictionaryDHTValue()
        for n in range(FLOOD):
            many.store(n.to_bytes(32, "big"), b"\xc4\x01x", time.time() + 1000)
        key = key_of(self.swarm.announcement(round=number))
        for bomb in (deep, wide, nested, many.packb(), b"", os.urandom(1000)):
            self._send(key, msgpack.packb(msgpack.ExtType(0x50, bomb)), DHTProtocol.IS_DICTIONARY)
            self._send(key, bomb, DHTProtocol.IS_DICTIONARY)
        for size in (3 * MEGABYTE, 100 * MEGABYTE):
            self._send(key, bytes(size), DHTProtocol.serializer.dumps(self.me.peer))

    def _answers(self, number: int) -> None:
        """What this node answers who asks it: a stranger's record, rubbish and 100 MB beside good ones."""
        for stage in (0, 1):
            good = self.swarm.announcement(round=number, stage=stage)
            records = {self.stranger.peer: signed(self.stranger, good), bytes(32): b"rubbish"}
            if self.serving == "silent":
                records[b"\x01" * 32] = bytes(100 * MEGABYTE)
            self.rogue.answer(key_of(good), records, good.expiration)

    def _flood(self, number: int) -> None:
        """10,000 records with a registered key, each in a cell of its own, in requests that are taken."""
        request = []
        for cell in range(FLOOD):
            # Not signed one by one, which would take seconds: the cell is looked at before the signature.
            announcement = self.swarm.announcement(round=number, stage=2, cell=1000 + cell)
            envelope = wire.encode(
                wire.Envelope(
                    modulus=self.me.public_key.modulus, body=wire.encode(announcement), signature=bytes(256)
                )
            )
            request.append((key_of(announcement), envelope, float(announcement.expiration)))
            if len(request) == 16:
                self._send_many(request)
                request = []

    # Streams

    def _streams(self, _number: int) -> None:
        """Many streams that say nothing, or what no honest peer says."""

        async def open_and_leave(victim: PeerID, said: bytes) -> None:
            for protocol in (wire.BLOB_STREAM, wire.REACH_STREAM, wire.HELLO_STREAM):
                with suppress(Exception):
                    _, _, writer = await self.rogue.p2p.call_binary_stream_handler(victim, protocol)
                    writer.write(said)
                    self._held.append(writer)

        async def all_at_once(victim: PeerID) -> None:
            said = [b"", b"\xff" * 70000, b"\x00\x00", os.urandom(500)] * 25
            await asyncio.gather(*(open_and_leave(victim, one) for one in said))

        self._held: list[asyncio.StreamWriter] = []
        for victim in self._victims():
            with suppress(Exception):
                self.rogue.run(all_at_once(victim))

    async def _serve(self, _info: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serve: dict[str, Callable[[asyncio.StreamWriter], Awaitable[None]]] = {
            "wrong": self._serve_wrong,
            "slow": self._serve_slowly,
            "empty": self._serve_empty,
            "silent": self._serve_nothing,
            "garbage": self._serve_garbage,
        }
        with suppress(Exception):
            await receive_message(reader, wire.BlobRequest)
            await serve[self.serving](writer)
        writer.close()

    async def _serve_wrong(self, writer: asyncio.StreamWriter) -> None:
        await send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=7))
        writer.write(b"c0ntent")

    async def _serve_slowly(self, writer: asyncio.StreamWriter) -> None:
        await send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=7))
        while True:
            writer.write(b"c")
            await writer.drain()
            await asyncio.sleep(0.9)

    async def _serve_empty(self, writer: asyncio.StreamWriter) -> None:
        await send_message(writer, wire.BlobHeader(status=wire.BLOB_FOLLOWS, size_bytes=0))

    async def _serve_nothing(self, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def _serve_garbage(self, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(os.urandom(65536))
            await writer.drain()

    # Sending

    def _victims(self) -> list[PeerID]:
        return [PeerID.from_base58(address.rpartition("/")[2]) for address in self.plan.victims]

    def _store(self, key: str, value: bytes, expiration: float, subkey: object = ...) -> None:
        subkey = self.me.peer if subkey is ... else subkey
        for victim in self._victims():
            with suppress(Exception):
                self.rogue.store(key, value, float(expiration), subkey, victim)

    def _send(self, key: str, value: bytes, tag: bytes) -> None:
        """A store request with its value and tag as they are."""
        self._request([DHTID.generate(source=key).to_bytes()], [value], [tag], [time.time() + 1000])

    def _send_many(self, records: list[tuple[str, bytes, float]]) -> None:
        self._request(
            [DHTID.generate(source=key).to_bytes() for key, _, _ in records],
            [DHTProtocol.serializer.dumps(value) for _, value, _ in records],
            [DHTProtocol.serializer.dumps(self.me.peer)] * len(records),
            [expiration for _, _, expiration in records],
        )

    def _request(
        self, keys: list[bytes], values: list[bytes], tags: list[bytes], expirations: list[float]
    ) -> None:
        request = dht_pb2.StoreRequest(
            keys=keys,
            subkeys=tags,
            values=values,
            expiration_time=expirations,
            in_cache=[False] * len(keys),
            peer=self.rogue.node.protocol.node_info,
        )

        async def send(victim: PeerID) -> None:
            with suppress(Exception):
                await self.rogue.node.protocol.get_stub(victim).rpc_store(request, timeout=5)

        for victim in self._victims():
            self.rogue.run(send(victim))

    def _sleep_until(self, number: int, share: float) -> None:
        moment = self.swarm.genesis + (number + share) * self.swarm.round_seconds
        time.sleep(max(0.0, moment - time.time()))


if __name__ == "__main__":
    plan = msgspec.json.decode(
        Path(sys.argv[1]).read_bytes(), type=Plan, dec_hook=lambda kind, value: kind(value)
    )
    hostile = Hostile(plan)
    print("ready", flush=True)
    try:
        hostile.play()
    finally:
        hostile.rogue.stop()

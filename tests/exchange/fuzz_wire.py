"""Mutated messages of every kind at every decoder of the wire: nothing but `WireError` may come out.

    python tests/exchange/fuzz_wire.py [--inputs 10_000_000] [--seconds 600] [--seed N]

An input begins as a valid message of one kind. One of its layers (an announcement's body, the envelope that
holds it, the record around that, …) is damaged, and the outer layers are put around it with the right
lengths: so most of the damage is met deep inside. Every input goes to every decoder; how far it comes is
counted for the decoder that it was meant for. What fails is left in `fuzz-failure.bin`, with exit code 1.

No atheris: it is guided by the branches taken, of which our Python has a dozen; msgspec's C would have to be
built by clang with its instrumentation.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa
from exchange_cast import Swarm, key_of, nobody_knows, signed
from hivemind.dht.crypto import DHTRecord
from hivemind.utils import MSGPackSerializer
from msgspec.msgpack import Ext

from identity import Identity
from identity.key import EXPONENT
from swarm.errors import WireError
from swarm.exchange import wire
from swarm.exchange.protocol import StrictSerializer
from swarm.exchange.storage import frozen_dictionary
from swarm.exchange.validator import AnnouncementValidator, SwarmRules, key_hash

pack = msgspec.msgpack.encode

ROUND = 10
SWARM = Swarm(genesis=0)
RULES = SwarmRules(
    swarm_id=SWARM.swarm_id,
    genesis=0,
    round_seconds=SWARM.round_seconds,
    now=lambda: (ROUND + 0.5) * SWARM.round_seconds,
    registered=nobody_knows,
)
#: Whatever goes wrong is told by the path to it in msgspec's message: then the decoder was inside.
PATH = "at `$["
PROGRESS_SECONDS = 10


# Valid messages


class Sample(NamedTuple):
    """One layer of a valid message, to be damaged."""

    data: bytes
    items: list[tuple[int, int]]  # where the msgpack items begin and end
    around: tuple[Callable[[bytes], bytes], ...]  # what puts the outer layers around it, the nearest first


def layers(core: bytes, *around: Callable[[bytes], bytes]) -> list[Sample]:
    """A message as its layers: `core` inside, and each of `around` put around it."""
    samples = [Sample(core, items_of(core), around)]
    for position, wrap in enumerate(around):
        core = wrap(core)
        samples.append(Sample(core, items_of(core), around[position + 1 :]))
    return samples


_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
_NUMBER_BYTES = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_ARRAY_BYTES = {0xDC: 2, 0xDD: 4}


def items_of(data: bytes) -> list[tuple[int, int]]:
    """Where the msgpack items of a valid message begin and end, those in arrays too."""
    items: list[tuple[int, int]] = []

    def walk(start: int) -> int:
        place = len(items)
        items.append((start, start))
        kind, end = data[start], start + 1
        if kind in _LENGTH_BYTES:
            size = int.from_bytes(data[end : end + _LENGTH_BYTES[kind]], "big")
            end += _LENGTH_BYTES[kind] + size + (0xC7 <= kind <= 0xC9)  # an extension's type
        elif kind in _NUMBER_BYTES:
            end += _NUMBER_BYTES[kind]
        elif 0xA0 <= kind <= 0xBF:
            end += kind & 31
        elif 0x90 <= kind <= 0x9F or kind in _ARRAY_BYTES:
            width = _ARRAY_BYTES.get(kind, 0)
            count = int.from_bytes(data[end : end + width], "big") if width else kind & 15
            end += width
            for _ in range(count):
                end = walk(end)
        items[place] = (start, end)
        return end

    walk(0)
    return items


def fuzzer_identity() -> Identity:
    """The same key on every run: a run is told by its seed. Its primes are the largest two below 2^1024."""
    p, q = 2**1024 - 105, 2**1024 - 179
    d = pow(EXPONENT, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(EXPONENT, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return Identity(numbers.private_key(), Path("fuzzer.pem"))


IDENTITY = fuzzer_identity()


def announcements() -> list[wire.Announcement]:
    """For one key of the DHT; two of them for one slot, as only a cheat would sign."""
    usual = SWARM.announcement(round=ROUND)
    return [
        usual,
        msgspec.structs.replace(usual, groups=wire.MAX_GROUPS, blob_bytes=wire.MAX_GROUPS_BLOB_BYTES),
        SWARM.announcement(round=ROUND, stage=2, cell=2**32 - 1),
        SWARM.announcement(round=2**40, expiration=2**48 - 1),
    ]


def around_group(group: bytes) -> bytes:
    """A blob of this group, twice."""
    return b"\x92\x01\x92" + group * 2


def dictionary_of(record: bytes) -> bytes:
    """A DHT value as hivemind sends it: this record between others."""
    others = [pack((bytes([n]) * 32, b"value", 1e9)) for n in range(2)]
    records = b"\x93" + others[0] + record + others[1]
    return pack(Ext(0x50, b"\x93\xc0" + pack(1e9) + records))


def samples() -> dict[str, list[Sample]]:
    """Valid messages of every kind, by the name of the decoder that they are meant for."""
    sent = announcements()
    envelopes = [wire.Envelope(**_fields(signed(IDENTITY, one))) for one in sent]

    def envelope_of(envelope: wire.Envelope) -> Callable[[bytes], bytes]:
        return lambda body: pack([envelope.modulus, body, envelope.signature])

    enveloped = [(envelope.body, envelope_of(envelope)) for envelope in envelopes]

    def record(value: bytes) -> bytes:
        return pack((IDENTITY.peer, value, float(sent[0].expiration)))

    digest = b"d" * 32
    completions = [wire.Completion.of((1, 70_000, 3), text) for text in ("46", "é" * 20, "über 𝄞" * 9)]
    groups = [
        wire.Group(index=0, completions=(completions[0],)),
        wire.Group(index=2**20, answers=(digest,) * 3, critiques=(digest,), completions=(*completions,) * 2),
    ]
    honest = frozen_dictionary()
    honest.store(IDENTITY.peer, MSGPackSerializer.dumps(signed(IDENTITY, sent[0])), 1e9)
    return {
        "Announcement": [layer for one in sent for layer in layers(wire.encode(one))],
        "Envelope": [layer for body, wrap in enveloped for layer in layers(body, wrap)],
        "record": [layer for body, wrap in enveloped[:3] for layer in layers(body, wrap, pack)],
        "DHT value": [
            *layers(enveloped[0][0], enveloped[0][1], pack, record, dictionary_of),
            *layers(record(b"\xc4\x01v"), dictionary_of),
            *layers(MSGPackSerializer.dumps(honest)),
            *layers(pack(signed(IDENTITY, sent[0]))),
        ],
        "groups": [
            *layers(pack(completions[1]), lambda c: b"\x94\x07\x90\x90\x92" + c * 2, around_group),
            *[layer for group in groups for layer in layers(pack(group), around_group)],
            *layers(wire.encode(wire.GroupsBlob(groups=(groups[0],) * 20))),
        ],
        "GroupsBlob": [layer for group in groups for layer in layers(pack(group), around_group)],
        "BlobRequest": layers(pack(wire.BlobRequest(digest=digest, offset=2**40))),
        "BlobHeader": layers(pack(wire.BlobHeader(status=0, size_bytes=2**24))),
        "ReachRequest": layers(pack(wire.ReachRequest(ports=(38331, 80, 65535)))),
        "ReachAnswer": layers(pack(wire.ReachAnswer(address="203.0.113.7", reached=(38331, 80)))),
        "Hello": layers(pack(wire.Hello(addresses=("/ip4/203.0.113.7/tcp/38331/p2p/Qm", "/ip6/::1/tcp/1")))),
    }


def _fields(envelope: bytes) -> dict[str, bytes]:
    return msgspec.structs.asdict(wire.decode(wire.Envelope, envelope, wire.MAX_ANNOUNCEMENT_BYTES))


# Decoders


class Decoder(NamedTuple):
    """What peers' bytes go through; `struct` is what an error at the outermost level names."""

    decode: Callable[[bytes], object]
    struct: str


class Witness:
    """Keeps the last reason for which something was dropped."""

    reason = ""

    def dropped(self, reason: str, *, peer: bytes | None = None, via: bytes | None = None) -> None:
        self.reason = reason

    def equivocated(self, *_: object) -> None:
        pass


def decoders() -> dict[str, Decoder]:
    """All that decode what other peers send. Those of `samples` have the same names."""
    witness = Witness()
    validator = AnnouncementValidator(RULES, witness)
    serializer = StrictSerializer(validator)
    key = key_hash(key_of(announcements()[0]))
    expiration = float(announcements()[0].expiration)
    signed_by_us = {signed(IDENTITY, one) for one in announcements()}

    def opened(data: bytes) -> None:
        wire.open_envelope(data)
        if data not in signed_by_us:
            raise AssertionError("an envelope opened that was never signed, or has two encodings")

    def validated(data: bytes) -> None:
        if not validator.validate(DHTRecord(key, pack(IDENTITY.peer), data, expiration)):
            raise WireError(witness.reason)

    def received(data: bytes) -> None:  # as hivemind does: decode it, then show the validator each record
        witness.reason = ""
        value = serializer.loads(data)
        for subkey, (record, until) in [] if isinstance(value, bytes) else value.items():
            validator.validate(DHTRecord(key, serializer.dumps(subkey), record, until))
        if witness.reason:
            raise WireError(f"record dropped: {witness.reason}")

    def groups(data: bytes) -> None:
        wire.decode_groups(data, _declared(data), wire.GroupsLimit(max_bytes=2**20))

    def message(kind: type[msgspec.Struct], max_bytes: int = wire.MAX_MESSAGE_BYTES) -> Decoder:
        return Decoder(lambda data: wire.decode(kind, data, max_bytes), kind.__name__)

    return {
        "Announcement": message(wire.Announcement),
        "Envelope": Decoder(opened, "Envelope"),
        "record": Decoder(validated, "record is not an envelope"),
        "DHT value": Decoder(received, "DHT value"),
        "groups": Decoder(groups, "GroupsBlob"),
        "GroupsBlob": message(wire.GroupsBlob, 2**20),
        "BlobRequest": message(wire.BlobRequest),
        "BlobHeader": message(wire.BlobHeader),
        "ReachRequest": message(wire.ReachRequest),
        "ReachAnswer": message(wire.ReachAnswer),
        "Hello": message(wire.Hello),
    }


def _declared(blob: bytes) -> int:
    """How many groups a blob says it has: a hostile announcement says the same."""
    kind = blob[2] if len(blob) > 2 else 0
    if kind in _ARRAY_BYTES:
        return int.from_bytes(blob[3 : 3 + _ARRAY_BYTES[kind]], "big")
    return kind & 15


# Damage

_NASTY_ITEMS = [
    b"\xc0",  # nil
    b"\xc1",  # never used
    b"\xc3",  # true
    b"\xff",  # -1
    b"\x00",
    b"\x03",
    b"\x7f",
    b"\xcd\x10\x00",  # 4096
    b"\xcd\xff\xff",
    b"\xce\xff\xff\xff\xff",
    b"\xcf" + b"\xff" * 8,
    b"\xcf\x00\x01" + b"\x00" * 6,  # 2^48
    b"\xd3\x80" + b"\x00" * 7,  # -2^63
    b"\xcb\x7f\xf8" + b"\x00" * 6,  # NaN
    b"\xcb\x7f\xf0" + b"\x00" * 6,  # infinity
    b"\xca\x3f\x80\x00\x00",  # 1.0 in four bytes
    b"\x90",
    b"\x80",
    b"\xa0",
    b"\xc4\x00",
    b"\xc4\x04toks",
    b"\xc4\x20" + b"\x00" * 32,
    b"\xc5\x01\x00" + b"\xff" * 256,
    b"\xc5\x01\x00" + b"\x00" * 255 + b"\x01",
    b"\xa2\xff\xfe",  # not UTF-8
    b"\xa3\xed\xa0\x80",  # half of a surrogate pair
    b"\xa4\xf4\x90\x80\x80",  # beyond Unicode
    b"\xa1\x00",
    b"\xd6\xff\x00\x00\x00\x01",  # a timestamp
    b"\xd8\x50" + b"\x00" * 16,
    b"\xc7\x00\x50",
    b"\xc7\x05\x50\x93\xc0\x00\x90\x00",
    b"\x81\xa1a\x01",
    b"\x91" * 3000 + b"\xc0",
    b"\x81\x01" * 1500 + b"\xc0",
    b"\xdc\x03\xe8" + b"\x00" * 1000,
    b"\xdc\x10\x01" + b"\x94\x00\x90\x90\x90" * 400,
    b"\x9f" + b"\xd9\x40" + "𝄞".encode() * 16,
    b"\x94\x00\x90\x90\x92" + b"\x92\xc4\x04toks\xa1a" * 2,
    b"\x92\xc4\x04toks\xa3abc",
    b"\x93\xc4\x01k\xc4\x01v\x00",
]
_TYPE_BYTES = bytes([*range(0xC0, 0xE0), 0x00, 0x7F, 0x80, 0x8F, 0x90, 0x92, 0x9F, 0xA0, 0xBF, 0xFF])
_HUGE_HEADERS = [bytes([kind]) for kind in (0xC6, 0xC9, 0xDB, 0xDD, 0xDF)]
_LENGTHS = [2**32 - 1, 2**31, 2**31 - 1, 2**24, 2**16, 4097, 4096, 257, 16, 1, 0]


class Damage:
    """The ways in which a layer is damaged; every choice comes from one seeded generator."""

    def __init__(self, rng: random.Random, spare: list[bytes]) -> None:
        self._rng = rng
        self._spare = spare  # valid messages to splice from
        self._ways = [
            *[self.flip] * 3,
            *[self.replace] * 5,
            *[self.change_number] * 3,
            *[self.retype] * 2,
            *[self.blow_up] * 2,
            *[self.lengthen] * 2,
            *[self.move] * 2,
            *[self.repeat] * 2,
            self.drop,
            self.cut,
            self.append,
            self.splice,
            self.noise,
        ]

    def __call__(self, sample: Sample) -> bytes:
        """The whole message, damaged in one layer; one in 50 is left as it is."""
        data = sample.data
        if self._below(50):
            data = self._one_of(self._ways)(data, sample.items)
            while not self._below(4):
                data = self._one_of(self._ways)(data, sample.items)
        for wrap in sample.around:
            data = wrap(data)
        return data

    def flip(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """Up to four bits."""
        changed = bytearray(data or b"\0")
        for _ in range(1 + self._below(4)):
            changed[self._below(len(changed))] ^= 1 << self._below(8)
        return bytes(changed)

    def replace(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """An item by one of another kind or size."""
        start, end = self._one_of(items)
        return data[:start] + self._one_of(_NASTY_ITEMS) + data[end:]

    def change_number(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """The content of an item, not its type."""
        start, end = self._one_of(items)
        if end - start < 2 or end > len(data):
            return data[:start] + bytes([self._below(128)]) + data[start + 1 :]
        place = start + 1 + self._below(end - start - 1)
        return data[:place] + bytes([self._below(256)]) + data[place + 1 :]

    def retype(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """An item's type byte."""
        start = self._one_of(items)[0]
        return data[:start] + bytes([self._one_of(_TYPE_BYTES)]) + data[start + 1 :]

    def blow_up(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """An item claims to be far longer than it is."""
        start = self._one_of(items)[0]
        header = self._one_of(_HUGE_HEADERS) + self._one_of(_LENGTHS).to_bytes(4, "big")
        return data[:start] + header + data[start + 1 :]

    def lengthen(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """The same item in a longer encoding."""
        start, end = self._one_of(items)
        return data[:start] + longer_form(data[start:end]) + data[end:]

    def move(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """One item to the place of another."""
        (start, end), (source, source_end) = self._one_of(items), self._one_of(items)
        return data[:start] + data[source:source_end] + data[end:]

    def repeat(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """An item, many times over."""
        start, end = self._one_of(items)
        return data[:end] + data[start:end] * (1 + self._below(1 + 2000 // (end - start))) + data[end:]

    def drop(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """An item is missing."""
        start, end = self._one_of(items)
        return data[:start] + data[end:]

    def cut(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """The end is missing."""
        return data[: self._below(len(data) + 1)]

    def append(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """Something follows."""
        return data + self._rng.randbytes(1 + self._below(8))

    def splice(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """The beginning of one message and the end of another."""
        other = self._one_of(self._spare)
        return data[: self._one_of(items)[0]] + other[self._below(len(other)) :]

    def noise(self, data: bytes, items: list[tuple[int, int]]) -> bytes:
        """Nothing of the message is left, or of one item."""
        start, end = self._one_of(items)
        return data[:start] + self._rng.randbytes(self._below(64)) + data[end:]

    def _below(self, limit: int) -> int:
        return int(self._rng.random() * limit)

    def _one_of(self, choices):
        return choices[int(self._rng.random() * len(choices))]


#: Type bytes whose successor says the same with a number or length twice as wide.
_ZEROS_TO_NEXT_WIDTH = {
    **{0xCC: 1, 0xCD: 2, 0xCE: 4},  # numbers
    **{0xC4: 1, 0xC5: 2, 0xC7: 1, 0xC8: 2, 0xD9: 1, 0xDA: 2, 0xDC: 2},  # bytes, extensions, text, arrays
}


def longer_form(item: bytes) -> bytes:
    """Another encoding of the same msgpack item, where there is one."""
    if not item:
        return item
    kind = item[0]
    if kind <= 0x7F:
        return b"\xcc" + item
    if kind in _ZEROS_TO_NEXT_WIDTH:
        return bytes([kind + 1]) + b"\0" * _ZEROS_TO_NEXT_WIDTH[kind] + item[1:]
    if 0xA0 <= kind <= 0xBF:
        return b"\xd9" + bytes([kind & 31]) + item[1:]
    if 0x90 <= kind <= 0x9F:
        return b"\xdc\x00" + bytes([kind & 15]) + item[1:]
    return item


# The run


@dataclass
class Tally:
    """What became of the inputs."""

    inputs: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0  # of the processor, for one input
    largest_bytes: int = 0
    meant: Counter[str] = field(default_factory=Counter)  # inputs, by the decoder that they were meant for
    accepted: Counter[str] = field(default_factory=Counter)  # of those
    inside: Counter[str] = field(default_factory=Counter)  # of those, refused behind the outermost level
    strangers_accepted: Counter[str] = field(default_factory=Counter)  # meant for another decoder
    strangers_refused: Counter[str] = field(default_factory=Counter)
    exceptions: Counter[str] = field(default_factory=Counter)
    failure: tuple[str, bytes, BaseException] | None = None  # the decoder, its input, and what it raised

    def deep_share(self, name: str) -> float:
        """Of a decoder's own inputs, those that came past its outermost level."""
        return (self.accepted[name] + self.inside[name]) / max(1, self.meant[name])

    def lines(self) -> Iterator[str]:
        """The tally as a table."""
        header = ("decoder", "meant for it", "accepted", "refused inside", "at the door", "deep")
        yield "{:13}{:>13}{:>11}{:>16}{:>13}{:>7}{:>21}{:>20}".format(
            *header, "strangers accepted", "strangers refused"
        )
        for name in self.meant:
            door = self.meant[name] - self.accepted[name] - self.inside[name]
            yield (
                f"{name:13}{self.meant[name]:13,}{self.accepted[name]:11,}{self.inside[name]:16,}{door:13,}"
                f"{self.deep_share(name):7.0%}{self.strangers_accepted[name]:21,}"
                f"{self.strangers_refused[name]:20,}"
            )
        yield "exceptions: " + ", ".join(f"{name} {count:,}" for name, count in self.exceptions.items())
        yield (
            f"{self.inputs:,} inputs (largest {self.largest_bytes:,} bytes), each to {len(self.meant)} "
            f"decoders, in {self.seconds:.0f} s; the slowest took {1000 * self.slowest_seconds:.1f} ms"
        )


def fuzz(inputs: int, seconds: float, seed: int, progress: Callable[[Tally], None] = lambda _: None) -> Tally:
    """Run until the inputs or the seconds are spent, or something other than `WireError` is raised."""
    rng = random.Random(seed)
    valid = samples()
    targets = decoders()
    names = list(valid)
    damage = Damage(rng, [sample.data for kind in valid.values() for sample in kind])
    tally = Tally(meant=Counter(dict.fromkeys(names, 0)))
    clock = time.perf_counter
    started = clock()
    next_progress = PROGRESS_SECONDS
    while tally.inputs < inputs and tally.seconds < seconds:
        name = names[int(rng.random() * len(names))]
        data = damage(valid[name][int(rng.random() * len(valid[name]))])
        before = time.thread_time()
        for target, decoder in targets.items():
            _offer(decoder, target, data, target == name, tally)
        taken = time.thread_time() - before
        tally.inputs += 1
        tally.meant[name] += 1
        tally.slowest_seconds = max(tally.slowest_seconds, taken)
        tally.largest_bytes = max(tally.largest_bytes, len(data))
        tally.seconds = clock() - started
        if tally.failure:
            return tally
        if tally.seconds >= next_progress:
            progress(tally)
            next_progress += PROGRESS_SECONDS
    return tally


def _offer(decoder: Decoder, name: str, data: bytes, own: bool, tally: Tally) -> None:
    try:
        decoder.decode(data)
    except WireError as error:
        tally.exceptions["WireError"] += 1
        if not own:
            tally.strangers_refused[name] += 1
        elif _is_inside(str(error), decoder.struct):
            tally.inside[name] += 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - what we look for; a panic in Rust is no `Exception`
        tally.exceptions[type(error).__name__] += 1
        tally.failure = (name, data, error)
    else:
        (tally.accepted if own else tally.strangers_accepted)[name] += 1


def _is_inside(message: str, struct: str) -> bool:
    outermost = struct in message.partition(":")[0]
    return PATH in message or not outermost


def _largest_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> int:
    """Run, print, and say by the exit code whether nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faulthandler.enable()  # a crash inside C shows where

    def progress(tally: Tally) -> None:
        print(
            f"{tally.seconds:4.0f} s  inputs={tally.inputs:,} accepted={tally.accepted.total():,} "
            f"inside={tally.inside.total():,} rss_mib={_largest_mib()} exceptions={dict(tally.exceptions)}",
            flush=True,
        )

    print(f"seed={arguments.seed}", flush=True)
    tally = fuzz(arguments.inputs, arguments.seconds, arguments.seed, progress)
    print(*tally.lines(), f"largest resident size: {_largest_mib()} MiB", sep="\n")
    if tally.failure:
        name, data, error = tally.failure
        Path("fuzz-failure.bin").write_bytes(data)
        print(f"FAILED: {name} raised {error!r}; the input is in fuzz-failure.bin")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

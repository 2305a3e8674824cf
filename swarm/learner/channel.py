"""Commands between the processes of one node, over a socket: typed msgspec, never pickle."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import TypeVar

import msgspec
from msgspec import Struct

from swarm.learner.batch import TrainingGroup
from swarm.learner.grpo import Sums
from swarm.manifest import Learn, Sampling
from swarm.policy.plan import Plan


class Recipe(Struct, frozen=True, kw_only=True):
    """All that a helper needs to build the same policy and learner as the node."""

    plan: Plan  # the node's
    learn: Learn
    group_size: int
    temperature: float
    max_completion_tokens: int
    work_dir: str
    threads: int | None = None  # of torch, in each helper
    trusted_code: tuple[str, ...] = ()


class Start(Struct, frozen=True, tag=True):
    """The first message to a helper; `Ready` answers it."""

    rank: int
    ranks: int
    recipe: Recipe


class Ready(Struct, frozen=True, tag=True):
    """From a helper: it is at the point where all meet."""


class Go(Struct, frozen=True, tag=True):
    """To a helper: all are."""


class Failed(Struct, frozen=True, tag=True):
    """From a helper, before it ends: why."""

    reason: str


class TakeState(Struct, frozen=True, tag=True):
    """To a helper: weights, and if `whole` the rest of the state, come through the memory."""

    whole: bool


class Sample(Struct, frozen=True, tag=True):
    """To a helper: its share of the groups; `Sampled` answers it."""

    prompts: list[list[int]]
    seeds: list[list[bytes]]
    max_tokens: int
    sampling: Sampling


class Sampled(Struct, frozen=True, tag=True):
    """From a helper: the first groups of its share, as many as there was time for."""

    groups: list[list[list[int]]]


class Train(Struct, frozen=True, tag=True):
    """To a helper: an update; `Trained` answers it."""

    groups: list[TrainingGroup]


class Share(Struct, frozen=True, tag=True):
    """From a helper, in each optimizer step: what it measured, and which parameters have a gradient."""

    measured: Sums
    present: list[bool]


class Whole(Struct, frozen=True, tag=True):
    """To a helper: which parameters have a gradient on any rank."""

    present: list[bool]


class Trained(Struct, frozen=True, tag=True):
    """From a helper: the fingerprints of its next state, of the weights and of the rest."""

    fingerprints: tuple[int, int]


Message = Start | Ready | Go | Failed | TakeState | Sample | Sampled | Train | Share | Whole | Trained
Kind = TypeVar("Kind", bound=Struct)
_decoder = msgspec.msgpack.Decoder(Message)


class ChannelError(Exception):
    """The other side is gone, failed, or does not answer; the message says which."""


class Channel:
    """Typed messages over a socket. Not for use from two threads at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Message) -> None:
        """Hand a message over; `ChannelError` if the other side is gone."""
        try:
            self._connection.send_bytes(msgspec.msgpack.encode(message))
        except OSError as error:
            raise ChannelError("it is gone") from error

    def receive(self, timeout: float | None = None) -> Message:
        """The next message; `ChannelError` if there is none in `timeout` seconds, or the other failed."""
        try:
            if timeout is not None and not self._connection.poll(timeout):
                raise ChannelError(f"it has not answered for {timeout:.0f} seconds")
            message: Message = _decoder.decode(self._connection.recv_bytes())
        except (OSError, EOFError) as error:
            raise ChannelError("it is gone") from error
        if isinstance(message, Failed):
            raise ChannelError(message.reason)
        return message

    def expect(self, kind: type[Kind], timeout: float | None = None) -> Kind:
        """Like `receive`, for a message of one kind."""
        message = self.receive(timeout)
        if not isinstance(message, kind):
            raise ChannelError(f"it said {type(message).__name__} in place of {kind.__name__}")
        return message

    def has_something(self, seconds: float) -> bool:
        """Whether a message, or the other side's end, is there within so many seconds."""
        return self._connection.poll(seconds)

    def close(self) -> None:
        """The other side notices."""
        self._connection.close()

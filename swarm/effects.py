"""What a round asks of the outside world. `round.play` awaits these; whoever drives it performs them.

A round is a plain coroutine without I/O: awaiting an effect suspends it and hands the effect to the
driver (`node` in real life, a loop over simulated time in tests), which sends the outcome back in.
All times are Unix seconds on the ledger's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from swarm.exchange.wire import Announcement, Completion, Group, GroupsLimit
from swarm.manifest import Stage
from swarm.verde.build import Build
from swarm.verde.state_files import StateFiles
from swarm.verde.verdicts import AuditClass

T = TypeVar("T")


class Effect(Generic[T]):
    """Base of all effects; awaiting one gives the outcome `T`."""

    def __await__(self) -> Generator[Effect[T], T, T]:
        return (yield self)


@dataclass(frozen=True)
class Sample(Effect[list[tuple[Completion, ...]]]):
    """Sample one group per prompt, in order, until the time is up; at least one group is made.

    `seeds[i][g]` is the 32-byte seed of completion g of prompt i, which is for question `numbers[i]`. The
    outcome is a prefix of the prompts: one tuple of completions per finished group.
    """

    stage: Stage
    numbers: tuple[int, ...]
    prompts: tuple[str, ...]
    seeds: tuple[tuple[bytes, ...], ...]
    until: float


@dataclass(frozen=True)
class Publish(Effect[None]):
    """Keep the blob for others and announce it."""

    announcement: Announcement
    blob: bytes


@dataclass(frozen=True)
class Received:
    """The groups that one peer announced; signed and well-formed, everything else unchecked."""

    peer: bytes
    envelope: bytes  # the signed announcement
    root: bytes  # that the announcement claims
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Gather(Effect[list[Received]]):
    """Wait for the stage's end, then take what the cell announced.

    In a crowded cell at most `max_peers` announcements are taken, in the order of `order(root)`.
    """

    stage: int
    cell: int
    at: float
    max_peers: int
    order: Callable[[bytes], bytes]
    limit: GroupsLimit  # of one peer's blob


@dataclass(frozen=True)
class TrainingGroup:
    """One group to learn from, as text; rewards are recomputed ones."""

    digest: bytes
    sender: bytes
    prompt: str
    leaves: tuple[bytes, ...]  # of the completions
    completions: tuple[Completion, ...]
    rewards: tuple[float, ...]
    own: bool  # own completions keep their token ids; others' text is re-encoded

    @property
    def informative(self) -> bool:
        """Whether its rewards differ; a group of equal rewards has no advantage to learn from."""
        return len(set(self.rewards)) > 1


@dataclass(frozen=True)
class Screen(Effect[list[tuple[bool, ...]]]):
    """Ask the own model which completions of others it might have said itself.

    The outcome is empty if the time is up, else it has a flag for every completion of every group: False if
    it holds a token outside the model's `top_k` likeliest (0: any is inside), or is too long for its context.
    """

    groups: tuple[TrainingGroup, ...]
    top_k: int
    until: float


@dataclass(frozen=True)
class Learned:
    """How much of the batch fitted into the time, the three states, and what it was computed with."""

    taken: int  # learned from batch[:taken]
    base: bytes  # digest of the base model that the states belong to
    audit_class: AuditClass
    build: Build
    sampled_with: StateFiles
    state_before: StateFiles
    state_after: StateFiles


@dataclass(frozen=True)
class Learn(Effect[Learned]):
    """One GRPO update on the batch, or on as long a prefix of it as fits before `until`.

    `nudge` asks for a planted fault: one weight of the new state is moved.
    """

    batch: tuple[TrainingGroup, ...]
    until: float
    nudge: bool = False


@dataclass(frozen=True)
class Played:
    """What came of a round: all that its report and its record need."""

    round: int
    rewards: dict[str, float]  # mean reward of each stage's completions
    groups: int
    external_groups: int
    reward_micros: int  # sum over the groups of their mean reward
    commitment: bytes
    dropped: dict[str, int]  # what others sent and we refused, by reason
    planted: bool = False  # whether the planted fault that was asked for is in it
    too_slow_here: int = 0  # see `Reading`: of a round that is played again


@dataclass(frozen=True)
class Commit(Effect[None]):
    """Keep the commitment's head and blob and put its root on the ledger, before the round ends."""

    head: bytes
    blob: bytes
    learned: Learned
    played: Played


def run(play: Coroutine[Effect[Any], Any, T], perform: Callable[[Effect[Any]], object]) -> T:
    """Drive a round to its end: `perform` carries out each effect and returns its outcome."""
    outcome: object = None
    while True:
        try:
            effect = play.send(cast(Any, outcome))
        except StopIteration as end:
            return cast(T, end.value)
        outcome = perform(effect)

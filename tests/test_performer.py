"""What a performer says of a round's stages; rounds themselves are played in `test_round` and `test_node`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_swarm import small_manifest

from swarm.effects import Gather, Publish
from swarm.errors import ExchangeError
from swarm.exchange import wire
from swarm.manifest import STAGE_NUMBER
from swarm.performer import Pace, Performer

DEADLINE = 400.0  # of the answers
ANSWER = STAGE_NUMBER["answer"]


class SlowExchange:
    """Announcing takes its time, or fails."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.error: ExchangeError | None = None
        self.now = 300.0

    def put_blob(self, data: bytes) -> None:
        pass

    def announce(self, announcement: wire.Announcement) -> None:
        self.now += self.seconds
        if self.error is not None:
            raise self.error

    def collect(self, *place: int, **limits: object) -> list[object]:
        return []


@pytest.fixture
def exchange():
    return SlowExchange()


@pytest.fixture
def performer(exchange):
    rules = SimpleNamespace(manifest=small_manifest("stages"), round=3, starts_at=0.0)
    return Performer(
        rules,
        SimpleNamespace(policy=None),
        exchange,
        Pace(),
        state=None,
        now=lambda: exchange.now,
        wait_until=lambda moment: None,
        commit=lambda commit: None,
        show=lambda stage: None,
    )


def publish(performer: Performer) -> None:
    announcement = wire.Announcement(
        swarm=bytes(32),
        round=3,
        stage=ANSWER,
        cell=0,
        expiration=9,
        groups=1,
        root=bytes(32),
        blob=bytes(32),
        blob_bytes=1,
    )
    performer.perform(Publish(announcement, b"x"))


def gather(performer: Performer) -> None:
    performer.perform(
        Gather(ANSWER, 0, DEADLINE, max_peers=1, order=lambda root: root, limit=wire.GroupsLimit())
    )


@pytest.mark.parametrize(("seconds", "outcome"), [(0.0, "on_time"), (100.0, "on_time"), (100.1, "late")])
def test_stage_is_late_if_announcing_ends_after_its_deadline(performer, exchange, seconds, outcome):
    exchange.seconds = seconds
    publish(performer)
    gather(performer)
    assert performer.stages == {"answer": outcome}


def test_stage_without_anything_made_is_empty(performer):
    gather(performer)
    assert performer.stages == {"answer": "empty"}


def test_stage_that_could_not_be_announced_has_failed(performer, exchange):
    exchange.error = ExchangeError("no room")
    publish(performer)
    gather(performer)
    assert performer.stages == {"answer": "failed"}

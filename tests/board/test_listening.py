"""Listening to real peers on loopback."""

from __future__ import annotations

import hashlib
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from identity import Identity, peer_name
from swarm.board import listening as module
from swarm.board.listening import MAX_CELLS, NO_DRAW, NOBODY, Listening
from swarm.draw import Draw
from swarm.errors import SandboxError
from swarm.exchange import wire
from swarm.exchange.service import Exchange
from swarm.exchange.validator import SwarmRules
from swarm.exchange.wire import Completion, Group, GroupsBlob
from swarm.manifest import STAGE_NUMBER, Manifest, parse
from swarm.tasks import load_tasks
from swarm.verde.commitment import groups_root, rollout_leaves

RULES = """
name: listening
tasks: [{task}]
models: [tiny]
round_seconds: 3600
group_size: 2
cell_size: 4
score_seconds: 60
stages:
  - {{name: answer, ends_at: 0.3, max_groups: 4, max_tokens: 100}}
  - {{name: critique, ends_at: 0.5, max_groups: 4, max_tokens: 100}}
  - {{name: revise, ends_at: 0.7, max_groups: 4, max_tokens: 100}}
learn: {{ends_at: 0.9, external_groups: 4, learning_rate: 0.1}}
"""
MANIFEST = parse(RULES.format(task="{name: arithmetic}").encode(), "test")
TASKS = load_tasks(MANIFEST)
WAIT_SECONDS = 60.0
PEERS = 4


def until(condition: Callable[[], object]) -> None:
    """Wait for what happens in other threads and processes."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def processes() -> set[psutil.Process]:
    """What this one has started, directly or not."""
    return set(psutil.Process().children(recursive=True))


class Swarm:
    """Peers that announce what they are told to, and a clock and a draw that tests move."""

    def __init__(self, stack: ExitStack, identities: list[Identity], folder: Path) -> None:
        self.genesis = int(time.time()) - 10 * 3600
        self.ahead = 0.0
        self.at(10, 0.85)
        self.active = 4
        self.is_known = True
        self.identities = identities
        self.exchanges: list[Exchange] = []
        self._stack = stack
        self._folder = folder

    def at(self, number: int, fraction: float) -> None:
        """Put the clock there."""
        self.ahead = self.genesis + (number + fraction) * 3600 - time.time()

    def now(self) -> float:
        return time.time() + self.ahead

    @property
    def round(self) -> int:
        return int(self.now() - self.genesis) // 3600

    @property
    def draw(self) -> Draw:
        beacon = hashlib.sha256(self.round.to_bytes(4, "big")).digest()
        return Draw(MANIFEST.swarm_id, beacon, self.active, MANIFEST.cell_size)

    def current(self) -> tuple[int, Draw] | None:
        return (self.round, self.draw) if self.is_known else None

    def join(self) -> None:
        """One more peer."""
        n = len(self.exchanges)
        identity = self.identities[n]
        rules = SwarmRules(MANIFEST.swarm_id, self.genesis, 3600, self.now, lambda peer: None)
        exchange = Exchange(
            identity,
            lambda _round, _stage, message: identity.sign(message),
            rules,
            self._folder / f"peer-{n}",
            initial_peers=self.bootnodes(),
        )
        self.exchanges.append(self._stack.enter_context(exchange))

    def bootnodes(self) -> list[str]:
        return [address for exchange in self.exchanges[:1] for address in exchange.multiaddrs]

    def peer(self, n: int) -> bytes:
        return self.identities[n].peer

    def say(self, n: int, stage: str, *groups: Group, forged: bool = False) -> None:
        """Have a peer publish a stage."""
        blob, number = wire.encode(GroupsBlob(groups=groups)), STAGE_NUMBER[stage]
        root = groups_root(self.peer(n), self.round, number, groups)
        self.exchanges[n].announce(
            wire.Announcement(
                swarm=MANIFEST.swarm_id,
                round=self.round,
                stage=number,
                cell=self.draw.cell(self.peer(n)),
                expiration=wire.expiration(self.genesis, 3600, self.round),
                groups=len(groups),
                root=b"r" * 32 if forged else root,
                blob=self.exchanges[n].put_blob(blob),
                blob_bytes=len(blob),
            )
        )

    def answer(self, cell: int = 0, j: int = 0) -> str:
        return TASKS.draw(self.draw.question_seed(cell, j)).answer

    def leaf(self, n: int, group: Group) -> bytes:
        return rollout_leaves(self.peer(n), self.round, 0, group)[0]


def group(*texts: str, answers=()) -> Group:
    completions = tuple(Completion.of(range(1, 11), text) for text in texts)
    return Group(index=0, answers=answers, completions=completions)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> list[Identity]:
    folder = tmp_path_factory.mktemp("keys")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda n: Identity.create(folder / f"{n}.pem"), range(PEERS)))


@pytest.fixture
def swarm(identities: list[Identity], tmp_path: Path) -> Iterator[Swarm]:
    with ExitStack() as stack:
        yield Swarm(stack, identities, tmp_path)


@pytest.fixture
def listen(swarm: Swarm, tmp_path: Path) -> Iterator[Callable[..., Listening]]:
    """Starts a listening; after its stop nothing of it may be left."""
    before = processes()
    started: list[Listening] = []

    def make(manifest: Manifest = MANIFEST, on_change=None, **options) -> Listening:
        given = {"now": swarm.now, "current": swarm.current, "bootnodes": swarm.bootnodes} | options
        given.setdefault("folder", tmp_path / f"listener{len(started)}")
        one = Listening(manifest, swarm.genesis, **given)
        if on_change is not None:
            one.on_change(on_change)
        started.append(one)
        one.start()
        return one

    yield make
    ours = {exchange._peer._host.p2p._child.pid for exchange in swarm.exchanges}
    for one in started:
        began = time.monotonic()
        one.stop()
        assert time.monotonic() - began < 8
        assert one._thread.join(0)
        assert one._exchange is None or not one._exchange._peer.store.folder.parent.exists()
    left = [process for process in processes() - before if process.pid not in ours]
    assert not left, left


def test_peers_that_announce_are_heard_by_one_who_does_not(swarm, listen):
    for _ in range(4):
        swarm.join()
    good = group(swarm.answer(), "-1")
    hostile = group("<img src=x onerror=alert(1)>", "\x1b]0;owned\x07 \u202egnp.exe")
    swarm.say(0, "answer", good)
    swarm.say(1, "answer", hostile)
    swarm.say(2, "answer", good, forged=True)
    swarm.say(3, "answer", good)  # it is not registered
    shown = (swarm.leaf(1, hostile), swarm.leaf(0, good))
    swarm.say(0, "critique", group("B: so", "none: so", answers=shown))
    swarm.say(1, "revise", group(f"{swarm.answer()} B", "1 A", answers=shown))
    calls: list[tuple[int, int]] = []
    listening = listen(
        on_change=lambda *what: calls.append(what), registered=lambda peer: peer != swarm.peer(3)
    )
    until(lambda: listening.conversation().heard == ["answer", "critique", "revise"])
    whole = listening.conversation()
    assert (whole.round, whole.cell, whole.cells, whole.peers, whole.trouble) == (10, 0, 1, 2, "")
    (thread,) = whole.threads
    assert thread.answer == swarm.answer()
    said = {one.name: [(c.text, c.score) for c in one.completions] for one in thread.answers}
    assert said == {
        peer_name(swarm.peer(0)): [(swarm.answer(), 1.0), ("-1", 0.0)],
        peer_name(swarm.peer(1)): [("<img src=x onerror=alert(1)>", 0.0), ("␛]0;owned␇ �gnp.exe", 0.0)],
    }
    (critique,), (revision,) = thread.critiques, thread.revisions
    assert critique.shown == [peer_name(swarm.peer(1)), peer_name(swarm.peer(0))]
    assert [(c.names, c.score) for c in critique.completions] == [("B", 1.0), ("none", 0.0)]
    assert [(c.names, c.score) for c in revision.completions] == [("B", 1.0), ("A", 0.0)]
    assert whole.left_out["groups are not the announced ones"] == 1
    assert whole.left_out["sender is not registered"] >= 1
    assert calls == [(10, 0)] * 3  # one for each stage
    assert not any(exchange.dropped for exchange in swarm.exchanges)


def test_who_is_alone_says_so_and_finds_the_swarm_when_the_ledger_names_it(swarm, listen):
    listening = listen()
    until(lambda: listening.conversation().trouble == NOBODY)
    assert listening.conversation().round == -1
    swarm.join()
    swarm.say(0, "answer", group("1", "2"))
    until(lambda: listening.conversation().threads)
    until(lambda: listening.conversation().trouble == "")


def test_last_round_is_shown_until_the_next_is_heard_and_late_ones_are_added(swarm, listen, monkeypatch):
    monkeypatch.setattr(module, "MAX_AGAIN_SECONDS", 0.2)
    swarm.join()
    swarm.join()
    swarm.say(0, "answer", group("old", "old"))
    listening = listen()
    until(lambda: listening.conversation().threads)
    swarm.at(11, 0.1)
    until(lambda: listening._draw[0] == 11)
    listening._wake.set()
    assert listening.conversation().round == 10
    swarm.say(0, "answer", group("new", "new"))
    swarm.at(11, 0.31)
    until(lambda: listening.conversation().round == 11)
    assert listening.conversation().heard == ["answer"]
    assert listening.conversation().threads[0].answers[0].completions[0].text == "new"
    swarm.say(1, "critique", group("A: x", "A: y"))
    swarm.say(1, "answer", group("late", "late"))
    swarm.at(11, 0.6)
    until(lambda: listening.conversation().heard == ["answer", "critique"])
    until(lambda: len(listening.conversation().threads[0].answers) == 2)


def test_silent_round_is_shown_as_silent(swarm, listen, monkeypatch):
    monkeypatch.setattr(module, "MAX_AGAIN_SECONDS", 0.1)
    swarm.join()
    listening = listen()
    until(lambda: listening.conversation().heard)
    whole = listening.conversation()
    assert (whole.round, whole.peers, whole.threads, whole.trouble) == (10, 0, [], "")


def test_cells_are_followed_when_somebody_asks_for_them(swarm, listen):
    swarm.active = 40
    assert swarm.draw.cells == 10
    for n in range(2):
        swarm.join()
        swarm.say(n, "answer", group(f"{n}", f"{n}"))
    own, other = (swarm.draw.cell(swarm.peer(n)) for n in range(2))
    assert own != other
    listening = listen(own_peer=swarm.peer(0))
    until(lambda: listening.conversation().threads)
    assert listening.conversation() == listening.conversation(own)
    assert set(listening._cells) == {own}
    until(lambda: listening.conversation(other).threads)
    heard = listening.conversation(other)
    assert (heard.cell, heard.threads[0].answers[0].name) == (other, peer_name(swarm.peer(1)))
    assert "cells 0 to 9" in listening.conversation(10).trouble
    rest = [cell for cell in range(10) if cell not in (own, other)]
    for cell in rest[: MAX_CELLS - 2]:
        assert listening.conversation(cell).trouble == ""
    assert "other cells" in listening.conversation(rest[MAX_CELLS]).trouble
    until(lambda: set(listening._cells) == {own, other, *rest[: MAX_CELLS - 2]})
    with listening._lock:
        listening._wishes[other] -= module.HOLD_SECONDS
    assert listening.conversation(rest[-1]).trouble == ""
    until(lambda: set(listening._cells) == {own, rest[-1], *rest[: MAX_CELLS - 2]})
    assert other not in listening._shown


def test_unknown_round_is_said_and_over_when_it_is_known(swarm, listen, monkeypatch):
    monkeypatch.setattr(module, "UNKNOWN_SECONDS", 0.0)
    swarm.join()
    swarm.say(0, "answer", group("1", "2"))
    swarm.is_known = False
    listening = listen()
    until(lambda: listening.conversation(3).trouble == NO_DRAW)
    swarm.is_known = True
    until(lambda: listening.conversation().threads and not listening.conversation().trouble)


def test_task_that_cannot_run_here_is_said(swarm, listen):
    manifest = parse(RULES.format(task="{name: nonesuch}").encode(), "test")
    listening = listen(manifest)
    until(lambda: listening.conversation().trouble)
    assert "'nonesuch' is not installed" in listening.conversation().trouble
    assert "\n" not in listening.conversation().trouble


def test_sandbox_that_fails_is_tried_again(swarm, listen, tmp_path, monkeypatch):
    swarm.join()
    swarm.say(0, "answer", group("1", "2"))
    opened, real = [], module.open_tasks

    def open_tasks(manifest):
        opened.append(manifest)
        if len(opened) == 1:
            raise SandboxError("no sandbox\nhere")
        return real(manifest)

    monkeypatch.setattr(module, "open_tasks", open_tasks)
    troubles: list[str] = []
    told = threading.Event()

    def changed(_round, _cell):
        troubles.append(listening.conversation().trouble)
        told.set()

    listening = Listening(
        MANIFEST,
        swarm.genesis,
        now=swarm.now,
        current=swarm.current,
        bootnodes=swarm.bootnodes,
        folder=tmp_path / "listener",
    )
    listening.on_change(changed)
    listening.start()
    try:
        until(lambda: listening.conversation().threads and not listening.conversation().trouble)
        assert troubles[0] == "no sandbox here" and told.is_set()
    finally:
        listening.stop()


def test_text_that_brings_out_a_mistake_of_ours_costs_its_cell_one_round(swarm, listen, monkeypatch):
    swarm.join()
    swarm.say(0, "answer", group("1", "2"))
    failed = threading.Event()

    def hear(*_):
        failed.set()
        raise ValueError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(module.Overheard, "hear", hear)
        listening = listen()
        assert failed.wait(WAIT_SECONDS)
        until(lambda: all(due == float("inf") for due in listening._cells[0].due.values()))
    swarm.at(11, 0.1)
    swarm.say(0, "answer", group("3", "4"))
    swarm.at(11, 0.4)
    until(lambda: listening.conversation().round == 11)


def test_libp2p_that_dies_is_survived(swarm, listen, monkeypatch):
    monkeypatch.setattr(module, "MAX_AGAIN_SECONDS", 0.2)
    swarm.join()
    listening = listen()
    until(lambda: listening.conversation().heard)
    host = listening._exchange._peer._host
    psutil.Process(host.p2p._child.pid).kill()
    until(lambda: listening._exchange.health.restarts == 1 and listening._exchange.health.peers)
    swarm.at(11, 0.1)
    swarm.say(0, "answer", group("1", "2"))
    swarm.at(11, 0.4)
    until(lambda: listening.conversation().threads)


SLEEPER = """
    import time
    from swarm.tasks import Question, Task

    class Sleeper(Task, frozen=True, forbid_unknown_fields=True, kw_only=True):
        def draw(self, seed):
            return Question("how long?", "1")

        def score(self, question, completion):
            time.sleep(float(completion))
            return 1.0
"""


@pytest.fixture
def sleeper(tmp_path, monkeypatch) -> Manifest:
    """A task whose answers say how long it takes to score them, in a process of its own."""
    site = tmp_path / "site"
    info = site / "sleeper_task-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "sleeper_task.py").write_text(textwrap.dedent(SLEEPER))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleeper-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[swarm.tasks]\nsleeper = sleeper_task:Sleeper\n")
    (info / "top_level.txt").write_text("sleeper_task\n")
    monkeypatch.syspath_prepend(site)
    return parse(RULES.format(task="{name: sleeper}").encode(), "test")


@pytest.mark.parametrize("seconds", ["0", "50"])
def test_end_leaves_no_process_whatever_is_scored(swarm, listen, sleeper, monkeypatch, seconds):
    monkeypatch.setitem(globals(), "MANIFEST", sleeper)
    swarm.join()
    swarm.say(0, "answer", group(seconds, seconds))
    listening = listen(sleeper)
    if seconds == "0":
        until(lambda: listening.conversation().threads)
        completions = listening.conversation().threads[0].answers[0].completions
        assert [c.score for c in completions] == [1.0, 1.0]
    else:
        until(lambda: listening._cells and listening._cells[0].looks["answer"])
    assert len(processes()) > 2  # a p2pd each, and the task's

"""Listens to the gossip of the present round, for the board: a peer that says nothing and only asks.

A thread of its own joins the DHT with a new key and collects, after each stage's end, what was announced in
the cells that somebody looks at. `Overheard` makes a conversation of it; whoever asks for one gets it from
memory, at once.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import inf
from pathlib import Path

from identity import IdentityError
from swarm.board.conversation import MAX_SENDERS, Overheard
from swarm.board.schema import Conversation
from swarm.cellmates import groups_limit
from swarm.console import plain
from swarm.draw import Draw
from swarm.effects import Received
from swarm.errors import ExchangeError, SwarmError
from swarm.exchange.listener import make_listener
from swarm.exchange.reach import LOOPBACK_LISTEN, Reach
from swarm.exchange.service import Exchange
from swarm.exchange.validator import Registered, SwarmRules
from swarm.ledger.background import Background
from swarm.manifest import STAGE_NUMBER, Manifest, Stage
from swarm.task_process import TaskProcess, open_tasks
from swarm.tasks import Tasks

log = logging.getLogger("swarm.board")

MAX_CELLS = 4  # followed at once, the default one included
WISH_SECONDS, WISH_ROUNDS = 120.0, 2.0  # a cell is followed for the longer of them after it was asked for
HOLD_SECONDS = 10.0  # so long nobody's other wish takes its place: else two readers could keep us busy
# After a stage's end, for the DHT; then once more and once again, for what came late.
GRACE_SHARE, MAX_GRACE_SECONDS = 0.01, 2.0
AGAIN_SHARE, MAX_AGAIN_SECONDS = 0.05, 15.0  # doubling
LOOKS = 3
ALONE_SECONDS = 2.0  # between looks while there is nobody to ask
COLLECT_SHARE, LEAST_COLLECT_SECONDS, MOST_COLLECT_SECONDS = 0.1, 1.0, 10.0
IDLE_SECONDS = 1.0  # between looks at which round it is
UNKNOWN_SECONDS = 5.0  # a round's draw comes with its first block: so long nothing is said of it
FIRST_BACKOFF, MAX_BACKOFF = 1.0, 30.0  # seconds, doubling, after what failed
MAX_BLOB_BYTES = 256 * 2**20  # of disk
STOP_SECONDS, KILL_SECONDS, LAST_SECONDS = 2.0, 0.5, 10.0
MAX_TROUBLE_CHARS = 300
NOBODY = "no peer of this swarm can be reached"
NO_DRAW = "the ledger has not said what the present round is"

#: The present round and its draw; None while it is not known. Answers at once, from any thread.
Current = Callable[[], tuple[int, Draw] | None]
OnChange = Callable[[int, int], None]


class _Cell:
    """One cell in the present round, and when to look at its stages (again)."""

    def __init__(self, overheard: Overheard, due: dict[str, float]) -> None:
        self.overheard = overheard
        self.due = due  # by stage, Unix seconds on the ledger's clock
        self.looks: Counter[str] = Counter()
        self.found: set[str] = set()  # stages in which somebody was heard
        self.is_shown = False


class Listening:
    """What peers say in the cells that somebody looks at. Every method may be called from any thread.

    Peers that cannot be reached, libp2p, the sandbox, or a task that this machine does not have never end it:
    `Conversation.trouble` says what is wrong, and it tries again.
    """

    def __init__(
        self,
        manifest: Manifest,
        genesis: int,
        *,
        now: Callable[[], float],
        current: Current,
        bootnodes: Callable[[], Sequence[str]],
        registered: Registered = lambda peer: None,
        folder: Path,
        own_peer: bytes | None = None,
        initial_peers: Sequence[str] = (),
        reach: Reach = Reach(listen=(LOOPBACK_LISTEN,)),  # noqa: B008 - frozen
    ) -> None:
        """
        Args:
            genesis: when round 0 begins, Unix seconds.
            now: the ledger's time, Unix seconds. Like all that is called here it must answer from memory.
            bootnodes: the ledger's, asked again and again while no peer is known.
            registered: whose announcements count.
            folder: its own, for what it fetches; made anew at the start, and gone at the end.
            own_peer: whose cell is the default one; without it, that is cell 0.
            initial_peers: other addresses at which there may be peers.
        """
        self._manifest = manifest
        self._genesis = genesis
        self._now = now
        self._current = current
        self._bootnodes = bootnodes
        self._registered = registered
        self._own_peer = own_peer
        self._initial_peers = tuple(initial_peers)
        self._reach = reach
        self._folder = folder
        self._listeners: list[OnChange] = []
        self._lock = threading.Lock()  # around what `conversation` reads
        self._draw: tuple[int, Draw] | None = None  # of the round that is followed
        self._wishes: dict[int, float] = {}  # when each cell was asked for last (monotonic)
        self._shown: dict[int | None, Conversation] = {}  # None: of the default cell
        self._failure = ""
        self._alone = False
        self._unknown_since: float | None = None
        self._cells: dict[int, _Cell] = {}
        self._ending = threading.Lock()  # of the exchange
        self._exchange: Exchange | None = None
        self._tasks: Tasks | None = None
        self._backoff = FIRST_BACKOFF
        self._wake = threading.Event()
        self._stopping = False
        self._thread = Background("listening", self._run)

    def on_change(self, listener: OnChange) -> None:
        """Have `listener(round, cell)` called, in this thread, when a conversation or the trouble changed.

        It must neither block nor raise. Call this before `start`.
        """
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End it, and the processes that it started."""
        self._stopping = True
        self._wake.set()
        self._end_exchange()
        deadline = time.monotonic() + LAST_SECONDS
        ended = self._thread.join(STOP_SECONDS)
        while not ended and time.monotonic() < deadline:
            # A stranger's text is being scored: what does that is ended under its hands.
            tasks = self._tasks
            if isinstance(tasks, TaskProcess):
                tasks.close()
            ended = self._thread.join(KILL_SECONDS)

    def conversation(self, cell: int | None = None) -> Conversation:
        """What was said in a cell, None being the default one; from now on this cell is followed.

        Until something is heard of the present round, it is that of the last one in which something was.
        """
        self._thread.check()
        with self._lock:
            number, draw = self._draw or (-1, None)
            default = self._default_cell(draw)
            if cell is None or cell == default:
                return self._said(None, default, draw)
            if draw is not None and not 0 <= cell < draw.cells:
                return _silence(cell, draw.cells, f"in round {number} there are cells 0 to {draw.cells - 1}")
            if not self._wish(cell):
                why = f"{MAX_CELLS} other cells are being looked at: try again in {HOLD_SECONDS:.0f} seconds"
                return _silence(cell, draw.cells if draw else 0, why)
            return self._said(cell, cell, draw)

    # What is asked for; with the lock held

    def _said(self, key: int | None, cell: int, draw: Draw | None) -> Conversation:
        trouble = self._trouble()
        shown = self._shown.get(key)
        if shown is None:
            return _silence(cell, draw.cells if draw else 0, trouble)
        return shown.model_copy(update={"trouble": trouble}) if trouble else shown

    def _trouble(self) -> str:
        return self._failure or (NOBODY if self._alone else "")

    def _default_cell(self, draw: Draw | None) -> int:
        return draw.cell(self._own_peer) if draw is not None and self._own_peer is not None else 0

    def _wish(self, cell: int) -> bool:
        """Note that somebody wants a cell; whether there is room for it."""
        now = time.monotonic()
        self._forget_wishes(now)
        if cell not in self._wishes:
            if len(self._wishes) >= MAX_CELLS - 1:
                oldest = min(self._wishes, key=lambda wished: self._wishes[wished])
                if now - self._wishes[oldest] < HOLD_SECONDS:
                    return False
                del self._wishes[oldest]
            self._wake.set()
        self._wishes[cell] = now
        return True

    def _forget_wishes(self, now: float) -> None:
        kept_seconds = max(WISH_SECONDS, WISH_ROUNDS * self._manifest.round_seconds)
        self._wishes = {cell: asked for cell, asked in self._wishes.items() if now - asked < kept_seconds}

    # The thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._live()
            except (SwarmError, IdentityError, OSError) as error:
                self._fail(str(error))
            except Exception as error:
                if self._stopping:  # the processes were ended under our hands
                    return
                log.exception("listening failed, beginning anew")
                self._fail(f"listening failed: {type(error).__name__}: {error}")
            self._pause_after_failure()

    def _live(self) -> None:
        """Listen until something fails that has to be begun anew, or until the end."""
        self._cells = {}
        with ExitStack() as stack:
            self._tasks = tasks = stack.enter_context(open_tasks(self._manifest))
            # A new key each time, and nothing of the last life, which may have been killed.
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True, mode=0o700)
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._exchange = exchange = self._make_exchange(self._folder)
            if self._stopping:
                return
            stack.callback(self._end_exchange)
            exchange.start()
            log.info("listening to the swarm peers=%d", exchange.health.peers)
            entered: tuple[int, Draw] | None = None
            while not self._stopping:
                try:
                    known = self._known()
                    if known is not None and known != entered:
                        exchange.enter(known[0], known[1].cell)
                        self._enter(known)
                        entered = known
                    pause = self._look(exchange, tasks) if known is not None else IDLE_SECONDS
                except ExchangeError as error:  # libp2p begins anew by itself
                    self._fail(str(error))
                    self._pause_after_failure()
                    continue
                self._wake.wait(pause)
                self._wake.clear()

    def _end_exchange(self) -> None:
        """One caller waits for the other: its folder goes when all is written."""
        with self._ending:
            if self._exchange is not None:
                self._exchange.stop()

    def _make_exchange(self, folder: Path) -> Exchange:
        rules = SwarmRules(
            swarm_id=self._manifest.swarm_id,
            genesis=self._genesis,
            round_seconds=self._manifest.round_seconds,
            now=self._now,
            registered=self._registered,
        )
        return make_listener(
            folder,
            rules,
            initial_peers=self._initial_peers,
            bootnodes=self._bootnodes,
            reach=self._reach,
            max_blob_bytes=MAX_BLOB_BYTES,
        )

    def _known(self) -> tuple[int, Draw] | None:
        """The present round, if the ledger has told it; else, after a while, that it has not."""
        known = self._current()
        if known is not None:
            self._unknown_since = None
        elif self._now() < self._genesis:
            self._tell(failure="")
        elif self._unknown_since is None:
            self._unknown_since = time.monotonic()
        elif time.monotonic() - self._unknown_since > UNKNOWN_SECONDS:
            self._tell(failure=NO_DRAW)
        return known

    def _enter(self, known: tuple[int, Draw]) -> None:
        self._cells = {}
        with self._lock:
            self._draw = known

    def _look(self, exchange: Exchange, tasks: Tasks) -> float:
        """Look at whatever is due in the cells that are followed; how many seconds until the next look."""
        assert self._draw is not None
        number, draw = self._draw
        ends = self._starts_at(number + 1)
        self._follow(number, draw, tasks)
        for cell, following in self._cells.items():
            for stage in self._manifest.stages:
                if self._stopping:
                    return 0.0
                if following.due[stage.name] <= self._now() < ends:
                    self._visit(exchange, cell, following, stage)
        self._tell(failure="", alone=exchange.health.peers == 0)
        due = [moment for following in self._cells.values() for moment in following.due.values()]
        return min(IDLE_SECONDS, max(0.0, min(due, default=inf) - self._now()) if self._now() < ends else inf)

    def _follow(self, number: int, draw: Draw, tasks: Tasks) -> None:
        """Begin with the cells that are asked for, and forget those that are not."""
        with self._lock:
            self._forget_wishes(time.monotonic())
            default = self._default_cell(draw)
            wished = [cell for cell in self._wishes if cell != default and 0 <= cell < draw.cells]
            cells = [default, *wished]
            self._shown = {cell: said for cell, said in self._shown.items() if cell is None or cell in cells}
        grace = min(GRACE_SHARE * self._manifest.round_seconds, MAX_GRACE_SECONDS)
        due: dict[str, float] = {
            stage.name: self._starts_at(number) + stage.ends_at * self._manifest.round_seconds + grace
            for stage in self._manifest.stages
        }
        self._cells = {
            cell: self._cells.get(cell)
            or _Cell(Overheard(self._manifest, tasks, draw, number, cell), dict(due))
            for cell in cells
        }

    def _visit(self, exchange: Exchange, cell: int, following: _Cell, stage: Stage) -> None:
        """Collect what a cell said in a stage, and show it."""
        assert self._draw is not None
        number, draw = self._draw
        received, missed = self._collect(exchange, number, draw, cell, stage)
        if not received and not missed and exchange.health.peers == 0:
            following.due[stage.name] = self._now() + ALONE_SECONDS
            return
        following.looks[stage.name] += 1
        looks = following.looks[stage.name]
        if received:
            following.found.add(stage.name)
        again = min(AGAIN_SHARE * self._manifest.round_seconds, MAX_AGAIN_SECONDS) * 2 ** (looks - 1)
        is_done = looks >= LOOKS and stage.name in following.found
        following.due[stage.name] = inf if is_done else self._now() + again
        try:
            changed = following.overheard.hear(stage, received, missed)
            # A silent cell may be one that was asked too early: the last round stays until the second look.
            if (changed or not following.is_shown) and (following.overheard.anything or looks > 1):
                self._show(number, draw, cell, following.overheard.conversation())
                following.is_shown = True
        except SwarmError:
            raise
        except Exception:
            if self._stopping:
                return
            # Whatever a stranger's text brings out in this cell, others are to be heard still.
            log.exception("cell cannot be shown round=%d cell=%d stage=%s", number, cell, stage.name)
            following.due = dict.fromkeys(following.due, inf)
            return
        self._backoff = FIRST_BACKOFF

    def _collect(
        self, exchange: Exchange, number: int, draw: Draw, cell: int, stage: Stage
    ) -> tuple[list[Received], Counter[str]]:
        """What a cell published in a stage, and what of it could not be had, by reason."""
        seconds = COLLECT_SHARE * self._manifest.round_seconds
        asker, before = draw.asker(cell), exchange.dropped
        collected = exchange.collect(
            number,
            STAGE_NUMBER[stage.name],
            cell,
            timeout=min(max(seconds, LEAST_COLLECT_SECONDS), MOST_COLLECT_SECONDS),
            max_peers=MAX_SENDERS,
            # Of a crowded cell the same peers in all stages, so that they refer to one another.
            order=lambda heard: draw.order(asker, heard.peer),
            limit=groups_limit(self._manifest, stage),
        )
        received = [
            Received(one.heard.peer, one.heard.envelope, one.heard.announcement.root, one.groups)
            for one in collected
        ]
        return received, exchange.dropped - before

    def _show(self, number: int, draw: Draw, cell: int, conversation: Conversation) -> None:
        with self._lock:
            self._shown[cell] = conversation
            if cell == self._default_cell(draw):
                self._shown[None] = conversation
        log.debug("heard round=%d cell=%d peers=%d", number, cell, conversation.peers)
        self._call_listeners(number, cell)

    # What goes wrong

    def _fail(self, why: str) -> None:
        if self._stopping:
            return
        line = " ".join(plain(why).split())[:MAX_TROUBLE_CHARS]
        if line != self._failure:
            log.warning("cannot listen to the swarm error=%r", line)
        self._tell(failure=line)

    def _tell(self, *, failure: str, alone: bool = False) -> None:
        with self._lock:
            before = self._trouble()
            self._failure, self._alone = failure, alone
            changed = self._trouble() != before
            number, draw = self._draw or (-1, None)
            cell = self._default_cell(draw)
        if changed:
            self._call_listeners(number, cell)

    def _call_listeners(self, number: int, cell: int) -> None:
        for listener in self._listeners:
            listener(number, cell)

    def _pause_after_failure(self) -> None:
        if not self._stopping:
            self._wake.wait(self._backoff)
            self._wake.clear()
            self._backoff = min(2 * self._backoff, MAX_BACKOFF)

    def _starts_at(self, number: int) -> float:
        return float(self._genesis + number * self._manifest.round_seconds)


def _silence(cell: int, cells: int, trouble: str) -> Conversation:
    return Conversation(
        round=-1, cell=cell, cells=cells, heard=[], peers=0, threads=[], left_out={}, trouble=trouble
    )

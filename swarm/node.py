"""A peer's life in one swarm: it opens what it owns, plays round after round, and recovers.

`Node` is the driver of `round.play`: it performs each effect with the real policy, learner, exchange
and ledger. Losing peers or the ledger degrades a round; it never ends the life.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import msgspec

from identity import (
    IdentityError,
    Slot,
    hold_peer,
    load_or_create_identity,
    load_or_create_wallet,
    peer_name,
)
from swarm import effects, round
from swarm.audit_evidence import most_state_bytes
from swarm.audit_process import AuditProcess, Start
from swarm.auditing import Auditing, Means
from swarm.board.footprint import gpus_here
from swarm.board.metrics import Watched, serve_metrics
from swarm.digest import Purpose, derive
from swarm.draw import Draw
from swarm.errors import ExchangeError, LedgerError, SandboxError, SwarmError
from swarm.exchange import wire
from swarm.exchange.health import Health
from swarm.exchange.multiaddr import most_public
from swarm.exchange.reach import reach_of
from swarm.exchange.service import Exchange
from swarm.exchange.validator import SwarmRules
from swarm.link import Link
from swarm.manifest import STAGE_NUMBER
from swarm.performer import Pace, Performer
from swarm.records import OwnStanding, Records, RoundRecord, Status
from swarm.settings import Settings, hold_home, machine_dir
from swarm.succession import inheritance
from swarm.task_process import open_tasks
from swarm.tasks.packages import check_packages
from swarm.training import SamplingState, Training
from swarm.verde.standings import Standings

log = logging.getLogger("swarm.node")

POLL_SECONDS = 0.1
STATUS_SECONDS = 5.0  # between looks at how we are, while we wait
DRAIN_SECONDS = 60.0  # at the end of a run of so many rounds
REPORT_SLOT = 255  # the journal's stage of a round's report
# To see whether the last report is in a block, on which depends what to sample with: of a round, and at most.
REPORT_SHARE, MAX_REPORT_SECONDS = 0.05, 2.0
# A round is still worth joining while this share of the time until its answers are due is ahead.
JOIN_SHARE = 0.5


class Node:
    """One peer. Use as a context manager: leaving it stops everything that it started.

    Its parts are classes that a subclass may replace: so a peer that cheats is a few lines in a test.
    """

    training_class = Training
    performer_class = Performer
    exchange_class = Exchange
    audit_process_class = AuditProcess

    def __init__(self, settings: Settings, join_line: str) -> None:
        self._stack = ExitStack()
        try:
            self._open(settings, join_line)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, rounds: int | None = None) -> None:
        """Play `rounds` rounds, or until interrupted."""
        # A round that was cut off is not begun again: the journal says that it has spoken already.
        last = self._last_spoken()
        while self._must_listen:
            last = self._listen(max(last, self._current_round()))
        while rounds is None or rounds > 0:
            number = self._next_round(last)
            self._set_status("waiting", number)
            self._be_listed()
            self._wait_until(self._starts_at(number))
            self._look_for_copies()
            self._play(number)
            last = number
            rounds = rounds - 1 if rounds is not None else None
        self._set_status("done", last)
        if left := self._link.drain(DRAIN_SECONDS):
            log.warning("reports wait count=%d: the next start sends them", left)

    # Opening

    def _open(self, settings: Settings, join_line: str) -> None:
        self._stack.enter_context(hold_home(settings.home))
        self.identity, self._journal = load_or_create_identity(settings.home)
        self._stack.callback(self._journal.close)
        self._health: Callable[[], Health | None] = lambda: None  # of the exchange, once there is one
        self._stack.enter_context(hold_peer(machine_dir(), self.identity.peer))
        self.name = peer_name(self.identity.peer)
        wallet = load_or_create_wallet(settings.wallet_path)
        self._link = Link(settings, join_line, self.identity, wallet, self._is_alone)
        self._stack.callback(self._link.stop)
        self.manifest = self._link.manifest
        folder = self._link.folder
        self._records = Records(folder / "state.sqlite")
        self._stack.callback(self._records.close)
        self._standings: Standings | None = None
        self._state, self._status_at = "starting", 0.0
        self._number: int | None = None
        self._serve_metrics(settings.metrics)
        self._must_listen = self._reason_to_listen()
        self._set_status("starting")
        check_packages(self.manifest)
        self._tasks = self._stack.enter_context(open_tasks(self.manifest))
        self._link.start()
        # An earlier life may have ended between a round's record and its report.
        self._link.report(*[record.report for record in self._records.rounds()])

        self._training = self.training_class(
            settings,
            self.manifest,
            folder,
            peer=self.name,
            recorded={record.round for record in self._records.rounds()},
            inherited=inheritance(settings, self.manifest),
        )
        self._stack.callback(self._training.close)
        self._beacon = self.manifest.swarm_id  # of the last round; before the first, anything all peers share
        self._active = 0
        self._pace = Pace()
        self._dropped: Counter[str] = Counter()

        self._exchange = self._stack.enter_context(
            self.exchange_class(
                self.identity,
                self._sign,
                SwarmRules(
                    swarm_id=self.manifest.swarm_id,
                    genesis=self._link.genesis,
                    round_seconds=self.manifest.round_seconds,
                    now=self._link.now,
                    registered=self._link.registered,
                ),
                folder,
                reach=reach_of(settings, self._link.rpc_url),
                initial_peers=settings.initial_peers,
                bootnodes=self._link.bootnodes,
                max_blob_bytes=settings.max_blob_mib * 2**20,
                keep_rounds=self.manifest.audits.kept_states,
            )
        )
        self._health = lambda: self._exchange.health
        self._exchange.share(self._training.shared_files())
        self._auditing = self._start_auditing(settings, folder)
        address = most_public(self._exchange.multiaddrs)
        self._set_status("waiting")
        begins = max(0.0, self._starts_at(self._next_round(self._last_spoken())) - self._link.now())
        log.info("waiting seconds=%.0f until the next round", begins)
        log.info("ready peer=%s name=%r address=%s", self.identity.peer_id, self.name, address)

    def _start_auditing(self, settings: Settings, folder: Path) -> Auditing:
        standings = self._standings = Standings(self._link.another_ledger())
        start = Start(
            manifest=self.manifest.canonical,
            plan=self._training.plan,
            work_dir=str(folder),
            trusted_code=settings.trusted_code,
        )
        auditing = Auditing(
            self.identity.peer,
            self.manifest,
            self._link.another_ledger(),
            standings,
            self._exchange,
            self.audit_process_class(start),
            folder,
            Means(settings.audit_share, settings.audit_mib_per_day * 2**20),
            partial(most_state_bytes, self._training.plan),
            self._training.audit_class,
            self._link.now,
            self._link.registered,
            self._exchange.set_auditors,
        )
        self._stack.callback(auditing.stop)
        auditing.start()
        standings.start()
        self._stack.callback(standings.stop)
        return auditing

    def _last_spoken(self) -> int:
        """The last round in which the journal has us speaking; -1 if none."""
        last = self._journal.last_round(self._link.scope)
        current = max(-1, self._current_round())  # before the first round, -1 as in the journal
        if last <= current + 1:  # a clock that has just begun to look may lag
            return last
        # From a bad import, or a clock that was wrong: its slots are lost, no others.
        log.warning("journal is ahead of the ledger last=%d current=%d", last, current)
        return current

    # Being the only one

    def _sign(self, number: int, stage: int, message: bytes) -> bytes:
        """Sign for a slot, once; called by the exchange's thread."""
        return self._journal.sign(self.identity, Slot(self._link.scope, number, stage), message)

    def _reason_to_listen(self) -> str | None:
        """Why a copy of our key might be speaking elsewhere; None if there is no reason to think so."""
        current, window = self._current_round(), self.manifest.acceptance_window
        reason = self._journal.reason_to_listen(self._link.scope, current, window)
        if reason is None and self._link.reported_since(self._journal.last_round(self._link.scope) + 1):
            return "the journal lacks reports that the ledger has"
        return reason and f"the journal is {reason}"

    def _listen(self, last: int) -> int:
        """Listen for one whole round after `last`, lest a copy of our key is speaking; its number.

        `SwarmError` if one is heard.
        """
        number = self._next_round(last)
        log.warning(
            "listening round=%d before speaking, for a copy of this swarm.pem: %s",
            number,
            self._must_listen,
        )
        self._set_status("listening", number)
        self._wait_until(self._starts_at(number))
        (draw, _), in_touch = self._enter(number), False
        for stage in self.manifest.stages:
            self._wait_until(self._starts_at(number) + stage.ends_at * self.manifest.round_seconds)
            try:
                self._exchange.heard(number, STAGE_NUMBER[stage.name], draw.cell(self.identity.peer))
                in_touch |= self._exchange.peer_count() > 0
            except ExchangeError as error:
                log.warning("nothing heard round=%d stage=%s error=%r", number, stage.name, str(error))
            self._look_for_copies()
        self._wait_until(self._starts_at(number + 1))
        reported = self._link.reported_since(number)
        self._look_for_copies(heard_on_ledger=bool(reported))
        if in_touch or reported is not None:
            self._journal.listened(self._link.scope, number)
            self._must_listen = None
            log.info("nobody else speaks as peer=%s", self.identity.peer_id)
        else:
            log.warning("neither a peer nor the ledger could be asked: listening again")
        return number

    def _look_for_copies(self, heard_on_ledger: bool = False) -> None:
        if self._exchange.copies or self._link.contradicted or heard_on_ledger:
            raise SwarmError(
                f"a copy of {self.identity.path} is running elsewhere as {self.identity.peer_id}: "
                "stop it, or give this node a swarm.pem of its own"
            )

    # Other peers

    def _is_alone(self) -> bool:
        """Whether we know no other peer; asked by several threads."""
        health = self._health()
        return health is None or health.peers == 0

    def _be_listed(self) -> None:
        """Have the ledger name us to newcomers, unless we know that they could not reach us."""
        reach = self._exchange.health.reach
        try:
            hidden = reach is not None and reach.state in ("nat", "relayed")
            self._link.be_listed(None if hidden else most_public(self._exchange.multiaddrs))
        except ExchangeError as error:
            log.warning("own address unknown error=%r", str(error))

    # The clock

    def _starts_at(self, number: int) -> float:
        return float(self._link.genesis + number * self.manifest.round_seconds)

    def _current_round(self) -> int:
        return int((self._link.now() - self._link.genesis) // self.manifest.round_seconds)

    def _next_round(self, last: int) -> int:
        """The current round if enough of its first stage is ahead, else the next."""
        elapsed = self._link.now() - self._link.genesis
        if elapsed < 0:
            return 0
        current, into = divmod(elapsed, self.manifest.round_seconds)
        join_until = JOIN_SHARE * self._answers_end * self.manifest.round_seconds
        return max(last + 1, int(current) if into < join_until else int(current) + 1)

    def _wait_until(self, moment: float) -> None:
        while (left := moment - self._link.now()) > 0:
            if time.monotonic() > self._status_at + STATUS_SECONDS:
                with suppress(sqlite3.Error):  # said when it was set
                    self._write_status()
            time.sleep(min(left, POLL_SECONDS))

    def _enter(self, number: int) -> tuple[Draw, bool]:
        """The round's draw, and whether it is from the ledger's beacon, which must come in time for answers.

        The exchange is told the cells, so that it refuses what is announced in a wrong one.
        """
        give_up = self._starts_at(number) + (JOIN_SHARE * self._answers_end * self.manifest.round_seconds)
        seen = self._link.await_round(number, give_up)
        if seen is not None:
            self._beacon, self._active = seen
        else:
            log.warning("no beacon from the ledger round=%d error=%r", number, self._link.trouble)
            # Peers that last saw the same beacon go on together (DESIGN.md, section 4).
            self._beacon = derive(Purpose.LOCAL_BEACON, self.manifest.swarm_id, self._beacon, number)
        draw = Draw(self.manifest.swarm_id, self._beacon, self._active, self.manifest.cell_size)
        # A draw of our own is not everybody's: then others' cells are theirs to know.
        self._exchange.enter(number, draw.cell if seen is not None else None)
        return draw, seen is not None

    @property
    def _answers_end(self) -> float:
        """The fraction of a round at which its answers are due."""
        return next(stage.ends_at for stage in self.manifest.stages if stage.name == "answer")

    # One round

    def _play(self, number: int) -> None:
        draw, is_ranked = self._enter(number)
        state = self._sampling_state(number, is_ranked)
        rules = round.RoundRules(
            manifest=self.manifest,
            tasks=self._tasks,
            peer=self.identity.peer,
            round=number,
            starts_at=self._starts_at(number),
            expiration=wire.expiration(self._link.genesis, self.manifest.round_seconds, number),
            draw=draw,
            previous=self._last_commitment(),
            ineligible=lambda: self._auditing.ineligible(number, self._patience),
            plant=self._auditing.plant(number),
        )
        performer = self.performer_class(
            rules,
            self._training,
            self._exchange,
            self._pace,
            state,
            wait_until=self._wait_until,
            now=self._link.now,
            commit=lambda commit: self._commit(commit, performer),
            show=lambda stage: self._set_status(stage, number),
        )
        try:
            effects.run(round.play(rules), performer.perform)
        except SandboxError as error:
            log.error("round cannot be played to its end round=%d error=%r", number, str(error))
            return
        spent = " ".join(f"{kind}={seconds:.2f}" for kind, seconds in performer.seconds.items())
        log.info("time of round=%d tokens=%d %s", number, performer.tokens, spent)

    def _sampling_state(self, number: int, is_ranked: bool) -> SamplingState:
        """What to sample a round with; in a round of our own the newest state may as well."""
        if not is_ranked:
            return self._training.present_state()
        states = self._auditing.uprooted(number, self._patience)
        if states and (digest := self._training.go_back(states)):
            log.warning(
                "our state counts no more, after a fault or for want of reports: going back state=%s",
                digest.hex()[:12],
            )
        return self._training.committed_state(number, self._link.state_before(number, self._patience))

    @property
    def _patience(self) -> float:
        """Seconds that a round may wait for what the ledger says."""
        return min(REPORT_SHARE * self.manifest.round_seconds, MAX_REPORT_SECONDS)

    def _last_commitment(self) -> bytes:
        """The root of the last round's commitment; zeros before the first."""
        return bytes.fromhex(last.commitment) if (last := self._records.last()) else bytes(32)

    def _commit(self, commit: effects.Commit, performer: Performer) -> None:
        """Write the round down, then hand its report over."""
        played = commit.played
        record = RoundRecord(
            round=played.round,
            rewards=played.rewards,
            groups=played.groups,
            external_groups=played.external_groups,
            reward_micros=played.reward_micros,
            commitment=played.commitment.hex(),
            state_before=commit.learned.state_before.digest.hex(),
            state_after=commit.learned.state_after.digest.hex(),
            verdicts=self._verdicts(played).hex(),
            dropped=dict(Counter(played.dropped) + self._newly_dropped()),
            tokens=performer.tokens,
            seconds=performer.seconds,
            stages=performer.stages,
            batch_groups=commit.learned.taken,
            at=time.time(),
        )
        try:
            slot = Slot(self._link.report_scope, record.round, REPORT_SLOT)
            self._journal.claim(slot, hashlib.sha256(msgspec.msgpack.encode(record.report)).digest())
            self._records.save(record)
            # Earlier ones too, in case the outbox could not be written then.
            window = self.manifest.acceptance_window
            self._link.report(*[past.report for past in self._records.rounds(since=record.round - window)])
        except (IdentityError, LedgerError, sqlite3.Error) as error:
            log.error("round cannot be reported yet round=%d error=%r", record.round, str(error))
        log.info(
            "played round=%d %s groups=%d external=%d reward_micros=%d dropped=%s",
            record.round,
            " ".join(f"{stage}={mean:.3f}" for stage, mean in record.rewards.items()),
            record.groups,
            record.external_groups,
            record.reward_micros,
            record.dropped or "none",
        )

        self._training.tell(record, performer.update)

    def _verdicts(self, played: effects.Played) -> bytes:
        """What the report carries of our audits; nothing, if what opens it later cannot be kept."""
        self._auditing.check()
        try:
            return self._auditing.verdicts(played.round, played.planted)
        except sqlite3.Error as error:
            log.error("no verdicts in the report round=%d error=%r", played.round, str(error))
            return b""

    def _newly_dropped(self) -> Counter[str]:
        """What the exchange refused since the last round, by reason."""
        total = self._exchange.dropped
        new, self._dropped = total - self._dropped, total
        return new

    def _set_status(self, state: str, number: int | None = None) -> None:
        """Say what we do; a full disk is logged, and the round goes on."""
        self._state, self._number = state, number
        try:
            self._write_status()
        except sqlite3.Error as error:
            log.error("status not written error=%r", str(error))

    def _write_status(self) -> None:
        self._status_at = time.monotonic()
        ends_at = self._ends_at(self._state, self._number)
        status = Status(
            peer_id=self.identity.peer_id,
            name=self.name,
            state=self._state,
            round=self._number,
            health=self._health(),
            # Whoever reads it has this machine's clock, not the ledger's.
            ends_at=None if ends_at is None else time.time() + ends_at - self._link.now(),
            pid=os.getpid(),
            is_ledger_away=self._link.is_away,
            standing=self._standing(),
            gpus=gpus_here(),
        )
        self._records.set_status(status)

    # For its owner

    def _serve_metrics(self, place: tuple[str, int] | None) -> None:
        watched = Watched(
            peer=self.identity.peer_id,
            name=self.name,
            swarm=self.manifest.swarm_id.hex(),
            contract=self._link.address,
            version=version("swarm-rl"),
            folder=self._link.folder,
            round_seconds=self.manifest.round_seconds,
            state=lambda: self._state,
            current_round=self._current_round,
            is_ledger_away=lambda: self._link.is_away,
            health=lambda: self._health(),
            standing=self._standing,
        )
        if place is not None and (server := serve_metrics(place, watched)) is not None:
            self._stack.callback(server.close)

    def _standing(self) -> OwnStanding | None:
        """What the ledger makes of us; None before it was read. For any thread."""
        if self._standings is None:
            return None
        with self._standings.reading() as reputation:
            number, standing = reputation.number, reputation.standing(self.identity.peer)
        return OwnStanding.of(standing, number) if number >= 0 else None

    def _ends_at(self, state: str, number: int | None) -> float | None:
        """When what we do is to be over, by the ledger's clock; None where nothing says."""
        if number is None or state == "done":
            return None
        if state == "waiting":
            return self._starts_at(number)
        ends: dict[str, float] = {stage.name: stage.ends_at for stage in self.manifest.stages}
        ends["learn"] = self.manifest.learn.ends_at
        return self._starts_at(number) + ends.get(state, 1.0) * self.manifest.round_seconds

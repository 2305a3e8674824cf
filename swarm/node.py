"""A peer's life in one swarm: it opens what it owns, plays round after round, and recovers.

`Node` is the driver of `round.play`: it performs each effect with the real policy, learner, exchange
and ledger. Losing peers or the ledger degrades a round; it never ends the life.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType

import msgspec
from filelock import FileLock, Timeout

from identity import Identity, load_or_create_wallet, peer_name
from swarm import effects, round
from swarm.digest import Purpose, derive
from swarm.draw import Draw
from swarm.errors import ExchangeError, LedgerError, ModelError, SwarmError
from swarm.exchange import wire
from swarm.exchange.service import Exchange
from swarm.learner.trainer import Learner
from swarm.ledger.client import Report, connect
from swarm.performer import Pace, Performer
from swarm.policy.model import Policy
from swarm.records import Records, RoundRecord, Status
from swarm.settings import Settings
from swarm.tasks import load_task

log = logging.getLogger("swarm.node")

CHECKPOINTS_KEPT = 2  # the newest, and the one before in case the newest is damaged
POLL_SECONDS = 0.1
# A round is still worth joining while this share of its first stage is ahead.
JOIN_SHARE = 0.5
BOOTNODES_WANTED = 8  # announce ourselves on the ledger while it lists fewer than this


class Node:
    """One peer. Use as a context manager: leaving it stops everything that it started."""

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
        """Play `rounds` rounds, or until interrupted; finished reports are retried before each round."""
        last = (
            self._records.last_begun()
        )  # a round that was cut off is not begun again: it has spoken already
        while rounds is None or rounds > 0:
            number = self._next_round(last)
            self._set_status("waiting", number)
            self._wait_until(self._starts_at(number))
            self._resend_reports(number)
            self._play(number)
            last = number
            rounds = rounds - 1 if rounds is not None else None
        self._resend_reports(last + 1)
        self._set_status("done", last)

    # Opening

    def _open(self, settings: Settings, join_line: str) -> None:
        try:
            settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SwarmError(
                f"cannot make {settings.home}: {error.strerror}; choose another --home"
            ) from error
        self._lock(settings.home / "lock")
        self.identity = Identity.load_or_create(settings.identity_path)
        self.name = peer_name(self.identity.peer)
        wallet = load_or_create_wallet(settings.wallet_path)
        self._ledger = connect(join_line, wallet)
        self.manifest = self._ledger.manifest()
        self._acceptance_window = self._ledger.acceptance_window
        folder = settings.swarm_dir(self.manifest.swarm_id, self._ledger.address, self._ledger.genesis)
        self._records = Records(folder / "state.sqlite")
        self._stack.callback(self._records.close)
        self._check_clock()
        self._set_status("starting")
        self._task = load_task(self.manifest.task)
        if self._ledger.register(self.identity):
            log.info("registered peer=%s account=%s", self.identity.peer_id, wallet.address)

        log.info("loading swarm=%r model=%s", self.manifest.name, self.manifest.model)
        self._policy = Policy.load(self.manifest.model, threads=settings.threads)
        self._learner = Learner(
            self._policy,
            self.manifest.learn,
            group_size=self.manifest.group_size,
            temperature=self.manifest.temperature,
            max_completion_tokens=max(stage.max_tokens for stage in self.manifest.stages),
            seed=int.from_bytes(self.identity.peer[:4], "big"),
            work_dir=folder,
        )
        self._checkpoints = folder / "checkpoints"
        self._checkpoints.mkdir(exist_ok=True)
        for unfinished in self._checkpoints.glob(".*"):
            unfinished.unlink()
        self._resume()
        self._beacon = self.manifest.swarm_id  # of the last round; before the first, anything all peers share
        self._active = 0
        self._pace = Pace()
        self._dropped: Counter[str] = Counter()

        self._exchange = self._stack.enter_context(
            Exchange(
                self.identity,
                self.manifest.swarm_id,
                self._ledger.genesis,
                self.manifest.round_seconds,
                self._ledger.now_without_asking,
                folder / "blobs",
                listen=settings.listen,
                initial_peers=[*settings.initial_peers, *self._bootnodes()],
            )
        )
        self._announce_bootnode()
        self._set_status("waiting")
        address = self._exchange.multiaddrs[0]
        begins = max(0.0, self._starts_at(self._next_round(-1)) - self._ledger.now())
        log.info("waiting seconds=%.0f until the next round", begins)
        log.info("ready peer=%s name=%r address=%s", self.identity.peer_id, self.name, address)

    def _lock(self, path: Path) -> None:
        lock = FileLock(path, timeout=0)
        try:
            self._stack.enter_context(lock)
        except Timeout:
            raise SwarmError(
                f"another node is running on {path.parent}: stop it, or use another --home"
            ) from None

    def _check_clock(self) -> None:
        """hivemind forgets records by this machine's clock, so one that is far off goes unheard."""
        off = time.time() - self._ledger.now()
        if abs(off) > self.manifest.round_seconds / 2:
            log.warning(
                "clock_off seconds=%.0f: set this machine's clock to the ledger's, by NTP for example", off
            )

    def _resume(self) -> None:
        """Load the newest checkpoint that can be read; without one, begin with the manifest's base model."""
        for path in sorted(self._checkpoints.glob("*.safetensors"), reverse=True):
            try:
                self._learner.load(path)
            except SwarmError as error:
                log.warning("checkpoint unreadable file=%s error=%r", path, str(error))
                continue
            log.info("resumed checkpoint=%s", path.name)
            return

    def _bootnodes(self) -> list[str]:
        try:
            own = f"/p2p/{self.identity.peer_id}"
            return [address for address in self._ledger.bootnodes() if not address.endswith(own)]
        except LedgerError as error:
            log.warning("bootnodes unavailable error=%r", str(error))
            return []

    def _announce_bootnode(self) -> None:
        """List ourselves for newcomers, then look: of two peers starting at once, one sees the other.

        Where many are listed one more is of no use, unless none of them can be reached any more.
        """
        address = _most_public(self._exchange.multiaddrs)
        try:
            if len(self._bootnodes()) < BOOTNODES_WANTED or self._exchange.peer_count() == 0:
                self._ledger.announce_bootnode(self.identity, address)
        except LedgerError as error:
            log.warning("bootnode not announced error=%r", str(error))
        self._meet_peers()

    def _meet_peers(self) -> None:
        try:
            if self._exchange.peer_count() == 0 and (bootnodes := self._bootnodes()):
                self._exchange.connect(bootnodes)
        except ExchangeError as error:
            log.warning("no peers met error=%r", str(error))

    # The clock

    def _starts_at(self, number: int) -> float:
        return float(self._ledger.genesis + number * self.manifest.round_seconds)

    def _next_round(self, last: int) -> int:
        """The current round if enough of its first stage is ahead, else the next."""
        elapsed = self._ledger.now() - self._ledger.genesis
        if elapsed < 0:
            return 0
        current, into = divmod(elapsed, self.manifest.round_seconds)
        join_until = JOIN_SHARE * self.manifest.stages[0].ends_at * self.manifest.round_seconds
        return max(last + 1, int(current) if into < join_until else int(current) + 1)

    def _wait_until(self, moment: float) -> None:
        while (left := moment - self._ledger.now()) > 0:
            time.sleep(min(left, POLL_SECONDS))

    def _await_beacon(self, number: int) -> bytes | None:
        """The round's beacon, or None if the ledger shows none while the first stage is worth starting."""
        give_up = self._starts_at(number) + (
            JOIN_SHARE * self.manifest.stages[0].ends_at * self.manifest.round_seconds
        )
        while True:
            try:
                beacon = self._ledger.beacon(number)
                if beacon is not None:
                    self._active = self._ledger.active(number)
                    return beacon
                trouble = "it made no block"
            except LedgerError as error:
                trouble = str(error)
            if self._ledger.now() >= give_up:
                log.warning("no beacon from the ledger round=%d error=%r", number, trouble)
                return None
            time.sleep(POLL_SECONDS)

    # One round

    def _play(self, number: int) -> None:
        self._write("round", partial(self._records.begin, number))
        beacon = self._await_beacon(number)
        # Without the ledger, peers that last saw the same beacon go on together (DESIGN.md, section 4).
        self._beacon = beacon or derive(Purpose.LOCAL_BEACON, self.manifest.swarm_id, self._beacon, number)
        rules = round.RoundRules(
            manifest=self.manifest,
            task=self._task,
            peer=self.identity.peer,
            round=number,
            starts_at=self._starts_at(number),
            expiration=wire.expiration(self._ledger.genesis, self.manifest.round_seconds, number),
            draw=Draw(self.manifest.swarm_id, self._beacon, self._active, self.manifest.cell_size),
        )
        performer = Performer(
            rules,
            self._policy,
            self._learner,
            self._exchange,
            self._pace,
            wait_until=self._wait_until,
            now=self._ledger.now,
            checkpoint=self._checkpoint,
            commit=self._commit,
            show=lambda stage: self._set_status(stage, number),
        )
        effects.run(round.play(rules), performer.perform)
        self._meet_peers()  # after the round: dialling the dead takes seconds

    def _checkpoint(self, number: int) -> None:
        """Keep the state after a round; a full disk costs the checkpoint, not the round."""
        try:
            self._learner.save(self._checkpoints / f"{number:08d}.safetensors")
        except ModelError as error:
            log.error("checkpoint not written round=%d error=%r", number, str(error))
        for old in sorted(self._checkpoints.glob("*.safetensors"))[:-CHECKPOINTS_KEPT]:
            old.unlink(missing_ok=True)

    def _commit(self, commit: effects.Commit) -> None:
        """Write the round down, then report it."""
        played = commit.played
        record = RoundRecord(
            round=played.round,
            rewards=played.rewards,
            groups=played.groups,
            external_groups=played.external_groups,
            reward_micros=played.reward_micros,
            commitment=played.commitment.hex(),
            state_before=commit.learned.state_before.hex(),
            state_after=commit.learned.state_after.hex(),
            dropped=dict(Counter(played.dropped) + self._newly_dropped()),
        )
        self._write("record", partial(self._records.save, record))
        record = self._report(record)
        log.info(
            "played round=%d %s groups=%d external=%d reward_micros=%d late=%s tx=%s dropped=%s",
            record.round,
            " ".join(f"{stage}={mean:.3f}" for stage, mean in record.rewards.items()),
            record.groups,
            record.external_groups,
            record.reward_micros,
            record.late,
            record.tx,
            record.dropped or "none",
        )

    def _newly_dropped(self) -> Counter[str]:
        """What the exchange refused since the last round, by reason."""
        total = self._exchange.dropped
        new, self._dropped = total - self._dropped, total
        return new

    def _resend_reports(self, number: int) -> None:
        """Put rounds on the ledger whose report did not get through, while it answers and accepts them."""
        for record in self._records.unreported(since=number - self._acceptance_window):
            if self._report(record).tx is None:
                return  # the rest can wait for the next round; this one must not

    def _report(self, record: RoundRecord) -> RoundRecord:
        """Report a round whose record is saved; a failure is logged and retried before the next round."""
        try:
            receipt = self._ledger.report(
                Report(
                    peer=self.identity.peer,
                    round=record.round,
                    commitment=bytes.fromhex(record.commitment),
                    state_before=bytes.fromhex(record.state_before),
                    state_after=bytes.fromhex(record.state_after),
                    groups=record.groups,
                    reward_micros=record.reward_micros,
                )
            )
        except LedgerError as error:
            log.warning("report not sent round=%d error=%r", record.round, str(error))
            return record
        record = msgspec.structs.replace(record, tx=receipt.tx, late=receipt.late)
        self._write("record", partial(self._records.save, record))
        return record

    def _write(self, what: str, write: Callable[[], None]) -> None:
        """Write to the database; a full disk is logged, and the round goes on and is still reported."""
        try:
            write()
        except sqlite3.OperationalError as error:
            log.error("not written what=%s error=%r", what, str(error))

    def _set_status(self, state: str, number: int | None = None) -> None:
        status = Status(peer_id=self.identity.peer_id, name=self.name, state=state, round=number)
        self._write("status", partial(self._records.set_status, status))


def _most_public(multiaddrs: list[str]) -> str:
    """The address that is most likely of use to others: any but loopback, if there is one."""
    return next((address for address in multiaddrs if not address.startswith("/ip4/127.")), multiaddrs[0])

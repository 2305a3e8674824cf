"""How a relay keeps its promises: what it accepted is sent once and followed until it is settled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import msgspec

from identity import peer_id_text
from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.client import LedgerClient
from swarm.ledger.refusals import ContractRefusal
from swarm.ledger.relay_store import DAY_SECONDS, Kind, Promise, RelayStore
from swarm.ledger.relay_wire import Bootnode, Registration, Reports, Request, Rotation, contract_call
from swarm.ledger.transactions import AccountQueue, Submitted

log = logging.getLogger("swarm.ledger")

FOLLOW_SECONDS = 1.0  # between looks at what no block has yet
WATCH_SECONDS = 15.0  # and at what one has, but not deep enough
SETTLED_BLOCKS = 64  # no chain in use reorganizes deeper
HELD_UP_SECONDS = 30.0  # until one that could not be sent is tried again
PASS_SECONDS = 2.0  # peers' questions wait in the same thread
GIVE_UP_SECONDS = 86_400.0  # on a request that nobody refuses and nobody takes

_REQUESTS: dict[Kind, type[Request]] = {
    "registration": Registration,
    "reports": Reports,
    "bootnode": Bootnode,
    "rotation": Rotation,
}


class Sending:
    """Sends and follows, in one thread. It may be killed at any point, and goes on after the next start."""

    def __init__(self, ledger: LedgerClient, store: RelayStore, queue: AccountQueue) -> None:
        self.stopping = False  # set from another thread: what is not sent yet waits for the next start
        self._ledger = ledger
        self._store = store
        self._queue = queue
        self._follow_at = self._prune_at = float("-inf")
        self._again_at: dict[str, float] = {}  # by digest: when it was tried last, or may be again
        self._trouble: LedgerError | None = None  # the first of a pass

    def work(self) -> float | None:
        """One pass; in how many seconds the next is due, None: once something is accepted.

        `LedgerError` if something is in the way; all the rest is done, and that is tried again.
        """
        self._trouble = None
        now = time.monotonic()
        if now >= self._follow_at:
            self._follow_at = now + FOLLOW_SECONDS
            self._attempt(self._follow)
        if now >= self._prune_at:
            self._prune_at = now + DAY_SECONDS
            self._attempt(lambda: self._store.prune(time.time()))
        self._attempt(self._send_accepted)
        if self._trouble is not None:
            raise self._trouble
        if self._store.under_way_load()[0]:
            return FOLLOW_SECONDS
        return WATCH_SECONDS if self._store.watched() else None

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except LedgerError as error:
            self._trouble = self._trouble or error
        except (OverflowError, ValueError) as error:
            self._trouble = self._trouble or _nonsense(error)

    def _send_accepted(self) -> None:
        """Send what was never tried first. What cannot be sent waits, and keeps nothing else from it."""
        until = time.monotonic() + PASS_SECONDS
        accepted = self._store.in_state("accepted")
        self._again_at = {each.digest: self._again_at.get(each.digest, float("-inf")) for each in accepted}
        for promise in sorted(accepted, key=lambda each: self._again_at[each.digest]):
            now = time.monotonic()
            if self.stopping or now > until or self._again_at[promise.digest] > now:
                return
            self._again_at[promise.digest] = now
            try:
                self._send(promise)
            except LedgerUnavailable:
                raise  # most likely for all of them
            except LedgerError as error:
                self._hold_up(promise, error)
            except (OverflowError, ValueError) as error:
                self._hold_up(promise, _nonsense(error))

    def _hold_up(self, promise: Promise, error: LedgerError) -> None:
        self._again_at[promise.digest] = time.monotonic() + HELD_UP_SECONDS
        if time.time() - promise.accepted_at > GIVE_UP_SECONDS:
            self._failed(promise, str(error))
        elif promise.error != str(error):
            self._store.held_up(promise.digest, str(error))
            log.warning("held up kind=%s peer=%s error=%r", promise.kind, _peer(promise), str(error))

    def _send(self, promise: Promise) -> None:
        try:
            request = msgspec.json.decode(self._store.body(promise.digest), type=_REQUESTS[promise.kind])
            submitted = self._queue.submit(self._key(promise), contract_call(self._ledger, request))
        except msgspec.MsgspecError:  # it was mined once: then nothing is kept to send again
            self._failed(promise, "the chain took it back, and the relay forgot it: send it again")
        except ContractRefusal as refusal:
            self._failed(promise, str(refusal))
        else:
            self._note(promise, submitted)

    def _follow(self) -> None:
        sent, watched = self._store.in_state("sent"), self._store.watched()
        if not sent and not watched:
            return
        self._attempt(self._queue.follow)
        for promise in sent + watched:
            if self.stopping:
                return
            self._attempt(partial(self._look, promise))
        if watched:
            self._store.settle(self._ledger.rpc.block(None).number - SETTLED_BLOCKS)

    def _look(self, promise: Promise) -> None:
        found = self._queue.state(self._key(promise))
        if found is not None:
            self._note(promise, found)
        elif promise.state == "sent":  # somebody lost the queue's file
            self._send(promise)

    def _note(self, promise: Promise, found: Submitted) -> None:
        if found.state == "sent":
            if (promise.state, promise.tx) != ("sent", found.tx):
                self._store.sent(promise.digest, found.tx)
        elif found.state == "mined":
            if (promise.state, promise.tx, promise.block) != ("mined", found.tx, found.block_number):
                self._store.mined(promise, found.tx, found.block_number, self._successor(promise))
                log.info("mined kind=%s peer=%s tx=%s", promise.kind, _peer(promise), found.tx)
        else:
            self._failed(promise, found.error or f"transaction {found.tx} was {found.state}")

    def _failed(self, promise: Promise, why: str) -> None:
        # If it is on the ledger by another way, the trial run will say so when the peer asks again.
        self._store.failed(promise.digest, why)
        log.warning("failed kind=%s peer=%s error=%r", promise.kind, _peer(promise), why)

    def _successor(self, promise: Promise) -> bytes | None:
        """The peer that a rotation made, when that is seen for the first time."""
        body = self._store.body(promise.digest) if promise.kind == "rotation" else b""
        return msgspec.json.decode(body, type=Rotation).new_peer if body else None

    def _key(self, promise: Promise) -> str:
        return f"{self._ledger.address} relayed {promise.kind} {promise.digest}"


def _peer(promise: Promise) -> str:
    return peer_id_text(promise.peer)


def _nonsense(error: Exception) -> LedgerError:
    return LedgerError(f"the ledger's server says what cannot be: {error}")

"""How a relay keeps its promises: what it accepted is sent once and followed until it is settled."""

from __future__ import annotations

import logging
import time

import msgspec

from identity import peer_id_text
from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.client import LedgerClient
from swarm.ledger.refusals import ContractRefusal
from swarm.ledger.relay_store import DAY_SECONDS, Kind, Promise, RelayStore
from swarm.ledger.relay_wire import Bootnode, Registration, Reports, Request, contract_call
from swarm.ledger.transactions import AccountQueue, Submitted

log = logging.getLogger("swarm.ledger")

FOLLOW_SECONDS = 1.0  # between looks at what no block has yet
WATCH_SECONDS = 15.0  # and at what one has, but not deep enough
SETTLED_BLOCKS = 64  # no chain in use reorganizes deeper
GIVE_UP_SECONDS = 86_400.0  # on a request that nobody refuses and nobody takes

_REQUESTS: dict[Kind, type[Request]] = {
    "registration": Registration,
    "reports": Reports,
    "bootnode": Bootnode,
}


class Sending:
    """Sends and follows, in one thread. It may be killed at any point, and goes on after the next start."""

    def __init__(self, ledger: LedgerClient, store: RelayStore, queue: AccountQueue) -> None:
        self.stopping = False  # set from another thread: what is not sent yet waits for the next start
        self._ledger = ledger
        self._store = store
        self._queue = queue
        self._follow_at = self._prune_at = float("-inf")

    def work(self) -> float | None:
        """One pass; in how many seconds the next is due, None: once something is accepted.

        `LedgerError` if something is in the way; it is tried again too.
        """
        self._send_accepted()
        if time.monotonic() >= self._follow_at:
            self._follow()
            self._follow_at = time.monotonic() + FOLLOW_SECONDS
        if time.monotonic() >= self._prune_at:
            self._store.prune(time.time())
            self._prune_at = time.monotonic() + DAY_SECONDS
        if self._store.in_state("accepted", "sent"):
            return FOLLOW_SECONDS
        return WATCH_SECONDS if self._store.watched() else None

    def _send_accepted(self) -> None:
        trouble: LedgerError | None = None
        for promise in self._store.in_state("accepted"):
            if self.stopping:
                return
            try:
                self._send(promise)
            except LedgerUnavailable:
                raise
            except LedgerError as error:
                trouble = error
                if time.time() - promise.accepted_at > GIVE_UP_SECONDS:
                    self._store.failed(promise.digest, str(error))
                else:
                    self._store.held_up(promise.digest, str(error))
        if trouble is not None:
            raise trouble

    def _send(self, promise: Promise) -> None:
        request = msgspec.json.decode(promise.body, type=_REQUESTS[promise.kind])
        try:
            submitted = self._queue.submit(self._key(promise), contract_call(self._ledger, request))
        except ContractRefusal as refusal:
            self._failed(promise, str(refusal))
        else:
            self._note(promise, submitted)

    def _follow(self) -> None:
        sent, watched = self._store.in_state("sent"), self._store.watched()
        if not sent and not watched:
            return
        self._queue.follow()
        for promise in sent + watched:
            if self.stopping:
                return
            found = self._queue.state(self._key(promise))
            if found is not None:
                self._note(promise, found)
            elif promise.state == "sent":  # somebody lost the queue's file
                self._send(promise)
        if watched:
            self._store.settle(self._ledger.rpc.block(None).number - SETTLED_BLOCKS)

    def _note(self, promise: Promise, found: Submitted) -> None:
        if found.state == "sent":
            if (promise.state, promise.tx) != ("sent", found.tx):
                self._store.sent(promise.digest, found.tx)
        elif found.state == "mined":
            if (promise.state, promise.tx, promise.block) != ("mined", found.tx, found.block_number):
                self._store.mined(promise.digest, found.tx, found.block_number)
                log.info("mined kind=%s peer=%s tx=%s", promise.kind, peer_id_text(promise.peer), found.tx)
        else:
            self._failed(promise, found.error or f"transaction {found.tx} was {found.state}")

    def _failed(self, promise: Promise, why: str) -> None:
        # If it is on the ledger by another way, the trial run will say so when the peer asks again.
        self._store.failed(promise.digest, why)
        log.warning("failed kind=%s peer=%s error=%r", promise.kind, peer_id_text(promise.peer), why)

    def _key(self, promise: Promise) -> str:
        return f"{self._ledger.address} relayed {promise.kind} {promise.digest}"

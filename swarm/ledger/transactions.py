"""Sending transactions so that none is lost and none is sent twice, whatever crashes.

The queue of an account is a file (`queue_store`) that all processes of this machine share, and a lock. A
transaction goes through these steps, and may be killed between any two:

    1. built, and run by the server as a trial: what the contract refuses goes no further
    2. given the next nonce, signed, and written down, which makes it the one for its key
    3. broadcast; if the server's answer is lost, again later, the same bytes
    4. followed: broadcast again if servers forgot it, signed again with higher fees if no block takes it,
       always with the same nonce, so that a chain can hold one of its versions at most
    5. settled: mined, reverted, or displaced by a transaction from outside with the same nonce
    6. watched until it is too deep for a reorganization; if one drops it, back to 4
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from msgspec import Struct
from msgspec.structs import replace

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger import fees
from swarm.ledger.broadcast import broadcast, signed
from swarm.ledger.queue_store import Payload, QueueStore, Row, State
from swarm.ledger.rpc import Rpc
from swarm.ledger.settling import REPRICE_SECONDS, Settling

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

log = logging.getLogger("swarm.ledger")

MAX_KEY_CHARACTERS = 200
WAIT_SECONDS = 120.0  # ten blocks of the slowest chains in use
LOCK_SECONDS = 10.0
LOCK_POLL_SECONDS = 0.02
FIRST_PAUSE, MAX_PAUSE = 0.02, 0.5  # seconds between looks while waiting, doubling
NONCE_ATTEMPTS = 8
NONCES_AHEAD = 64  # that others may have waiting beside us; geth's pool keeps as many for an account
MAX_GAS = 60_000_000  # the blocks of Ethereum itself; nothing here needs a tenth of that
GAS_MARGIN = 1.25  # a first report of a round writes new storage where the estimate may have seen old


class Submitted(Struct, frozen=True):
    """What is known of the transaction for a key."""

    key: str
    nonce: int
    tx: str  # 0x…; of the version in the chain, or else of the newest
    state: State
    block_number: int | None
    gas_used: int | None
    contract_address: str | None
    error: str | None  # why it reverted or was displaced; while "sent", what keeps it from a block if known


class AccountQueue:
    """The one owner of an account's nonces on this machine.

    Any number of queues for one account, in any threads and processes of one user, share a file and a lock
    below `machine_dir`; each object is used from one thread at a time. Whoever calls `follow` or `wait` looks
    after the transactions of all of them, so that one whose process died goes on. Nothing is asked at
    construction; the first use asks the server which chain it has.

    Errors are `LedgerError`: `LedgerUnavailable` if the server does not answer or another process holds the
    account for long, otherwise a refusal, a server that changed its chain, or a file that cannot be used.
    """

    def __init__(
        self,
        rpc: Rpc,
        account: LocalAccount,
        machine_dir: Path,
        *,
        reprice_seconds: float = REPRICE_SECONDS,
        lock_seconds: float = LOCK_SECONDS,
    ) -> None:
        self._rpc = rpc
        self._account = account
        self._address = str(account.address)
        self._folder = machine_dir / "accounts"
        self._reprice_seconds = reprice_seconds
        self._lock_seconds = lock_seconds
        self._chain: tuple[int, bytes] | None = None
        self._opened: tuple[QueueStore, Settling] | None = None

    def submit(self, key: str, function: Any) -> Submitted:
        """Send a contract's function or constructor; does not wait for a block.

        `key` says what for, and is sent once: while its transaction is "sent" or "mined", that one is
        returned and nothing happens. If it "reverted" or was "displaced", a new one is sent. When this
        returns, the transaction is written down and will be followed, even if the server has not answered.

        `ContractRefusal` if the contract refuses, `LedgerError` if the server does (no funds, for one); then
        nothing is sent, and nothing written down.
        """
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise ValueError(f"a key has 1 to {MAX_KEY_CHARACTERS} characters, not {len(key)}")
        with self._locked() as (store, settling):
            row = store.find(key)
            if row is not None and row.state == "displaced":
                row = settling.settle_if_mined(row) or row  # a server that lagged may have told us so
            if row is None or row.state in ("reverted", "displaced"):
                row = self._send(store, key, function)
            return _submitted(row)

    def state(self, key: str) -> Submitted | None:
        """What is written down for the key; asks the server nothing but, at the first use, for its chain."""
        row = self._store.find(key)
        return None if row is None else _submitted(row)

    def follow(self) -> None:
        """Look once after everything that is not settled, or settled not deep enough; else asks nothing."""
        if not (self._store.unsettled() or self._store.watched()):
            return
        with self._locked() as (_, settling):
            settling.look()

    def wait(
        self,
        key: str,
        timeout_seconds: float = WAIT_SECONDS,
        progress: Callable[[str], None] | None = None,
    ) -> Submitted:
        """Follow until the key's transaction is settled; `progress` gets a line when something changes.

        `LedgerUnavailable` if it is not in time: it stays in the queue. A server that is away for a while is
        waited for.
        """
        deadline = time.monotonic() + timeout_seconds
        pause = FIRST_PAUSE
        told = ""
        while (found := self.state(key)) is not None and found.state == "sent":
            trouble = ""
            try:
                self.follow()
            except LedgerUnavailable as error:
                trouble = str(error)
            found = self.state(key) or found
            if found.state != "sent":
                return found
            trouble = trouble or found.error or ""
            line = f"{key}: {trouble}" if trouble else f"{key}: waiting for a block to take {found.tx}"
            if progress is not None and line != told:
                progress(line)
            told = line
            if time.monotonic() >= deadline:
                because = f" ({trouble})" if trouble else ""
                raise LedgerUnavailable(
                    f"{key}: no block took {found.tx} in {timeout_seconds:.0f} s{because}; it stays queued"
                )
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)
        if found is None:
            raise LedgerError(f"{key}: no transaction is under way, it was never sent or it was refused")
        return found

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()

    # Which chain and file.

    @property
    def _path(self) -> Path:
        if self._chain is None:
            self._chain = self._rpc.served_chain()
        chain_id, first = self._chain
        return self._folder / f"{chain_id}-{first.hex()[:8]}-{self._address}.sqlite"

    @property
    def _store(self) -> QueueStore:
        if self._opened is None:
            with self._locked() as (store, _):  # two that make one file at once would be in each other's way
                return store
        return self._opened[0]

    @contextmanager
    def _locked(self) -> Iterator[tuple[QueueStore, Settling]]:
        path = self._path
        lock = FileLock(f"{path}.lock", mode=0o600)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire(self._lock_seconds, poll_interval=LOCK_POLL_SECONDS)
        except Timeout as error:
            raise LedgerUnavailable(
                f"another process is using account {self._address} for longer than {self._lock_seconds:.0f} s"
            ) from error
        except OSError as error:
            raise LedgerError(f"the account's lock {path}.lock cannot be used: {error}") from error
        try:
            if self._opened is None:
                store = QueueStore(path)
                settling = Settling(self._rpc, self._account, store, self._check_chain, self._reprice_seconds)
                self._opened = store, settling
            yield self._opened
        finally:
            lock.release()

    def _check_chain(self) -> int:
        """The chain's id; `LedgerError` if the server has another chain now."""
        served = self._rpc.served_chain()
        if served != self._chain:
            raise LedgerError(
                f"wrong chain: {self._rpc.host} serves chain {_chain_text(served)} now, and chain "
                f"{_chain_text(self._chain)} when {self._address} began to use it"
            )
        return served[0]

    # Sending.

    def _send(self, store: QueueStore, key: str, function: Any) -> Row:
        action = f"{key} by {self._address}"
        payload = self._build(function, self._check_chain(), action)
        above = -1
        for _ in range(NONCE_ATTEMPTS):
            offer = fees.market(self._rpc, action)
            nonce = self._free_nonce(store, above)
            version = signed(self._rpc, self._account, payload, nonce, offer)
            row = Row(
                key=key,
                nonce=nonce,
                payload=payload,
                versions=[version],
                priced_at=time.time(),
                priced_block=self._rpc.block(None).number,
            )
            row = store.insert(row)
            answer = broadcast(self._rpc, version.raw, action)
            if answer.outcome == "accepted":
                log.info("transaction sent key=%r nonce=%d tx=%s", key, nonce, version.tx)
                return row
            if answer.outcome == "unclear":
                return store.save(replace(row, error=str(answer.error)))
            if answer.outcome == "refused":
                store.delete(row)
                raise answer.error or LedgerError(f"the ledger refused {action}")
            # The nonce is used or taken, by ourselves if the server heard us twice, else from outside.
            if self._rpc.knows(version.tx):
                return row
            log.warning("nonce used from outside this machine account=%s nonce=%d", self._address, nonce)
            store.delete(row)
            above = nonce
        raise LedgerError(
            f"account {self._address} is used from outside this machine at the same time: give each its own"
        )

    def _build(self, function: Any, chain_id: int, action: str) -> Payload:
        with self._rpc.asking(action):
            gas = int(self._rpc.number(function.estimate_gas({"from": self._address})) * GAS_MARGIN)
            if gas > MAX_GAS:
                raise LedgerError(
                    f"the ledger at {self._rpc.host} asks {gas} gas for {action}: no block has room"
                )
            # With all of these given, web3 asks the server for nothing more; fees and nonce come later.
            common = {"from": self._address, "nonce": 0, "gas": gas, "gasPrice": 0, "chainId": chain_id}
            built = function.build_transaction(common)
            data = built["data"]
            return Payload(
                chain_id=chain_id,
                to=str(built.get("to") or ""),
                data=data if isinstance(data, str) else "0x" + bytes(data).hex(),
                value=int(built.get("value", 0)),
                gas=gas,
            )

    def _free_nonce(self, store: QueueStore, above: int) -> int:
        # A server may lag behind what is settled here, or have forgotten what is not; and where a transaction
        # from outside went away again, the hole is filled, or all after it would wait for ever.
        pending = self._rpc.nonces_used(self._address, pending=True)
        used = self._rpc.nonces_used(self._address)
        if pending > used + len(store.held_nonces(used)) + NONCES_AHEAD:
            raise LedgerUnavailable(
                f"the ledger at {self._rpc.host} says nonce {pending} is next for {self._address}, which has "
                f"sent {used} transactions: nothing is sent on that word"
            )
        nonce = max(pending, above + 1)
        held = store.held_nonces(nonce)
        while nonce in held:
            nonce += 1
        return nonce


def _submitted(row: Row) -> Submitted:
    return Submitted(
        key=row.key,
        nonce=row.nonce,
        tx=row.tx,
        state=row.state,
        block_number=row.block_number,
        gas_used=row.gas_used,
        contract_address=row.contract_address,
        error=row.stuck or row.error,
    )


def _chain_text(chain: tuple[int, bytes] | None) -> str:
    return "?" if chain is None else f"{chain[0]} (first block {chain[1].hex()[:8]})"

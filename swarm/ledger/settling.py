"""What becomes of transactions after they were sent: kept alive, re-priced, settled, watched.

One pass of `Settling.look` reads what is open from the file and asks the server about it. It may be killed at
any point: what it decides is written down before it is acted upon, and acting again does no harm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger import fees
from swarm.ledger.broadcast import broadcast, signed
from swarm.ledger.fees import Fees
from swarm.ledger.queue_store import QueueStore, Row, Version
from swarm.ledger.records import Block
from swarm.ledger.rpc import Receipt, Rpc

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

log = logging.getLogger("swarm.ledger")

REPRICE_SECONDS = 30.0  # a transaction left out for as long, and by so many blocks, offers too little
REPRICE_BLOCKS = 3
REORG_BLOCKS = 64  # two epochs of Ethereum, by when a block is final


class Settling:
    """Follows the rows of one account's file. Every method is called with the account's lock held.

    `check_chain` raises if the server has another chain now; it is called before anything is signed or
    broadcast again, or concluded from what a server does not have.
    """

    def __init__(
        self,
        rpc: Rpc,
        account: LocalAccount,
        store: QueueStore,
        check_chain: Callable[[], object],
        reprice_seconds: float,
    ) -> None:
        self._rpc = rpc
        self._account = account
        self._address = str(account.address)
        self._store = store
        self._check_chain = check_chain
        self._reprice_seconds = reprice_seconds
        self._watched_at: bytes | None = None  # the latest block when reorganizations were last looked for
        self._unanswered: LedgerUnavailable | None = None  # once a broadcast was, in this pass
        self._repeated: dict[int, bytes] = {}  # row id -> latest block when it was broadcast again

    def look(self) -> None:
        """One pass over all rows that are open or watched, the lowest nonce first."""
        self._unanswered = None
        head = self._rpc.block(None)
        self._repeated = {number: block for number, block in self._repeated.items() if block == head.hash}
        watched = self._store.watched()
        trouble: LedgerError | None = None
        if watched and head.hash != self._watched_at:
            try:
                self._watch(watched, head)
            except LedgerError as error:  # what is open is looked after all the same
                trouble = error
        rows = self._store.unsettled()
        used = self._rpc.nonces_used(self._address) if rows else 0
        for row in rows:
            if row.nonce < used:
                self._look_for_receipt(row, head)
            else:
                self._keep_alive(row, head, first=row.nonce == used)
        self._store.prune()
        trouble = trouble or self._unanswered
        if trouble is not None:
            raise trouble

    def settle_if_mined(self, row: Row) -> Row | None:
        """The settled row if a version of it has a receipt, else None."""
        for version in reversed(row.versions):
            receipt = self._rpc.receipt(version.tx)
            if receipt is not None:
                return self._settle(row, version, receipt)
        return None

    # A nonce that is used.

    def _look_for_receipt(self, row: Row, head: Block) -> None:
        """The row's nonce is used: by one of its versions, or else from outside."""
        if self.settle_if_mined(row) is not None:
            return
        now = time.time()
        if row.used_seen is None:  # one look is not enough: behind a URL may be servers of which some lag
            self._store.save(replace(row, used_seen=(head.number, now)))
            return
        block, moment = row.used_seen
        if head.number > block or now - moment >= self._reprice_seconds:
            self._check_chain()
            log.warning("transaction displaced key=%r nonce=%d tx=%s", row.key, row.nonce, row.tx)
            words = f"a transaction from outside this machine used nonce {row.nonce} of {self._address}"
            watch_until = head.number + REORG_BLOCKS
            self._store.save(replace(row, state="displaced", error=words, watch_until=watch_until))

    def _settle(self, row: Row, version: Version, receipt: Receipt) -> Row:
        row = replace(
            row,
            state="mined" if receipt.succeeded else "reverted",
            mined_tx=version.tx,
            block_number=receipt.block_number,
            block_hash=receipt.block_hash,
            gas_used=receipt.gas_used,
            contract_address=receipt.contract_address,
            watch_until=receipt.block_number + REORG_BLOCKS,
            error=None,
            stuck=None,
            used_seen=None,
        )
        if row.state == "reverted":
            row = replace(row, error=self._why(row))
        log.info("transaction %s key=%r block=%d tx=%s", row.state, row.key, row.block_number, row.tx)
        return self._store.save(row)

    def _why(self, row: Row) -> str:
        """The contract's words, from running a reverted transaction again as a call, if they can be had."""
        action = f"{row.key} by {self._address}"
        payload = row.payload
        call = {"from": self._address, "data": payload.data, "value": payload.value, "gas": payload.gas}
        try:
            with self._rpc.asking(action):
                self._rpc.web3.eth.call(call | ({"to": payload.to} if payload.to else {}), row.block_number)
        except LedgerUnavailable:
            pass
        except LedgerError as error:
            return str(error)
        return f"the ledger refused {action}: transaction {row.tx} failed"

    # A nonce that is not used yet.

    def _keep_alive(self, row: Row, head: Block, *, first: bool) -> None:
        """The row waits for a block; `first` if no earlier nonce does."""
        if row.used_seen is not None:
            row = self._store.save(replace(row, used_seen=None))
        if any(self._rpc.knows(version.tx) for version in reversed(row.versions)):
            row = self._note(row, None)
        elif (
            row.id not in self._repeated
        ):  # some servers never tell what they have waiting: once a block is enough
            if self._unanswered is None:
                self._check_chain()
                row = self._broadcast_again(row, head)
            if self._unanswered is not None:
                return
        age = time.time() - row.priced_at
        waited = age >= self._reprice_seconds or age < 0  # or the machine's clock was set back
        blocks = head.number - row.priced_block
        if first and waited and (blocks >= REPRICE_BLOCKS or blocks < -REORG_BLOCKS):  # or that was a lie
            self._check_chain()
            self._reprice(row, head)

    def _broadcast_again(self, row: Row, head: Block) -> Row:
        for version in reversed(row.versions):
            answer = broadcast(self._rpc, version.raw, f"{row.key} by {self._address}")
            row = self._note(row, None if answer.error is None else str(answer.error))
            if answer.outcome == "accepted":
                log.info("transaction sent again key=%r nonce=%d tx=%s", row.key, row.nonce, version.tx)
                self._repeated[row.id] = head.hash
                break
            if isinstance(answer.error, LedgerUnavailable):
                self._unanswered = answer.error
                break
        return row

    def _reprice(self, row: Row, head: Block) -> None:
        """Sign the row again with a higher offer, write that down, and broadcast it."""
        row = replace(row, priced_at=time.time(), priced_block=head.number)
        payload = row.payload
        try:
            offer = self._better_offer(row)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            self._store.save(replace(row, stuck=f"no block takes it, and {error}"))
            return
        version = signed(self._rpc, self._account, payload, row.nonce, offer)
        row = self._store.save(replace(row, versions=[*row.versions, version], stuck=None))
        answer = broadcast(self._rpc, version.raw, f"{row.key} by {self._address}")
        # Kept whatever the answer: some server may have it, and one that asks for more gets a raise of this.
        self._note(row, None if answer.error is None else str(answer.error))
        log.info("transaction re-priced key=%r max_fee=%d tx=%s", row.key, offer.max_fee, row.tx)

    def _better_offer(self, row: Row) -> Fees:
        """What to offer next for the row; `LedgerError` if that is more than we pay, or can."""
        market = fees.market(self._rpc, f"{row.key} by {self._address}")
        highest = fees.cap()
        limits = {
            (self._rpc.balance(self._address) - row.payload.value) // row.payload.gas: (
                f"the balance of {self._address} allows"
            ),
            highest: f"{fees.MAX_FEE_VARIABLE} allows, which is {fees.in_gwei(highest)} gwei",
            fees.MAX_RAISE * market.max_fee: f"{fees.MAX_RAISE} times what the market asks",
        }
        last = row.versions[-1].fees
        offer = fees.raised(last, market, min(limits))
        if offer is None:
            raise LedgerError(f"a higher fee is more than {limits[min(limits)]}")
        # No pool takes a replacement without a higher tip. Above our highest we follow the market but do not
        # lead it: else an offer made on the word of a server that lied could never be mended.
        if (offer.tip or 0) > fees.MAX_TIP_GWEI * fees.WEI_PER_GWEI and market.max_fee <= last.max_fee:
            raise LedgerError(f"a higher tip is more than the {fees.MAX_TIP_GWEI} gwei that are paid")
        return offer

    def _note(self, row: Row, error: str | None) -> Row:
        return row if row.error == error else self._store.save(replace(row, error=error))

    # Reorganizations.

    def _watch(self, rows: list[Row], head: Block) -> None:
        """See that settled rows are still in the chain; those that are not go back among the open."""
        in_blocks = [(row, row.block_number or 0) for row in rows if row.state != "displaced"]
        reached = [(row, number) for row, number in in_blocks if number <= head.number]
        # A server may be some blocks behind the one that gave the receipt; by more, one of them is wrong.
        doubtful = [row for row, number in in_blocks if number > head.number + REORG_BLOCKS]
        if reached:
            highest, number = max(reached, key=lambda pair: pair[1])
            found = self._rpc.block_hash(number)
            if found is None:
                return  # so is the server that answered this
            if found != highest.block_hash:  # else all before it are in the chain too
                doubtful += [row for row, _ in reached]
        if doubtful:
            self._check_chain()
            for row in doubtful:
                if self.settle_if_mined(row) is None:
                    self._reopen(row, head)
        for row in rows:
            if row.state == "displaced":
                self.settle_if_mined(row)  # a server that lagged may have misled us
        for row in self._store.watched():
            if row.watch_until is not None and head.number >= row.watch_until:
                self._store.save(replace(row, watch_until=None))
        self._watched_at = head.hash

    def _reopen(self, row: Row, head: Block) -> None:
        log.warning("transaction dropped by a reorganization key=%r tx=%s", row.key, row.tx)
        self._store.save(
            replace(
                row,
                state="sent",
                mined_tx=None,
                block_number=None,
                block_hash=None,
                gas_used=None,
                contract_address=None,
                error=None,
                watch_until=None,
                priced_at=time.time(),
                priced_block=head.number,
            )
        )

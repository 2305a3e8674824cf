"""One connection to an Ethereum JSON-RPC server: reading, and sending until a block has the transaction."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.records import Block
from swarm.ledger.refusals import translated

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

REQUEST_SECONDS = 10.0
RECEIPT_SECONDS = 120.0  # ten blocks of the slowest chains in use
NONCE_ATTEMPTS = 8
GAS_MARGIN = 1.25  # a first report of a round writes new storage where the estimate may have seen old
LOG_BLOCKS = 10_000  # what most public servers allow in one question; halved when one refuses
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What geth, anvil and others say when another transaction took the nonce first.
_NONCE_TAKEN = ("nonce too low", "replacement transaction underpriced", "already known", "already imported")


class Rpc:
    """A connection; makes no call before it is asked. Use it from one thread."""

    def __init__(self, url: str, *, timeout_seconds: float = REQUEST_SECONDS) -> None:
        self.url = url
        parts = urlsplit(url)
        # Only this much of the URL is shown in errors: a path or user name may be somebody's API key.
        self.host = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        self._loopback = parts.hostname in LOOPBACK
        self._timeout_seconds = timeout_seconds

    @cached_property
    def web3(self) -> Any:
        """The web3 connection; importing web3 takes most of a second, so not before it is needed."""
        import requests
        from web3 import HTTPProvider, Web3
        from web3.middleware import ExtraDataToPOAMiddleware

        session = requests.Session()
        session.trust_env = not self._loopback  # a proxy from the environment cannot reach our own devnet
        provider = HTTPProvider(
            self.url,
            request_kwargs={"timeout": self._timeout_seconds},
            session=session,
            exception_retry_configuration=None,  # whoever calls knows better whether to wait
        )
        web3 = Web3(provider)
        # Chains of known validators put more than 32 bytes where web3 expects at most that.
        web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
        return web3

    @cached_property
    def chain_id(self) -> int:
        """The chain's id, asked once."""
        with self.asking("eth_chainId"):
            return int(self.web3.eth.chain_id)

    def asking(self, action: str) -> AbstractContextManager[None]:
        """Translate errors of the calls inside; `action` says in words what was asked."""
        return translated(action, self.host)

    def block(self, number: int | None) -> Block:
        """The header of block `number`, or of the latest one."""
        with self.asking("a block"):
            header = self.web3.eth.get_block("latest" if number is None else number)
            return Block(int(header["number"]), int(header["timestamp"]), bytes(header["hash"]))

    def call(self, function: Any, action: str) -> Any:
        """The value of a contract's view function at the latest block."""
        with self.asking(action):
            return function.call()

    def logs(self, event: Any, first: int, arguments: dict[str, Any] | None = None) -> Iterator[Any]:
        """Decoded logs of a contract's event from block `first` to the latest, in order."""
        last = self.block(None).number
        step = LOG_BLOCKS
        while first <= last:
            try:
                with self.asking("events"):
                    until = min(first + step - 1, last)
                    found = event.get_logs(from_block=first, to_block=until, argument_filters=arguments or {})
            except LedgerUnavailable:
                raise
            except LedgerError:
                if step == 1:
                    raise
                step //= 2  # the server allows fewer blocks at once
                continue
            yield from found
            first = until + 1

    def send(self, account: LocalAccount, function: Any, action: str) -> Any:
        """Sign and send a contract's function or constructor; the receipt once it is in a block.

        Others may use the account at the same time: a lost race for a nonce is run again. `LedgerError` if
        the contract refuses, `LedgerUnavailable` if no block takes it within two minutes.
        """
        action = f"{action} by {account.address}"
        for _ in range(NONCE_ATTEMPTS):
            with self.asking(action):
                transaction = self._build(account, function)
                signed = account.sign_transaction(transaction)
            if not self._submit(signed.raw_transaction, action):
                continue
            receipt = self._wait(signed.hash, account.address, transaction["nonce"], action)
            if receipt is None:
                continue
            if receipt["status"] != 1:
                self._explain(account, function, receipt, action)
            return receipt
        raise LedgerError(f"account {account.address} is in use by too many at once: give each peer its own")

    def _build(self, account: LocalAccount, function: Any) -> dict[str, Any]:
        eth = self.web3.eth
        nonce = eth.get_transaction_count(account.address, "pending")
        transaction: dict[str, Any] = {"from": account.address, "nonce": nonce, "chainId": self.chain_id}
        transaction["gas"] = int(function.estimate_gas({"from": account.address}) * GAS_MARGIN)
        base_fee = eth.get_block("latest").get("baseFeePerGas")
        if base_fee is None:  # a chain from before EIP-1559
            transaction["gasPrice"] = eth.gas_price
        else:
            tip = eth.max_priority_fee
            transaction |= {"maxPriorityFeePerGas": tip, "maxFeePerGas": 2 * base_fee + tip}
        built: dict[str, Any] = function.build_transaction(transaction)
        return built

    def _submit(self, raw: bytes, action: str) -> bool:
        try:
            with self.asking(action):
                self.web3.eth.send_raw_transaction(raw)
        except LedgerError as error:
            if any(words in str(error).lower() for words in _NONCE_TAKEN):
                return False
            raise
        return True

    def _wait(self, transaction: bytes, sender: str, nonce: int, action: str) -> Any:
        """The receipt, or None if another transaction with the same nonce was taken instead."""
        from web3.exceptions import TransactionNotFound

        deadline = time.monotonic() + RECEIPT_SECONDS
        pause = 0.02
        while time.monotonic() < deadline:
            with self.asking(action):
                # In this order: of a nonce used before we look, the receipt is there if it was ours.
                used = self.web3.eth.get_transaction_count(sender, "latest") > nonce
                try:
                    return self.web3.eth.get_transaction_receipt(transaction)
                except TransactionNotFound:
                    if used:
                        return None
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        raise LedgerUnavailable(
            f"{action}: no block took 0x{bytes(transaction).hex()} in {RECEIPT_SECONDS:.0f} s"
        )

    def _explain(self, account: LocalAccount, function: Any, receipt: Any, action: str) -> None:
        """Run a failed transaction once more, as a call, for the contract's reason; always raises."""
        if hasattr(function, "call"):  # a constructor has none
            with self.asking(action):
                function.call({"from": account.address}, block_identifier=receipt["blockNumber"])
        raise LedgerError(
            f"the ledger refused {action}: transaction 0x{receipt['transactionHash'].hex()} failed"
        )

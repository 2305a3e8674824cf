"""One connection to an Ethereum JSON-RPC server, for reading; `transactions` sends over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.records import Block
from swarm.ledger.refusals import translated

REQUEST_SECONDS = 10.0
LOG_BLOCKS = 10_000  # what most public servers allow in one question; halved when one refuses
LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
        return self.ask_chain_id()

    def ask_chain_id(self) -> int:
        """The id of the chain that the server has right now."""
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

    def served_chain(self) -> tuple[int, bytes]:
        """The chain's id and the hash of its block 0, asked anew: which chain the server has right now."""
        return self.ask_chain_id(), self.block(0).hash

    def block_hash(self, number: int) -> bytes | None:
        """The hash of block `number`; None if the server has no such block (yet)."""
        from web3.exceptions import BlockNotFound

        with self.asking("a block"):
            try:
                return bytes(self.web3.eth.get_block(number)["hash"])
            except BlockNotFound:
                return None

    def nonces_used(self, address: str, *, pending: bool = False) -> int:
        """How many transactions of the account are in the latest block's chain, or wait for the next too."""
        with self.asking(f"the nonce of {address}"):
            return int(self.web3.eth.get_transaction_count(address, "pending" if pending else "latest"))

    def balance(self, address: str) -> int:
        """The account's balance at the latest block, in wei."""
        with self.asking(f"the balance of {address}"):
            return int(self.web3.eth.get_balance(address))

    def receipt(self, tx: str) -> Any:
        """The receipt of a transaction that is in a block, else None."""
        from web3.exceptions import TransactionNotFound

        with self.asking("a receipt"):
            try:
                receipt = self.web3.eth.get_transaction_receipt(tx)
            except TransactionNotFound:
                return None
            return receipt if receipt["blockHash"] is not None else None

    def knows(self, tx: str) -> bool:
        """Whether the server has the transaction, in a block or waiting for one."""
        from web3.exceptions import TransactionNotFound

        with self.asking("a transaction"):
            try:
                self.web3.eth.get_transaction(tx)
            except TransactionNotFound:
                return False
            return True

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

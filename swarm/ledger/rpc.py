"""One connection to an Ethereum JSON-RPC server, for reading; `transactions` sends over it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.records import Block
from swarm.ledger.refusals import translated

REQUEST_SECONDS = 10.0
LOG_BLOCKS = 10_000  # what most public servers allow in one question; halved when one refuses
MAX_LOG_QUESTIONS = 10_000  # for one search; a hundred million blocks, if the server is generous
MAX_NUMBER = 2**63  # above nonces, blocks, times, chain ids and gas; SQLite holds what is below
MAX_BALANCE = 2**256
MAX_RECURSION = 10_000  # a tenth of what 8 MiB of stack did not bear; Python's own is 1,000
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Receipt(Struct, frozen=True):
    """That a transaction is in a block."""

    succeeded: bool
    block_number: int
    block_hash: bytes
    gas_used: int
    contract_address: str | None


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

        from swarm.ledger.http import MAX_REDIRECTS, BoundedAdapter

        # py_ecc, which web3 imports, allows a depth at which nested JSON overflows the stack and kills us.
        sys.setrecursionlimit(min(MAX_RECURSION, sys.getrecursionlimit()))
        session = requests.Session()
        session.max_redirects = MAX_REDIRECTS
        for scheme in ("http://", "https://"):
            session.mount(scheme, BoundedAdapter())
        session.trust_env = not self._loopback  # a proxy from the environment cannot reach our own devnet
        provider = HTTPProvider(
            self.url,
            request_kwargs={"timeout": self._timeout_seconds},
            session=session,
            exception_retry_configuration=None,  # whoever calls knows better whether to wait
        )
        provider.global_ccip_read_enabled = False  # else a server could have us ask any other (EIP-3668)
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
            return self.number(self.web3.eth.chain_id)

    @contextmanager
    def asking(self, action: str) -> Iterator[None]:
        """Translate errors of the calls inside; `action` says in words what was asked."""
        from swarm.ledger.http import MAX_MEBIBYTES, TooLongAnswer

        with translated(action, self.host):
            try:
                yield
            except TooLongAnswer as error:
                raise LedgerUnavailable(
                    f"the ledger at {self.host} answered {action} with more than {MAX_MEBIBYTES} MiB"
                ) from error

    @staticmethod
    def number(value: Any, limit: int = MAX_NUMBER) -> int:
        """A number of the server's, at least 0 and below `limit`; for use inside `asking`."""
        if not isinstance(value, int) or not 0 <= value < limit:
            raise ValueError("a number that cannot be")  # which may have millions of digits
        return value

    def block(self, number: int | None) -> Block:
        """The header of block `number`, or of the latest one."""
        with self.asking("a block"):
            header = self.web3.eth.get_block("latest" if number is None else number)
            found, timestamp = self.number(header["number"]), self.number(header["timestamp"])
            if found != (found if number is None else number):
                raise ValueError("another block")
            return Block(found, timestamp, bytes(header["hash"]))

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
            count = self.web3.eth.get_transaction_count(address, "pending" if pending else "latest")
            return self.number(count)

    def balance(self, address: str) -> int:
        """The account's balance at the latest block, in wei."""
        with self.asking(f"the balance of {address}"):
            return self.number(self.web3.eth.get_balance(address), MAX_BALANCE)

    def receipt(self, tx: str) -> Receipt | None:
        """The receipt of a transaction, if its block is in the chain that the server shows now, else None."""
        from web3.exceptions import TransactionNotFound

        with self.asking("a receipt"):
            try:
                receipt = self.web3.eth.get_transaction_receipt(tx)
            except TransactionNotFound:
                return None
            number, block_hash, contract = map(receipt.get, ("blockNumber", "blockHash", "contractAddress"))
            if not isinstance(number, int) or not 0 <= number <= self.block(None).number:
                return None  # not yet, or a lie
            if block_hash is None or self.block_hash(number) != bytes(block_hash):
                return None  # not any more, or a lie
            return Receipt(
                succeeded=receipt["status"] == 1,
                block_number=number,
                block_hash=bytes(block_hash),
                gas_used=self.number(receipt["gasUsed"]),
                contract_address=None if contract is None else str(contract),
            )

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

    def raw_logs(self, address: str, topics: Sequence[str], first: int, last: int) -> Any:
        """A contract's logs that have one of these first topics, in blocks `first` to `last`, not decoded.

        One question, past web3's own decoding, which is slow for many.
        """
        from web3.exceptions import Web3RPCError
        from web3.types import RPCEndpoint

        with self.asking("events"):
            wanted = {
                "address": address,
                "fromBlock": hex(first),
                "toBlock": hex(last),
                "topics": [list(topics)],
            }
            answer = self.web3.provider.make_request(RPCEndpoint("eth_getLogs"), [wanted])
            if (error := answer.get("error")) is not None:
                raise Web3RPCError(str(error), rpc_response=answer)
            return answer["result"]

    def logs(self, event: Any, first: int, arguments: dict[str, Any] | None = None) -> Iterator[Any]:
        """Decoded logs of a contract's event from block `first` to the latest, in order."""
        last = self.block(None).number
        step = LOG_BLOCKS
        questions = 0
        while first <= last:
            questions += 1
            if questions + (last - first) // LOG_BLOCKS > MAX_LOG_QUESTIONS:
                raise LedgerError(
                    f"the ledger at {self.host} has events of blocks {first} to {last} to tell, which takes "
                    f"over {MAX_LOG_QUESTIONS} questions: use another RPC URL"
                )
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

"""Signing a transaction, handing it to the server, and what the answer means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.fees import Fees
from swarm.ledger.queue_store import Payload, Version
from swarm.ledger.rpc import Rpc

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

# What servers say, in lower case: geth, reth, anvil, Nethermind, Besu and Erigon have words of their own,
# and no codes that tell these apart. What is missing here counts as unclear, which is the safe side.
_KNOWN = ("already known", "already imported", "alreadyknown", "same hash")
_NONCE_TAKEN = ("nonce too low", "nonce is too low", "oldnonce", "replacement", "replace existing")
_REFUSED = (
    "insufficient funds",
    "insufficientfunds",
    "insufficient balance",
    "exceeds account balance",
    "doesn't have enough",
    "underpriced",
    "fee cap",
    "feecap",
    "exceeds the configured cap",
    "feetoolow",
    "fee too low",
    "max fee per gas",
    "maxfeepergas",
    "max priority fee",
    "gas price too low",
    "gas price below",
    "gas limit",
    "gaslimit",
    "intrinsic gas",
    "gas too low",
    "initcode",
    "init code",
    "oversized",
    "invalid sender",
    "chain id",
    "chainid",
    "type not supported",
)


class Answer(Struct, frozen=True):
    """What became of a broadcast.

    "accepted": the server has it, or had it before. "nonce taken": another transaction has its nonce.
    "refused": the server did not take it and named a reason that will not change by itself. "unclear": no
    answer, or words that leave open whether some server behind it has the transaction.
    """

    outcome: Literal["accepted", "nonce taken", "refused", "unclear"]
    error: LedgerError | None = None


def signed(rpc: Rpc, account: LocalAccount, payload: Payload, nonce: int, offer: Fees) -> Version:
    """A version of a transaction. `rpc` is only named, if a number that it made up cannot be signed."""
    with rpc.asking("fees"):
        transaction = {
            "to": payload.to,
            "data": payload.data,
            "value": payload.value,
            "gas": payload.gas,
            "nonce": nonce,
            "chainId": payload.chain_id,
            **offer.fields,
        }
        result = account.sign_transaction(transaction)
    return Version(tx="0x" + bytes(result.hash).hex(), raw=bytes(result.raw_transaction), fees=offer)


def broadcast(rpc: Rpc, raw: bytes, action: str) -> Answer:
    """Send signed bytes; never raises what the network does wrong, but tells it."""
    try:
        with rpc.asking(action):
            rpc.web3.eth.send_raw_transaction(raw)
    except LedgerUnavailable as error:
        return Answer("unclear", error)
    except LedgerError as error:
        said = str(error.__cause__).lower()
        if any(words in said for words in _KNOWN):
            return Answer("accepted")
        if any(words in said for words in _NONCE_TAKEN):
            return Answer("nonce taken", error)
        return Answer("refused" if any(words in said for words in _REFUSED) else "unclear", error)
    return Answer("accepted")

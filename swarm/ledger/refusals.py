"""The boundary to web3: whatever it raises leaves as a `LedgerError` of one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from swarm.errors import LedgerError, LedgerUnavailable, WrongLedger

if TYPE_CHECKING:
    from web3.exceptions import Web3RPCError

# The contract's custom errors in words; {names} are the error's arguments.
_WORDS = {
    "BadRoundSeconds": "a round must be longer than 0 seconds",
    "BadGenesis": "genesis {genesis} is more than a year from the chain's time {timestamp} (Unix seconds)",
    "ManifestTooLarge": "the manifest has {size} bytes, at most {max} fit",
    "BadAcceptanceWindow": "the acceptance window is {acceptanceWindow} rounds, it must be 1 to {max}",
    "BadCaps": "the caps {maxGroups} groups and {maxRewardMicros} reward micros must be above 0, and the "
    "reward below 2^38",
    "BadStages": "the stages' ends {stageEnds} must be at most 8 growing millionths, between 0 and 1000000",
    "BeforeGenesis": "the swarm begins at {genesis}, the chain's time is {timestamp} (Unix seconds)",
    "BadModulus": "the key is not RSA-2048",
    "BadProof": "the signature does not prove that the key of {peer} agrees to account {account}",
    "BadConsent": "the signature does not prove that account {account} agrees to speak for {peer}",
    "BadRotation": "the signatures do not prove that the keys of {oldPeer} and {newPeer} agree",
    "AlreadyRegistered": "{peer} is registered to account {account}",
    "PeerTaken": "{peer} was registered before; rotate to a new key",
    "Retired": "{peer} is retired; {successor} took over from it",
    "NotRegistered": "{peer} is not registered; register it first",
    "NotPeersAccount": "{peer} belongs to account {account}",
    "BadReportSignature": "the signature over the reports is not by {account}, the account of {peer}",
    "BadBatch": "{size} reports in one transaction, it must be 1 to {max}",
    "FutureRound": "round {round} has not begun, the clock is in round {currentRound}",
    "TooLate": "round {round} is over for too long, the clock is in round {currentRound}",
    "AlreadyReported": "already reported round {round}",
    "TooManyGroups": "{groups} groups reported, at most {max} count",
    "RewardTooHigh": "a reward of {rewardMicros} micro-units reported, at most {max} count",
    "VerdictsTooLarge": "the verdicts have {size} bytes, at most {max} fit",
    "BadBootnodeSignature": "the signature over the bootnode is not by {account}, the account of {peer}",
    "BadAnnouncementTime": "the bootnode was signed at {announcedAt}: over an hour ago, in the future, or "
    "before the last one; that was at {last}, now is {timestamp} (Unix seconds)",
    "BadMultiaddr": "the multiaddr must be 1 to 256 printable ASCII characters beginning with /",
}


_SIZE_WORDS = ("results", "block range", "response size")
_LIMIT_WORDS = ("rate limit", "too many requests", "request limit", "throughput", "compute units")


class ContractRefusal(LedgerError):
    """The contract reverted, with its custom error `name` ("" if it gave none that we know)."""

    def __init__(self, message: str, name: str, arguments: dict[str, Any]) -> None:
        super().__init__(message)
        self.name = name
        self.arguments = arguments


def kind_of_trouble(error: LedgerError) -> str:
    """The same for errors that need only one line in a log, however their details vary from try to try."""
    if isinstance(error, LedgerUnavailable):
        return "away"
    return error.name if isinstance(error, ContractRefusal) and error.name else str(error)


@cache
def artifact(name: str) -> dict[str, Any]:
    """A compiled contract that is checked in: `abi`, `bytecode`, and what they were made from.

    `name` is `"SwarmCoordinator"` or `"RLSwarmView"`.
    """
    file = resources.files("swarm.ledger") / "artifacts" / f"{name}.json"
    contents: dict[str, Any] = json.loads(file.read_text())
    return contents


@contextmanager
def translated(action: str, host: str) -> Iterator[None]:
    """Translate what web3, eth-abi and requests raise inside.

    No answer, a time-out or bad HTTP becomes `LedgerUnavailable`, a revert `ContractRefusal`, the rest
    `LedgerError`. Only the asking belongs inside: a contract function checks its arguments when it is made,
    so what fails here for a type or value is the server's answer.
    """
    import requests
    from eth_abi.exceptions import DecodingError
    from web3 import exceptions

    try:
        yield
    except requests.Timeout as error:
        raise LedgerUnavailable(f"the ledger at {host} did not answer {action} in time") from error
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "error"
        raise LedgerUnavailable(f"the ledger at {host} answered {action} with HTTP {status}") from error
    except requests.RequestException as error:
        raise LedgerUnavailable(
            f"the ledger at {host} cannot be reached: is it running, is the URL right?"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, exceptions.BadResponseFormat) as error:
        raise LedgerUnavailable(f"what answers at {host} is not an Ethereum JSON-RPC server") from error
    except (exceptions.BlockNotFound, exceptions.TransactionNotFound, exceptions.RequestTimedOut) as error:
        raise LedgerUnavailable(
            f"the ledger at {host} has no answer for {action} yet: {_line(error)}"
        ) from error
    except exceptions.ContractCustomError as error:
        raise _refusal(action, str(error.data)) from error
    except exceptions.ContractLogicError as error:
        raise ContractRefusal(f"the ledger refused {action}: {_line(error)}", "", {}) from error
    except (
        exceptions.BadFunctionCallOutput,
        exceptions.LogTopicError,
        exceptions.MismatchedABI,
        DecodingError,
        OverflowError,
    ) as error:
        raise WrongLedger(
            f"the contract is not a SwarmCoordinator: it does not understand {action}"
        ) from error
    except exceptions.Web3RPCError as error:
        if "insufficient funds" in str(error).lower():
            raise LedgerError(f"no funds for {action}: send that account some of the chain's coin") from error
        kind = LedgerUnavailable if _is_limit(error) else LedgerError
        raise kind(f"the ledger at {host} refused {action}: {_line(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LedgerError(f"the ledger at {host} answered {action} with nonsense: {_line(error)}") from error


def _is_limit(error: Web3RPCError) -> bool:
    """Whether the server only wants to be asked less often: EIP-1474's code, or words to that effect.

    The same code tells of too much to answer at once; then the words are about results or a range.
    """
    if any(words in str(error).lower() for words in _SIZE_WORDS):
        return False
    response = error.rpc_response or {}
    details = response.get("error") if isinstance(response, dict) else None
    code = details.get("code") if isinstance(details, dict) else None
    return code == -32005 or any(words in str(error).lower() for words in _LIMIT_WORDS)


def _line(error: Exception) -> str:
    text = getattr(error, "message", None) or str(error)
    return " ".join(str(text).split())[:300]


def _refusal(action: str, data: str) -> ContractRefusal:
    from eth_abi import decode
    from eth_abi.exceptions import DecodingError

    name, inputs = _errors().get(data[2:10], ("", []))
    try:
        values = decode([entry["type"] for entry in inputs], bytes.fromhex(data[10:]))
    except (DecodingError, ValueError):
        name = ""
    if not name:
        return ContractRefusal(f"the ledger refused {action} with an unknown error {data[:10]}", "", {})
    arguments = dict(zip((entry["name"] for entry in inputs), values, strict=True))
    words = _WORDS[name].format(**{key: _shown(key, value) for key, value in arguments.items()})
    return ContractRefusal(f"the ledger refused {action}: {words} ({name})", name, arguments)


def _shown(key: str, value: Any) -> Any:
    if key in ("peer", "oldPeer", "newPeer", "successor"):
        from identity import peer_id_text  # slow to import (libp2p), and needed only here

        return f"peer {peer_id_text(value)}"
    return value


@cache
def _errors() -> dict[str, tuple[str, list[dict[str, str]]]]:
    from eth_utils import keccak

    found = {}
    for entry in artifact("SwarmCoordinator")["abi"]:
        if entry["type"] == "error":
            signature = f"{entry['name']}({','.join(argument['type'] for argument in entry['inputs'])})"
            found[keccak(text=signature)[:4].hex()] = (entry["name"], entry["inputs"])
    return found

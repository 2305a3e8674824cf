"""Putting a swarm on a chain."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.errors import LedgerError
from swarm.ledger.client import CONTRACT, LedgerClient, Progress
from swarm.ledger.refusals import artifact
from swarm.ledger.rpc import Rpc
from swarm.ledger.transactions import AccountQueue
from swarm.manifest import Manifest

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

VIEW = "RLSwarmView"


def deploy(
    rpc_url: str,
    account: LocalAccount,
    manifest: Manifest,
    genesis: int,
    machine_dir: Path,
    progress: Progress | None = None,
) -> LedgerClient:
    """Put a swarm on a chain; `account` pays.

    `genesis` is when round 0 begins, in Unix seconds; it may lie in the future, by at most a year.
    `machine_dir` is where the account's transactions are written down; `progress` is told what is waited for.
    """
    return LedgerClient(
        rpc_url,
        _deploy(
            rpc_url,
            account,
            machine_dir,
            CONTRACT,
            (
                manifest.canonical,
                genesis,
                manifest.round_seconds,
                manifest.acceptance_window,
                manifest.max_groups,
                manifest.max_reward_micros,
                manifest.stage_ends_millionths,
            ),
            progress,
        ),
    )


def deploy_view(
    ledger: LedgerClient, account: LocalAccount, machine_dir: Path, progress: Progress | None = None
) -> str:
    """Put an adapter beside the contract, with which readers of RL Swarm's contract work; its address."""
    return _deploy(ledger.rpc_url, account, machine_dir, VIEW, (ledger.address,), progress)


def _deploy(
    rpc_url: str,
    account: LocalAccount,
    machine_dir: Path,
    name: str,
    arguments: tuple[Any, ...],
    progress: Progress | None,
) -> str:
    rpc = Rpc(rpc_url)
    contract = rpc.web3.eth.contract(abi=artifact(name)["abi"], bytecode=artifact(name)["bytecode"])
    queue = AccountQueue(rpc, account, machine_dir)
    key = f"deployment of {name} {secrets.token_hex(8)}"  # each one is wanted
    queue.submit(key, contract.constructor(*arguments))
    deployed = queue.wait(key, progress=progress)
    if deployed.state != "mined" or deployed.contract_address is None:
        raise LedgerError(
            f"the deployment of {name} failed: {deployed.error or deployed.state} ({deployed.tx})"
        )
    return deployed.contract_address

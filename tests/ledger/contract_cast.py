"""What the contracts' tests act with: plain web3 on an anvil whose blocks and time they make themselves.

Messages, type hashes and heads are written out here once more, independently of the contract.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from eth_abi import decode, encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_utils import keccak
from web3 import HTTPProvider, Web3
from web3.exceptions import ContractCustomError

from identity import Identity
from swarm.ledger.devnet import Devnet
from swarm.ledger.refusals import artifact

MANIFEST = b'{"name":"test"}'
ROUND_SECONDS = 1000
WINDOW = 20
MAX_GROUPS = 100
MAX_REWARD = 50_000_000
STAGE_ENDS = [250_000, 600_000, 800_000]
WEEK = 7 * 86400
GAS = 15_000_000  # given, since estimating takes as long as sending
ZERO = "0x" + "00" * 20

REPORT_FIELDS = ["round", "groups", "rewardMicros", "commitment", "stateBefore", "stateAfter", "verdicts"]
REPORT_TYPES = ["uint64", "uint32", "uint64", "bytes32", "bytes32", "bytes32", "bytes"]


class Report(NamedTuple):
    """The contract's struct."""

    round: int
    groups: int
    reward_micros: int
    commitment: bytes
    state_before: bytes
    state_after: bytes
    verdicts: bytes


def make_report(
    round: int, *, reward: int = 1_500_000, groups: int = 12, verdicts: bytes = b"", note: bytes = b""
) -> Report:
    digests = [hashlib.sha256(name + note + round.to_bytes(8, "big")).digest() for name in (b"c", b"b", b"a")]
    return Report(round, groups, reward, *digests, verdicts)


def next_head(head: bytes, report: Report) -> bytes:
    kinds = ["bytes32", *REPORT_TYPES[:-1], "bytes32"]
    return keccak(encode(kinds, [head, *report[:-1], keccak(report.verdicts)]))


def head_of(reports: list[Report]) -> bytes:
    head = bytes(32)
    for report in reports:
        head = next_head(head, report)
    return head


@cache
def key(number: int) -> Identity:
    """The `number`-th key of the test session."""
    return Identity(rsa.generate_private_key(public_exponent=65537, key_size=2048), Path(f"{number}.pem"))


@cache
def chain(chain_id: int = 31337) -> Chain:
    """A devnet of the session. Its blocks are a second apart on any wall clock; it ends at exit."""
    return Chain(Devnet(block_seconds=None, chain_id=chain_id).start())


class Chain:
    """A devnet with hands on its clock; anyone's transactions are taken unsigned."""

    def __init__(self, devnet: Devnet) -> None:
        self.devnet = devnet
        self.id = devnet.chain_id
        self.web3 = Web3(HTTPProvider(devnet.rpc_url))
        devnet.call("anvil_autoImpersonateAccount", True)
        devnet.call("anvil_setBlockTimestampInterval", 1)

    @property
    def time(self) -> int:
        return int(self.devnet.call("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def mine_at(self, timestamp: int) -> None:
        """Make one block with this timestamp."""
        self.next_at(timestamp)
        self.devnet.call("evm_mine")

    def next_at(self, timestamp: int) -> None:
        """Give the next block this timestamp."""
        self.devnet.call("evm_setNextBlockTimestamp", timestamp)

    def account(self) -> LocalAccount:
        """A new account with money."""
        account = Account.create()
        self.devnet.call("anvil_setBalance", account.address, hex(10**22))
        return account

    def deploy(self, name: str, *arguments: Any, by: LocalAccount | None = None) -> Any:
        """The deployed contract, as plain web3 sees it."""
        receipt = self.send(self.factory(name).constructor(*arguments), by or self.deployer)
        return self.web3.eth.contract(address=receipt["contractAddress"], abi=artifact(name)["abi"])

    def factory(self, name: str) -> Any:
        return self.web3.eth.contract(abi=artifact(name)["abi"], bytecode=artifact(name)["bytecode"])

    @property
    def deployer(self) -> LocalAccount:
        return Account.from_key(self.devnet.funded_key)

    def send(self, function: Any, sender: LocalAccount) -> Any:
        """The receipt of a transaction that must succeed."""
        tx = function.transact({"from": sender.address, "gas": GAS})
        receipt = self.web3.eth.wait_for_transaction_receipt(tx, poll_latency=0.005)
        if receipt["status"] != 1:
            function.call({"from": sender.address, "gas": GAS})
            raise AssertionError("the transaction failed, the same call afterwards did not")
        return receipt


@dataclass
class Swarm:
    """A deployed SwarmCoordinator."""

    chain: Chain
    contract: Any

    @property
    def address(self) -> str:
        return str(self.contract.address)

    @property
    def genesis(self) -> int:
        return int(self.read("genesis"))

    def enter(self, round: int, offset: int = 0) -> None:
        """Make a block `offset` seconds into the round."""
        self.chain.mine_at(self.genesis + round * ROUND_SECONDS + offset)

    def read(self, name: str, *arguments: Any) -> Any:
        return getattr(self.contract.functions, name)(*arguments).call()

    def send(self, sender: LocalAccount, name: str, *arguments: Any) -> Any:
        return self.chain.send(getattr(self.contract.functions, name)(*arguments), sender)

    def refused(
        self, error: str, values: tuple[Any, ...], sender: LocalAccount, name: str, *rest: Any
    ) -> None:
        """Check that the call is refused with exactly this error and these arguments."""
        assert self.refusal(sender, name, *rest) == (error, values)

    def refusal(self, sender: LocalAccount, name: str, *arguments: Any) -> tuple[str, tuple[Any, ...]]:
        """The custom error that a call reverts with, and its arguments."""
        function = getattr(self.contract.functions, name)(*arguments)
        with pytest.raises(ContractCustomError) as caught:
            function.call({"from": sender.address, "gas": GAS})
        return read_error(str(caught.value.data))

    def proof(self, key: Identity, account: LocalAccount, binding: int | None = None) -> bytes:
        """The key's signature to be bound to the account, as its next binding if no other is given."""
        binding = self.read("bindings", key.peer) if binding is None else binding
        return key.sign(registration_message(self.chain.id, self.address, account.address, binding))

    def consent(self, key: Identity, account: LocalAccount, binding: int | None = None) -> bytes:
        """The account's signature to speak for the peer."""
        binding = self.read("bindings", key.peer) if binding is None else binding
        return self.typed(account, "Registration", {"peer": key.peer, "binding": binding})

    def report_signature(self, account: LocalAccount, peer: bytes, reports: list[Report]) -> bytes:
        """The account's signature over reports of the peer."""
        described = [dict(zip(REPORT_FIELDS, report, strict=True)) for report in reports]
        return self.typed(account, "Reports", {"peer": peer, "reports": described})

    def typed(self, account: LocalAccount, name: str, message: dict[str, Any]) -> bytes:
        domain = {"name": "SwarmCoordinator", "version": "1"}
        domain |= {"chainId": self.chain.id, "verifyingContract": self.address}
        report = [
            {"name": field, "type": kind} for field, kind in zip(REPORT_FIELDS, REPORT_TYPES, strict=True)
        ]
        peer = {"name": "peer", "type": "bytes32"}
        types = {
            "Bootnode": {
                "Bootnode": [
                    peer,
                    {"name": "multiaddr", "type": "string"},
                    {"name": "announcedAt", "type": "uint64"},
                ]
            },
            "Registration": {"Registration": [peer, {"name": "binding", "type": "uint32"}]},
            "Reports": {"Reports": [peer, {"name": "reports", "type": "Report[]"}], "Report": report},
        }
        return bytes(account.sign_message(encode_typed_data(domain, types[name], message)).signature)

    def register(self, key: Identity, account: LocalAccount) -> Any:
        return self.send(account, "register", key.public_key.modulus, self.proof(key, account))

    def register_for(self, key: Identity, account: LocalAccount, sender: LocalAccount) -> Any:
        signatures = (self.proof(key, account), self.consent(key, account))
        return self.send(sender, "registerFor", account.address, key.public_key.modulus, *signatures)

    def rotation(self, old: Identity, new: Identity) -> tuple[bytes, bytes, bytes, bytes]:
        """The arguments of `rotate`."""
        message = rotation_message(self.chain.id, self.address, old.peer, new.peer)
        return (old.public_key.modulus, new.public_key.modulus, old.sign(message), new.sign(message))

    def rotate(self, old: Identity, new: Identity) -> Any:
        return self.send(self.chain.deployer, "rotate", *self.rotation(old, new))

    def report(self, key: Identity, account: LocalAccount, report: Report) -> Any:
        return self.send(account, "report", key.peer, report)

    def reported(self, since: int = 0) -> list[tuple[bytes, Report, bool]]:
        """Peer, report and lateness of every Reported log, in order."""
        found = []
        for log in self.contract.events.Reported.get_logs(from_block=since):
            values = log["args"]
            report = Report(*(values[name] for name in REPORT_FIELDS))
            found.append((values["peer"], report, values["late"]))
        return found


def create_swarm(on: Chain | None = None, by: LocalAccount | None = None, **changes: Any) -> Swarm:
    """A new swarm whose round 0 begins now."""
    on = on or chain()
    return Swarm(on, on.deploy("SwarmCoordinator", *constructor_arguments(on, **changes), by=by))


def twins() -> list[Swarm]:
    """Two swarms that differ in nothing but the chain's id: they even have the same address."""
    chains = (chain(), chain(31338))
    by = chains[0].account()
    chains[1].devnet.call("anvil_setBalance", by.address, hex(10**22))
    first, second = (create_swarm(on, by) for on in chains)
    assert first.address == second.address
    return [first, second]


def refused_creation(on: Chain, **changes: Any) -> tuple[str, tuple[Any, ...]]:
    """The custom error that these constructor arguments give."""
    creation = on.factory("SwarmCoordinator").constructor(*constructor_arguments(on, **changes))
    with pytest.raises(ContractCustomError) as caught:
        on.web3.eth.call({"from": on.deployer.address, "gas": GAS, "data": creation.data_in_transaction})
    return read_error(str(caught.value.data))


def constructor_arguments(on: Chain, **changes: Any) -> tuple[Any, ...]:
    arguments = {
        "manifest": MANIFEST,
        "genesis": on.time,
        "round_seconds": ROUND_SECONDS,
        "window": WINDOW,
        "max_groups": MAX_GROUPS,
        "max_reward": MAX_REWARD,
        "stage_ends": STAGE_ENDS,
    }
    assert changes.keys() <= arguments.keys()
    return tuple((arguments | changes).values())


def registration_message(chain_id: int, contract: str, account: str, binding: int) -> bytes:
    start = b"swarm/1/register" + chain_id.to_bytes(32, "big")
    return start + _bytes(contract) + _bytes(account) + binding.to_bytes(4, "big")


def rotation_message(chain_id: int, contract: str, old_peer: bytes, new_peer: bytes) -> bytes:
    return b"swarm/1/rotate" + chain_id.to_bytes(32, "big") + _bytes(contract) + old_peer + new_peer


def read_error(data: str) -> tuple[str, tuple[Any, ...]]:
    """Name and arguments of a SwarmCoordinator's custom error; addresses come with their checksum."""
    name, kinds = errors()[data[2:10]]
    values = decode(kinds, bytes.fromhex(data[10:]))
    shown = (
        Web3.to_checksum_address(v) if kind == "address" else v for kind, v in zip(kinds, values, strict=True)
    )
    return name, tuple(shown)


@cache
def errors() -> dict[str, tuple[str, list[str]]]:
    """Name and argument types of the contract's errors by selector."""
    found = {}
    for entry in artifact("SwarmCoordinator")["abi"]:
        if entry["type"] == "error":
            kinds = [argument["type"] for argument in entry["inputs"]]
            found[keccak(text=f"{entry['name']}({','.join(kinds)})")[:4].hex()] = (entry["name"], kinds)
    return found


def _bytes(address: str) -> bytes:
    return bytes.fromhex(address[2:])

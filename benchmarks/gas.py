"""What the ledger costs: gas of each transaction on a devnet. `python benchmarks/gas.py`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from eth_account import Account
from eth_account.messages import encode_typed_data
from web3 import HTTPProvider, Web3

from identity import Identity
from swarm.ledger.devnet import Devnet
from swarm.ledger.refusals import artifact

ROUND_SECONDS = 1000
REGISTER_GOAL, REPORT_GOAL, FURTHER_GOAL = 120_000, 60_000, 30_000
VERDICTS = bytes(range(1, 33))  # one digest of verdicts, as each report carries (DESIGN.md, section 7)
ROUNDS = 24  # a whole number of the 3-round and of the 8-round words
MULTIADDR = "/ip4/203.0.113.77/tcp/38331/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
REPORT_TYPE = [
    ("uint64", "round"),
    ("uint32", "groups"),
    ("uint64", "rewardMicros"),
    ("bytes32", "commitment"),
    ("bytes32", "stateBefore"),
    ("bytes32", "stateAfter"),
    ("bytes", "verdicts"),
]


class Ledger:
    """A new swarm on a devnet; every call is one transaction and gives its gas."""

    def __init__(self, devnet: Devnet) -> None:
        self.devnet = devnet
        self.web3 = Web3(HTTPProvider(devnet.rpc_url))
        devnet.call("anvil_autoImpersonateAccount", True)
        self.sender = Account.from_key(devnet.funded_key).address
        self.genesis = self.web3.eth.get_block("latest")["timestamp"]
        arguments = (b"{}" * 512, self.genesis, ROUND_SECONDS, 32, 1000, 10**9, [400_000, 700_000])
        self.contract, self.deployment = self._deploy("SwarmCoordinator", *arguments)
        _, self.view_deployment = self._deploy("RLSwarmView", self.contract.address)

    def enter(self, round_number: int) -> None:
        """Make a block in the round."""
        self.devnet.call("evm_setNextBlockTimestamp", self.genesis + round_number * ROUND_SECONDS + 1)
        self.devnet.call("evm_mine")

    def gas(self, function: str, *arguments: Any, sender: str = "") -> int:
        """Send a transaction; what it used."""
        transaction = getattr(self.contract.functions, function)(*arguments)
        return self._used(transaction.transact({"from": sender or self.sender, "gas": 5_000_000}))

    def register(self, key: Identity, sender: str = "") -> int:
        """Register a key with the sender."""
        message = self.contract.functions.registrationMessage(key.peer, sender or self.sender).call()
        return self.gas("register", key.public_key.modulus, key.sign(message), sender=sender)

    def register_for(self, key: Identity) -> int:
        """Register a key with a new account, which needs no money."""
        account = Account.create()
        message = self.contract.functions.registrationMessage(key.peer, account.address).call()
        consent = self._typed(account, "Registration", {"peer": key.peer, "binding": 0})
        return self.gas("registerFor", account.address, key.public_key.modulus, key.sign(message), consent)

    def report_for(self, account: Any, key: Identity, reports: list[tuple[Any, ...]]) -> int:
        """Report by an account that needs no money."""
        fields = [name for _, name in REPORT_TYPE]
        message = {"peer": key.peer, "reports": [dict(zip(fields, r, strict=True)) for r in reports]}
        return self.gas("reportFor", key.peer, reports, self._typed(account, "Reports", message))

    def rotate(self, old: Identity, new: Identity) -> int:
        """Hand a peer to a new key."""
        message = self.contract.functions.rotationMessage(old.peer, new.peer).call()
        moduli = (old.public_key.modulus, new.public_key.modulus)
        return self.gas("rotate", *moduli, old.sign(message), new.sign(message))

    def account(self) -> Any:
        """A new account with money."""
        account = Account.create()
        self.devnet.fund(account.address, 100)
        return account

    def _typed(self, account: Any, name: str, message: dict[str, Any]) -> bytes:
        domain = {"name": "SwarmCoordinator", "version": "1", "chainId": self.devnet.chain_id}
        domain["verifyingContract"] = self.contract.address
        types = {
            "Registration": [("bytes32", "peer"), ("uint32", "binding")],
            "Reports": [("bytes32", "peer"), ("Report[]", "reports")],
            "Report": REPORT_TYPE,
        }
        wanted = ("Reports", "Report") if name == "Reports" else (name,)
        described = {key: [{"type": kind, "name": field} for kind, field in types[key]] for key in wanted}
        signed = account.sign_message(encode_typed_data(domain, described, message))
        return bytes(signed.signature)

    def _deploy(self, name: str, *arguments: Any) -> tuple[Any, int]:
        compiled = artifact(name)
        factory = self.web3.eth.contract(abi=compiled["abi"], bytecode=compiled["bytecode"])
        tx = factory.constructor(*arguments).transact({"from": self.sender})
        address = self.web3.eth.wait_for_transaction_receipt(tx, poll_latency=0.01)["contractAddress"]
        return self.web3.eth.contract(address=address, abi=compiled["abi"]), self._used(tx)

    def _used(self, tx: bytes) -> int:
        receipt = self.web3.eth.wait_for_transaction_receipt(tx, poll_latency=0.01)
        if receipt["status"] != 1:
            raise RuntimeError("the contract refused a transaction of the benchmark")
        return int(receipt["gasUsed"])


def make_report(round_number: int) -> tuple[Any, ...]:
    """A report whose three digests have no zero bytes."""
    digests = (bytes([n] * 32) for n in (1, 2, 3))
    return (round_number, 40, 20_000_000, *digests, VERDICTS)


def make_key() -> Identity:
    """A key that is in no file."""
    return Identity(rsa.generate_private_key(public_exponent=65537, key_size=2048), Path("unsaved.pem"))


def measure(ledger: Ledger) -> list[tuple[str, int, int | None]]:
    """What, its gas, and its goal."""
    rows: list[tuple[str, int, int | None]] = [
        ("deploy `SwarmCoordinator`, manifest of 1 KiB", ledger.deployment, None),
        ("deploy `RLSwarmView`", ledger.view_deployment, None),
    ]
    company, own, other, third, successor = (make_key() for _ in range(5))
    rows.append(("`register`, the first peer of its account", ledger.register(own), REGISTER_GOAL))
    rows.append(("`register`, a further peer of an account", ledger.register(other), REGISTER_GOAL))
    rows.append(("`registerFor`, the first peer of its account", ledger.register_for(make_key()), None))
    account = ledger.account()
    moving = ledger.register(other, account.address)
    rows.append(("`register`, moving a peer to another account", moving, None))
    ledger.register(company)
    ledger.register(third)

    ledger.enter(0)
    ledger.gas("report", company.peer, make_report(0))
    rows.append(("`report`, the first of a peer", ledger.gas("report", own.peer, make_report(0)), None))

    # The steady state: another peer was first in the word of on-time counts, as in any swarm of a few peers.
    steady = []
    for round_number in range(ROUNDS, 2 * ROUNDS):
        ledger.enter(round_number)
        ledger.gas("report", company.peer, make_report(round_number))
        steady.append(ledger.gas("report", own.peer, make_report(round_number)))
    rows.append(("`report`, steady state, mean", round(sum(steady) / len(steady)), REPORT_GOAL))
    rows.append(("`report`, steady state, first of its 3-round word", max(steady), None))
    rows.append(("`report`, steady state, others", min(steady), None))
    ledger.enter(3 * ROUNDS)
    alone = ledger.gas("report", own.peer, make_report(3 * ROUNDS))
    rows.append(("`report`, first of its 3-round word, and of all peers in 8 rounds", alone, None))

    ledger.enter(4 * ROUNDS)
    ledger.gas("report", company.peer, make_report(4 * ROUNDS))
    first = ledger.gas("reportBatch", own.peer, [make_report(4 * ROUNDS)])
    ledger.enter(5 * ROUNDS + 9)
    ledger.gas("report", company.peer, make_report(5 * ROUNDS + 9))
    batch = ledger.gas("reportBatch", own.peer, [make_report(5 * ROUNDS + 9 - n) for n in reversed(range(8))])
    rows.append(("`reportBatch` of 1, first of its 3-round word", first, None))
    rows.append(("`reportBatch` of 8, all", batch, None))
    rows.append(("`reportBatch` of 8, each after the first", round((batch - first) / 7), FURTHER_GOAL))

    signer = Account.create()
    ledger.devnet.fund(signer.address, 1)
    ledger.register(third, signer.address)
    ledger.gas("report", third.peer, make_report(5 * ROUNDS + 7), sender=signer.address)
    relayed = ledger.report_for(signer, third, [make_report(5 * ROUNDS + 8)])
    rows.append(("`reportFor` of 1, not the first of its 3-round word", relayed, None))

    announced = ledger.gas("announceBootnode", own.peer, MULTIADDR)
    ledger.gas("announceBootnode", company.peer, MULTIADDR)
    again = ledger.gas("announceBootnode", own.peer, MULTIADDR)
    rows.append((f"`announceBootnode`, {len(MULTIADDR)} bytes, the first", announced, None))
    rows.append(("`announceBootnode`, the same again, from further back in the list", again, None))
    rows.append(("`rotate`, with reports and a bootnode", ledger.rotate(own, successor), None))
    return rows


def main() -> None:
    """Print the table that stands in benchmarks/README.md."""
    with Devnet(block_seconds=None) as devnet:
        fork = devnet.call("anvil_nodeInfo")["hardFork"]
        rows = measure(Ledger(devnet))
    print("| transaction | gas | goal |\n|---|---|---|")
    for what, gas, goal in rows:
        print(f"| {what} | {gas:,} | {f'≤ {goal:,}' if goal else ''} |")
    print(f"\nhardfork: {fork}")


if __name__ == "__main__":
    main()

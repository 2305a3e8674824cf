"""What the tests' other processes do: send from an account that is shared, until done or killed."""

from pathlib import Path

from eth_account import Account

from swarm.ledger.rpc import Rpc
from swarm.ledger.transactions import AccountQueue

# Counts calls per argument: the storage at slot `what` is how often count(what) ran. It refuses 0.
#   PUSH 4, CALLDATALOAD, DUP, PUSH 0x0b, JUMPI, PUSH 0, DUP, REVERT,
#   0x0b: JUMPDEST, DUP, SLOAD, PUSH 1, ADD, SWAP, SSTORE, STOP
COUNTER_CODE = "0x60043580600b57600080fd5b80546001019055" + "00"
COUNTER = "0x00000000000000000000000000000000C0117312"
COUNTER_ABI = [
    {
        "type": "function",
        "name": "count",
        "inputs": [{"name": "what", "type": "uint256"}],
        "outputs": [],
        "stateMutability": "nonpayable",
    }
]


def count(rpc, what):
    """The counter's function, ready to be sent."""
    address = rpc.web3.to_checksum_address(COUNTER)
    return rpc.web3.eth.contract(address=address, abi=COUNTER_ABI).functions.count(what)


def send(url, secret, machine_dir, numbers, wait):
    """Send count(number) for each number, under the key of the same name."""
    rpc = Rpc(url)
    queue = AccountQueue(rpc, Account.from_key(secret), Path(machine_dir))
    for number in numbers:
        queue.submit(f"count {number}", count(rpc, number))
        if wait:
            assert queue.wait(f"count {number}").state == "mined"

"""A JSON-RPC server whose chain holds a swarm of any size that never was: for measuring readers of a ledger.

It answers what a reader asks (headers, the contract's constants, logs), makes its logs when asked, and like
public servers refuses to answer more than 10,000 at once. `python -m benchmarks.synthetic_ledger --peers N
--rounds R` prints the join line and serves until it is ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from eth_abi import encode
from eth_utils import function_signature_to_4byte_selector, to_checksum_address

from swarm.ledger.logs import topics
from swarm.ledger.refusals import artifact
from swarm.manifest import Manifest, load

ADDRESS = to_checksum_address("0x" + "5a" * 20)
CHAIN_ID = 424242
BLOCKS_PER_ROUND = 20
MAX_RESULTS = 10_000
ZEROS = "0" * 64


class SyntheticLedger:
    """Block 0, the deployment in block 1, the registrations in block 2, then `BLOCKS_PER_ROUND` a round.

    Peer i reports in every round, its reward growing a little; the running round fills up as time goes on.
    """

    def __init__(self, peers: int, rounds: int, round_seconds: int = 1000, seed: int = 1) -> None:
        """`rounds`: that are over when this is made."""
        demo = load(Path(__file__).parent.parent / "configs" / "demo.yaml")
        self.manifest: Manifest = msgspec.structs.replace(demo, round_seconds=round_seconds, name="synthetic")
        self.peers = [hashlib.sha256(b"peer %d" % i).digest() for i in range(peers)]
        self.genesis = int(time.time()) - rounds * round_seconds - round_seconds // 10
        self.is_away = False  # then it hangs up on whoever asks
        self._made_at = int(time.time())
        self._step = round_seconds / BLOCKS_PER_ROUND
        self._skill = random.Random(seed).choices(range(2_000_000, 20_000_000), k=peers)

    @property
    def latest(self) -> int:
        """The last block's number."""
        return max(2, 3 + int((time.time() - self.genesis) / self._step))

    def header(self, number: int) -> dict[str, Any]:
        """A block without transactions."""
        timestamp = self.genesis + int((number - 3) * self._step)
        if number < 3:
            timestamp = min(self.genesis, self._made_at) - 30 + 10 * number
        return {
            "number": hex(number),
            "timestamp": hex(timestamp),
            "hash": "0x" + hashlib.sha256(b"block %d" % number).hexdigest(),
            "parentHash": "0x" + ZEROS,
            "transactions": [],
        }

    def logs(self, first: int, last: int, wanted: list[str]) -> Iterator[str]:
        """The logs of blocks `first` to `last` with one of these topics, as JSON."""
        created, registered, reported = topics(["SwarmCreated", "Registered", "Reported"])
        if first <= 1 <= last and created in wanted:
            manifest = self.manifest
            types = ["uint64", "uint64", "bytes"]
            data = encode(types, [self.genesis, manifest.round_seconds, manifest.canonical])
            yield _log(1, 0, [created, "0x" + manifest.swarm_id.hex()], data.hex())
        if first <= 2 <= last and registered in wanted:
            for index, peer in enumerate(self.peers):
                account = hashlib.sha256(peer).hexdigest()[:40]
                yield _log(2, index, [registered, "0x" + peer.hex(), "0x" + account.rjust(64, "0")], "")
        if reported in wanted:
            for block in range(max(3, first), last + 1):
                yield from self._reports(reported, block)

    def count(self, first: int, last: int) -> int:
        """About how many logs that is."""
        blocks = max(0, last + 1 - max(3, first))
        return (len(self.peers) if first <= 2 <= last else 0) + blocks * len(self.peers) // BLOCKS_PER_ROUND

    def _reports(self, topic: str, block: int) -> Iterator[str]:
        number, part = divmod(block - 3, BLOCKS_PER_ROUND)
        size = -(-len(self.peers) // BLOCKS_PER_ROUND)
        text = f"{number:064x}"
        for place, index in enumerate(range(part * size, min(len(self.peers), (part + 1) * size))):
            peer = self.peers[index].hex()
            after = hashlib.sha256(b"%d %d" % (index, number)).hexdigest()
            before = hashlib.sha256(b"%d %d" % (index, number - 1)).hexdigest()
            reward = min(self._skill[index] * (100 + number) // 100, 50_000_000)
            words = (after, before, after, f"{24:064x}", f"{reward:064x}", ZEROS, f"{224:064x}", ZEROS)
            yield _log(block, place, [topic, "0x" + peer, "0x" + text], "".join(words))

    @cached_property
    def _constants(self) -> dict[str, tuple[list[str], list[Any]]]:
        manifest = self.manifest
        return {
            "swarmId": (["bytes32"], [manifest.swarm_id]),
            "genesis": (["uint64"], [self.genesis]),
            "roundSeconds": (["uint64"], [manifest.round_seconds]),
            "acceptanceWindow": (["uint64"], [manifest.acceptance_window]),
            "maxGroups": (["uint32"], [manifest.max_groups]),
            "maxRewardMicros": (["uint64"], [manifest.max_reward_micros]),
            "stageEnds": (["uint32[]"], [list(manifest.stage_ends_millionths)]),
            "deploymentBlock": (["uint64"], [1]),
            "bootnodes": (["string[]"], [[]]),
        }

    @cached_property
    def _selectors(self) -> dict[str, str]:
        return {
            "0x"
            + function_signature_to_4byte_selector(
                f"{entry['name']}({','.join(one['type'] for one in entry['inputs'])})"
            ).hex(): entry["name"]
            for entry in artifact("SwarmCoordinator")["abi"]
            if entry["type"] == "function"
        }

    def answer(self, method: str, parameters: list[Any]) -> str:
        """The result of a request, as JSON; `ValueError` with the reason to refuse it."""
        if method == "eth_chainId":
            return json.dumps(hex(CHAIN_ID))
        if method == "eth_getCode":
            return json.dumps("0x60")
        if method == "eth_getBlockByNumber":
            number = self.latest if parameters[0] == "latest" else int(parameters[0], 16)
            return json.dumps(self.header(number) if number <= self.latest else None)
        if method == "eth_call":
            types, values = self._constants[self._selectors[parameters[0]["data"][:10]]]
            return json.dumps("0x" + encode(types, values).hex())
        if method == "eth_getLogs":
            first, last = (int(parameters[0][end], 16) for end in ("fromBlock", "toBlock"))
            last = min(last, self.latest)
            if self.count(first, last) > max(MAX_RESULTS, len(self.peers)):
                raise ValueError("query returned more than 10000 results")
            wanted = parameters[0]["topics"][0]
            return f"[{','.join(self.logs(first, last, wanted if isinstance(wanted, list) else [wanted]))}]"
        raise ValueError(f"no method {method}")

    def serve(self, port: int = 0) -> ThreadingHTTPServer:
        """A server of this chain on loopback, not running yet."""
        ledger = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if ledger.is_away:
                    self.close_connection = True
                    return
                head = f'{{"jsonrpc":"2.0","id":{request["id"]},'
                try:
                    body = f'{head}"result":{ledger.answer(request["method"], request["params"])}}}'
                except ValueError as error:
                    body = head + '"error":' + json.dumps({"code": -32005, "message": str(error)}) + "}"
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def join_line(server: ThreadingHTTPServer) -> str:
    """How `swarm board` finds it."""
    return f"{ADDRESS}@http://127.0.0.1:{server.server_address[1]}"


def _log(block: int, place: int, log_topics: list[str], data: str) -> str:
    tx = hashlib.sha256(b"%d %d" % (block, place // 64)).hexdigest()
    return (
        f'{{"address":"{ADDRESS}","topics":["'
        + '","'.join(log_topics)
        + f'"],"data":"0x{data}","blockNumber":"{block:#x}","blockHash":"0x{ZEROS}",'
        f'"transactionHash":"0x{tx}","transactionIndex":"0x0","logIndex":"{place:#x}","removed":false}}'
    )


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--round-seconds", type=int, default=1000)
    arguments = parser.parse_args()
    ledger = SyntheticLedger(arguments.peers, arguments.rounds, arguments.round_seconds)
    server = ledger.serve()
    print(join_line(server), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

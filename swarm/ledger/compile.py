"""`python -m swarm.ledger.compile [--check]`: make the artifact, or check that the source gives it."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from swarm.errors import LedgerError, SwarmError
from swarm.ledger import toolchain

CONTRACT = "SwarmCoordinator"
SOURCE = Path(__file__).parent / "contracts" / f"{CONTRACT}.sol"
ARTIFACT = Path(__file__).parent / "artifacts" / f"{CONTRACT}.json"
COMPILE_SECONDS = 300

# Without metadata the bytecode depends on nothing but the code: no paths, no comments. Cancun is what the
# chains in reach have; later opcodes are not needed.
SETTINGS = {
    "optimizer": {"enabled": True, "runs": 10_000},
    "evmVersion": "cancun",
    "metadata": {"appendCBOR": False, "bytecodeHash": "none"},
    "outputSelection": {"*": {CONTRACT: ["abi", "evm.bytecode.object", "metadata"]}},
}


def build() -> str:
    """The artifact's text: abi, creation bytecode, compiler, settings, and SHA-256 of every source file.

    `LedgerError` if the tools cannot be installed or the source does not compile (solc's first error).
    """
    if not SOURCE.is_file():
        raise LedgerError(f"{SOURCE} is missing: compile in a checkout of the repository")
    source = SOURCE.read_text()
    modules = toolchain.install(toolchain.CONTRACTS_PACKAGE)
    name = SOURCE.name
    request = {"language": "Solidity", "sources": {name: {"content": source}}, "settings": SETTINGS}
    result = subprocess.run(
        [str(toolchain.node()), str(toolchain.CONTRACTS_PACKAGE / "compile.cjs"), str(modules)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=COMPILE_SECONDS,
    )
    if result.returncode:
        raise LedgerError(f"solc did not run: {result.stderr.strip()[-300:]}".replace("\n", " "))
    output = json.loads(result.stdout)
    problems = [" ".join(entry["formattedMessage"].split()) for entry in output.get("errors", [])]
    if problems:  # warnings count: the contract compiles without any
        raise LedgerError(f"solc: {problems[0]}")
    contract = output["contracts"][name][CONTRACT]
    files = {path: _source(path, modules) for path in json.loads(contract["metadata"])["sources"]}
    artifact = {
        "contract": CONTRACT,
        "compiler": output["compiler"],
        "settings": {key: value for key, value in SETTINGS.items() if key != "outputSelection"},
        "sources": {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())},
        "abi": contract["abi"],
        "bytecode": "0x" + contract["evm"]["bytecode"]["object"],
    }
    return json.dumps(artifact, indent=1) + "\n"


def check() -> None:
    """`LedgerError` if the artifact is not what the source gives."""
    if not ARTIFACT.is_file() or ARTIFACT.read_text() != build():
        raise LedgerError(f"{ARTIFACT.name} does not match {SOURCE.name}: run python -m swarm.ledger.compile")


def _source(path: str, modules: Path) -> bytes:
    file = SOURCE if path == SOURCE.name else modules / "node_modules" / path
    return file.read_bytes()


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m swarm.ledger.compile", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the artifact is stale")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            check()
        else:
            ARTIFACT.parent.mkdir(exist_ok=True)
            ARTIFACT.write_text(build())
    except SwarmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

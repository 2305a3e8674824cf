"""`python -m swarm.ledger.compile [--check]`: make the artifacts, or check that the sources give them."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from swarm.errors import LedgerError, SwarmError
from swarm.ledger import toolchain

CONTRACTS = ("SwarmCoordinator", "RLSwarmView")
SOURCES = Path(__file__).parent / "contracts"
ARTIFACTS = Path(__file__).parent / "artifacts"
COMPILE_SECONDS = 300

# Without metadata the bytecode depends on nothing but the code: no paths, no comments. Cancun is what the
# chains in reach have; later opcodes are not needed. Through the IR a report is 2,400 gas cheaper, and the
# stack is deep enough; compiling takes about 6 s instead of 2.5 s.
SETTINGS = {
    "viaIR": True,
    "optimizer": {"enabled": True, "runs": 10_000},
    "evmVersion": "cancun",
    "metadata": {"appendCBOR": False, "bytecodeHash": "none"},
}
_OUTPUT = {"*": {name: ["abi", "evm.bytecode.object", "metadata"] for name in CONTRACTS}}


def build() -> dict[Path, str]:
    """Every artifact's path and text: abi, creation bytecode, compiler, settings, SHA-256 of every source.

    `LedgerError` if the tools cannot be installed or a source does not compile (solc's first error).
    """
    missing = [name for name in CONTRACTS if not (SOURCES / f"{name}.sol").is_file()]
    if missing:
        raise LedgerError(f"{SOURCES / missing[0]}.sol is missing: compile in a checkout of the repository")
    modules = toolchain.install(toolchain.CONTRACTS_PACKAGE)
    output = _solc(modules)
    return {ARTIFACTS / f"{name}.json": _artifact(name, output, modules) for name in CONTRACTS}


def check() -> None:
    """`LedgerError` if an artifact is not what the sources give."""
    for path, text in build().items():
        if not path.is_file() or path.read_text() != text:
            raise LedgerError(f"{path.name} does not match its source: run python -m swarm.ledger.compile")


def _solc(modules: Path) -> dict[str, Any]:
    sources = {f"{name}.sol": {"content": (SOURCES / f"{name}.sol").read_text()} for name in CONTRACTS}
    settings = {**SETTINGS, "outputSelection": _OUTPUT}
    result = subprocess.run(
        [str(toolchain.node()), str(toolchain.CONTRACTS_PACKAGE / "compile.cjs"), str(modules)],
        input=json.dumps({"language": "Solidity", "sources": sources, "settings": settings}),
        capture_output=True,
        text=True,
        timeout=COMPILE_SECONDS,
    )
    if result.returncode:
        raise LedgerError(f"solc did not run: {result.stderr.strip()[-300:]}".replace("\n", " "))
    output: dict[str, Any] = json.loads(result.stdout)
    problems = [" ".join(entry["formattedMessage"].split()) for entry in output.get("errors", [])]
    if problems:  # warnings count: the contracts compile without any
        raise LedgerError(f"solc: {problems[0]}")
    return output


def _artifact(name: str, output: dict[str, Any], modules: Path) -> str:
    contract = output["contracts"][f"{name}.sol"][name]
    files = {path: _source(path, modules) for path in json.loads(contract["metadata"])["sources"]}
    artifact = {
        "contract": name,
        "compiler": output["compiler"],
        "settings": SETTINGS,
        "sources": {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())},
        "abi": contract["abi"],
        "bytecode": "0x" + contract["evm"]["bytecode"]["object"],
    }
    return json.dumps(artifact, indent=1) + "\n"


def _source(path: str, modules: Path) -> bytes:
    own = SOURCES / path
    return (own if own.is_file() else modules / "node_modules" / path).read_bytes()


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m swarm.ledger.compile", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if an artifact is stale")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            check()
        else:
            ARTIFACTS.mkdir(exist_ok=True)
            for path, text in build().items():
                path.write_text(text)
    except SwarmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

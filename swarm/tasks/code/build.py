"""Makes python.wasm.xz from program.py: `python -m swarm.tasks.code.build`. On Linux, with a C compiler.

It is CPython as a WebAssembly component by componentize-py, without WASI: all that it imports is one function
of ours, so there are no files, clock, network or randomness to reach for. The seed of hashes comes out the
same each time; two builds differ in some hundred bytes of left-over stack. Peers must score alike, so the
artifact is committed and not built on each machine.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from swarm.console import complain, say
from swarm.errors import SwarmError, UsageError
from swarm.tasks.code.component import ARTIFACT

_HERE = Path(__file__).parent
_COMPILERS = ("cc", "gcc", "clang")


def missing() -> str | None:
    """What a build would need and is not here, or None."""
    if sys.platform != "linux":
        return "Linux"
    if not any(map(shutil.which, _COMPILERS)):
        return "a C compiler (cc)"
    return None if _componentize() else "componentize-py (pip install componentize-py)"


def build() -> bytes:
    """The component; `UsageError` if what it needs is missing."""
    if what := missing():
        raise UsageError(f"building the interpreter needs {what}")
    compiler = next(found for name in _COMPILERS if (found := shutil.which(name)))
    with tempfile.TemporaryDirectory(prefix="swarm-build-") as name:
        folder = Path(name)
        for source in ("program.py", "program.wit", "fixed_randomness.c"):
            shutil.copy(_HERE / source, folder)
        _run([compiler, "-shared", "-fPIC", "-o", "fixed.so", "fixed_randomness.c"], folder, {})
        # --python-path keeps what is installed here out of it.
        options = ["--wit-path", "program.wit", "--world", "interpreter", "componentize", "--stub-wasi"]
        command = [str(_componentize()), *options, "--python-path", ".", "--output", "out.wasm", "program"]
        _run(command, folder, {"LD_PRELOAD": str(folder / "fixed.so"), "PYTHONHASHSEED": "0"})
        return (folder / "out.wasm").read_bytes()


def _componentize() -> str | None:
    beside = Path(sys.executable).with_name("componentize-py")
    return str(beside) if beside.exists() else shutil.which("componentize-py")


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SwarmError(
            f"{Path(command[0]).name} failed: {' '.join((done.stderr or done.stdout).split())[-500:]}"
        )


def main() -> int:
    """Write the artifact."""
    try:
        component = build()
    except SwarmError as error:
        complain(error)
        return 1
    ARTIFACT.write_bytes(lzma.compress(component, preset=9 | lzma.PRESET_EXTREME))
    say(f"{ARTIFACT.name}: {len(component):,} bytes, {ARTIFACT.stat().st_size:,} compressed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

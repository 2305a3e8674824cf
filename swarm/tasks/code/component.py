"""The interpreter that programs run in: python.wasm.xz unpacked, compiled once per machine, and kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.console import say
from swarm.errors import SwarmError
from swarm.settings import machine_dir

if TYPE_CHECKING:
    from wasmtime import Config, Engine
    from wasmtime.component import Component

ARTIFACT = Path(__file__).with_name("python.wasm.xz")
# Of the native stack, for one interpreter. CPython's limits of recursion are met before it, where there are
# any: freeing 10⁵ lists in one another traps.
STACK_BYTES = 16 << 20
_FORMAT = b"1"  # of the kept file; and of the configuration, if that ever changes


def load_component() -> tuple[Engine, Component]:
    """The compiled interpreter, from the machine's folder if it is there and whole.

    What is kept there is machine code, so it is in a folder of the user's own, with a digest before it.
    """
    import wasmtime
    from wasmtime.component import Component

    packed = ARTIFACT.read_bytes()
    engine = wasmtime.Engine(_configuration())
    path = _kept_path(packed)
    with contextlib.suppress(OSError, ValueError, wasmtime.WasmtimeError):
        return engine, Component.deserialize(engine, bytearray(_read(path)))
    say("compiling the interpreter for programs, once on this machine; this takes some seconds")
    component = Component(engine, _unpacked(packed))
    try:
        _write(path, bytes(component.serialize()))
    except OSError as error:
        say(f"cannot keep it in {path.parent} ({error.strerror}): each start will compile it again")
    return engine, component


def _configuration() -> Config:
    """Deterministic: fuel instead of time, one bit pattern of NaN."""
    from wasmtime import Config, _ffi

    configuration = Config()
    configuration.consume_fuel = True
    configuration.cranelift_nan_canonicalization = True
    configuration.wasm_threads = False
    configuration.wasm_relaxed_simd = False
    # Handlers in a thread would not survive the fork.
    configuration.macos_use_mach_ports = False
    # A stack for what is never used here, but it may not be the smaller one. Not in wasmtime's Python API.
    _ffi.wasmtime_config_async_stack_size_set(configuration.ptr(), STACK_BYTES + (1 << 20))
    configuration.max_wasm_stack = STACK_BYTES
    return configuration


def _unpacked(packed: bytes) -> bytes:
    try:
        import lzma
    except ImportError:
        raise SwarmError(
            "this Python was built without lzma: install xz's headers and build it anew"
        ) from None
    return lzma.decompress(packed)


def _kept_path(packed: bytes) -> Path:
    parts = (importlib.metadata.version("wasmtime"), platform.system(), platform.machine())
    name = hashlib.sha256(b"\0".join([_FORMAT, packed, *(part.encode() for part in parts)])).hexdigest()
    return machine_dir() / "interpreter" / f"{name}.cwasm"


def _read(path: Path) -> bytes:
    """What `_write` wrote; `ValueError` if it is not whole, or somebody else might have written it."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        content = file.read()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ValueError("not ours alone")
    digest, compiled = content[:32], content[32:]
    if hashlib.sha256(compiled).digest() != digest:
        raise ValueError("damaged")
    return compiled


def _write(path: Path, compiled: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(compiled).digest() + compiled)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    for other in path.parent.glob("*.cwasm"):  # 40 MB each, of versions before
        if other != path:
            other.unlink(missing_ok=True)

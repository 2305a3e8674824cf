"""What a node takes of its machine: memory of its processes, GPUs, disk."""

from __future__ import annotations

import importlib
import shutil
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil
from msgspec import Struct

from swarm.records import Gpu

# The node itself, the one that audits, libp2p's, and whatever else was started (training helpers, sandboxes).
ProcessKind = Literal["node", "audit", "p2pd", "other"]


class Disk(Struct, frozen=True, kw_only=True):
    """The file system on which a home is."""

    free_bytes: int
    size_bytes: int


def memory_of(pid: int) -> dict[ProcessKind, int]:
    """Resident bytes of a node and its children, by kind; empty if there is no such process.

    Pages that several of them share count in each.
    """
    found: dict[ProcessKind, int] = {}
    with suppress(psutil.Error):
        node = psutil.Process(pid)
        found["node"] = node.memory_info().rss
        for child in node.children(recursive=True):
            with suppress(psutil.Error):  # it ended meanwhile
                kind, resident = _kind(child), child.memory_info().rss
                found[kind] = found.get(kind, 0) + resident
    return found


def gpus_here() -> tuple[Gpu, ...]:
    """What this process uses of the GPUs; never the first to touch one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ()
    try:
        return tuple(
            Gpu(
                index=index,
                allocated_bytes=torch.cuda.memory_allocated(index),
                reserved_bytes=torch.cuda.memory_reserved(index),
                total_bytes=torch.cuda.get_device_properties(index).total_memory,
                utilization=_utilization(torch.cuda.get_device_properties(index)),
            )
            for index in range(torch.cuda.device_count())
            if torch.cuda.memory_reserved(index)
        )
    except RuntimeError:  # of CUDA: whoever computes hears of it, and says so
        return ()


def disk_of(folder: Path) -> Disk | None:
    """None if it is gone."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return Disk(free_bytes=usage.free, size_bytes=usage.total)


def _kind(process: psutil.Process) -> ProcessKind:
    if process.name() == "p2pd":
        return "p2pd"
    return "audit" if "swarm.audit_process" in process.cmdline() else "other"


def _utilization(properties: Any) -> float | None:
    """0 to 1, of all processes. By UUID, because `CUDA_VISIBLE_DEVICES` gives other numbers than NVML."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        device = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}".encode())
        return float(nvml.nvmlDeviceGetUtilizationRates(device).gpu) / 100
    except (nvml.NVMLError, AttributeError):  # a part of a GPU has none; an older torch tells no UUID
        return None


@cache
def _nvml() -> Any:
    """NVML's library, begun; None where it is not installed or finds no driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml

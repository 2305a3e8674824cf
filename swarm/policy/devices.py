"""What this machine has: an accelerator or not, how much memory is free on it, how many cores are ours."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Literal

import psutil
import torch
from msgspec import Struct

from swarm.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]

#: Devices that a setting may name; "cuda:1" and so on too.
DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
)
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
# cgroup v1 writes "no limit" as a number of this order.
_NO_LIMIT = 2**60


class Device(Struct, frozen=True):
    """A device as the memory plan sees it. Made by `look_at`; tests hand in their own."""

    name: str  # "cuda:0", "mps" or "cpu", as torch takes it
    free_bytes: int
    total_bytes: int
    capability: tuple[int, int] = (0, 0)  # CUDA's; (0, 0) elsewhere

    @property
    def kind(self) -> str:
        """ "cuda", "mps" or "cpu"."""
        return self.name.partition(":")[0]

    def precision(self, lora: bool) -> Precision:
        """The low precision that computing happens in; what is trained is kept in fp32 everywhere.

        CUDA: bf16 from Ampere (8.0) on, fp16 before. A Mac: bf16 for a frozen base under LoRA, which halves
        it (fp16 overflows in Qwen2.5's activations); fp32 where the weights are trained, since they are fp32
        anyway and nothing is won. A CPU: fp32.
        """
        if self.kind == "cuda":
            return "bf16" if self.capability >= (8, 0) else "fp16"
        return "bf16" if self.kind == "mps" and lora else "fp32"


def look_at(wish: str = "auto") -> Device:
    """The wished device with what is free on it now; `UsageError` if this machine has none such.

    "auto" is the first CUDA device, else a Mac's GPU, else the CPU.
    """
    kind, _, index = wish.partition(":")
    if kind not in DEVICES or (index and (kind != "cuda" or not index.isdecimal())):
        raise UsageError(f"device {wish!r} is not known; use auto, cuda, cuda:1, mps or cpu")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "auto":
        kind = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    if kind == "cuda":
        count = torch.cuda.device_count() if has_cuda else 0
        number = int(index or 0)
        if number >= count:
            raise UsageError(
                f"device {wish} asked for, but torch sees {count} CUDA devices; use --device auto"
            )
        free, total = torch.cuda.mem_get_info(number)
        return Device(f"cuda:{number}", free, total, torch.cuda.get_device_capability(number))
    memory = psutil.virtual_memory()
    if kind == "mps":
        if not has_mps:
            raise UsageError("device mps asked for, but torch sees no Metal GPU; use --device auto")
        # A Mac's memory is shared with everything else; Metal takes no more than it recommends.
        limit = torch.mps.recommended_max_memory()
        free = min(memory.available, limit - torch.mps.driver_allocated_memory())
        return Device("mps", max(0, free), min(memory.total, limit))
    group = cgroup_memory()
    if group is None:
        return Device("cpu", memory.available, memory.total)
    return Device("cpu", min(memory.available, group[0]), min(memory.total, group[1]))


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an exception for it; Metal, cuBLAS and the CPU's allocator raise a plain RuntimeError."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in said for words in _OUT_OF_MEMORY)


def free_memory() -> None:
    """Give back what a failed attempt held, to be called when its exception is gone: that holds it too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def cgroup_memory(root: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> tuple[int, int] | None:
    """(free, limit) in bytes of the tightest control group that holds this process; None without a limit.

    Cached files count as free: the kernel drops them before it kills anybody.
    """
    found: tuple[int, int] | None = None
    for folder in _groups(root, own, "memory"):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= _NO_LIMIT:
            continue
        free = max(0, limit - used + _inactive_file(folder / "memory.stat"))
        if found is None or free < found[0]:
            found = (min(free, limit), limit)
    return found


def usable_cores(root: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int:
    """Physical cores that this process may use: no more than its affinity and its control group's quota.

    Two threads on one core's hyperthreads do not compute faster than one.
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on a Mac
        cores = min(cores, len(os.sched_getaffinity(0)))
    for folder in _groups(root, own, "cpu"):
        quota, period = _quota(folder)
        if quota > 0 and period > 0:
            cores = min(cores, -(-quota // period))
    return max(1, cores)


def _groups(root: Path, own: Path, controller: str) -> list[Path]:
    """The folders of our control groups up to the root: version 2's, and version 1's of the controller."""
    folders: list[Path] = []
    for line in _text(own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            base = root
        elif controller in controllers.split(","):
            base = root / controller
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # In a container the path is the host's, and its end is mounted at the root: look there anyway.
        folders += [base.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return folders


def _quota(folder: Path) -> tuple[int, int]:
    """Microseconds of CPU time per period; (0, 0) where there is no quota."""
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and all(word.isdecimal() for word in words):
        return int(words[0]), int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota or 0, period or 0


def _inactive_file(path: Path) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdecimal():
            return int(value)
    return 0


def _number(*paths: Path) -> int | None:
    for path in paths:
        if (text := _text(path).strip()).isdecimal():
            return int(text)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

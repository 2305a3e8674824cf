"""What a peer computes with: model, settings, software, device. All that the bits of its results depend on.

It is part of the commitment, so it is decoded from strangers. Settings (threads, batch sizes, precision) an
auditor takes over; software and device it either has or has not (`Build.is_repeatable_on`). Nothing slow is
imported for it: commitments are read where no model is.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from swarm.manifest import PRINTABLE, ModelName

if TYPE_CHECKING:
    import torch

    from swarm.learner.trainer import Learner
    from swarm.policy.model import Policy
    from swarm.policy.plan import Plan

_FORMAT = b"swarm-build/1"
MAX_CHARS = 200
# More threads than this many times its own cores an auditor does not start: a stranger asks for them.
THREADS_PER_CORE = 4
_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "numpy")
# What else tells the libraries which code to run, and is often set.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
)
# Flags of a processor by which numerical libraries choose their code.
_FLAGS = ("avx", "amx", "fma", "sse4", "f16c", "asimd", "sve", "bf16", "i8mm")

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

Text = Annotated[str, Meta(min_length=1, max_length=MAX_CHARS, pattern=PRINTABLE)]
Tokens = Annotated[int, Meta(ge=1, lt=2**48)]


class Build(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What a peer's round was computed with.

    Attributes:
        model: as the manifest names it.
        revision: the full commit of a hub's model.
        lora: whether an adapter is trained.
        four_bit: whether the frozen base is held in 4 bits.
        precision: what computing happens in.
        gradient_checkpointing: whether activations were computed twice.
        device: the processor as libraries see it.
        software: the versions of what computes.
        threads: torch's.
        processes: that made an update together; their sums depend on how many there are.
        learning_tokens_at_once: the learner's `max_tokens_at_once` in the update, by which steps are cut.
        sampling_tokens_at_once: the sampler's.
    """

    model: Annotated[ModelName, Meta(pattern=PRINTABLE)]
    revision: Text | None
    lora: bool
    four_bit: bool
    precision: Literal["fp32", "bf16", "fp16"]
    gradient_checkpointing: bool
    device: Text
    software: Text
    threads: Annotated[int, Meta(ge=1, le=4096)]
    processes: Annotated[int, Meta(ge=1, le=4096)] = 1
    learning_tokens_at_once: Tokens
    sampling_tokens_at_once: Tokens

    @classmethod
    def of(cls, plan: Plan, policy: Policy, learner: Learner, processes: int = 1) -> Build:
        """This process's, as it is now.

        To be taken before an update and again after it: one that ran out of memory halves its batches on the
        way and cannot be repeated bit for bit, so its peer must not claim that (class `tolerant`).
        """
        import torch

        return cls(
            model=plan.model,
            revision=plan.revision,
            lora=plan.lora,
            four_bit=plan.four_bit,
            precision=policy.precision,
            gradient_checkpointing=policy.gradient_checkpointing,
            device=device_text(policy.device),
            software=software_text(policy.device, plan.four_bit),
            threads=torch.get_num_threads(),
            processes=processes,
            learning_tokens_at_once=learner.max_tokens_at_once,
            sampling_tokens_at_once=policy.max_tokens_at_once,
        )

    @property
    def fingerprint(self) -> bytes:
        """32 bytes, SHA-256 over all of it: who has the same computes the same bits."""
        return hashlib.sha256(_FORMAT + msgspec.msgpack.encode(self)).digest()

    def is_repeatable_on(self, machine: Build) -> bool:
        """Whether an auditor whose own build is `machine` can compute the same bits (class `same-build`).

        It must have the same software and device. All else is settings, which it takes from this build; but
        it is one process (sums of several come in another order), and does not start many more threads than
        its own.
        """
        same = (self.device, self.software, self.processes) == (machine.device, machine.software, 1)
        return same and self.threads <= THREADS_PER_CORE * machine.threads


def software_text(device: torch.device, four_bit: bool = False) -> str:
    """The versions of all that computes, e.g. "swarm-rl 0.1.0 5c3f0a12, python 3.11, torch 2.13.0+cpu, …"."""
    names = ("swarm-rl", *_LIBRARIES, *(("bitsandbytes",) if four_bit else ()))
    parts = [f"{name} {_version(name)}" for name in names]
    parts[0] += f" {_code_digest()}"
    parts.insert(1, f"python {sys.version_info.major}.{sys.version_info.minor}")
    # The C library's exp and log are those of every vector's remainder.
    parts.append(" ".join([platform.system(), *filter(None, platform.libc_ver())]))
    if device.type == "cuda":
        import torch

        parts.append(f"cuda {torch.version.cuda} cudnn {torch.backends.cudnn.version()}")
    return _cut(", ".join(parts))


def device_text(device: torch.device) -> str:
    """The processor as libraries choose their code by it, e.g. "x86_64 AVX512, AuthenticAMD 25/17, …"."""
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        return _cut(f"cuda {name} {major}.{minor}, matmul {torch.get_float32_matmul_precision()}")
    parts = [f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}", _processor()]
    if device.type == "mps":
        parts = [f"mps {platform.machine()}, {platform.mac_ver()[0]}", platform.processor()]
    else:
        # Libraries cut products into blocks that fit the caches, so the order of sums follows their sizes.
        parts.append("/".join(_read(path) for path in sorted(_CACHES.glob("index*/size"))))
        parts += [f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)]
    return _cut(", ".join(filter(None, parts)))


def _processor() -> str:
    """Maker, family, model and a digest of the flags that matter, from Linux; else what Python knows."""
    lines = _read(Path("/proc/cpuinfo")).split("\n\n", 1)[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = sorted(
        flag
        for flag in (fields.get("flags") or fields.get("Features") or "").split()
        if any(part in flag for part in _FLAGS)
    )
    kind = [
        fields.get("vendor_id") or fields.get("CPU implementer") or platform.processor(),
        "/".join(
            value
            for name in ("cpu family", "model", "CPU architecture", "CPU part", "CPU variant")
            if (value := fields.get(name))
        ),
        hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8],
    ]
    return " ".join(filter(None, kind))


@functools.cache
def _code_digest() -> str:
    """Of what of this project computes: its version stays the same through many changes."""
    digest = hashlib.sha256()
    for folder in ("policy", "learner"):
        for path in sorted((Path(__file__).parents[1] / folder).glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # not on a Mac
        return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # the project itself, run from a checkout
        return "?"


def _cut(text: str) -> str:
    """Within bounds; what is cut off is in a digest at the end."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[: MAX_CHARS - 9]} {hashlib.sha256(text.encode()).hexdigest()[:8]}"

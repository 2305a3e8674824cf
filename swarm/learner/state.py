"""A learner's state on disk, and its digest: all that the next update depends on, as named tensors."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from swarm.errors import ModelError

_FORMAT = "swarm-state/1"


def state_digest(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """32-byte SHA-256 over every tensor, ordered by name: name, dtype, shape, raw little-endian bytes."""
    digest = hashlib.sha256(_FORMAT.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = f"\n{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n"
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def write_state(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file so that a crash leaves either the old file or the whole new one.

    `ModelError` if it cannot be written. A crash may leave a file beside it whose name begins with a dot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ModelError(f"cannot write state {path}: {error}") from error
    os.close(handle)
    try:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": _FORMAT})
        with open(temporary, "rb") as written:  # noqa: PTH123
            os.fsync(written.fileno())
        Path(temporary).replace(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot write state {path}: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state file; `ModelError` if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read state {path}: {error}") from error

"""Reads the states of other peers: files that may hold anything, checked against what was committed to.

A safetensors file is eight bytes of header length (little-endian), a JSON header of names, dtypes, shapes and
offsets, and the tensors' bytes one after the other. The library is in Rust and checks most of this itself;
here the header is bounded and read first, so that what it is given is always of a kind that it was made for.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta, Struct
from safetensors import SafetensorError
from safetensors.torch import load_file

from swarm.errors import ModelError
from swarm.learner.checkpoints import tensors_digest
from swarm.verde.state_files import StateFile

_LENGTH_BYTES = 8
#: About 150 bytes a tensor, two moments and a step for each weight: room for models of 18,000 tensors.
MAX_HEADER_BYTES = 8 * 2**20
# What states are made of (`Learner.state`), and close kin.
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
_METADATA = "__metadata__"

_MAX_SIZE = 2**48
_Size = Annotated[int, Meta(ge=0, lt=_MAX_SIZE)]


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """What the header says of one tensor."""

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8"]
    shape: Annotated[tuple[_Size, ...], Meta(max_length=8)]
    data_offsets: tuple[_Size, _Size]  # from the header's end on


def read_state_part(path: Path, expected: StateFile) -> dict[str, torch.Tensor]:
    """The tensors of half a state that somebody else wrote; `ModelError` unless they are the expected ones.

    They are mapped: they take memory as they are read, and the file must stay as it is meanwhile. That they
    have the committed digest says nothing of names, shapes and numbers (NaN included): who takes them in must
    look whether it can, as `Learner.restore` does.
    """
    try:
        _check(path, expected.size_bytes)
        tensors = load_file(path)
        digest = tensors_digest(tensors)
    except OSError as error:
        raise ModelError(f"cannot read state {path}: {error.strerror}") from error
    # The library's, of what passes the checks above nevertheless; torch raises the last two.
    except (ValueError, SafetensorError, RuntimeError, TypeError) as error:
        raise ModelError(f"{path.name} is no state: {' '.join(str(error).split())[:200]}") from error
    if digest != expected.digest:
        raise ModelError(f"{path.name} is another state than was committed to: its tensors' digest differs")
    return tensors


def _check(path: Path, size_bytes: int) -> None:
    """`ValueError` says what is wrong with the size or the header; `OSError` if it cannot be read."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != size_bytes:
            raise ValueError(f"it has {found} bytes, where {size_bytes} were committed to")
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        data_bytes = found - _LENGTH_BYTES - length
        if length > MAX_HEADER_BYTES or data_bytes < 0:
            raise ValueError("its header is too long or cut off")
        _check_header(file.read(length), data_bytes)


def _check_header(header: bytes, data_bytes: int) -> None:
    """`ValueError` unless the tensors it names fill the data exactly, none over another."""
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop(_METADATA, None)
        entries = [msgspec.json.decode(entry, type=_Entry) for entry in raw.values()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a safetensors header: {error}") from error
    # Names with more in them could pass for several tensors in the text that `tensors_digest` hashes.
    if not all(name.isprintable() and " " not in name for name in raw):
        raise ValueError("a tensor's name is none that states have")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.data_offsets):
        begins, ends = entry.data_offsets
        if math.prod(max(1, size) for size in entry.shape) >= _MAX_SIZE:  # else torch's strides overflow
            raise ValueError("a tensor's shape is out of bounds")
        if begins != end or ends - begins != math.prod(entry.shape) * _ITEM_BYTES[entry.dtype]:
            raise ValueError("a tensor's place in it is not that of its shape")
        end = ends
    if end != data_bytes:
        raise ValueError("its tensors do not fill it")

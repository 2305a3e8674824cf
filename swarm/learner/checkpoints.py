"""A learner's states on disk: `checkpoints/`, a folder for each of the last rounds.

    00000041/weights.safetensors     what the model answers with: all trained weights, or the adapter
    00000041/optimizer.safetensors   what else the next update depends on: AdamW's moments, counters
    initial/…                        the state before the first update

A folder is written beside its place and renamed, so a crash leaves a whole state or none. The two files are
apart because whoever checks only what was sampled needs the weights alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from identity.files import sync_folder
from swarm.errors import ModelError

STATES_KEPT = 16  # A of DESIGN.md, section 7: auditors may ask for the states of so many rounds
_LEAST_KEPT = 2  # on a full disk: the newest, and the one before in case the newest is damaged
_FORMAT = "swarm-state/2"
_INITIAL = "initial"
_UNFINISHED = ".unfinished-"
_WEIGHTS, _OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_DIGEST = "digest"  # the state's, in the metadata of both files

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LearnerState:
    """All that the next update depends on, as named tensors."""

    weights: Tensors
    optimizer: Tensors

    @cached_property
    def digest(self) -> bytes:
        """32 bytes: SHA-256 over the digests of weights and of the rest, so that each can be shown alone."""
        parts = tensors_digest(self.weights) + tensors_digest(self.optimizer)
        return hashlib.sha256(_FORMAT.encode() + parts).digest()

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [*self.weights.values(), *self.optimizer.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def tensors_digest(tensors: Tensors) -> bytes:
    """32-byte SHA-256 over every tensor, ordered by name: name, dtype, shape, raw little-endian bytes."""
    digest = hashlib.sha256(_FORMAT.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = f"\n{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n"
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


class Checkpoints:
    """The folder with the states of the last `keep` rounds; for one process at a time."""

    def __init__(self, folder: Path, keep: int = STATES_KEPT) -> None:
        """Makes the folder and removes what an interrupted write left; `ModelError` if it cannot."""
        self.folder = folder
        self._keep = keep
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(unfinished)
        except OSError as error:
            raise ModelError(f"cannot use {folder}: {error.strerror}") from error

    def rounds(self) -> list[int]:
        """The rounds after which there is a state, newest first."""
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted((int(name) for name in names if re.fullmatch(r"[0-9]{8,}", name)), reverse=True)

    def save(self, state: LearnerState, number: int | None) -> None:
        """Keep the state after round `number` (None: before the first), durably; the oldest beyond `keep` go.

        Where the disk has no room, older states go first. `ModelError` if it cannot be written even so.
        """
        name = _INITIAL if number is None else f"{number:08d}"
        unfinished = None
        try:
            self._make_room(state.size_bytes)
            unfinished = Path(tempfile.mkdtemp(dir=self.folder, prefix=_UNFINISHED))
            _write(state, unfinished)
            place = self.folder / name
            if place.exists():  # a round that is played again after a crash before its report
                shutil.rmtree(place)
            unfinished.rename(place)
            sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot write state {self.folder / name}: {error}") from error
        finally:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
        self._drop(self._keep)

    def load(self, number: int | None) -> LearnerState:
        """The state after a round; `ModelError` if it is not there or damaged."""
        folder = self._place(number)
        try:
            state = LearnerState(load_file(folder / _WEIGHTS), load_file(folder / _OPTIMIZER))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read state {folder}: {error}") from error
        if state.digest.hex() != _claimed(folder / _WEIGHTS):
            raise ModelError(f"state {folder} is damaged: its digest is another than when it was written")
        return state

    def digest(self, number: int | None) -> bytes | None:
        """The digest of the state after a round; None if it is not kept."""
        with contextlib.suppress(OSError, SafetensorError):
            claimed = _claimed(self._place(number) / _WEIGHTS)
            return bytes.fromhex(claimed) if claimed else None
        return None

    def weights_of(self, digest: bytes) -> dict[str, torch.Tensor] | None:
        """The weights of the state with this digest; None if it is not kept."""
        for number in [*self.rounds(), None]:
            if self.digest(number) == digest:
                with contextlib.suppress(OSError, SafetensorError):
                    return load_file(self._place(number) / _WEIGHTS)
        return None

    def _place(self, number: int | None) -> Path:
        return self.folder / (_INITIAL if number is None else f"{number:08d}")

    def _make_room(self, size_bytes: int) -> None:
        """Give up older states while the disk has no room for one more."""
        kept = len(self.rounds())
        while kept > _LEAST_KEPT and shutil.disk_usage(self.folder).free < 2 * size_bytes:
            kept -= 1
            self._drop(kept)

    def _drop(self, keep: int) -> None:
        for number in self.rounds()[keep:]:
            shutil.rmtree(self._place(number), ignore_errors=True)


def _write(state: LearnerState, folder: Path) -> None:
    metadata = {_DIGEST: state.digest.hex()}  # of two entries the file's order would be a matter of chance
    for name, tensors in ((_WEIGHTS, state.weights), (_OPTIMIZER, state.optimizer)):
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, folder / name, metadata=metadata)
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _claimed(path: Path) -> str | None:
    """The state's digest in hex, as a file's metadata has it."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(_DIGEST)

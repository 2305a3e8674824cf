"""A learner's states on disk: `checkpoints/`, a folder for each of the last rounds.

    00000041/weights.safetensors     what the model answers with: all trained weights, or the adapter
    00000041/optimizer.safetensors   what else the next update depends on: AdamW's moments, counters
    00000041/files.json              the digests of both, as a commitment names them
    initial/…                        the state before the first update

A folder is written beside its place and renamed, so a crash leaves a whole state or none. The two files are
apart because whoever checks only what was sampled needs the weights alone. Auditors ask for them by their
SHA-256 (swarm/exchange/sharing.py serves them); swarm/learner/foreign_state.py reads those of other peers.
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
from typing import Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from identity.files import sync_folder
from swarm.errors import ModelError
from swarm.verde.state_files import STATE_FORMAT, StateFile, StateFiles, state_digest

STATES_KEPT = 16  # A of DESIGN.md, section 7: auditors may ask for the states of so many rounds
_LEAST_KEPT = 2  # on a full disk: the newest, and the one before in case the newest is damaged
_INITIAL = "initial"
_UNFINISHED = ".unfinished-"
_WEIGHTS, _OPTIMIZER, _FILES = "weights.safetensors", "optimizer.safetensors", "files.json"
_DIGEST = "digest"  # the state's, in the metadata of both files

Tensors = Mapping[str, torch.Tensor]
Kind = Literal["weights", "optimizer"]


@dataclass(frozen=True)
class LearnerState:
    """All that the next update depends on, as named tensors."""

    weights: Tensors
    optimizer: Tensors

    @cached_property
    def digest(self) -> bytes:
        """32 bytes: SHA-256 over the digests of weights and of the rest, so that each can be shown alone."""
        return state_digest(self.weights_digest, self.optimizer_digest)

    @cached_property
    def weights_digest(self) -> bytes:
        """`tensors_digest` of the weights."""
        return tensors_digest(self.weights)

    @cached_property
    def optimizer_digest(self) -> bytes:
        """`tensors_digest` of the rest."""
        return tensors_digest(self.optimizer)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [*self.weights.values(), *self.optimizer.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def tensors_digest(tensors: Tensors) -> bytes:
    """32-byte SHA-256 over every tensor, ordered by name: name, dtype, shape, raw little-endian bytes."""
    digest = hashlib.sha256(STATE_FORMAT)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = f"\n{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n"
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def unkept(state: LearnerState) -> StateFiles:
    """What a commitment says of a state that could not be written: its digests, and no file to ask for."""
    return StateFiles(
        weights=StateFile(digest=state.weights_digest, blob=bytes(32), size_bytes=0),
        optimizer=StateFile(digest=state.optimizer_digest, blob=bytes(32), size_bytes=0),
    )


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

    def save(self, state: LearnerState, number: int | None) -> StateFiles:
        """Keep the state after round `number` (None: before the first), durably; the oldest beyond `keep` go.

        Returns what a commitment says of it. Where the disk has no room, older states go first; `ModelError`
        if it cannot be written even so.
        """
        name = _INITIAL if number is None else f"{number:08d}"
        unfinished = None
        try:
            self._make_room(state.size_bytes)
            unfinished = Path(tempfile.mkdtemp(dir=self.folder, prefix=_UNFINISHED))
            files = _write(state, unfinished)
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
        return files

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

    def find(self, digest: bytes) -> int | None:
        """The round after which the state has this digest; None: of no round, but perhaps the initial one."""
        return next((number for number in self.rounds() if self.digest(number) == digest), None)

    def weights_of(self, digest: bytes) -> dict[str, torch.Tensor] | None:
        """The weights of the state with this digest; None if it is not kept."""
        number = self.find(digest)
        if self.digest(number) == digest:
            with contextlib.suppress(OSError, SafetensorError):
                return load_file(self.path(number, "weights"))
        return None

    def path(self, number: int | None, kind: Kind) -> Path:
        """Where a half of the state after a round is, or would be."""
        return self._place(number) / (_WEIGHTS if kind == "weights" else _OPTIMIZER)

    def files(self, number: int | None) -> StateFiles | None:
        """What a commitment says of the state after a round; None if it is not kept or is damaged.

        That is known from when it was written. Of a state without `files.json` everything is hashed, once.
        """
        with contextlib.suppress(OSError, msgspec.DecodeError):
            files = msgspec.json.decode((self._place(number) / _FILES).read_bytes(), type=StateFiles)
            if self._sizes(number) == (files.weights.size_bytes, files.optimizer.size_bytes):
                return files
        with contextlib.suppress(OSError, ModelError):
            files = _files_of(self.load(number), self._place(number))
            _write_files(files, self._place(number))
            return files
        return None

    def files_of(self, digest: bytes) -> StateFiles | None:
        """What a commitment says of the state with this digest; None if it is not kept."""
        files = self.files(self.find(digest))
        return files if files is not None and files.digest == digest else None

    def shared(self) -> dict[bytes, Path]:
        """The files of all states that are kept, by their SHA-256: what `Exchange.share` takes."""
        shared = {}
        for number in [*reversed(self.rounds()), None]:  # of equal files, the one that stays longest
            if files := self.files(number):
                shared[files.weights.blob] = self.path(number, "weights")
                shared[files.optimizer.blob] = self.path(number, "optimizer")
        return shared

    def _sizes(self, number: int | None) -> tuple[int, int]:
        weights, optimizer = self.path(number, "weights"), self.path(number, "optimizer")
        return weights.stat().st_size, optimizer.stat().st_size

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


def _write(state: LearnerState, folder: Path) -> StateFiles:
    metadata = {_DIGEST: state.digest.hex()}  # of two entries the file's order would be a matter of chance
    for name, tensors in ((_WEIGHTS, state.weights), (_OPTIMIZER, state.optimizer)):
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, folder / name, metadata=metadata)
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    files = _files_of(state, folder)
    _write_files(files, folder)
    return files


def _files_of(state: LearnerState, folder: Path) -> StateFiles:
    """Of a state whose files are in the folder; reads them once (a GiB in about a second)."""
    return StateFiles(
        weights=_file_of(folder / _WEIGHTS, state.weights_digest),
        optimizer=_file_of(folder / _OPTIMIZER, state.optimizer_digest),
    )


def _file_of(path: Path, digest: bytes) -> StateFile:
    with path.open("rb") as file:
        blob = hashlib.file_digest(file, "sha256").digest()
        return StateFile(digest=digest, blob=blob, size_bytes=os.fstat(file.fileno()).st_size)


def _write_files(files: StateFiles, folder: Path) -> None:
    """Durably, whole or not at all."""
    unfinished = folder / f".{_FILES}"
    with unfinished.open("wb") as file:
        file.write(msgspec.json.encode(files))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / _FILES)
    sync_folder(folder)


def _claimed(path: Path) -> str | None:
    """The state's digest in hex, as a file's metadata has it."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(_DIGEST)

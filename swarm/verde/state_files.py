"""What a commitment says of a learner's state: its digest, and the files in which its peer serves it.

Nothing here needs torch; swarm/learner/checkpoints.py writes the files and reads strangers'.
"""

from __future__ import annotations

import hashlib

from msgspec import Struct

from swarm.exchange.wire import U48, Digest

#: Opens the digests of states and of their tensors; another one when either is made up otherwise.
STATE_FORMAT = b"swarm-state/2"


class StateFile(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Half a state, as a safetensors file."""

    digest: Digest  # of the tensors (`checkpoints.tensors_digest`), however a file is laid out
    blob: Digest  # SHA-256 of the file
    size_bytes: U48  # of the file


class StateFiles(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A whole state: what the model answers with, and what else the next update depends on."""

    weights: StateFile
    optimizer: StateFile

    @property
    def digest(self) -> bytes:
        """The state's 32-byte digest, as `LearnerState.digest`."""
        return state_digest(self.weights.digest, self.optimizer.digest)


def state_digest(weights: bytes, optimizer: bytes) -> bytes:
    """32 bytes: SHA-256 over the digests of both halves' tensors, so that each can be shown alone."""
    return hashlib.sha256(STATE_FORMAT + weights + optimizer).digest()

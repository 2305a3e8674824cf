"""States of other peers: the expected one is read, and nothing else is taken for one or harms its reader."""

from __future__ import annotations

import json
import math
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save

from swarm.errors import ModelError
from swarm.learner.checkpoints import tensors_digest
from swarm.learner.foreign_state import MAX_HEADER_BYTES, read_state_part
from swarm.verde.state_files import StateFile, StateFiles, state_digest

TENSORS = {
    "layer": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.tensor([1.5, math.nan, math.inf], dtype=torch.bfloat16),
    "counters": torch.tensor([1, 2]),
    "step": torch.tensor(3.0),
    "none": torch.zeros(0, 4),
}


def expected(content: bytes, digest: bytes = bytes(32)) -> StateFile:
    return StateFile(digest=digest, blob=bytes(32), size_bytes=len(content))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_committed_state_is_read_as_it_is(tmp_path):
    content = save(TENSORS, metadata={"digest": "whatever"})
    path = written(tmp_path / "state", content)
    tensors = read_state_part(path, expected(content, tensors_digest(TENSORS)))
    assert tensors.keys() == TENSORS.keys()
    assert tensors_digest(tensors) == tensors_digest(TENSORS)
    assert torch.equal(tensors["layer"], TENSORS["layer"]) and tensors["half"][1].isnan()


def test_another_state_or_size_than_was_committed_to_is_refused_in_one_line(tmp_path):
    content = save(TENSORS)
    path = written(tmp_path / "state", content)
    with pytest.raises(ModelError, match="another state than was committed to"):
        read_state_part(path, expected(content))
    with pytest.raises(ModelError, match=f"has {len(content)} bytes, where {len(content) + 1} were"):
        read_state_part(path, expected(content + b"x", tensors_digest(TENSORS)))
    with pytest.raises(ModelError, match=r"cannot read state .*missing: No such file"):
        read_state_part(tmp_path / "missing", expected(content))


F32 = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\xff" * 64,
        pickle.dumps(TENSORS["layer"]),
        file_of(b"{}", length=2**63),
        file_of(b"{" + b" " * MAX_HEADER_BYTES),
        file_of(b"{" * 100_000),
        file_of(b"[1]"),
        file_of({"a": 1}),
        file_of({"a": F32}, bytes(7)),
        file_of({"a": F32}, bytes(9)),
        file_of({"a": F32, "b": entry("F32", [2], 4, 12)}, bytes(12)),
        file_of({"a": F32, "b": F32}, bytes(8)),
        file_of({"a": F32, "b": entry("F32", [2], 12, 20)}, bytes(20)),
        file_of({"a": entry("F32", [3], 0, 8)}, bytes(8)),
        file_of({"a": entry("F32", [2**40], 0, 2**42)}, bytes(8)),
        file_of({"a": entry("F32", [2**32, 2**32], 0, 0)}),
        file_of({"a": entry("F32", [0, *[2**47] * 6], 0, 0)}),
        file_of({"a": entry("F32", [1] * 1000, 0, 4)}, bytes(4)),
        file_of({"a": entry("F32", [-2], 0, 8)}, bytes(8)),
        file_of({"a": entry("F32", [2], 8, 0)}, bytes(8)),
        file_of({"a": entry("F4", [2], 0, 1)}, bytes(1)),
        file_of({"a": entry("PICKLE", [2], 0, 8)}, bytes(8)),
        file_of({"a b": F32}, bytes(8)),
        file_of({"a\nb": F32}, bytes(8)),
        file_of({"a": {**F32, "more": 1}}, bytes(8)),
        file_of(b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
    ],
)
def test_what_is_no_state_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(ModelError) as caught:
        read_state_part(written(tmp_path / "state", content), expected(content))
    assert "is no state: " in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_mutated_states_raise_nothing_but_model_errors(tmp_path):
    rng = random.Random(1)
    whole = save(TENSORS)
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(content))
            if rng.random() < 0.5:
                content[place] = rng.randrange(256)
            else:
                content[place : place + rng.randint(0, 9)] = rng.randbytes(rng.randint(0, 9))
        path = written(tmp_path / "state", bytes(content))
        with pytest.raises(ModelError):
            read_state_part(path, expected(bytes(content)))


def test_files_of_a_state_survive_the_wire_and_nothing_out_of_bounds_does():
    good = StateFile(b"d" * 32, b"b" * 32, 2**48 - 1)
    files = StateFiles(good, StateFile(b"D" * 32, b"B" * 32, 0))
    data = msgspec.msgpack.encode(files)
    assert msgspec.msgpack.decode(data, type=StateFiles) == files
    assert files.digest == state_digest(b"d" * 32, b"D" * 32)
    for bad in (
        (b"d" * 31, b"b" * 32, 1),
        (b"d" * 32, b"b" * 33, 1),
        (b"d" * 32, b"b" * 32, 2**48),
        (b"d" * 32, b"b" * 32, -1),
        (b"d" * 32, b"b" * 32, 1, 2),
        (b"d" * 32, b"b" * 32),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode((bad, bad)), type=StateFiles)

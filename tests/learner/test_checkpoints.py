"""States on disk: whole or not at all, the last ones kept, found again by their digests."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch

from swarm.errors import ModelError
from swarm.learner import checkpoints as checkpoints_module
from swarm.learner.checkpoints import STATES_KEPT, Checkpoints, LearnerState, tensors_digest, unkept
from swarm.verde.state_files import StateFiles

TRAINING = Path(__file__).parent / "training_process.py"


def a_state(number: float, size: int = 4) -> LearnerState:
    return LearnerState(
        {"layer": torch.full((size, 2), number)},
        {"layer.exp_avg": torch.full((size, 2), -number), "counters": torch.tensor([1, 2])},
    )


def same(one: LearnerState, other: LearnerState) -> bool:
    return one.digest == other.digest


def test_states_come_back_as_they_were(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(a_state(0), None)
    for number in (3, 7):
        checkpoints.save(a_state(number), number)
    assert checkpoints.rounds() == [7, 3]
    assert same(checkpoints.load(7), a_state(7))
    assert same(checkpoints.load(None), a_state(0))
    weights = checkpoints.weights_of(a_state(3).digest)
    assert weights is not None and torch.equal(weights["layer"], a_state(3).weights["layer"])
    assert checkpoints.weights_of(a_state(0).digest) is not None
    assert checkpoints.weights_of(b"x" * 32) is None


def test_last_rounds_are_kept_and_the_initial_state_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(a_state(0), None)
    for number in range(20):
        checkpoints.save(a_state(number), number)
    assert checkpoints.rounds() == list(range(19, 19 - STATES_KEPT, -1))
    assert same(checkpoints.load(None), a_state(0))


def test_a_round_that_is_played_again_replaces_its_state(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(a_state(1), 5)
    checkpoints.save(a_state(2), 5)
    assert same(checkpoints.load(5), a_state(2))
    assert checkpoints.rounds() == [5]


def test_digest_sees_every_tensor_name_type_shape_and_bit():
    tensors = {"a": torch.zeros(4), "b": torch.zeros(2, dtype=torch.int64)}
    changed = [
        {"a": torch.zeros(4)},
        {**tensors, "c": torch.zeros(1)},
        {"b": tensors["a"], "a": tensors["b"]},
        {**tensors, "a": torch.zeros(2, 2)},
        {**tensors, "a": torch.zeros(4, dtype=torch.int32)},
        {**tensors, "a": torch.tensor([0.0, 0.0, 0.0, -0.0])},
    ]
    assert len({tensors_digest(tensors), *map(tensors_digest, changed)}) == 7
    assert tensors_digest({"b": tensors["b"], "a": tensors["a"]}) == tensors_digest(tensors)
    assert LearnerState(tensors, {}).digest != LearnerState({}, tensors).digest


def test_what_an_interrupted_write_left_is_removed(tmp_path):
    (tmp_path / ".unfinished-x").mkdir()
    (tmp_path / ".unfinished-x" / "weights.safetensors").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.rounds() == [] and list(tmp_path.iterdir()) == []


def test_what_others_put_there_is_left_alone(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "00000003.bak").mkdir()
    (tmp_path / "00000004").write_bytes(b"a file")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(a_state(1), 5)
    assert checkpoints.rounds() == [5]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("content", [b"", b"not a state", None])
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_damaged_state_is_a_one_line_error(tmp_path, file, content):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(a_state(1), 1)
    path = tmp_path / "00000001" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot read state") as caught:
        checkpoints.load(1)
    assert "\n" not in str(caught.value)


def test_flipped_bit_is_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(a_state(1), 1)
    path = tmp_path / "00000001" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        checkpoints.load(1)


def test_halves_of_two_states_are_not_taken_for_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(a_state(1), 1)
    checkpoints.save(a_state(2), 2)
    shutil.copy(tmp_path / "00000001" / "optimizer.safetensors", tmp_path / "00000002")
    with pytest.raises(ModelError, match="damaged"):
        checkpoints.load(2)


def test_full_disk_gives_up_older_states_first_and_then_says_so(tmp_path, monkeypatch):
    """The disk is real but for its free space, which no test may use up."""
    checkpoints = Checkpoints(tmp_path)
    for number in range(6):
        checkpoints.save(a_state(number), number)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    checkpoints.save(a_state(6), 6)  # there is room after all
    assert checkpoints.rounds() == [6, 5, 4]


def test_state_that_cannot_be_written_is_one_line_and_harms_no_other(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    checkpoints.save(a_state(1), 1)
    shutil.move(folder, tmp_path / "elsewhere")
    folder.write_bytes(b"")  # where the folder was: nothing can be made in it
    with pytest.raises(ModelError, match="cannot write state") as caught:
        checkpoints.save(a_state(2), 2)
    assert "\n" not in str(caught.value)
    assert same(Checkpoints(tmp_path / "elsewhere").load(1), a_state(1))


def test_files_of_a_state_are_told_when_it_is_kept_and_in_a_later_life_without_reading_them(
    tmp_path, monkeypatch
):
    checkpoints, state = Checkpoints(tmp_path), a_state(3)
    files = checkpoints.save(state, 3)
    assert files.digest == state.digest
    assert files.weights.digest == tensors_digest(state.weights)
    for kind, file in (("weights", files.weights), ("optimizer", files.optimizer)):
        content = checkpoints.path(3, kind).read_bytes()
        assert (file.blob, file.size_bytes) == (hashlib.sha256(content).digest(), len(content))
    assert checkpoints.files(4) is checkpoints.files_of(b"x" * 32) is checkpoints.files(None) is None
    monkeypatch.setattr(checkpoints_module, "load_file", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(checkpoints_module.hashlib, "file_digest", lambda *_: pytest.fail("read"))
    later = Checkpoints(tmp_path)
    assert later.files(3) == later.files_of(state.digest) == files


def test_same_state_is_the_same_file_for_every_peer(tmp_path):
    one, other = (Checkpoints(tmp_path / name).save(a_state(0), None) for name in ("one", "other"))
    assert one == other
    assert Checkpoints(tmp_path / "one").find(a_state(0).digest) is None
    assert Checkpoints(tmp_path / "one").files_of(a_state(0).digest) == one


@pytest.mark.parametrize("left", [None, b"", b"[[", b"[]", b"null"])
def test_state_without_its_list_of_files_is_read_once_more(tmp_path, left):
    checkpoints = Checkpoints(tmp_path)
    files = checkpoints.save(a_state(1), 1)
    path = tmp_path / "00000001" / "files.json"
    path.unlink() if left is None else path.write_bytes(left)
    assert checkpoints.files(1) == files
    assert msgspec.json.decode(path.read_bytes(), type=StateFiles) == files


def test_damaged_state_has_no_files(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(a_state(1), 1)
    checkpoints.save(a_state(2), 2)
    path = checkpoints.path(1, "weights")
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.files(1) is None
    assert len(checkpoints.shared()) == 2


def test_files_of_all_kept_states_are_shared_each_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    kept = [checkpoints.save(a_state(0), None)]
    for number, value in enumerate((1, 2, 2)):  # the last round learned nothing
        kept.append(checkpoints.save(a_state(value), number))
    newest = kept[-1]
    shared = checkpoints.shared()
    assert shared == {
        kept[0].weights.blob: tmp_path / "initial" / "weights.safetensors",
        kept[0].optimizer.blob: tmp_path / "initial" / "optimizer.safetensors",
        newest.weights.blob: tmp_path / "00000002" / "weights.safetensors",
        newest.optimizer.blob: tmp_path / "00000002" / "optimizer.safetensors",
    }
    assert all(hashlib.sha256(path.read_bytes()).digest() == blob for blob, path in shared.items())


def test_state_that_could_not_be_kept_has_digests_and_no_files():
    files = unkept(a_state(1))
    assert files.digest == a_state(1).digest
    assert files.weights.size_bytes == 0


def training(folder: Path, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(TRAINING), str(folder), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment_goes_on_to_the_same_state(tmp_path):
    """Real training of the real model, killed -9 between and within its writes, ends bit for bit the same."""
    rounds = 40
    steady, _ = training(tmp_path / "steady", rounds).communicate(timeout=120)
    rng = random.Random(1)
    kills = 0
    while True:
        process = training(tmp_path / "killed", rounds)
        assert process.stdout is not None
        # The line says that a round is about to be learned and written; then a moment within that.
        line = process.stdout.readline()
        if line.startswith("round") and kills < 6:
            time.sleep(rng.uniform(0.0, 0.2))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            kills += 1
            continue
        rest, _ = process.communicate(timeout=120)
        break
    assert kills == 6
    assert (line + rest).splitlines()[-1] == steady.splitlines()[-1]
    assert steady.splitlines()[-1].startswith("digest ")

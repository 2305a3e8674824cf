"""A swarm that continues another: its manifest, and what its peers bring along."""

from __future__ import annotations

import msgspec
import pytest
from small_swarm import small_manifest

from swarm.errors import UsageError
from swarm.learner.trainer import TrainingGroup
from swarm.manifest import Manifest, Predecessor, parse_canonical, succeed
from swarm.records import Records, RoundRecord
from swarm.settings import Settings
from swarm.succession import inheritance
from swarm.training import Training

OLD = small_manifest("old")
NEW = succeed(small_manifest("new", round_seconds=500), OLD.swarm_id)


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path, threads=1, trackers=(), device="cpu")


def begin(settings: Settings, manifest: Manifest) -> Training:
    folder = settings.swarm_dir(manifest.swarm_id, "0x" + "1" * 40, 5)
    with_records = Records(folder / "state.sqlite")
    recorded = {record.round for record in with_records.rounds()}
    with_records.close()
    return Training(settings, manifest, folder, "a peer", recorded, inheritance(settings, manifest))


def record(settings: Settings, number: int) -> None:
    folder = settings.swarm_dir(OLD.swarm_id, "0x" + "1" * 40, 5)
    records = Records(folder / "state.sqlite")
    records.save(
        RoundRecord(
            round=number,
            rewards={},
            groups=1,
            external_groups=0,
            reward_micros=0,
            commitment="",
            state_before="",
            state_after="",
        )
    )
    records.close()


def learn(training: Training, number: int) -> bytes:
    prompt = training.policy.encode_prompt(f"{number}+1=")
    completions = [training.policy.encode_completion(str(number + g)) for g in range(4)]
    training.update([TrainingGroup(prompt, completions, [0.0, 1.0, 0.0, 0.0])], number)
    return training.present_state().digest


@pytest.fixture
def played(settings):
    """The states of a peer that played three rounds in the old swarm; the third was never recorded."""
    training = begin(settings, OLD)
    base = training.present_state().digest
    states = [learn(training, number) for number in range(3)]
    training.close()
    for number in range(2):
        record(settings, number)
    return base, states


def test_manifest_names_its_predecessor_and_what_it_keeps():
    assert NEW.predecessor == Predecessor(swarm=OLD.swarm_id.hex())
    assert NEW.predecessor.keep == ("states", "reputation")
    assert NEW.swarm_id != small_manifest("new", round_seconds=500).swarm_id
    assert parse_canonical(NEW.canonical, "ledger") == NEW
    assert succeed(NEW, OLD.swarm_id) == NEW
    with pytest.raises(UsageError, match="names the predecessor"):
        succeed(NEW, bytes(32))


def test_peer_begins_with_its_last_reported_state_of_the_predecessor(settings, played):
    _, states = played
    training = begin(settings, NEW)
    assert training.present_state().digest == states[1]
    assert training.committed_state(0, None).digest == states[1], "before its first report, too"
    after = learn(training, 0)
    training.close()
    again = begin(settings, NEW)
    assert again.present_state().digest == states[1], "a round without a record is passed over"
    assert after != states[1]
    again.close()


def test_peer_without_a_part_in_the_predecessor_begins_with_the_base_model(settings, played, tmp_path):
    base, _ = played
    other = Settings(home=tmp_path / "other", threads=1, trackers=(), device="cpu")
    training = begin(other, NEW)
    assert training.present_state().digest == base
    training.close()


@pytest.mark.parametrize(
    "change",
    [
        {"predecessor": Predecessor(swarm=OLD.swarm_id.hex(), keep=("reputation",))},
        {"predecessor": None},
        {"models": ("a/b",)},
    ],
)
def test_states_stay_behind_where_the_manifest_says_so(settings, played, change):
    assert inheritance(settings, NEW) is not None
    assert inheritance(settings, msgspec.structs.replace(NEW, **change)) is None

"""A node's model between rounds, with the real tiny model."""

from __future__ import annotations

import hashlib
import logging
import random

import msgspec
import pytest
import torch
from small_swarm import small_manifest

from swarm.errors import ModelError, UsageError
from swarm.learner.trainer import TrainingGroup
from swarm.manifest import Manifest
from swarm.policy.plan import read_plan
from swarm.records import RoundRecord
from swarm.settings import Settings
from swarm.training import Training

RULES = small_manifest("training")
MANIFEST = msgspec.structs.replace(RULES, learn=msgspec.structs.replace(RULES.learn, learning_rate=3e-3))


@pytest.fixture
def begin(tmp_path):
    """Makes the node's training, again and again as after a restart."""
    begun = []

    def make(recorded=(), manifest: Manifest = MANIFEST, **wishes) -> Training:
        settings = Settings(home=tmp_path, threads=1, **{"trackers": (), "device": "cpu", **wishes})
        begun.append(Training(settings, manifest, tmp_path / "swarm", "a peer", recorded))
        return begun[-1]

    yield make
    for training in begun:
        training.close()


def a_record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        rewards={"answer": 0.5},
        groups=3,
        external_groups=1,
        reward_micros=5,
        commitment="",
        state_before="",
        state_after="",
    )


def test_goes_back_to_the_newest_state_that_still_counts_and_else_to_the_first(begin):
    training = begin()
    first = training.present_state().digest
    states = [learn(training, number) for number in range(3)]
    assert training.go_back({states[2]}) is None  # it is there
    assert training.go_back({states[0], first}) == states[0]
    assert training.learner.state_digest() == states[0] == training.present_state().digest
    assert learn(training, 1) == states[1]  # from there on as before
    assert training.go_back({b"x" * 32}) == first


def learn(training: Training, number: int) -> bytes:
    """One round's update; the digest of the state after it."""
    rng = random.Random(number)
    groups = []
    for _ in range(4):
        prompt = training.policy.encode_prompt(f"{rng.randrange(100)}+{rng.randrange(100)}=")
        completions = [training.policy.encode_completion(str(rng.randrange(200))) for _ in range(4)]
        groups.append(TrainingGroup(prompt, completions, [1.0, 0.0, 0.0, 0.0]))
    for _ in range(3):
        training.update(groups, number)
    assert training.present_state().digest == training.learner.state_digest()
    return training.learner.state_digest()


def sample(training: Training, state) -> list:
    prompts = ["12+34=", "5-7="]
    seeds = [[hashlib.sha256(bytes([j, g])).digest() for g in range(16)] for j in range(2)]
    return training.sample(state, MANIFEST.stages[0], prompts, seeds, lambda: False)


def test_round_is_sampled_with_the_state_that_was_on_the_ledger(begin):
    training = begin()
    base = sample(training, training.present_state())
    initial = training.present_state().digest
    first = learn(training, 0)
    # Nothing is on the ledger yet: the base model samples, whatever was learned.
    assert training.committed_state(1, None).digest == initial
    assert sample(training, training.committed_state(1, None)) == base
    on_time = training.committed_state(1, first)
    assert on_time.weights is None and on_time.digest == first
    after_one = sample(training, on_time)
    second = learn(training, 1)
    late = training.committed_state(2, first)
    assert late.digest == first
    assert sample(training, late) == after_one != sample(training, training.present_state())
    assert training.learner.state_digest() == second  # what was lent is taken back


def test_state_that_is_not_kept_is_a_warning_and_the_present_one_samples(begin, caplog):
    training = begin()
    learn(training, 0)
    with caplog.at_level(logging.WARNING, "swarm"):
        state = training.committed_state(1, b"x" * 32)
    assert state == training.present_state()
    assert "is not kept" in caplog.text


def test_restart_goes_on_from_the_last_recorded_round(begin):
    training = begin()
    first = learn(training, 0)
    learn(training, 1)  # a life that ended before this round's record
    assert begin(recorded=[0]).learner.state_digest() == first


def test_restart_never_changes_the_model(begin, tmp_path):
    begin()
    plan = read_plan(tmp_path / "swarm" / "plan.json")
    assert (plan.model, plan.lora) == ("tiny", False)
    with pytest.raises(UsageError, match="afresh") as caught:
        begin(lora=True)
    assert "\n" not in str(caught.value)
    assert begin().present_state() == begin().present_state()


def test_adapter_is_trained_where_it_is_asked_for(begin):
    training = begin(lora=True)
    assert training.policy.lora
    state = training.learner.state()
    assert all("lora" in name for name in state.weights)
    base = sample(training, training.present_state())
    learn(training, 0)
    assert sample(training, training.committed_state(1, None)) == base


def test_what_ran_out_of_memory_once_stays_small_after_a_restart(begin):
    training = begin()
    training.policy._generator.max_tokens_at_once = 100
    training.tell(a_record(1), None)
    again = begin()
    assert again.policy.max_tokens_at_once == 100
    assert again.learner.max_tokens_at_once == training.learner.max_tokens_at_once


def test_prompts_beyond_the_context_end_the_prefix_and_foreign_ones_are_not_admitted(begin, caplog):
    training = begin()
    texts = ["12+34=", "1" * training.policy.context_length, "12+34="]
    short, long, _ = map(training.policy.encode_prompt, texts)
    seeds = [[bytes([g]) * 32 for g in range(4)]] * 3
    with caplog.at_level(logging.WARNING, "swarm"):
        groups = training.sample(training.present_state(), MANIFEST.stages[0], texts, seeds, lambda: False)
    assert len(groups) == 1
    assert "prompt too long" in caplog.text
    completion = training.policy.encode_completion("46")
    too_long = [completion[0]] * training.policy.context_length
    flags = training.admits([(short, [completion, too_long, completion]), (long, [completion])], 0)
    assert flags == [[True, False, True], [False]]
    likely = training.admits([(short, [completion, training.policy.encode_completion("~")])], 20)
    assert likely == [[True, False]]


def test_text_that_the_template_cannot_take_costs_no_more_than_its_group(begin, caplog):
    training = begin()
    tokenizer = training.policy.encoding.tokenizer
    tokenizer.chat_template = (
        "{% if '7' in messages[0]['content'] %}{{ raise_exception('no sevens') }}{% endif %}"
        + tokenizer.chat_template
    )
    seeds = [[bytes([g]) * 32 for g in range(4)]] * 3
    with caplog.at_level(logging.WARNING, "swarm"):
        groups = training.sample(
            training.present_state(), MANIFEST.stages[0], ["1+2=", "3+7=", "5+5="], seeds, lambda: False
        )
    assert len(groups) == 1
    assert "no sevens" in caplog.text


def test_screening_goes_on_in_smaller_batches_where_memory_runs_out(begin, monkeypatch):
    training = begin()
    policy = training.policy
    groups = [
        (policy.encode_prompt(f"{n}+5="), [policy.encode_completion(str(n + k)) for k in range(4)])
        for n in range(3)
    ]
    expected = training.admits(groups, 3)
    forward, most = policy.model.forward, 5

    def within(*arguments, **options):
        if len(options.get("input_ids", arguments[0] if arguments else ())) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments, **options)

    monkeypatch.setattr(policy.model, "forward", within)
    before = policy.max_tokens_at_once
    assert training.admits(groups, 3) == expected
    assert policy.max_tokens_at_once < before
    most = 0
    with pytest.raises(ModelError, match="memory"):
        training.admits(groups, 3)


def test_curves_are_drawn_and_go_on_after_a_restart(begin, tmp_path):
    for number in (1, 2):
        training = begin(trackers=("tensorboard",))
        training.tell(a_record(number), training.learner.update([]))
        training.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "swarm" / "curves"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("reward/answer")] == [(1, 0.5), (2, 0.5)]


def test_model_that_the_swarm_does_not_allow_is_one_line(begin):
    with pytest.raises(UsageError, match="does not allow") as caught:
        begin(model="other/model")
    assert "\n" not in str(caught.value)
    two = msgspec.structs.replace(MANIFEST, models=("tiny", "nobody/none"))
    assert begin(manifest=two).policy.name == "tiny"  # the other cannot be had here

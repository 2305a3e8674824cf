"""GRPO updates with the real tiny model and TRL's real trainer."""

from __future__ import annotations

import hashlib
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from swarm.errors import ModelError
from swarm.learner.batch import make_rows, micro_batches
from swarm.learner.checkpoints import Checkpoints, LearnerState
from swarm.learner.trainer import Learner, TrainingGroup
from swarm.manifest import Learn, Sampling
from swarm.policy.model import Policy

LEARN = Learn(ends_at=0.9, external_groups=4, learning_rate=1e-3, epochs=2, groups_per_step=4)
GROUP_SIZE = 4


def make_learner(folder: Path, learn: Learn = LEARN, policy: Policy | None = None) -> Learner:
    return Learner(policy or Policy.load("tiny", threads=1), learn, GROUP_SIZE, 1.0, 8, folder)


@pytest.fixture
def learner(tmp_path) -> Learner:
    return make_learner(tmp_path / "work")


def make_groups(policy: Policy, seed: int, count: int = 6) -> list[TrainingGroup]:
    """Groups of short and long prompts with random rewards, the first of them without any advantage."""
    rng = random.Random(seed)
    groups = []
    for index in range(count):
        question = f"{rng.randrange(100)}+{rng.randrange(100)}="
        text = question if index % 2 else f"{question}\nA) 12\nB) 13\nright?"
        prompt = policy.encode_prompt(text)
        completions = [policy.encode_completion(str(rng.randrange(200))) for _ in range(GROUP_SIZE)]
        rewards = [1.0] * GROUP_SIZE if index == 0 else [1.0, 0.0, rng.random(), 0.5]
        groups.append(TrainingGroup(prompt, completions, rewards))
    return groups


def test_probability_moves_towards_rewarded_completions(learner):
    policy = learner.policy
    groups = []
    for left in range(10, 18):
        prompt = policy.encode_prompt(f"{left}+20=")
        completions = [policy.encode_completion(text) for text in (str(left + 20), "7", str(left + 21), "88")]
        groups.append(TrainingGroup(prompt, completions, [1.0, 0.0, 0.0, 0.0]))

    @torch.no_grad()
    def probability(index: int) -> float:
        logps = []
        for group in groups:
            completion = torch.tensor(group.completions[index])
            ids = torch.tensor([group.prompt + group.completions[index]])
            logits = policy.model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1]
            logps.append(torch.log_softmax(logits, -1).gather(1, completion.unsqueeze(1)).sum().item())
        return float(np.exp(logps).sum())

    right, wrong = probability(0), probability(2)
    for _ in range(3):
        learner.update(groups)
    assert probability(0) > right
    assert probability(2) < wrong


def test_groups_without_advantage_are_dropped(learner):
    update = learner.update(make_groups(learner.policy, 0))
    assert (update.groups_used, update.groups_dropped) == (5, 1)
    assert update.steps == 2 * LEARN.epochs  # five groups in steps of at most four: two steps
    assert np.isfinite([update.loss, update.grad_norm]).all()
    assert update.grad_norm > 0


def test_update_without_an_informative_group_changes_nothing(learner):
    before = learner.state_digest()
    update = learner.update(make_groups(learner.policy, 0)[:1])
    assert (update.steps, update.groups_used, update.groups_dropped) == (0, 0, 1)
    assert learner.update([]).steps == 0
    assert learner.state_digest() == before


def test_same_state_and_groups_give_the_same_next_state(tmp_path):
    learners = [make_learner(tmp_path / "work") for _ in range(2)]
    digests: list[list[bytes]] = [[], []]
    for learner, seen in zip(learners, digests, strict=True):
        for round_number in range(3):
            learner.update(make_groups(learner.policy, round_number))
            seen.append(learner.state_digest())
            torch.rand(round_number + 1)  # what else the process draws must not matter
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3


def test_update_leaves_the_process_generators_alone(learner):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    learner.update(make_groups(learner.policy, 0))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_loaded_state_continues_as_if_never_stopped(tmp_path):
    steady, first = make_learner(tmp_path / "work"), make_learner(tmp_path / "work")
    for learner in (steady, first):
        learner.update(make_groups(learner.policy, 0))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(first.state(), 0)
    resumed = make_learner(tmp_path / "work")
    torch.manual_seed(99)  # all that matters is in the state
    resumed.update(make_groups(resumed.policy, 9))
    resumed.restore(checkpoints.load(0))
    assert resumed.state_digest() == steady.state_digest()
    for learner in (steady, resumed):
        learner.update(make_groups(learner.policy, 1))
    assert resumed.state_digest() == steady.state_digest()


def test_state_file_has_the_same_bytes_for_the_same_state(tmp_path, learner):
    learner.update(make_groups(learner.policy, 0))
    folder = tmp_path / "checkpoints"
    for number in (1, 2):
        Checkpoints(folder).save(learner.state(), number)
    files = ["optimizer.safetensors", "weights.safetensors"]
    for name in files:
        assert (folder / "00000001" / name).read_bytes() == (folder / "00000002" / name).read_bytes()
    files.append("files.json")
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == sorted(2 * files)


def test_digest_sees_weights_moments_and_counters(tmp_path, learner):
    learner.update(make_groups(learner.policy, 0))
    digest = learner.state_digest()
    state = learner.state()
    for name, tensor in [*state.weights.items(), *state.optimizer.items()]:
        if name.endswith("norm.weight"):
            with torch.no_grad():
                tensor.view(-1)[0] += 1.0
                assert learner.state_digest() != digest, name
                tensor.view(-1)[0] -= 1.0


def test_state_of_another_model_is_a_one_line_error(learner):
    state = learner.state()
    name = next(iter(state.weights))
    for change in ({"other": torch.zeros(1)}, {name: torch.zeros(1)}):
        with pytest.raises(ModelError, match="not of model tiny"):
            learner.restore(LearnerState({**state.weights, **change}, state.optimizer))
        with pytest.raises(ModelError, match="not of model tiny"), learner.with_weights(change):
            pass
    with pytest.raises(ModelError, match="not of model tiny"):
        learner.restore(LearnerState(state.weights, {}))


def test_older_weights_are_lent_for_sampling_and_taken_back(learner):
    policy = learner.policy
    older = {name: tensor.detach().clone() for name, tensor in learner.weights().items()}
    prompts = [policy.encode_prompt("12+34=")]
    seeds = [[hashlib.sha256(bytes([g])).digest() for g in range(32)]]

    def sample() -> list[list[list[int]]]:
        return policy.sample(prompts, seeds, max_tokens=8, sampling=Sampling())

    before = sample()
    for number in range(4):
        learner.update(make_groups(policy, number))
    digest, after = learner.state_digest(), sample()
    assert after != before
    with learner.with_weights(older):
        assert sample() == before
    assert sample() == after
    with pytest.raises(RuntimeError, match="out of luck"), learner.with_weights(older):
        raise RuntimeError("out of luck")
    assert learner.state_digest() == digest


def test_a_malformed_group_is_refused(learner):
    group = make_groups(learner.policy, 0)[1]
    for count in (1, 5):
        with pytest.raises(ValueError, match="groups have 4"):
            learner.update([TrainingGroup(group.prompt, (group.completions * 2)[:count], [0.5] * count)])
    with pytest.raises(ValueError, match="3 completions and 4 rewards"):
        learner.update([TrainingGroup(group.prompt, group.completions[:3], group.rewards)])
    with pytest.raises(ValueError, match="9 tokens; at most 8"):
        learner.update([TrainingGroup(group.prompt, [*group.completions[:3], [7] * 9], group.rewards)])
    with pytest.raises(ValueError, match="without tokens"):
        learner.update([TrainingGroup(group.prompt, [*group.completions[:3], []], group.rewards)])
    with pytest.raises(ValueError, match="finite"):
        learner.update([TrainingGroup(group.prompt, group.completions, [float("nan")] * 4)])


def test_learning_writes_no_files_and_no_output(tmp_path, capfd, recwarn):
    learner = make_learner(tmp_path / "work")
    learner.update(make_groups(learner.policy, 0))
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")
    assert [str(warning.message) for warning in recwarn.list] == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def weights_of(learner: Learner) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in learner.weights().values()])


def make_ragged(policy: Policy, seed: int) -> list[TrainingGroup]:
    """Groups of 2 to 4 completions, all of them informative."""
    return [
        TrainingGroup(group.prompt, group.completions[:size], [0.0, *group.rewards[1:size]])
        for group, size in zip(make_groups(policy, seed), (2, 4, 3, 2, 4, 3), strict=True)
    ]


def test_groups_may_have_fewer_completions(learner):
    groups = make_ragged(learner.policy, 0)
    update = learner.update(groups)
    used = [group for group in groups if group.is_informative]
    assert update.completions == sum(len(group.completions) for group in used)
    assert update.tokens == sum(len(completion) for group in used for completion in group.completions)
    assert update.steps == 2 * LEARN.epochs


def test_every_group_is_used_once_and_only_the_last_step_is_smaller(learner):
    groups = make_groups(learner.policy, 0, count=10)[1:]
    steps = learner._cut(groups)
    assert [len(step) for step in steps] == [4, 4, 1]
    assert sorted(group.length for group in groups) == [group.length for step in steps for group in step]
    assert learner.update(groups).steps == 3 * LEARN.epochs


def test_update_tells_what_it_did(tmp_path):
    learn = Learn(ends_at=0.9, external_groups=4, learning_rate=1e-2, epochs=4, groups_per_step=4, beta=0.1)
    learner = make_learner(tmp_path / "work", learn)
    update = learner.update(make_groups(learner.policy, 0))
    assert 0 < update.clip_fraction < 1
    assert update.kl > 0
    assert update.entropy > 0
    assert update.completions == 5 * GROUP_SIZE
    plain = make_learner(tmp_path / "work", LEARN).update(make_groups(learner.policy, 0))
    assert plain.kl is None


def test_micro_batches_do_not_show_in_the_result(tmp_path):
    whole, cut = make_learner(tmp_path / "work"), make_learner(tmp_path / "work")
    cut.max_tokens_at_once = 40
    for learner in (whole, cut):
        learner.update(make_ragged(learner.policy, 0))
    before = weights_of(make_learner(tmp_path / "work"))
    moved = (weights_of(whole) - before).norm()
    # AdamW's first steps divide by tiny second moments, so rounding grows; the gradients agree to 1e-5
    # (test_gradients).
    assert (weights_of(whole) - weights_of(cut)).norm() / moved < 1e-2


def test_only_an_adapter_is_trained_and_kept(tmp_path):
    policy = Policy.load("tiny", threads=1)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy.model = get_peft_model(policy.model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    learn = Learn(ends_at=0.9, external_groups=4, learning_rate=1e-3, epochs=2, groups_per_step=4, beta=0.1)
    learner = make_learner(tmp_path / "work", learn, policy)
    base = {name: p.clone() for name, p in policy.model.named_parameters() if not p.requires_grad}
    before = {name: tensor.detach().clone() for name, tensor in learner.weights().items()}
    assert before
    assert all("lora" in name for name in before)
    update = learner.update(make_groups(policy, 0))
    assert update.kl > 0  # from the base model, as the adapter moves away from it
    after = learner.weights()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, parameter in policy.model.named_parameters():
        assert name in after or torch.equal(parameter, base[name]), name
    assert learner.state().size_bytes < sum(4 * tensor.numel() for tensor in base.values()) / 10
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(learner.state(), 0)
    digest = learner.state_digest()
    learner.update(make_groups(policy, 1))
    learner.restore(checkpoints.load(0))
    assert learner.state_digest() == digest


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_step_without_memory_is_tried_again_in_smaller_pieces(tmp_path, monkeypatch, error):
    limit = 5

    def limited(learner: Learner) -> None:
        embeddings = learner.policy.model.get_input_embeddings()
        forward = embeddings.forward

        def forward_within_memory(ids: torch.Tensor) -> torch.Tensor:
            if len(ids) > limit:
                raise error
            return forward(ids)

        monkeypatch.setattr(embeddings, "forward", forward_within_memory)

    unlimited, surprised = make_learner(tmp_path / "work"), make_learner(tmp_path / "work")
    before = weights_of(surprised).clone()
    limited(surprised)
    groups = make_groups(surprised.policy, 0)
    assert surprised.update(groups).steps == unlimited.update(groups).steps == 4
    moved = (weights_of(unlimited) - before).norm()
    assert (weights_of(surprised) - weights_of(unlimited)).norm() / moved < 1e-2
    remembered = surprised.max_tokens_at_once
    assert remembered < 1000
    surprised.update(groups)
    assert surprised.max_tokens_at_once == remembered

    limit = 0
    before = weights_of(surprised).clone()
    with pytest.raises(ModelError, match="not enough memory to train tiny on one completion"):
        surprised.update(groups)
    assert torch.equal(weights_of(surprised), before)
    assert all(parameter.grad is None for parameter in surprised.policy.model.parameters())


def test_what_a_failed_attempt_left_does_not_show(tmp_path, monkeypatch):
    """An attempt that fails at its second micro-batch leaves no gradients behind."""
    planned, surprised = make_learner(tmp_path / "work"), make_learner(tmp_path / "work")
    groups = make_groups(planned.policy, 0)[1:5]  # one step
    surprised.max_tokens_at_once = 60
    assert len(micro_batches(sorted(groups, key=lambda group: group.length), 60)) > 1
    backward, calls = surprised._trainer.backward, []

    def fails_once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(*arguments)

    monkeypatch.setattr(surprised._trainer, "backward", fails_once)
    surprised.update(groups)
    assert surprised.max_tokens_at_once < 60
    planned.max_tokens_at_once = surprised.max_tokens_at_once
    planned.update(groups)
    assert surprised.state_digest() == planned.state_digest()


def test_another_error_is_not_taken_for_missing_memory(learner, monkeypatch):
    def broken(*_arguments: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(learner._trainer, "backward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        learner.update(make_groups(learner.policy, 0))


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_step_is_trls_loop_with_adamw(tmp_path, epochs):
    """TRL's own log-probabilities and loss, clipping and AdamW, written out."""
    learn = Learn(ends_at=0.9, external_groups=4, learning_rate=1e-4, epochs=epochs, beta=0.05)
    learner, stock = make_learner(tmp_path / "work", learn), make_learner(tmp_path / "work", learn)
    groups = make_ragged(learner.policy, 0)
    used = sorted((group for group in groups if group.is_informative), key=lambda group: group.length)
    learner.update(groups)

    trainer, model = stock._trainer, stock.policy.model
    trainer.shares_prompts = False
    add_fused_lm_head(trainer.ref_model)
    rows = make_rows(used, "group", torch.device("cpu"))
    rows.reference_log_probs = trainer.reference_log_probs(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    model.train()
    for epoch in range(epochs):
        trainer._compute_loss(model, rows.for_trl(int(rows.lengths.sum()))).backward()
        if epoch == 0:
            rows.old_log_probs = trainer._log_probs
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    before = weights_of(make_learner(tmp_path / "work"))
    moved = (weights_of(stock) - before).norm()
    assert (weights_of(learner) - weights_of(stock)).norm() / moved < 1e-2


def test_older_weights_can_be_lent_to_the_model(learner):
    older = {name: tensor.detach().clone() for name, tensor in learner.weights().items()}
    learner.update(make_groups(learner.policy, 0))
    digest = learner.state_digest()
    with learner.with_weights(None):
        assert learner.state_digest() == digest
    with pytest.raises(KeyError), learner.with_weights(older):
        assert all(torch.equal(tensor, older[name]) for name, tensor in learner.weights().items())
        raise KeyError
    assert learner.state_digest() == digest
    with pytest.raises(ModelError, match="not of model tiny"), learner.with_weights({}):
        pass


def test_a_state_of_another_model_is_refused(learner):
    state = learner.state()
    digest = state.digest
    with pytest.raises(ModelError, match="not of model tiny"):
        learner.restore(LearnerState({}, state.optimizer))
    shorter = {name: tensor.flatten()[:1] for name, tensor in state.weights.items()}
    with pytest.raises(ModelError, match="not of model tiny"):
        learner.restore(LearnerState(shorter, state.optimizer))
    assert learner.state_digest() == digest

"""A step's gradient against TRL's stock trainer: its own loss and log-probabilities, prompts repeated."""

from __future__ import annotations

import copy
import random
from itertools import product

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, Qwen3Config
from trl import GRPOConfig, GRPOTrainer

from swarm.learner import head
from swarm.learner.batch import Rows, TrainingGroup, group_advantages, make_rows, micro_batches
from swarm.learner.grpo import GroupTrainer, Sums
from swarm.learner.shared_prompt import can_share_prompts
from swarm.manifest import Learn
from swarm.policy.model import Policy

TEMPERATURE = 0.8
MAX_TOKENS = 12
VOCABULARY = 131
CPU = torch.device("cpu")

# Between the pinned TRL, peft and transformers, when TRL's own trainer is made.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return Policy.load("tiny", threads=1).encoding.tokenizer


def make_model(seed: int = 0) -> torch.nn.Module:
    """A model whose distributions are far from flat, so that a wrong position or token shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=True,
        )
        model = AutoModelForCausalLM.from_config(config)
        shift(model, 0.1)
        return model


def shift(model: torch.nn.Module, size: float, seed: int = 1) -> None:
    """The same change to every model of the same shapes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def make_groups(seed: int = 0, ragged: bool = True) -> list[TrainingGroup]:
    """Prompts and completions of many lengths; the first two groups ask the same."""
    rng = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(count)]

    prompts = [tokens(count) for count in (9, 4, 1, 6)]
    groups = []
    for prompt, size in zip([prompts[0], *prompts], (4, 2, 4, 3, 4) if ragged else (4,) * 5, strict=True):
        completions = [tokens(rng.randrange(1, MAX_TOKENS + 1)) for _ in range(size)]
        groups.append(TrainingGroup(prompt, completions, [rng.random() for _ in completions]))
    return groups


def make_learn(**knobs: object) -> Learn:
    return Learn(ends_at=0.9, external_groups=0, learning_rate=1e-3, **knobs)


def make_trainer(model, tokenizer, learn: Learn, folder, **options) -> GroupTrainer:
    options = {"precision": "fp32", "gradient_checkpointing": False} | options
    return GroupTrainer(model, tokenizer, learn, TEMPERATURE, MAX_TOKENS, work_dir=folder, **options)


def make_stock(model, tokenizer, learn: Learn, folder, **options) -> GRPOTrainer:
    """TRL's trainer as it is, about to look at one batch of all rows."""
    config = GRPOConfig(
        output_dir=str(folder),
        report_to=[],
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        max_completion_length=MAX_TOKENS,
        temperature=TEMPERATURE,
        epsilon=learn.epsilon,
        epsilon_high=learn.epsilon_high,
        loss_type=learn.loss_type,
        importance_sampling_level=learn.importance_sampling_level,
        scale_rewards=learn.scale_rewards,
        per_device_train_batch_size=20,
        num_generations=4,
    )
    options = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)} | options
    dataset = Dataset.from_dict({"prompt": [""]})
    trainer = GRPOTrainer(
        model=model, args=config, train_dataset=dataset, processing_class=tokenizer, **options
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = learn.beta  # the reference's log-probabilities are handed in
    return trainer


def stock_log_probs(trainer: GRPOTrainer, rows: Rows) -> torch.Tensor:
    ids = torch.cat([rows.prompt_ids, rows.completion_ids], 1)
    mask = torch.cat([rows.prompt_mask, rows.completion_mask], 1)
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, rows.completion_ids.shape[1]
        )[0]


def stock_gradient(trainer: GRPOTrainer, rows: Rows) -> tuple[torch.Tensor, float]:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, rows.for_trl(int(rows.lengths.sum())))
    loss.backward()
    return gradient_of(trainer.model), loss.item()


def our_gradient(trainer: GroupTrainer, groups, rows: Rows, max_tokens: int) -> tuple[torch.Tensor, Sums]:
    trainer.model.zero_grad()
    sums = Sums()
    for cut in micro_batches(groups, max_tokens):
        part = rows.cut(cut).without_padding()
        sums += trainer.backward(part, len(rows), int(rows.lengths.sum()))[1]
    return gradient_of(trainer.model), sums


def gradient_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize(
    ("loss_type", "level", "scale", "beta"),
    list(
        product(
            ("grpo", "dr_grpo", "bnpo", "dapo", "cispo"),
            ("token", "sequence"),
            ("group", "batch", "none"),
            (0.0, 0.1),
        )
    ),
)
def test_gradient_is_trls(tmp_path, tokenizer, monkeypatch, loss_type, level, scale, beta):
    """On a second pass, with ratios that differ from 1 and clips; whole, and in many small pieces."""
    learn = make_learn(loss_type=loss_type, importance_sampling_level=level, scale_rewards=scale, beta=beta)
    model = make_model()
    stock = make_stock(copy.deepcopy(model), tokenizer, learn, tmp_path)
    ours = make_trainer(model, tokenizer, learn, tmp_path)
    assert ours.shares_prompts
    groups = make_groups()
    rows = make_rows(groups, scale, CPU)
    if beta:
        rows.reference_log_probs = ours.reference_log_probs(rows)
        assert difference(rows.reference_log_probs, stock_log_probs(stock, rows)) < 1e-5
    for trainer in (stock, ours):
        shift(trainer.model, 0.05, seed=2)
    rows.old_log_probs = stock_log_probs(stock, rows)
    for trainer in (stock, ours):
        shift(trainer.model, 0.03, seed=3)
        trainer.model.train()
    ratios = (stock_log_probs(stock, rows) - rows.old_log_probs).exp()
    assert (ratios < 0.8).any()
    assert (ratios > 1.28).any()

    expected, loss = stock_gradient(stock, rows)
    got, sums = our_gradient(ours, groups, rows, 10**9)
    assert difference(got, expected) < 1e-5
    assert sums.loss == pytest.approx(loss, rel=1e-5, abs=1e-7)  # a difference of far larger numbers
    for name, sum_ in (("clip_ratio/region_mean", sums.clipped), ("kl", sums.kl)):
        if stock._metrics["train"].get(name):
            count = sums.rows if level == "sequence" and name != "kl" else sums.tokens
            assert sum_ / count == pytest.approx(stock._metrics["train"][name][-1], rel=1e-5)

    for chunk_tokens, max_tokens in ((5, 10**9), (1, 60), (20, 1), (10**9, 30)):
        monkeypatch.setattr(head, "CHUNK_BYTES", 4 * VOCABULARY * chunk_tokens)
        pieces, _ = our_gradient(ours, groups, rows, max_tokens)
        assert difference(pieces, expected) < 1e-5, (chunk_tokens, max_tokens)


def test_first_pass_has_ratios_of_one(tmp_path, tokenizer):
    learn, model, groups = make_learn(), make_model(), make_groups()
    stock = make_stock(copy.deepcopy(model), tokenizer, learn, tmp_path)
    ours = make_trainer(model, tokenizer, learn, tmp_path)
    rows = make_rows(groups, "group", CPU)
    expected, _ = stock_gradient(stock, rows)
    got, sums = our_gradient(ours, groups, rows, 10**9)
    assert difference(got, expected) < 1e-5
    assert sums.clipped == 0
    log_probs, _ = ours.backward(rows, len(rows), int(rows.lengths.sum()))
    assert difference(log_probs, stock_log_probs(stock, rows)) < 1e-5
    assert sums.surprise / sums.tokens == pytest.approx(
        -log_probs.sum().item() / rows.lengths.sum().item(), rel=1e-5
    )


def test_as_a_drop_in_for_trl_log_probs_have_trls_gradient(tmp_path, tokenizer):
    """Whoever hands TRL's loss the model itself gets shared prompts too."""
    learn, model = make_learn(), make_model()
    stock = make_stock(copy.deepcopy(model), tokenizer, learn, tmp_path)
    ours = make_trainer(model, tokenizer, learn, tmp_path)
    rows = make_rows(make_groups(), "group", CPU)
    assert difference(stock_gradient(ours, rows)[0], stock_gradient(stock, rows)[0]) < 1e-5


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_gradient_of_an_adapter_is_trls(tmp_path, tokenizer, beta):
    learn, groups = make_learn(beta=beta), make_groups()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(make_model(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # ours has none, whatever the adapter says
    stock = make_stock(plain, tokenizer, learn, tmp_path)
    ours = make_trainer(model, tokenizer, learn, tmp_path)
    rows = make_rows(groups, "group", CPU)
    if beta:
        rows.reference_log_probs = ours.reference_log_probs(rows)
        with plain.disable_adapter():
            assert difference(rows.reference_log_probs, stock_log_probs(stock, rows)) < 1e-5
    model.train()
    assert difference(our_gradient(ours, groups, rows, 40)[0], stock_gradient(stock, rows)[0]) < 1e-5
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def small(config_class, **more):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_class(**sizes | more))
        shift(model, 0.1)
        return model


FALLBACKS = {
    "a sliding window": lambda: small(
        MistralConfig, sliding_window=4, num_key_value_heads=2, intermediate_size=64
    ),
    "learned positions": lambda: small(GPT2Config, n_positions=64),
    "a bias at the head": lambda: with_head_bias(make_model()),
}


def with_head_bias(model):
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-2, 2, VOCABULARY))
    return model


@pytest.mark.parametrize("name", FALLBACKS)
def test_models_that_cannot_share_a_prompt_are_trained_trls_way(tmp_path, tokenizer, name):
    model = FALLBACKS[name]()
    learn, groups = make_learn(beta=0.1), make_groups()
    ours = make_trainer(model, tokenizer, learn, tmp_path)
    assert ours.shares_prompts == (name == "learned positions")  # positions are handed in: these can
    rows = make_rows(groups, "group", CPU)
    rows.reference_log_probs = ours.reference_log_probs(rows)
    model.train()
    got, _ = our_gradient(ours, groups, rows, 60)
    if not ours.shares_prompts:  # TRL gives a padded row of GPT-2 other positions than sampling does
        stock = make_stock(copy.deepcopy(model), tokenizer, learn, tmp_path)
        assert difference(got, stock_gradient(stock, rows)[0]) < 1e-5


def test_gradient_checkpointing_is_trained_trls_way(tmp_path, tokenizer, recwarn):
    learn, groups = make_learn(), make_groups()
    model = make_model()
    stock = make_stock(copy.deepcopy(model), tokenizer, learn, tmp_path)
    ours = make_trainer(model, tokenizer, learn, tmp_path, gradient_checkpointing=True)
    assert not ours.shares_prompts
    assert model.is_activation_checkpointing
    rows = make_rows(groups, "group", CPU)
    model.train()
    assert difference(our_gradient(ours, groups, rows, 60)[0], stock_gradient(stock, rows)[0]) < 1e-5
    assert [str(warning.message) for warning in recwarn.list] == []


def test_a_model_whose_logits_are_more_than_the_heads_product_is_found_out():
    model = make_model()
    assert can_share_prompts(model)
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = scaled
    assert not can_share_prompts(model)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_trls(tmp_path, tokenizer, scale):
    groups = make_groups(ragged=False)
    rewards = [reward for group in groups for reward in group.rewards]
    stock = make_stock(
        make_model(),
        tokenizer,
        make_learn(scale_rewards=scale),
        tmp_path,
        reward_funcs=lambda completions, **_: rewards,
        rollout_func=lambda prompts, trainer: {
            "prompt_ids": [group.prompt for group in groups for _ in group.completions],
            "completion_ids": [completion for group in groups for completion in group.completions],
            "logprobs": None,
        },
    )
    batch = stock._generate_and_score_completions([{"prompt": ""}] * len(rewards))
    torch.testing.assert_close(
        group_advantages([group.rewards for group in groups], scale), batch["advantages"]
    )
    rows = make_rows(groups, scale, CPU)
    for name, tensor in rows.for_trl(int(batch["num_items_in_batch"])).items():
        if "ids" in name:
            mask = batch[name.replace("ids", "mask")]
            assert torch.equal(tensor * mask, batch[name] * mask)
        elif tensor is not None:
            torch.testing.assert_close(tensor, batch[name], check_dtype=False)


def test_advantages_of_a_smaller_group_are_its_own():
    advantages = group_advantages([[1.0, 0.0], [3.0, 1.0, 2.0]], "group")
    torch.testing.assert_close(
        advantages, torch.tensor([0.70701, -0.70701, 1.0, -1.0, 0.0]), rtol=1e-3, atol=1e-3
    )


def test_micro_batches_hold_what_they_may():
    groups = make_groups()
    rows = make_rows(groups, "group", CPU)
    for limit in (1, 20, 50, 100, 200, 10**9):
        cuts = micro_batches(groups, limit)
        assert [row for cut in cuts for row in range(cut.start, cut.stop)] == list(range(len(rows)))
        for cut in cuts:
            part = rows.cut(cut).without_padding()
            prompts = torch.unique_consecutive(part.prompt_ids, dim=0).numel()
            if len(part) > 1:
                assert prompts + part.completion_ids.numel() <= limit
    assert len(micro_batches(groups, 1)) == len(rows)
    assert len(micro_batches(groups, 10**9)) == 1


@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_head_has_the_gradients_of_full_logits(vocabulary):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 16, generator=generator, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocabulary, 16, generator=generator))
    targets = torch.randint(vocabulary, (40,), generator=generator)
    pull = torch.randn(40, generator=generator)
    logits = states @ weight.t() / TEMPERATURE
    expected = torch.log_softmax(logits, -1).gather(1, targets.unsqueeze(1)).squeeze(1)
    (expected * pull).sum().backward()
    gradients = states.grad, weight.grad
    for log_probs_of in (head.token_log_probs, head.recomputed_log_probs):
        states.grad = weight.grad = None
        log_probs = log_probs_of(states, weight, targets, TEMPERATURE)
        (log_probs * pull).sum().backward()
        assert difference(log_probs, expected) < 1e-6
        assert difference(states.grad, gradients[0]) < 1e-5
        assert difference(weight.grad, gradients[1]) < 1e-5

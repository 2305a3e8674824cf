"""Group generation by hand and through models' own forwards, against transformers' plain one."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from swarm.errors import ModelError
from swarm.manifest import Sampling
from swarm.policy import llama
from swarm.policy.decoder import ModelRows
from swarm.policy.generation import Generator
from swarm.policy.sampling import choose
from tests.policy.tiny_models import END, VOCABULARY, make, seed_of

BY_HAND = ["llama", "llama3-rope", "yarn-rope", "qwen2", "qwen3", "mistral"]
NOT_BY_HAND = ["dynamic-rope", "mistral-window", "qwen2-window", "gemma3", "gpt2", "mamba"]
LENGTHS = (7, 12, 3, 9)
ENDS = frozenset({END, *range(6, 12)})


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(6, VOCABULARY) for _ in range(length)] for length in lengths]


def seeds_for(count: int, per_group: int = 4) -> list[list[bytes]]:
    return [[seed_of(group, row) for row in range(per_group)] for group in range(count)]


def generator_of(model, **options) -> Generator:
    return Generator(model, SimpleNamespace(ends=ENDS), **options)


@torch.no_grad()
def plain(model, prompt: list[int], seed: bytes, max_tokens: int, sampling: Sampling) -> list[int]:
    """One row alone, without any cache: the definition of what a seed yields."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[:, -1]
        tokens.append(int(choose(logits, [seed], [len(tokens) - len(prompt)], sampling)))
        if tokens[-1] in ENDS:
            break
    return tokens[len(prompt) :]


def plain_groups(model, prompts, seeds, max_tokens, sampling) -> list[list[list[int]]]:
    return [
        [plain(model, prompt, seed, max_tokens, sampling) for seed in group]
        for prompt, group in zip(prompts, seeds, strict=True)
    ]


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("name", BY_HAND + NOT_BY_HAND)
def test_tokens_are_those_of_the_model_without_a_cache(name, by_hand):
    model = make(name)
    assert llama.supports(model) == (name in BY_HAND)
    prompts, seeds = prompts_of(*LENGTHS), seeds_for(len(LENGTHS))
    sampling = Sampling(temperature=1.3, top_k=60, top_p=0.95)
    generator = generator_of(model, by_hand=by_hand)
    groups = generator.sample(prompts, seeds, max_tokens=12, sampling=sampling)
    assert groups == plain_groups(model, prompts, seeds, 12, sampling)
    assert len({len(completion) for group in groups for completion in group}) > 1  # some leave early


@pytest.mark.parametrize("name", BY_HAND)
def test_logits_by_hand_are_the_models_own(name):
    model = make(name)
    prompts = prompts_of(7, 12, 3)
    torch.manual_seed(0)
    tokens = torch.randint(6, VOCABULARY, (6, 5))
    with torch.no_grad():
        rows = llama.LlamaRows(llama.LlamaDecoder(model), prompts, 2, 5)
        logits = torch.stack([rows.logits, *(rows.step(tokens[:, step]) for step in range(5))], dim=1)
        for row in range(6):
            prompt = prompts[row // 2]
            whole = model(input_ids=torch.tensor([prompt + tokens[row].tolist()])).logits[0]
            torch.testing.assert_close(logits[row], whole[len(prompt) - 1 :], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_by_hand_is_near_the_models_own(dtype):
    model = make("qwen3").to(dtype)
    prompts = prompts_of(7, 12)
    tokens = torch.randint(6, VOCABULARY, (4, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hand, own = (
            llama.LlamaRows(llama.LlamaDecoder(model), prompts, 2, 3),
            ModelRows(model, prompts, [2, 2]),
        )
        for step in range(3):
            ours, theirs = hand.step(tokens[:, step]), own.step(tokens[:, step])
            assert ours.dtype == theirs.dtype == torch.float32
            assert (ours - theirs).abs().mean() < 0.02 * theirs.std()
    assert all(generator_of(model).sample(prompts, seeds_for(2), max_tokens=5, sampling=Sampling()))


def test_autocast_by_hand_is_near_the_models_own():
    model = make("qwen3")
    prompts = prompts_of(7, 12)
    tokens = torch.randint(6, VOCABULARY, (4, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = ModelRows(model, prompts, [2, 2])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        decoder = llama.LlamaDecoder(model)
        hand, own = llama.LlamaRows(decoder, prompts, 2, 3), ModelRows(model, prompts, [2, 2])
        for step in range(3):
            ours, theirs = hand.step(tokens[:, step]), own.step(tokens[:, step])
            with torch.autocast("cpu", enabled=False):
                wanted = exact.step(tokens[:, step])
            assert (theirs - wanted).abs().mean() > 0  # autocast was on
            assert (ours - wanted).abs().mean() < 2 * (theirs - wanted).abs().mean()
        assert all(generator_of(model).sample(prompts, seeds_for(2), max_tokens=5, sampling=Sampling()))


def test_large_weights_are_used_where_they_are(monkeypatch):
    model, prompts, seeds = make("qwen2"), prompts_of(*LENGTHS), seeds_for(len(LENGTHS))
    fused = generator_of(model).sample(prompts, seeds, max_tokens=8, sampling=Sampling())
    monkeypatch.setattr(llama, "_FUSED_BYTES", 0)
    assert generator_of(model).sample(prompts, seeds, max_tokens=8, sampling=Sampling()) == fused


def test_changed_weights_are_seen():
    model, prompts, seeds = make("qwen3"), prompts_of(7, 9), seeds_for(2)
    generator = generator_of(model)
    generator.sample(prompts, seeds, max_tokens=4, sampling=Sampling())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    changed = generator.sample(prompts, seeds, max_tokens=8, sampling=Sampling())
    assert changed == plain_groups(model, prompts, seeds, 8, Sampling())


@pytest.mark.parametrize("by_hand", [True, False])
def test_batch_order_and_company_change_nothing(by_hand):
    model, prompts, seeds = make("qwen3"), prompts_of(7, 12, 3, 9, 20, 8, 8, 8), seeds_for(8)
    generator = generator_of(model, by_hand=by_hand)
    options = {"max_tokens": 16, "sampling": Sampling(temperature=1.5)}
    together = generator.sample(prompts, seeds, **options)
    assert generator.sample(prompts[::-1], seeds[::-1], **options)[::-1] == together
    assert [generator.sample([p], [s], **options)[0] for p, s in zip(prompts, seeds, strict=True)] == together
    single = [
        [generator.sample([p], [[seed]], **options)[0][0] for seed in group]
        for p, group in zip(prompts, seeds, strict=True)
    ]
    assert single == together


@pytest.mark.parametrize("by_hand", [True, False])
def test_groups_of_different_sizes(by_hand):
    model, prompts = make("qwen3"), prompts_of(7, 7, 7)
    seeds = [seeds_for(1, 4)[0], seeds_for(1, 1)[0], seeds_for(1, 3)[0]]
    groups = generator_of(model, by_hand=by_hand).sample(prompts, seeds, max_tokens=6, sampling=Sampling())
    assert [len(group) for group in groups] == [4, 1, 3]
    assert groups == plain_groups(model, prompts, seeds, 6, Sampling())


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_batch_keeps_to_its_tokens(by_hand, monkeypatch):
    model, prompts, seeds = make("qwen3"), prompts_of(*[10] * 6), seeds_for(6)
    options = {"max_tokens": 6, "sampling": Sampling()}
    whole = generator_of(model).sample(prompts, seeds, **options)
    sizes = []
    generator = generator_of(model, by_hand=by_hand, max_tokens_at_once=100)
    complete = generator._complete

    def counted(rows, row_seeds, *rest):
        sizes.append(len(row_seeds) * 16)
        return complete(rows, row_seeds, *rest)

    monkeypatch.setattr(generator, "_complete", counted)
    assert generator.sample(prompts, seeds, **options) == whole
    assert max(sizes) <= 100
    generator.max_tokens_at_once = 50  # less than one group: it is sampled in passes
    sizes.clear()
    assert generator.sample(prompts, seeds, **options) == whole
    assert max(sizes) <= 50
    generator.max_tokens_at_once = 1  # a row at least
    sizes.clear()
    assert generator.sample(prompts, seeds, **options) == whole
    assert set(sizes) == {16}


@pytest.mark.parametrize("by_hand", [True, False])
def test_memory_that_runs_out_halves_the_batch_and_changes_no_token(by_hand, monkeypatch, caplog):
    model, prompts, seeds = make("qwen3"), prompts_of(7, 9, 8), seeds_for(3, 8)
    options = {"max_tokens": 6, "sampling": Sampling()}
    whole = generator_of(model).sample(prompts, seeds, **options)
    generator = generator_of(model, by_hand=by_hand)
    complete, largest = generator._complete, 5

    def within(rows, row_seeds, *rest):
        if len(row_seeds) > largest:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")
        return complete(rows, row_seeds, *rest)

    monkeypatch.setattr(generator, "_complete", within)
    before = generator.max_tokens_at_once
    assert generator.sample(prompts, seeds, **options) == whole
    assert generator.max_tokens_at_once < min(before, (largest + 1) * 15)
    assert "out of memory while sampling" in caplog.text
    largest = 0
    with pytest.raises(ModelError, match="one completion"):
        generator.sample(prompts, seeds, **options)
    monkeypatch.setattr(generator, "_complete", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generator.sample(prompts, seeds, **options)


def test_finished_rows_leave_the_batch(monkeypatch):
    model, prompts, seeds = make("qwen3"), prompts_of(7, 9, 8, 7), seeds_for(4, 8)
    sizes = []
    step = llama.LlamaRows.step
    monkeypatch.setattr(
        llama.LlamaRows, "step", lambda rows, tokens: sizes.append(len(tokens)) or step(rows, tokens)
    )
    options = {"max_tokens": 60, "sampling": Sampling(temperature=2.0)}
    groups = generator_of(model).sample(prompts, seeds, **options)
    assert groups == generator_of(model, by_hand=False).sample(prompts, seeds, **options)
    assert sizes[0] == 32
    assert sizes[-1] < 16
    assert sizes == sorted(sizes, reverse=True)


def test_the_deadline_is_asked_for_between_whole_groups():
    model, prompts, seeds = make("qwen3"), prompts_of(*[7] * 30), seeds_for(30)
    options = {"max_tokens": 5, "sampling": Sampling()}
    everything = generator_of(model).sample(prompts, seeds, **options)
    done = generator_of(model).sample(prompts, seeds, **options, until=lambda: True)
    assert 1 <= len(done) < 30
    assert done == everything[: len(done)]


def test_a_lora_model_is_sampled_with_its_adapter():
    model = make("qwen3")
    prompts, seeds = prompts_of(*LENGTHS), seeds_for(len(LENGTHS))
    before = generator_of(model).sample(prompts, seeds, max_tokens=8, sampling=Sampling())
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not llama.supports(adapted)
    assert not llama.supports(adapted.get_base_model())  # its layers are wrapped
    sampled = generator_of(adapted).sample(prompts, seeds, max_tokens=8, sampling=Sampling())
    assert sampled == plain_groups(adapted, prompts, seeds, 8, Sampling())
    assert sampled != before


def test_hooked_models_are_not_decoded_by_hand():
    model = make("llama")
    model.model.layers[0].register_forward_hook(lambda *_: None)
    assert not llama.supports(model)

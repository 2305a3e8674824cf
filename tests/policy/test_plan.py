"""The memory plan: on handed-in devices, and on descriptions without weights."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import describe, manifest, save
from rich.console import Console

from swarm.errors import ModelError, UsageError
from swarm.policy.devices import Device
from swarm.policy.loading import find
from swarm.policy.memory import GIB
from swarm.policy.model import Policy
from swarm.policy.plan import RESERVE, Plan, Wishes, load_or_make_plan, make_plan, remember, table
from swarm.policy.shape import DryModel, Lengths

# Qwen2.5-0.5B without most of its layers, so that looking at it is quick: 192M and 494M parameters.
HALF_WIDTH = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Small, middle, large: trained in full, in full, by LoRA."""
    folder = tmp_path_factory.mktemp("models")
    return [
        describe(folder / "small"),
        describe(folder / "middle", **{**HALF_WIDTH, "num_hidden_layers": 2}),
        describe(folder / "large", **{**HALF_WIDTH, "hidden_size": 1792, "num_hidden_layers": 2}),
    ]


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> str:
    """With activations that are large beside its weights."""
    folder = tmp_path_factory.mktemp("deep")
    changed = {"intermediate_size": 4096, "num_hidden_layers": 12, "max_position_embeddings": 2048}
    return describe(folder, hidden_size=256, **changed)


def cpu(gib: float) -> Device:
    return Device("cpu", int(gib * GIB), int(gib * GIB))


def cuda(gib: float, capability: tuple[int, int] = (8, 9)) -> Device:
    return Device("cuda:0", int(gib * GIB), int(gib * GIB), capability)


def shown(plan: Plan) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table(plan))
    return captured.get()


# What is counted


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_parameters_are_counted_as_they_are(tmp_path, kind):
    folder = save(tmp_path / kind, kind, tie_word_embeddings=kind != "llama")
    dry = DryModel(find(str(folder)))
    policy = Policy.load(str(folder), threads=1, lora=True)
    base, adapter = 0, 0
    for name, parameter in policy.model.named_parameters():
        if "lora_" in name:
            adapter += parameter.numel()
        else:
            base += parameter.numel()
    assert (dry.shape.parameters, dry.shape.adapter) == (base, adapter)
    assert dry.shape.vocabulary == 101
    assert dry.shape.layers == 2


def kept(policy: Policy, rows: int, length: int) -> int:
    """Bytes that autograd really keeps of a forward pass without the head."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    base = policy.model.get_base_model() if policy.lora else policy.model
    base.train()
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        base.get_decoder()(
            input_ids=torch.zeros(rows, length, dtype=torch.long),
            attention_mask=torch.zeros(rows, 1, length, length),
            use_cache=False,
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("lora", [False, True])
def test_what_a_row_keeps_is_what_the_real_model_keeps(tmp_path, kind, lora):
    folder = save(tmp_path / kind, kind)
    forward = DryModel(find(str(folder))).forward("fp32", lora, Lengths(16, 8, 4))
    policy = Policy.load(str(folder), threads=1, lora=lora)
    assert forward.row == pytest.approx(kept(policy, 3, 24) - kept(policy, 2, 24), rel=0.02)
    assert forward.prompt + forward.completion >= 0.95 * forward.row
    assert forward.checkpointed_row < forward.row / 4


# What is chosen


def test_the_largest_model_that_fits_is_taken(models):
    chosen = {}
    for gib in (0.8, 1.5, 40):
        plan = make_plan(manifest(*models), device=cpu(gib), prompt_tokens=128)
        chosen[gib] = (models.index(plan.model), plan.lora)
    assert chosen == {0.8: (0, False), 1.5: (1, True), 40: (2, True)}
    # Small enough to be trained in full, where there is room for it.
    assert not make_plan(manifest(*models[:2]), device=cpu(40)).lora


def test_a_large_model_is_trained_by_lora_unless_asked_otherwise(models):
    swarm = manifest(models[2])
    assert make_plan(swarm, device=cpu(100)).lora
    full = make_plan(swarm, Wishes(lora=False), device=cpu(100))
    assert not full.lora
    assert full.estimate.optimizer == 2 * full.estimate.gradients == full.parameters * 8
    assert full.estimate.adapter == 0


def test_precision_follows_the_device(models):
    swarm = manifest(models[2])
    devices = [cpu(100), cuda(100), cuda(100, (7, 5)), Device("mps", 100 * GIB, 100 * GIB)]
    assert [make_plan(swarm, device=d).precision for d in devices] == ["fp32", "bf16", "fp16", "bf16"]
    assert make_plan(swarm, Wishes(lora=False), device=devices[3]).precision == "fp32"


def test_a_reference_model_is_counted_where_the_loss_needs_one(models):
    with_kl = make_plan(manifest(models[1], beta=0.1), device=cpu(50))
    without = make_plan(manifest(models[1]), device=cpu(50))
    adapted = make_plan(manifest(models[1], beta=0.1), Wishes(lora=True), device=cpu(50))
    assert (with_kl.estimate.reference, without.estimate.reference) == (with_kl.parameters * 4, 0)
    assert adapted.estimate.reference == 0


def least_gib(swarm, wishes: Wishes, dry: dict[str, DryModel]) -> float:
    """The least free memory, in steps of 50 MiB, for which there is a plan."""
    steps = (step / 20 for step in range(1, 200))
    return next(gib for gib in steps if planned_or_none(swarm, wishes, cpu(gib), dry) is not None)


def test_activations_are_computed_twice_where_memory_is_short(deep):
    swarm, dry = manifest(deep, max_tokens=300), {deep: DryModel(find(deep))}
    roomy = make_plan(swarm, device=cpu(50), prompt_tokens=512, dry=dry)
    short = make_plan(swarm, device=cpu(least_gib(swarm, Wishes(), dry)), prompt_tokens=512, dry=dry)
    assert (roomy.gradient_checkpointing, short.gradient_checkpointing) == (False, True)
    assert short.learning_tokens_at_once >= 512 + 300


def planned_or_none(swarm, wishes: Wishes, device: Device, dry: dict[str, DryModel]) -> Plan | None:
    try:
        return make_plan(swarm, wishes, device=device, prompt_tokens=512, dry=dry)
    except ModelError:
        return None


def test_peers_that_share_a_machine_plan_for_their_share(models):
    whole = make_plan(manifest(models[1]), device=cpu(8))
    half = make_plan(manifest(models[1]), Wishes(share=0.5), device=cpu(16))
    assert msgspec.structs.replace(half, total_bytes=whole.total_bytes) == whole
    with pytest.raises(UsageError, match="share"):
        make_plan(manifest(models[1]), Wishes(share=0), device=cpu(16))


def test_a_peer_that_starts_again_beside_others_that_hold_their_shares_is_not_refused(models, tmp_path):
    share, path = Wishes(share=1 / 8), tmp_path / "plan.json"
    first = load_or_make_plan(path, manifest(models[0]), share, device=cpu(16))
    with pytest.raises(ModelError, match="fewer peers"):
        make_plan(manifest(models[0]), share, device=cpu(2))
    beside = Device("cpu", 2 * GIB, 16 * GIB)
    again = load_or_make_plan(path, manifest(models[0]), share, device=beside)
    assert again.model == first.model
    assert again.free_bytes <= first.free_bytes


def test_a_wished_model_must_be_allowed_and_is_taken(models):
    assert make_plan(manifest(*models), Wishes(model=models[0]), device=cpu(100)).model == models[0]
    with pytest.raises(UsageError, match="does not allow model elsewhere/other"):
        make_plan(manifest(*models), Wishes(model="elsewhere/other"), device=cpu(100))


def test_a_context_that_is_too_short_rules_a_model_out(models, tmp_path):
    short = describe(tmp_path / "short", max_position_embeddings=128, hidden_size=64)
    plan = make_plan(manifest(short, models[0]), device=cpu(50), prompt_tokens=200)
    assert plan.model == models[0]
    assert "reads 128 tokens" in plan.considered[0].problem
    with pytest.raises(ModelError, match="reads 128 tokens, and swarm made needs 264"):
        make_plan(manifest(short), device=cpu(50), prompt_tokens=200)


def test_the_shipped_model_is_planned_as_the_demo_runs_it():
    plan = make_plan(manifest("tiny", max_tokens=20), device=cpu(2))
    assert (plan.model, plan.lora, plan.precision, plan.context_length) == ("tiny", False, "fp32", 4096)
    policy = Policy.of(plan, threads=1)
    assert (policy.name, policy.lora, policy.gradient_checkpointing) == ("tiny", False, False)


@pytest.fixture(scope="module")
def dry(models) -> dict[str, DryModel]:
    """The models, looked at once."""
    return {model: DryModel(find(model)) for model in models}


@settings(max_examples=200, deadline=None)
@given(
    gib=st.floats(0.2, 64),
    more=st.floats(1, 4),
    on_cuda=st.booleans(),
    lora=st.sampled_from([None, False, True]),
    checkpointing=st.sampled_from([None, False, True]),
    beta=st.sampled_from([0.0, 0.1]),
)
def test_plans_stay_within_memory_and_more_memory_never_gives_a_smaller_model(
    models, dry, gib, more, on_cuda, lora, checkpointing, beta
):
    swarm, wishes = manifest(*models, beta=beta), Wishes(lora=lora, gradient_checkpointing=checkpointing)
    make = cuda if on_cuda else cpu
    small, large = (planned_or_none(swarm, wishes, make(size), dry) for size in (gib, gib * more))
    for plan in (small, large):
        if plan is not None:
            assert plan.estimate.total <= plan.free_bytes * (1 - RESERVE)
            assert plan.sampling_tokens_at_once >= 512 + 64
            assert plan.learning_tokens_at_once >= 512 + 64
    if small is not None:
        assert large is not None
        assert large.parameters >= small.parameters


# What is refused, with the smallest change that would help


def refused(swarm, wishes: Wishes, device: Device) -> str:
    with pytest.raises(ModelError) as caught:
        make_plan(swarm, wishes, device=device, prompt_tokens=128)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_adapter_is_named_if_it_would_fit(models):
    said = refused(manifest(models[2]), Wishes(lora=False), cpu(6))
    assert said.endswith("GiB, 6.0 GiB are free on cpu: --lora would fit")


def test_checkpointing_is_named_if_it_would_fit(deep):
    swarm, dry = manifest(deep, max_tokens=300), {deep: DryModel(find(deep))}
    gib = least_gib(swarm, Wishes(), dry)
    with pytest.raises(ModelError, match="gradient checkpointing would fit"):
        make_plan(swarm, Wishes(gradient_checkpointing=False), device=cpu(gib), prompt_tokens=512, dry=dry)


def test_what_must_be_free_is_said_if_nothing_helps(models):
    swarm = manifest(models[2])
    said = refused(swarm, Wishes(), cpu(1))
    missing = float(said.partition(": ")[2].split()[0])
    assert "close other programs, or use another --device" in said
    make_plan(swarm, device=cpu(1 + missing), prompt_tokens=128)


def test_fewer_peers_are_named_if_they_would_fit(models):
    assert "fewer peers on this machine" in refused(manifest(models[1]), Wishes(share=0.1), cpu(8))


def test_four_bits_are_named_on_cuda(models, tmp_path):
    wide = describe(tmp_path / "wide", hidden_size=4096, intermediate_size=16384, num_hidden_layers=4)
    assert "--four-bit would fit" in refused(manifest(wide), Wishes(), cuda(2.9))


def test_absurd_models_are_refused_before_anything_is_allocated(tmp_path):
    absurd = describe(
        tmp_path / "absurd",
        hidden_size=65536,
        intermediate_size=2**19,
        num_hidden_layers=32,
        num_attention_heads=512,
    )
    said = refused(manifest(absurd), Wishes(), cuda(80))
    assert float(said.partition("needs ")[2].split()[0].replace(",", "")) > 1000


# What is kept


def test_a_restart_keeps_the_model_and_follows_what_is_free(models, tmp_path):
    path, swarm = tmp_path / "new" / "plan.json", manifest(*models)
    first = load_or_make_plan(path, swarm, device=cpu(1.5), prompt_tokens=128)
    assert (first.model, first.lora) == (models[1], True)
    assert msgspec.json.decode(path.read_bytes(), type=Plan) == first
    again = load_or_make_plan(path, swarm, device=cpu(1.5), prompt_tokens=128)
    assert msgspec.structs.replace(again, considered=first.considered) == first
    more = load_or_make_plan(path, swarm, device=cpu(60), prompt_tokens=128)
    assert (more.model, more.lora) == (first.model, first.lora)  # though a larger would fit now
    assert more.learning_tokens_at_once > first.learning_tokens_at_once
    with pytest.raises(ModelError, match=f"model {models[1]} needs"):  # though a smaller would fit
        load_or_make_plan(path, swarm, device=cpu(0.8), prompt_tokens=128)
    assert load_or_make_plan(path, swarm, device=cpu(1.5), prompt_tokens=128).model == first.model
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("wish", [{"model": 0}, {"lora": False}, {"four_bit": True}])
def test_a_wish_against_the_saved_plan_is_refused(models, tmp_path, wish):
    path, swarm = tmp_path / "plan.json", manifest(*models)
    load_or_make_plan(path, swarm, device=cpu(6), prompt_tokens=128)
    wishes = Wishes(**{name: models[0] if name == "model" else value for name, value in wish.items()})
    with pytest.raises(UsageError, match=f"to start afresh, move {tmp_path} away"):
        load_or_make_plan(path, swarm, wishes, device=cpu(6), prompt_tokens=128)


def test_halved_batches_are_never_exceeded_again(models, tmp_path):
    path, swarm = tmp_path / "plan.json", manifest(models[0])
    first = load_or_make_plan(path, swarm, device=cpu(8))
    halved = first.learning_tokens_at_once // 2
    assert remember(path, learning_tokens_at_once=halved).learning_tokens_at_once == halved
    remember(path, sampling_tokens_at_once=1000)
    remember(path, learning_tokens_at_once=halved * 2)  # a stale report changes nothing
    later = load_or_make_plan(path, swarm, device=cpu(80))
    assert (later.sampling_tokens_at_once, later.learning_tokens_at_once) == (1000, halved)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"version": 2}'])
def test_a_damaged_plan_is_a_one_line_error(models, tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged"):
        load_or_make_plan(path, manifest(models[0]), device=cpu(8))
    with pytest.raises(ModelError, match="there is no plan"):
        remember(Path(tmp_path / "none.json"), sampling_tokens_at_once=1)


def test_the_table_says_what_takes_how_much(models):
    plan = make_plan(manifest(*models), device=cpu(40))
    text = shown(plan)
    for row in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "KV cache",
        "reference",
        "reserve",
        "total",
        "free",
    ):
        assert row in text
    assert "LoRA, fp32 on cpu" in text
    assert all(Path(model).name in text.replace("\n", "") for model in models)
    assert json.loads(msgspec.json.encode(plan))["lora"] is True

"""Loading models of strangers: from folders, from the hub's cache, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_models import COMMIT, change_json, hub_cache, save

from swarm.errors import ModelError, UsageError
from swarm.manifest import Sampling
from swarm.policy import loading
from swarm.policy.devices import cgroup_memory, look_at, usable_cores
from swarm.policy.model import TINY_FOLDER, Policy

REPOSITORY = "some-lab/made-1"
OWN_CODE = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("made") / "qwen2")


@pytest.fixture
def copied(made, tmp_path) -> Path:
    folder = tmp_path / "copied"
    folder.mkdir()
    for file in made.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def refusal(folder: Path, **options: object) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(ModelError) as caught:
        Policy.load(str(folder), threads=1, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("lora", [False, True])
def test_any_causal_language_model_in_a_folder_samples(tmp_path, kind, lora):
    policy = Policy.load(str(save(tmp_path / "at@home", kind)), threads=1, lora=lora)
    assert (policy.lora, policy.precision, policy.device.type) == (lora, "fp32", "cpu")
    assert policy.context_length == (256 if kind == "gpt2" else 512)
    [group] = policy.sample(
        [policy.encode_prompt("1+1=")], [[bytes(32), bytes(31) + b"1"]], max_tokens=6, sampling=Sampling()
    )
    assert len(group) == 2
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in trained)
    assert len(trained) < len(list(policy.model.parameters())) or not lora


def test_the_adapter_is_the_same_for_every_peer_and_changes_nothing_at_first(made):
    policies = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        policies.append(Policy.load(str(made), threads=1, lora=True))
    first, second = (dict(policy.model.named_parameters()) for policy in policies)
    adapters = [name for name in first if "lora_" in name]
    assert len(adapters) == 2 * 7 * 2
    assert all(torch.equal(first[name], second[name]) for name in adapters)
    assert all(bool(first[name].any()) == ("lora_A" in name) for name in adapters)
    assert not any("lm_head" in name for name in adapters)
    some = first["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert some.abs().max() <= 32**-0.5
    assert some.std().item() == pytest.approx((32 * 3) ** -0.5, rel=0.1)
    ids = torch.tensor([policies[0].encode_prompt("1+1=")])
    plain = Policy.load(str(made), threads=1)
    assert torch.equal(plain.model(ids).logits, policies[0].model(ids).logits)


def test_loading_with_an_adapter_leaves_the_process_generators_alone(made):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Policy.load(str(made), threads=1, lora=True)
    assert torch.equal(torch.rand(1), expected)


def test_a_low_precision_base_is_frozen_and_its_adapter_is_fp32(made):
    policy = Policy.load(str(made), threads=1, lora=True, precision="bf16")
    kinds = {(p.requires_grad, p.dtype) for p in policy.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    full = Policy.load(str(made), threads=1, precision="bf16")
    assert {p.dtype for p in full.model.parameters()} == {torch.float32}


def test_dropout_is_off(tmp_path):
    policy = Policy.load(str(save(tmp_path / "m", "gpt2", resid_pdrop=0.5, attn_pdrop=0.5)), threads=1)
    ids = torch.tensor([policy.encode_prompt("1+1=")])
    policy.model.train()
    assert torch.equal(policy.model(ids).logits, policy.model(ids).logits)


# From the hub's cache, in a process of its own: huggingface_hub reads its settings once.

LOAD = """
import json, sys
from swarm.errors import SwarmError
from swarm.policy.loading import base_digest
from swarm.policy.model import Policy
for name, *trusted_code in json.loads(sys.argv[1]):
    try:
        policy = Policy.load(name, threads=1, trusted_code=trusted_code)
        print("loaded", policy.name, base_digest(name, trusted_code=trusted_code).hex())
    except SwarmError as error:
        print(type(error).__name__, error)
"""


def load_offline(cache: Path, *loads: tuple[str, ...]) -> list[str]:
    """Load models one after the other, each with the code that is trusted; a line of what came of each."""
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(cache / "modules"),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(loads)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_hub_model_is_loaded_from_its_cache_without_a_network(tmp_path, made, copied):
    hub_cache(tmp_path, REPOSITORY, made)
    digest = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
    # Another, with code of its own, in the same process: importing transformers takes seconds.
    (copied / "own.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\nprint('ran')\n"
        "class Own(Qwen2Config): pass\nclass OwnModel(Qwen2ForCausalLM): config_class = Own\n"
    )
    change_json(copied / "config.json", auto_map=OWN_CODE)
    own = "some-lab/own-kind"
    hub_cache(tmp_path, own, copied)
    pinned = f"{REPOSITORY}@{COMMIT}"
    said = load_offline(
        tmp_path,
        (REPOSITORY,),
        (pinned,),
        (f"{REPOSITORY}@{'f' * 40}",),
        (own,),
        (own, own),
        (own, f"{own}@{'f' * 40}"),
        (own, f"{own}@{COMMIT}"),
    )
    assert said[:2] == [f"loaded {REPOSITORY} {digest}", f"loaded {pinned} {digest}"]
    assert "is not on this machine" in said[2]
    assert "brings code of its own" in said[3] and f"{own}@{COMMIT}" in said[3]
    assert "must be OWNER/NAME@COMMIT" in said[4]
    assert "brings code of its own" in said[5]
    assert said[6:] == ["ran", f"loaded {own} {digest}"]


# What is refused


def test_a_name_that_is_neither_a_folder_nor_a_hubs_is_refused():
    assert "neither a folder" in refusal(Path("../../nowhere/at/all"))


@pytest.mark.parametrize("entry", ["a/b", "a/b@main", "a/b@" + "g" * 40, "b@" + "0" * 40, "a/b@0123456"])
def test_trust_without_a_full_commit_is_refused(entry):
    with pytest.raises(UsageError, match="40 hexadecimal digits"):
        loading.find("tiny", [entry])


def test_pickled_weights_are_never_opened(copied):
    weights = Policy.load(str(copied), threads=1).model.state_dict()
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    assert "only pickled (pytorch_model.bin)" in refusal(copied)


def test_an_index_that_leads_out_of_the_folder_is_refused(copied):
    (copied / "model.safetensors").rename(copied.parent / "outside.safetensors")
    for name in ("../outside.safetensors", "pytorch_model.bin", 7):
        change_json(copied / "model.safetensors.index.json", weight_map={"lm_head.weight": name})
        assert "names files that are no safetensors beside it" in refusal(copied)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_an_oversized_description_is_not_parsed(copied, file):
    with (copied / file).open("ab") as opened:
        opened.truncate(129 * 2**20)
    assert f"{file} of model" in refusal(copied)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '{"a": ' + "9" * 5000 + "}", "\xff"])
def test_a_broken_description_is_one_line(copied, text):
    (copied / "config.json").write_text(text, encoding="latin-1")
    assert "config.json of model" in refusal(copied)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 10**12),
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", -1),
        ("decoder_layers", 10**6),
        ("vocab_size", 1e300),
    ],
)
def test_absurd_dimensions_are_refused(copied, key, value):
    change_json(copied / "config.json", **{key: value})
    assert f"has {key} = " in refusal(copied)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"attn_implementation": "some-lab/kernel"}, "kernel from the hub"),
        ({"auto_map": {"AutoConfig": "other/repo--own.Own"}}, "code from another repository"),
        ({"auto_map": {"AutoConfig": "own.Own"}}, "brings code of its own"),
        ({"model_type": "no-such-kind"}, "cannot load model"),
        ({"hidden_act": "no-such-function"}, "cannot load model"),
        ({"intermediate_size": 65}, "cannot load model"),
    ],
)
def test_a_hostile_or_broken_config_is_refused(copied, changed, said):
    change_json(copied / "config.json", **changed)
    assert said in refusal(copied)


def test_an_adapter_is_not_followed_to_its_base(copied):
    change_json(copied / "adapter_config.json", base_model_name_or_path="some-lab/else", peft_type="LORA")
    assert "is an adapter" in refusal(copied)


def test_missing_weights_are_not_made_up(copied):
    change_json(copied / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    assert "lack model.layers.2." in refusal(copied)


def test_damaged_weights_are_one_line(copied):
    (copied / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "cannot load model" in refusal(copied)


def test_a_pipe_in_place_of_a_file_is_not_waited_on(copied):
    (copied / "tokenizer.json").unlink()
    os.mkfifo(copied / "tokenizer.json")
    assert "no regular file" in refusal(copied)


def template(folder: Path, text: str | None) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if text is not None:
        (folder / "chat_template.jinja").write_text(text)


def test_a_model_without_chat_template_is_refused_by_name(copied):
    template(copied, None)
    said = refusal(copied)
    assert str(copied) in said and "choose an instruction-tuned model" in said


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[7].x.y }}",
        "{% for %}",
        "{{ 1 // 0 }}",
        "{{ ''.__class__.__mro__[9] }}",
    ],
)
def test_a_template_that_fails_is_refused(copied, text):
    template(copied, text)
    assert "chat template" in refusal(copied)


def test_a_template_that_drops_the_question_is_refused(copied):
    template(copied, "<|user|>hello<|assistant|>")
    assert "leaves out what the user says" in refusal(copied)


def test_a_template_that_asks_for_the_date_says_the_same_every_day(copied):
    text = "{{ strftime_now('%d %b %Y') }}<|user|>{{ messages[0].content }}<|assistant|>"
    template(copied, text)
    policy = Policy.load(str(copied), threads=1)
    shown = policy.encoding.tokenizer.decode(policy.encode_prompt("1+1="))
    assert shown == "26 Jul 2024<|user|>1+1=<|assistant|>"


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    assert "has 101 tokens and the model only 90" in refusal(save(tmp_path / "m", vocab_size=90))


def test_four_bits_need_cuda_an_adapter_and_bitsandbytes():
    with pytest.raises(UsageError, match="CUDA"):
        Policy.load("tiny", threads=1, lora=True, four_bit=True)
    with pytest.raises(UsageError, match="--lora"):
        loading.check_four_bit("cuda:0", lora=False)
    if loading.importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(UsageError, match="pip install bitsandbytes"):
            loading.check_four_bit("cuda:0", lora=True)


# Digest and machine


def test_base_digest_is_over_the_weights_in_the_order_of_their_names(copied):
    whole = (TINY_FOLDER / "model.safetensors").read_bytes()
    assert loading.base_digest("tiny") == hashlib.sha256(whole).digest()
    (copied / "model.safetensors").unlink()
    (copied / "b.safetensors").write_bytes(b"2")
    (copied / "a.safetensors").write_bytes(b"1")
    (copied / "not-in-the-index.safetensors").write_bytes(b"3")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert loading.base_digest(str(copied)) == hashlib.sha256(b"12").digest()


@pytest.mark.parametrize("wish", ["tpu", "cpu:1", "cuda:x", ""])
def test_an_unknown_device_is_refused(wish):
    with pytest.raises(UsageError, match="not known"):
        look_at(wish)


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch sees 0 CUDA devices"):
            look_at("cuda:1")
    if not torch.backends.mps.is_available():
        with pytest.raises(UsageError, match="no Metal GPU"):
            look_at("mps")
    cpu = look_at("cpu")
    assert 0 < cpu.free_bytes <= cpu.total_bytes


def test_the_tightest_control_group_bounds_memory_and_cores(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    folder = tmp_path / "root" / "a" / "b"
    folder.mkdir(parents=True)
    assert cgroup_memory(tmp_path / "root", own) is None
    (folder / "memory.max").write_text("max\n")
    (folder / "memory.current").write_text("5\n")
    (folder.parent / "memory.max").write_text("1000\n")
    (folder.parent / "memory.current").write_text("700\n")
    (folder.parent / "memory.stat").write_text("anon 1\ninactive_file 100\n")
    assert cgroup_memory(tmp_path / "root", own) == (400, 1000)
    (folder / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path / "root", own) == 1


def test_version_1_control_groups_are_read_too(tmp_path):
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n")
    folder = tmp_path / "memory"  # in a container, the group's own folder is mounted there
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("1000\n")
    (folder / "memory.usage_in_bytes").write_text("600\n")
    assert cgroup_memory(tmp_path, own) == (400, 1000)

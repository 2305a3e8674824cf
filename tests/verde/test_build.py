"""What a peer computes with, as others read it."""

import msgspec
import pytest
import torch
from msgspec.structs import replace

from swarm.verde import build as builds
from swarm.verde.build import Build, device_text, software_text

BUILD = Build(
    model="owner/name",
    revision="0" * 40,
    lora=True,
    four_bit=False,
    precision="bf16",
    gradient_checkpointing=False,
    device="a device",
    software="some software",
    threads=2,
    learning_tokens_at_once=16_384,
    sampling_tokens_at_once=32_768,
)
OTHERS = {
    "model": "owner/other",
    "revision": None,
    "lora": False,
    "four_bit": True,
    "precision": "fp32",
    "gradient_checkpointing": True,
    "device": "another device",
    "software": "other software",
    "threads": 1,
    "processes": 2,
    "learning_tokens_at_once": 8192,
    "sampling_tokens_at_once": 8192,
}


def decoded(fields: list) -> Build:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Build)


def test_a_build_survives_the_wire():
    fields = list(msgspec.structs.astuple(BUILD))
    assert decoded(fields) == BUILD
    assert decoded(fields).fingerprint == BUILD.fingerprint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", "x" * 257),
        ("model", "a\x1b[31mb"),
        ("revision", "x" * 201),
        ("device", "x" * 201),
        ("device", "two\nlines"),
        ("software", ""),
        ("precision", "fp8"),
        ("threads", 0),
        ("threads", 10**6),
        ("processes", 0),
        ("learning_tokens_at_once", 0),
        ("learning_tokens_at_once", 2**60),
        ("sampling_tokens_at_once", -1),
        ("lora", 1),
    ],
)
def test_hostile_builds_are_refused(field, value):
    fields = [value if name == field else old for name, old in msgspec.structs.asdict(BUILD).items()]
    with pytest.raises(msgspec.ValidationError):
        decoded(fields)


def test_builds_with_other_fields_are_refused():
    fields = list(msgspec.structs.astuple(BUILD))
    for changed in ([*fields, 1], fields[:-1], []):
        with pytest.raises(msgspec.ValidationError):
            decoded(changed)


def test_the_fingerprint_depends_on_every_field():
    assert set(OTHERS) == set(Build.__struct_fields__)
    others = [replace(BUILD, **{field: value}) for field, value in OTHERS.items()]
    fingerprints = {one.fingerprint for one in [BUILD, *others]}
    assert len(fingerprints) == len(OTHERS) + 1
    assert all(len(fingerprint) == 32 for fingerprint in fingerprints)


def test_settings_are_repeated_by_an_auditor_but_not_software_and_device():
    settings = {field: OTHERS[field] for field in OTHERS if field not in ("device", "software", "processes")}
    assert BUILD.is_repeatable_on(replace(BUILD, **settings))
    for field in ("device", "software"):
        assert not BUILD.is_repeatable_on(replace(BUILD, **{field: OTHERS[field]}))
    assert not replace(BUILD, processes=2).is_repeatable_on(BUILD)
    assert not replace(BUILD, threads=4096).is_repeatable_on(BUILD)


def test_a_machine_describes_itself_within_bounds():
    cpu = torch.device("cpu")
    assert torch.__version__ in software_text(cpu)
    assert torch.backends.cpu.get_cpu_capability() in device_text(cpu)
    one = replace(BUILD, device=device_text(cpu), software=software_text(cpu))
    assert decoded(list(msgspec.structs.astuple(one))) == one


def test_a_long_description_is_cut_without_becoming_another_ones(monkeypatch):
    texts = []
    for version in ("1", "2"):
        monkeypatch.setattr(builds, "_version", lambda name, version=version: "long" * 20 + version)
        texts.append(software_text(torch.device("cpu")))
    assert texts[0] != texts[1]
    assert all(len(text) == 200 for text in texts)


def test_other_instruction_sets_are_another_device(monkeypatch):
    own = device_text(torch.device("cpu"))
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert device_text(torch.device("cpu")) != own

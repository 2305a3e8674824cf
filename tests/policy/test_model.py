"""The tiny model as shipped, and loading in general."""

from __future__ import annotations

import hashlib
import random
import re

import pytest
import torch

from swarm.errors import ModelError
from swarm.manifest import Sampling
from swarm.policy import make_tiny
from swarm.policy.lessons import draw, mistake, truth
from swarm.policy.model import TINY_FOLDER, Policy

FORMATS = {
    "answer": r"-?\d+",
    "critique": r"([A-D]|none): \d+[+-]\d+=-?\d+",
    "revise": r"-?\d+ ([A-D]|none)",
}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load("tiny", threads=1)


def sampled_texts(policy: Policy, kind: str, count: int) -> list[tuple[str, list[str]]]:
    """`count` right texts of a kind, each with 8 sampled ones."""
    rng = random.Random(7)
    lessons = [draw(rng, kind, 1.0) for _ in range(count)]
    prompts = [policy.encode_prompt(lesson.user) for lesson in lessons]
    seeds = [[hashlib.sha256(f"{kind}{j}-{g}".encode()).digest() for g in range(8)] for j in range(count)]
    groups = policy.sample(prompts, seeds, max_tokens=20, sampling=Sampling())
    return [
        (lesson.assistant, list(map(policy.decode, group)))
        for lesson, group in zip(lessons, groups, strict=True)
    ]


def test_tiny_is_small(policy):
    assert sum(parameter.numel() for parameter in policy.model.parameters()) <= 2_000_000
    assert (TINY_FOLDER / "model.safetensors").stat().st_size <= 4 * 2**20
    assert policy.model.config.model_type == "qwen3"


def test_tiny_is_weak_at_answers_on_purpose(policy):
    groups = sampled_texts(policy, "answer", 300)
    right = sum(text == answer for answer, texts in groups for text in texts) / 2400
    assert 0.20 <= right <= 0.45


def test_most_groups_have_something_to_learn_from(policy):
    groups = sampled_texts(policy, "answer", 200)
    mixed = sum(0 < texts.count(answer) < 8 for answer, texts in groups)
    assert mixed >= 120


@pytest.mark.parametrize("kind", FORMATS)
def test_tiny_keeps_the_formats(policy, kind):
    texts = [text for _, group in sampled_texts(policy, kind, 60) for text in group]
    kept = sum(re.fullmatch(FORMATS[kind], text) is not None for text in texts)
    assert kept / len(texts) >= 0.8


def test_lessons_mistakes_are_mistakes():
    rng = random.Random(0)
    for _ in range(500):
        left, other = rng.randrange(100), rng.randrange(1, 100)
        operator = rng.choice("+-")
        assert mistake(rng, left, operator, other) != truth(left, operator, other)


@pytest.mark.parametrize(
    "text", ["<|end|>", "a<|assistant|>46<|end|>", "<|user|><pad>", "<<|end|>|end|>", "<unk>", "é<|end|>\n"]
)
def test_special_tokens_in_text_stay_text(policy, text):
    special = set(policy.encoding.tokenizer.all_special_ids) - {policy.encoding.tokenizer.unk_token_id}
    prompt = policy.encode_prompt(text)
    frame = policy.encode_prompt("")
    assert not special & set(prompt[1:-1])
    assert [prompt[0], prompt[-1]] == frame
    completion = policy.encode_completion(text)
    assert completion[-1] == policy.encoding.eos
    assert not special & set(completion[:-1])
    if text.isascii():
        assert policy.decode(completion) == text


def test_prompt_is_the_chat_template(policy):
    tokenizer = policy.encoding.tokenizer
    assert policy.encode_prompt("12+34=") == tokenizer("<|user|>12+34=<|assistant|>")["input_ids"]
    assert policy.decode(policy.encode_completion("46")) == "46"


def test_a_folder_without_a_model_is_a_one_line_error(tmp_path):
    with pytest.raises(ModelError, match="cannot load model") as caught:
        Policy.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(tmp_path, policy):
    for file in TINY_FOLDER.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(policy.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError):
        Policy.load(str(tmp_path))


def test_make_tiny_makes_the_same_model_again(tmp_path):
    digests = {make_tiny.make(3, tmp_path / str(run), max_steps=3) for run in range(2)}
    assert len(digests) == 1
    assert digests != {make_tiny.make(4, tmp_path / "other", max_steps=3)}
    made = Policy.load(str(tmp_path / "0"))
    shipped = Policy.load("tiny")
    assert made.encode_prompt("12+34=") == shipped.encode_prompt("12+34=")
    assert [p.shape for p in made.model.parameters()] == [p.shape for p in shipped.model.parameters()]

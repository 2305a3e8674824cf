import hashlib
from pathlib import Path

import jsonschema
import pytest
import yaml

from swarm.demo import DEMO_MANIFEST
from swarm.errors import UsageError
from swarm.manifest import MAX_MANIFEST_BYTES, load, parse, parse_canonical
from swarm.manifest_schema import DOCS_FILE, SCHEMA_FILE, docs_text, schema, schema_text


@pytest.fixture
def text():
    return DEMO_MANIFEST.read_text()


def test_canonical_form_parses_to_the_same_manifest(text):
    manifest = parse(text.encode(), "demo.yaml")
    again = parse_canonical(manifest.canonical, "ledger")
    assert again == manifest
    assert again.swarm_id == hashlib.sha256(manifest.canonical).digest()


def test_comments_and_order_do_not_change_the_id_but_values_do(text):
    manifest = parse(text.encode(), "a")
    assert parse(("# more\n" + text).encode(), "b").swarm_id == manifest.swarm_id
    assert parse(text.replace("cell_size: 16", "cell_size: 17").encode(), "c").swarm_id != manifest.swarm_id


@pytest.mark.parametrize(
    ("old", "new", "line_of", "complaint"),
    [
        ("cell_size: 16", "cel_size: 16", "cel_size", "did you mean 'cell_size'.* allowed are name, seed"),
        ("round_seconds: 20", "round_seconds: soon", "round_seconds", "Expected `int`, got `str`"),
        ("round_seconds: 20", "round_seconds: 0", "round_seconds", ">= 2"),
        ("ends_at: 0.40", "ends_at: 0.20", "ends_at: 0.20", r"stages\[1\].ends_at: ends_at must grow"),
        ("ends_at: 0.25", "ends_at: 0.001", "ends_at: 0.001", "less than the 0.2 s that a stage needs"),
        ("models: [tiny]", "models: [tinny]", "tinny", "neither 'tiny' nor a hub's"),
        ("models: [tiny]", "models: [a/b, a/b]", "a/b", "twice"),
        ("name: critique", "name: revise", "stages", "answer, then critique, then revise"),
        ("name: critique", "name: critic", "critic", "allowed are answer, critique, propose, revise"),
        ("name: demo", "name: [", "cell_size", "not YAML"),
        ("name: demo", "name: !!python/object/apply:os.system [ls]", "name", "tags .* are not allowed"),
        ("digits: 2", "digits: !!set {a, b}", "digits", "tags"),
        ("digits: 2", "digits: [{1: 2}]", "digits", "a key must be text"),
        ("digits: 2", 'digits: "\\ud800"', None, "not YAML"),
        ("digits: 2", "digits: [0x" + "f" * 4000 + "]", None, "cannot be written as JSON"),
        ("digits: 2", "digits: [1" + ":59" * 4000 + ".5]", None, "too large"),
        ("name: demo", 'name: "\\e[31m"', "name", "matching regex"),
        (
            "name: demo",
            'name: demo\npackages: [{distribution: x, version: "1; sh"}]',
            "packages",
            "matching regex",
        ),
        ("name: demo", "name: demo\nname: other", "name: other", "keep one"),
        ("name: demo", "name: &a demo\nseed: *a", "seed", "aliases"),
        ("name: demo", "", None, "missing required field `name`"),
        ("digits: 2", "digits: .nan", None, "cannot be written as JSON"),
        ("name: demo", "name: demo\nrewards: {critique: 0}", "rewards", "the critique stage pays nothing"),
        (
            "name: demo",
            "name: demo\naudits: {rate: 0.1, lowest_rate: 0.2}",
            "audits",
            "lowest_rate must not be over rate",
        ),
    ],
)
def test_wrong_manifest_is_one_line_that_names_file_line_and_what_is_allowed(
    text, old, new, line_of, complaint
):
    assert old in text
    wrong = text.replace(old, new, 1)
    with pytest.raises(UsageError, match=complaint) as caught:
        parse(wrong.encode(), "swarm.yaml")
    assert "swarm.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    if line_of:
        lines = [n for n, line in enumerate(wrong.split("\n"), 1) if line_of in line]
        assert any(f"line {n}: " in str(caught.value) for n in lines) or complaint == "not YAML"


def test_stages_may_begin_with_proposals_and_end_early(text):
    stage = "  - {name: propose, ends_at: 0.1, max_groups: 4, max_tokens: 20}\n"
    manifest = parse(text.replace("stages:\n", f"stages:\n{stage}").encode(), "a")
    assert [one.name for one in manifest.stages] == ["propose", "answer", "critique", "revise"]
    without = parse(text.encode(), "a")
    assert manifest.max_groups == without.max_groups + 4 + manifest.asked_proposals
    assert (
        manifest.max_reward_micros == without.max_reward_micros + (4 + manifest.asked_proposals) * 1_000_000
    )
    alone = text.replace("{name: answer,   ends_at: 0.25", "{name: propose, ends_at: 0.25")
    with pytest.raises(UsageError, match="before them propose"):
        parse(alone.encode(), "a")


def test_numbers_are_read_as_people_write_them(text):
    manifest = parse(text.replace("1.5e-4", "1e-5").encode(), "a")
    assert manifest.learn.learning_rate == 1e-5
    assert parse(text.replace("name: demo", 'name: "1e5"').encode(), "a").name == "1e5"


def test_rewards_bound_what_a_report_may_claim(text):
    manifest = parse(f"{text}\nrewards: {{answer: 0.5, critique: 2, agreement: 3}}".encode(), "a")
    assert manifest.max_reward_micros == (32 * 0.5 + 4 * 2 + 4 * 4) * 1_000_000
    thirds = parse(f"{text}\nrewards: {{answer: 0.6666667}}".encode(), "a")
    assert thirds.max_reward_micros == 32 * 666_667 + (4 + 8) * 1_000_000, "as peers round each completion"
    with pytest.raises(UsageError, match="fit on the ledger"):
        parse(text.replace("max_groups: 32", "max_groups: 4096").encode() + b"\nrewards: {answer: 100}", "a")


def test_schema_for_editors_is_up_to_date_and_accepts_every_config():
    assert SCHEMA_FILE.read_text() == schema_text()
    assert DOCS_FILE.read_text() == docs_text(DOCS_FILE.read_text())
    validator = jsonschema.Draft202012Validator(schema())
    configs = sorted(SCHEMA_FILE.parent.glob("*.yaml"))
    assert len(configs) >= 5
    for config in configs:
        validator.validate(yaml.safe_load(config.read_text()))
        load(config)
        assert config.read_text().startswith("# yaml-language-server: $schema=manifest.schema.json\n")
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"name": "x"})


@pytest.mark.parametrize(
    "data",
    [b"", b"# no more", b"[]", b"\xff\xfe", b"[" * 5000, b"a: &a [*a]", b" " * (MAX_MANIFEST_BYTES + 1)],
)
def test_bytes_that_are_no_manifest_are_refused(data):
    for read in (parse, parse_canonical):
        with pytest.raises(UsageError):
            read(data, "ledger")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("learning_rate: 1.5e-4", "learning_rate: 1.0e-6"),
        ("name: demo", 'name: "\\x7f é 日本"'),
        ("name: demo", "name: 2020-13-45"),
        ("{digits: 2}", "{digits: 2, x: 1.0e-300}"),
    ],
)
def test_values_survive_the_way_through_the_ledger_or_are_refused(text, old, new):
    assert old in text
    try:
        manifest = parse(text.replace(old, new).encode(), "a")
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert parse_canonical(manifest.canonical, "b") == manifest


def test_parameter_that_json_cannot_hold_is_refused(text):
    with pytest.raises(UsageError):
        parse(text.replace("{digits: 2}", "{digits: 2, x: .nan}").encode(), "a")


def test_other_form_than_the_canonical_one_is_refused(text):
    with pytest.raises(UsageError, match="canonical"):
        parse_canonical(parse(text.encode(), "a").canonical + b" ", "ledger")


def test_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot read manifest"):
        load(tmp_path / "none.yaml")

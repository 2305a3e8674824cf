import hashlib
from pathlib import Path

import pytest

from swarm.demo import DEMO_MANIFEST
from swarm.errors import UsageError
from swarm.manifest import MAX_MANIFEST_BYTES, load, parse, parse_canonical


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
    ("old", "new", "complaint"),
    [
        ("cell_size: 16", "cel_size: 16", "cel_size"),
        ("round_seconds: 20", "round_seconds: soon", "round_seconds"),
        ("round_seconds: 20", "round_seconds: 0", "round_seconds"),
        ("ends_at: 0.40", "ends_at: 0.20", "ends_at must grow"),
        ("models: [tiny]", "models: [tinny]", "tinny"),
        ("name: critique", "name: revise", "answer, then critique, then revise"),
        ("name: demo", "name: [", "not YAML"),
        ("name: demo", "name: !!python/object/apply:os.system [ls]", "not YAML"),
    ],
)
def test_wrong_manifest_is_one_line_that_names_file_and_key(text, old, new, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        parse(text.replace(old, new, 1).encode(), "swarm.yaml")
    assert "swarm.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff\xfe", b"[" * 5000, b"a: &a [*a]", b" " * (MAX_MANIFEST_BYTES + 1)]
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

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from swarm.errors import UsageError
from swarm.tasks import data_files
from swarm.tasks.rows import load_rows

COMMIT = "c0ffee" + "0" * 34
REPOSITORY = "someone/some-rows"


class Pair(msgspec.Struct, frozen=True):
    question: str
    answer: int = 0


ROWS = [{"question": f"q{n}", "answer": n, "other": [n]} for n in range(600)]
PAIRS = [Pair(row["question"], row["answer"]) for row in ROWS]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def digest_of(source, **options) -> str:
    """What a refusal says to write into the manifest."""
    with pytest.raises(UsageError, match=r"can change: write `digest: [0-9a-f]{64}`") as caught:
        load_rows(str(source), Pair, **options)
    return str(caught.value).partition("digest: ")[2][:64]


def load(source, **options):
    return load_rows(str(source), Pair, digest=digest_of(source, **options), **options)[0]


def test_samples_need_no_digest_and_have_one():
    class Question(msgspec.Struct):
        question: str

    rows, digest = load_rows("sample:choice", Question)
    assert len(rows) == 20
    assert load_rows("sample:choice", Question, digest=digest) == (rows, digest)
    with pytest.raises(UsageError, match=r"the samples are .*choice, .*math, .*rubric"):
        load_rows("sample:../samples/choice", Question)


@pytest.mark.parametrize("kind", ["jsonl", "json", "lines.json", "parquet"])
def test_files_of_all_kinds(tmp_path, kind):
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        parquet(file, ROWS)
    else:
        file.write_text(json.dumps(ROWS) if kind == "json" else lines(ROWS) + "\n")
    assert load(file) == PAIRS
    assert load(tmp_path) == PAIRS


def test_a_folder_in_the_hubs_layout(tmp_path):
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[300:])
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:300])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", ROWS[:5])
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert load(tmp_path, split="train") == PAIRS
    assert load(tmp_path, split="test") == PAIRS[:5]
    assert len(load(tmp_path)) == 605
    with pytest.raises(UsageError, match="no files of the split validation"):
        load_rows(str(tmp_path), Pair, split="validation")
    with pytest.raises(UsageError, match="no files of the split trai"):
        load_rows(str(tmp_path), Pair, split="trai")


def test_a_split_may_be_a_folder(tmp_path):
    for split, rows in (("train", ROWS[:3]), ("test", ROWS[3:4])):
        (tmp_path / split).mkdir()
        (tmp_path / split / "0000.jsonl").write_text(lines(rows))
    assert load(tmp_path, split="train") == PAIRS[:3]


def test_the_same_rows_in_two_formats_are_not_mixed(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(ROWS))
    parquet(tmp_path / "train.parquet", ROWS)
    with pytest.raises(UsageError, match=r"rows as \.jsonl and \.parquet"):
        load_rows(str(tmp_path), Pair, split="train")
    assert load(tmp_path / "train.parquet") == PAIRS


def test_columns_can_have_other_names(tmp_path):
    for name in ("a.jsonl", "a.parquet"):
        rows = [{"prompt": "q", "question": 7, "n": 3}]
        if name.endswith("l"):
            (tmp_path / name).write_text(lines(rows))
        else:
            parquet(tmp_path / name, rows)
        assert load(tmp_path / name, columns={"question": "prompt", "answer": "n"}) == [Pair("q", 3)]


def test_the_digest_is_of_names_and_contents(tmp_path):
    digests = set()
    for number, (name, content) in enumerate(
        [("a", '{"question": "x"}'), ("b", '{"question": "x"}'), ("a", '{"question": "y"}')]
    ):
        (tmp_path / str(number)).mkdir()
        file = tmp_path / str(number) / f"{name}.jsonl"
        file.write_text(content)
        digests |= {digest_of(file)}
    assert len(digests) == 3
    with pytest.raises(UsageError, match=f"has the digest {digest_of(file)}, not {'0' * 64}"):
        load_rows(str(file), Pair, digest="0" * 64)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"question": "x"}\n\n{"question": 3}', "line 3: Expected `str`, got `int` - at column `question`"),
        ('{"question": "x"}\n{"answer": 3}', "line 2: Object missing required field `question`"),
        ('{"question": "x", "answer": "3"}', "line 1: Expected `int`, got `str` - at column `answer`"),
        ('{"question": "x"}\n[1]', "line 2: not an object"),
        ('{"question": "x"}\n{"quest', "line 2 is not JSON"),
        ("[" * 100_000, "is not a"),
        ("\n", "has no rows"),
        ("", "has no rows"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_bad_row_is_named(tmp_path, content, said, kind):
    file = tmp_path / f"rows.{kind}"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        load(file)
    message = str(caught.value)
    assert said in message or (content.startswith("[[") and "is not" in message), message
    assert "\n" not in message


def test_a_bad_row_of_a_renamed_column_is_named_by_its_column(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": 3}')
    with pytest.raises(UsageError, match=r"line 1: .*column `prompt`"):
        load_rows(str(file), Pair, columns={"question": "prompt"}, revision=None, digest=digest_of_file(file))


def digest_of_file(file: Path) -> str:
    import hashlib

    parts = hashlib.sha256(file.name.encode()).digest() + hashlib.sha256(file.read_bytes()).digest()
    return hashlib.sha256(parts).hexdigest()


def test_a_broken_parquet_file_is_named(tmp_path):
    file = tmp_path / "rows.parquet"
    parquet(file, ROWS)
    data = bytearray(file.read_bytes())
    data[100:400] = b"\xff" * 300
    for content in (bytes(data), bytes(data[:-50]), b"PAR1", b"no parquet"):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"rows\.parquet"):
            load_rows(str(file), Pair, digest=digest_of_file(file))


def test_too_much_is_not_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text(lines(ROWS))
    with pytest.raises(UsageError, match="which is the most that is read"):
        load_rows(str(tmp_path / "rows.jsonl"), Pair, max_bytes=1000)
    with pytest.raises(UsageError, match="more than 599 rows"):
        load_rows(
            str(tmp_path / "rows.jsonl"), Pair, max_rows=599, digest=digest_of_file(tmp_path / "rows.jsonl")
        )
    packed = tmp_path / "packed.parquet"
    parquet(packed, [{"question": "x" * 100_000, "answer": n} for n in range(300)])
    assert packed.stat().st_size < 2**20
    with pytest.raises(UsageError, match="which is the most that is read"):
        load_rows(str(packed), Pair, max_bytes=2**20, digest=digest_of_file(packed))
    with pytest.raises(UsageError, match="300 rows, which is too many"):
        load_rows(str(packed), Pair, max_rows=10, digest=digest_of_file(packed))


@pytest.mark.parametrize(
    ("source", "revision", "said"),
    [
        ("nowhere.jsonl", None, "no file or folder"),
        ("owner/name", None, "give its commit as `revision`"),
        ("owner/name", "main", "40 hexadecimal digits"),
        ("not a repository", COMMIT, "leave `revision` out"),
    ],
)
def test_a_source_that_is_none_is_refused(source, revision, said):
    with pytest.raises(UsageError, match=said):
        load_rows(source, Pair, revision=revision)


def test_a_file_of_another_kind_is_refused(tmp_path):
    file = tmp_path / "rows.pkl"
    file.write_bytes(b"\x80\x04N.")
    for source in (file, tmp_path):
        with pytest.raises(UsageError, match=r"\.jsonl, \.json, \.parquet"):
            load_rows(str(source), Pair)


PEAK = """
import resource, sys
import msgspec, pyarrow.parquet, pyarrow.compute
from swarm.errors import UsageError
from swarm.tasks.rows import load_rows

class Pair(msgspec.Struct):
    question: str = ""
    choices: list[str] = []

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_rows(sys.argv[1], Pair, digest=sys.argv[2])
except UsageError as error:
    print(error, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def peak(file: Path) -> tuple[int, str]:
    """MiB that loading a file took at most, and what was said."""
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(file), digest_of_file(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout), ran.stderr


def test_a_small_parquet_file_that_unpacks_to_gigabytes_takes_no_memory(tmp_path):
    file = tmp_path / "bomb.parquet"
    for size, said in ((8 * 2**20, "a text of over 256 KiB"), (2**18, "the most that is read")):
        texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["a" * size]))
        pq.write_table(pa.table({"question": texts}), file, compression="zstd", store_schema=False)
        assert file.stat().st_size < 4096
        used, error = peak(file)
        assert used < 150 and said in error


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        ({"question": ["x" * 2**20] * 100}, {"use_dictionary": False}, "a text of over 256 KiB"),
        ({"question": pa.array([b"x" * 16], pa.binary(16))}, {}, "which is not read"),
        ({"choices": [["x" * 200_000] * 2_700]}, {}, "the most that is read"),
        ({"choices": pa.array([[None] * 9_000_000], pa.list_(pa.string()))}, {}, "the most that is read"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_parquet_that_unpacks_to_too_much_never_becomes_objects(tmp_path, table, options, said, version):
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table(table), file, compression="zstd", data_page_version=version, **options)
    assert file.stat().st_size < 2**20
    used, error = peak(file)
    assert used < 1500 and said in error


def test_other_columns_of_a_parquet_file_are_not_looked_at(tmp_path):
    file = tmp_path / "rows.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 9, pa.int32()), pa.array(["a" * 2**22]))
    pq.write_table(pa.table({"question": ["q"] * 9, "other": texts}), file)
    assert load(file) == [Pair("q")] * 9


def test_lists_and_structs_of_texts_in_parquet(tmp_path):
    class Choices(msgspec.Struct):
        text: list[str]

    class Choice(msgspec.Struct, kw_only=True):
        question: str = ""
        choices: Choices
        options: list[str]

    rows = [
        {
            "question": f"q{n}" if n % 3 else None,
            "choices": {"text": [str(n), "é"] * (n % 4)},
            "options": ["x"] * (n % 2),
        }
        for n in range(5000)
    ]
    file = tmp_path / "rows.parquet"
    for options in ({}, {"use_dictionary": False}, {"data_page_version": "2.0", "row_group_size": 700}):
        pq.write_table(pa.Table.from_pylist(rows), file, **options)
        read, _ = load_rows(str(file), Choice, digest=digest_of_file(file))
        assert [row | {"question": row["question"] or ""} for row in rows] == msgspec.to_builtins(read)
    rows[4000]["options"] = ["x" * (2**18 + 1)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(UsageError, match="a text of over 256 KiB"):
        load_rows(str(file), Choice, digest=digest_of_file(file))


def test_what_all_files_unpack_to_is_bounded(tmp_path):
    for number in range(3):
        parquet(tmp_path / f"{number}.parquet", [{"question": "x" * 1000, "answer": n} for n in range(400)])
    assert len(load(tmp_path, max_bytes=2_000_000)) == 1200
    with pytest.raises(UsageError, match="which is the most that is read"):
        load(tmp_path, max_bytes=1_000_000)


@pytest.mark.parametrize("content", ["[" + "{}," * 900_000 + "{}]", "[[" + "{}," * 300_000 + "{}]]"])
def test_a_json_list_is_read_row_by_row(tmp_path, content):
    file = tmp_path / "rows.json"
    file.write_text(content)
    assert peak(file)[0] < 150


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"question": "a ]},[{ \\\\\\" b"}, {"question": "\\\\"}]', None),
        (' [ {"question": "a", "other": [[1, 2], {"x": {}}]} ] \n', None),
        ("[]", "has no rows"),
        ("[{}", "is not a list"),
        ('[{"question": "a"},]', "row 2 is not JSON"),
        ("[,]", "row 1 is not JSON"),
        ('[{"question": "a"}] x', "is not a list"),
        ('[{"question": "a"]', "is not a list"),
        ('[{"question": "a"}}', "is not a list"),
        ('[{"question": "a', "is not a list"),
        ('[{"question": "a"} {"question": "b"}]', "row 1 is not JSON"),
        ("[1]", "row 1: not an object"),
    ],
)
def test_json_lists(tmp_path, content, said):
    file = tmp_path / "rows.json"
    file.write_text(content)
    if said is None:
        expected = [Pair(row["question"]) for row in json.loads(content)]
        assert load_rows(str(file), Pair, digest=digest_of_file(file))[0] == expected
    else:
        with pytest.raises(UsageError, match=said):
            load_rows(str(file), Pair, digest=digest_of_file(file))


def test_long_rows_and_long_lists_are_refused(tmp_path):
    long = json.dumps({"question": "x" * 2**20})
    for name, content, said in (
        ("a.jsonl", f"{lines(ROWS[:2])}{long}", "line 3 has over 1,024 KiB"),
        ("a.json", f"[{long}]", "a row of over 1,024 KiB"),
        ("b.json", f"[{' ' * 2**25}]", "over 32 MiB; write it as JSONL"),
    ):
        file = tmp_path / name
        file.write_text(content)
        with pytest.raises(UsageError, match=said):
            load_rows(str(file), Pair, digest=digest_of_file(file))


def test_a_huge_folder_is_not_walked(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "_MAX_ENTRIES", 10)
    for number in range(11):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(UsageError, match="has over 10 files and folders; name one of them"):
        load_rows(str(tmp_path), Pair)


def test_links_to_folders_are_not_followed(tmp_path):
    (tmp_path / "rows.jsonl").write_text(lines(ROWS))
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    assert load(tmp_path) == PAIRS
    with pytest.raises(UsageError, match=r"cannot read .*self"):
        load_rows(str(tmp_path / "self"), Pair)


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "rows.jsonl").write_text(lines(ROWS))

    def refuse(path):  # as `chmod 0` would, but also for root
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(data_files.os, "scandir", refuse)
        for source in (tmp_path, closed):
            with pytest.raises(UsageError, match=f"cannot read {source}.*: Permission denied"):
                load_rows(str(source), Pair)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UsageError, match=r"cannot read .*: Permission denied"):
        load_rows("closed/rows.jsonl", Pair)


class HubServer(ThreadingHTTPServer):
    """As much of a hub as datasets are read through."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files = files
        self.status: int | None = None
        self.fetched: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class HubRequest(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        resolve = f"/datasets/{REPOSITORY}/resolve/{COMMIT}/"
        if self.server.status is not None:
            self.answer(self.server.status, b"{}")
        elif self.path.startswith(f"/api/datasets/{REPOSITORY}/revision/{COMMIT}"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.server.files.items()]
            self.answer(200, json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode())
        elif self.path.startswith(resolve) and (name := self.path.removeprefix(resolve)) in self.server.files:
            if self.command == "GET":
                self.server.fetched.append(name)
            self.answer(200, self.server.files[name])
        else:
            self.answer(404, b"{}")

    do_HEAD = do_GET

    def answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(data)}-{hash(self.path) & 0xFFFF}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = HubServer(
        {
            "README.md": b"# rows",
            "main/train.jsonl": lines(ROWS).encode(),
            "main/test.jsonl": lines(ROWS[:5]).encode(),
            "other/train.jsonl": lines(ROWS[:1]).encode(),
            "code.py": b"raise SystemExit",
        }
    )
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def test_a_dataset_of_a_hub(hub):
    rows, digest = load_rows(f"{REPOSITORY}/main", Pair, split="train", revision=COMMIT)
    assert rows == PAIRS
    assert hub.fetched == ["main/train.jsonl"]
    assert len(load_rows(REPOSITORY, Pair, split="train", revision=COMMIT)[0]) == 601
    assert load_rows(f"{REPOSITORY}/main/test.jsonl", Pair, revision=COMMIT)[0] == PAIRS[:5]
    with pytest.raises(UsageError, match="has the digest"):
        load_rows(f"{REPOSITORY}/main", Pair, split="test", revision=COMMIT, digest=digest)
    with pytest.raises(UsageError, match="which is the most that is read"):
        load_rows(f"{REPOSITORY}/main", Pair, split="train", revision=COMMIT, max_bytes=100)


def test_without_the_hub_its_cache_serves_pinned_data(hub):
    with pytest.raises(UsageError, match="the hub has no dataset"):
        load_rows("someone/else", Pair, revision=COMMIT)
    rows, digest = load_rows(f"{REPOSITORY}/main", Pair, split="train", revision=COMMIT)
    hub.status = 503
    again = load_rows(f"{REPOSITORY}/main", Pair, split="train", revision=COMMIT, digest=digest)
    assert again == (rows, digest)
    with pytest.raises(UsageError, match="the hub cannot be asked"):
        load_rows(f"{REPOSITORY}/main", Pair, split="train", revision=COMMIT)


def test_a_column_that_no_row_has_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(ROWS))
    with pytest.raises(UsageError, match=r"no row of .* has a column nope"):
        load_rows(str(file), Pair, digest=digest_of_file(file), columns={"answer": "nope"})
    with pytest.raises(UsageError, match=r"there is no file or folder /.*other.jsonl"):
        load_rows("other.jsonl", Pair)

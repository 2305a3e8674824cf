"""Pushes to a hub: the real client against a local server that speaks as much of its API as is used."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

import swarm
from swarm.errors import UsageError
from swarm.learner.publish import HubPush, write_model

SWARM_ID = bytes(range(32))
REPO = "someone/a-model"
TINY = Path(swarm.__file__).parent / "policy" / "tiny"


class Hub(ThreadingHTTPServer):
    """Remembers what was committed. `status` answers every request instead; `hold` delays commits."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.status: int | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.asked = threading.Event()
        self.created: list[dict] = []
        self.commits: list[dict[str, bytes]] = []
        self.messages: list[str] = []
        self.committed = threading.Semaphore(0)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.set()
        if self.server.status is not None:
            return self.answer(self.server.status, {"error": "no\nway"})
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.answer(200, {"url": f"{self.server.url}/{REPO}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == f"/api/models/{REPO}/preupload/main":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path == f"/api/models/{REPO}/commit/main":
            self.server.hold.wait()
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
            self.server.commits.append(
                {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
            )
            self.server.committed.release()
            return self.answer(
                200, {"commitUrl": f"{self.server.url}/{REPO}/commit/1", "commitOid": "1" * 40}
            )
        self.answer(404, {})

    def answer(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.hold.set()
    hub.shutdown()
    hub.server_close()


@pytest.fixture(autouse=True)
def warned(caplog):
    """Set at the first warning."""
    event = threading.Event()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: event.set()
    logging.getLogger("swarm.learner").addHandler(handler)
    yield event
    logging.getLogger("swarm.learner").removeHandler(handler)


def push_to(hub: Hub | str, folder: Path, every_rounds: int = 1, base_model: str = "tiny") -> HubPush:
    return HubPush(
        REPO,
        every_rounds,
        private=True,
        swarm_id=SWARM_ID,
        base_model=base_model,
        work_dir=folder,
        endpoint=hub if isinstance(hub, str) else hub.url,
    )


def load(folder: Path):
    transformers_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def note(text: str):
    return lambda folder: (folder / "note.txt").write_text(text)


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_pushed_model_loads_and_its_card_names_the_swarm(hub, tmp_path, capfd, caplog):
    model, tokenizer = load(TINY)
    push = push_to(hub, tmp_path / "work", base_model="Qwen/Qwen3-0.6B@abc")
    push.offer(12, lambda folder: write_model(model, tokenizer, folder))
    push_is_done = hub.committed.acquire(timeout=60)
    push.close()
    assert push_is_done
    (files,) = hub.commits
    card = files["README.md"].decode()
    assert SWARM_ID.hex() in card
    assert "round: 12" in card
    assert "base_model: Qwen/Qwen3-0.6B\n" in card
    assert hub.created[0]["visibility"] == "private"
    assert hub.messages == [f"Round 12 of swarm {SWARM_ID.hex()}"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    loaded, its_tokenizer = load(tmp_path)
    pairs = zip(loaded.parameters(), model.parameters(), strict=True)
    assert all((one == other).all() for one, other in pairs)
    assert its_tokenizer("1+2=")["input_ids"] == tokenizer("1+2=")["input_ids"]
    assert not list((tmp_path / "work").iterdir())
    assert capfd.readouterr() == ("", "")
    assert not warnings_in(caplog)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT of transformers
def test_of_an_adapter_only_the_adapter_is_written(tmp_path):
    model, tokenizer = load(TINY)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    write_model(model, tokenizer, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names


def test_a_snapshot_is_due_every_so_many_rounds_also_after_a_gap_and_a_restart(tmp_path):
    due: list[int] = []
    for rounds in ([1, 2, 3, 4], [5, 9, 10, 11], [12, 13]):
        push = push_to("http://127.0.0.1:9", tmp_path, every_rounds=4)
        for round in rounds:
            push.offer(round, lambda folder, round=round: due.append(round))
        push.close(timeout=0)
    assert due == [4, 9, 12]


def test_a_newer_snapshot_takes_the_place_of_one_that_waits(hub, tmp_path, caplog):
    hub.hold.clear()
    push = push_to(hub, tmp_path)
    push.offer(0, note("0"))
    assert hub.asked.wait(60)
    for round in (1, 2, 3):
        push.offer(round, note(str(round)))
    hub.hold.set()
    assert hub.committed.acquire(timeout=60)
    assert hub.committed.acquire(timeout=60)
    push.close()
    assert [commit["note.txt"] for commit in hub.commits] == [b"0", b"3"]
    assert not warnings_in(caplog)


def test_a_hub_that_is_gone_is_one_warning_and_the_next_push_is_tried(hub, tmp_path, caplog, warned):
    hub.status = 503
    push = push_to(hub, tmp_path)
    push.offer(0, note("0"))
    assert warned.wait(60)
    hub.status = None
    push.offer(1, note("1"))
    assert hub.committed.acquire(timeout=60)
    push.close()
    assert [commit["note.txt"] for commit in hub.commits] == [b"1"]
    assert len(warnings_in(caplog)) == 1


def test_a_server_that_refuses_connections_is_one_warning(tmp_path, caplog, warned):
    push = push_to("http://127.0.0.1:9", tmp_path)
    push.offer(0, note("0"))
    assert warned.wait(60)
    push.close()
    (warning,) = warnings_in(caplog)
    assert warning.startswith("model not published round=0 error=")


def test_a_missing_login_is_one_line(hub, tmp_path, caplog, warned):
    hub.status = 401
    push = push_to(hub, tmp_path)
    push.offer(0, note("0"))
    assert warned.wait(60)
    push.close()
    (warning,) = warnings_in(caplog)
    assert "401" in warning
    assert "\n" not in warning


def test_close_does_not_wait_for_a_hub_that_hangs(hub, tmp_path, caplog):
    hub.hold.clear()
    push = push_to(hub, tmp_path)
    began = time.monotonic()
    push.offer(0, note("0"))
    assert time.monotonic() - began < 1
    assert hub.asked.wait(60)
    began = time.monotonic()
    push.close(timeout=0.5)
    assert time.monotonic() - began < 3
    assert warnings_in(caplog) == ["model not published round=0 error='cut off: the node ends'"]
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    """The real tokenizer, where its file cannot be made: what it raises is a plain `Exception`."""
    model, tokenizer = load(TINY)
    push = push_to("http://127.0.0.1:9", tmp_path)

    def write(folder: Path) -> None:
        (folder / "tokenizer.json").mkdir()
        write_model(model, tokenizer, folder)

    push.offer(1, write)
    push.close(timeout=0)
    (warning,) = warnings_in(caplog)
    assert "not published" in warning
    assert "tokenizer not written" in warning


def test_a_snapshot_that_cannot_be_written_is_one_warning(hub, tmp_path, caplog):
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    push = push_to(hub, tmp_path)
    push.offer(0, full)
    push.close()
    assert warnings_in(caplog) == ["model not published round=0 error='[Errno 28] No space left on device'"]
    assert not hub.asked.is_set()


@pytest.mark.parametrize("repo", ["name-only", "a/b/c", "some one/model", ""])
def test_a_malformed_repository_is_a_usage_error(repo, tmp_path):
    with pytest.raises(UsageError, match="cannot publish to"):
        HubPush(repo, 1, False, swarm_id=SWARM_ID, base_model="tiny", work_dir=tmp_path)

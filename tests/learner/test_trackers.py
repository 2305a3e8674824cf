"""Training curves, read back with TensorBoard's own reader; services are stand-in packages."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from swarm.errors import UsageError
from swarm.learner.trackers import Trackers

CONFIG = {"model": "tiny", "learning_rate": 1e-3}

# A stand-in for wandb: the three calls that we make of it, and a file that shows what arrived.
WANDB = """
import json, os, sys, time
print("wandb: a banner")

class Settings:
    def __init__(self, **settings): pass

class Run:
    def __init__(self, id, dir, resume, config):
        assert resume == "allow"
        self.file = open(f"{dir}/{id}.json", "a", buffering=1)
        self.file.write(json.dumps({"pid": os.getpid(), "config": config}) + "\\n")
    def log(self, values, step):
        self.file.write(json.dumps({"step": step, "values": values}) + "\\n")
    def finish(self):
        self.file.write(json.dumps({"finished": True}) + "\\n")
        if "HANG" in os.environ:
            time.sleep(600)

def init(project, id, name, dir, config, resume, settings):
    if "NO_LOGIN" in os.environ:
        raise RuntimeError("No API key configured.\\nUse `wandb login` to log in.")
    return Run(id, dir, resume, config)
"""


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(tag)]


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def wandb(tmp_path, monkeypatch) -> Path:
    """The folder in which the stand-in shows what it got."""
    packages, folder = tmp_path / "packages", tmp_path / "curves"
    (packages / "wandb").mkdir(parents=True)
    (packages / "wandb" / "__init__.py").write_text(WANDB)
    folder.mkdir()
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("PYTHONPATH", str(packages))
    return folder


def shown(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "my-run.json").read_text().splitlines()]


def test_a_restart_continues_the_curves(tmp_path, capfd, caplog):
    for first in (0, 3):
        trackers = Trackers(["tensorboard"], tmp_path, "run", CONFIG)
        for step in range(first, first + 3):
            trackers.log(step, {"reward/answer": step / 2, "loss": 1.0})
        trackers.close()
    assert curve(tmp_path, "reward/answer") == [(step, step / 2) for step in range(6)]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_points_are_on_disk_before_the_end(tmp_path):
    trackers = Trackers(["tensorboard"], tmp_path, "run", CONFIG)
    trackers.log(7, {"loss": 0.5})
    deadline = time.monotonic() + 20
    while not any(b"loss" in path.read_bytes() for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
    assert curve(tmp_path, "loss") == [(7, 0.5)]
    trackers.close()


def test_an_unknown_tracker_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no tracker 'mlflow'; allowed are tensorboard, trackio, wandb"):
        Trackers(["mlflow"], tmp_path, "run", CONFIG)


def test_a_missing_package_is_a_usage_error_that_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install wandb"):
        Trackers(["wandb"], tmp_path, "run", CONFIG)


def test_no_tracker_imports_nothing(tmp_path):
    script = (
        "import sys; from pathlib import Path; from swarm.learner.trackers import Trackers;"
        "Trackers([], Path('x'), 'run', {}).close(); print('tensorboard' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", script]).strip() == b"False"


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    trackers = Trackers(["tensorboard"], tmp_path / "file", "run", CONFIG)
    for step in range(500):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    assert len(warnings_in(caplog)) == 1
    assert "name=tensorboard" in warnings_in(caplog)[0]


FULL_DISK = """
import logging, resource, sys
from pathlib import Path
from swarm.learner.trackers import Trackers
logging.basicConfig(stream=sys.stderr, format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
trackers = Trackers(["tensorboard"], Path(sys.argv[1]), "run", {})
for step in range(200):
    trackers.log(step, {"loss": 1.0})
trackers.close()
"""


def test_a_full_disk_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1
    assert "tracker switched off name=tensorboard" in done.stderr


def test_a_service_gets_every_point_and_prints_nothing(wandb, capfd, caplog):
    trackers = Trackers(["wandb", "wandb"], wandb, "my run", CONFIG)
    trackers.log(0, {"loss": 1.0, "grad_norm": float("nan")})
    trackers.log(1, {"loss": 0.5})
    trackers.close()
    assert shown(wandb)[0]["config"] == CONFIG
    assert shown(wandb)[1:] == [
        {"step": 0, "values": {"loss": 1.0}},
        {"step": 1, "values": {"loss": 0.5}},
        {"finished": True},
    ]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_service_without_a_login_is_one_warning(wandb, caplog, monkeypatch):
    monkeypatch.setenv("NO_LOGIN", "1")
    trackers = Trackers(["wandb", "tensorboard"], wandb, "my run", CONFIG)
    trackers.log(0, {"loss": 1.0})
    trackers.close()
    assert warnings_in(caplog) == [
        "tracker switched off name=wandb error='No API key configured. Use `wandb login` to log in.'"
    ]
    assert curve(wandb, "loss") == [(0, 1.0)]


def test_a_service_that_hangs_is_ended_in_time(wandb, caplog, monkeypatch):
    monkeypatch.setenv("HANG", "1")
    trackers = Trackers(["wandb"], wandb, "my run", CONFIG)
    trackers.log(0, {"loss": 1.0})
    while not (wandb / "my-run.json").exists():
        time.sleep(0.01)
    began = time.monotonic()
    trackers.close(timeout=1.0)
    assert time.monotonic() - began < 5
    assert len(warnings_in(caplog)) == 1
    assert not psutil.pid_exists(shown(wandb)[0]["pid"])


NODE = """
import sys
from pathlib import Path
from swarm.learner.trackers import Trackers
trackers = Trackers(["wandb"], Path(sys.argv[1]), "my run", {})
trackers.log(0, {"loss": 1.0})
sys.stdin.read()
"""


def test_a_service_finishes_and_ends_when_the_node_is_killed(wandb):
    node = subprocess.Popen([sys.executable, "-c", NODE, str(wandb)], stdin=subprocess.PIPE, env=os.environ)
    while not (wandb / "my-run.json").exists() or len(shown(wandb)) < 2:
        time.sleep(0.01)
    service = psutil.Process(shown(wandb)[0]["pid"])
    node.kill()
    node.wait()
    service.wait(timeout=20)
    assert shown(wandb)[-1] == {"finished": True}

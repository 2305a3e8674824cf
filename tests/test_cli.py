import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def swarm(*arguments: str, home) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "swarm", *arguments, "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["demo", "--peers", "0"], 2, "at least 1"),
        (["demo", "--rounds", "many"], 2, "whole number"),
        (["demo", "--manifest", "/nowhere.yaml"], 2, "cannot read manifest /nowhere.yaml"),
        (["demo", "--report", "/dev/null/r.json"], 1, "cannot write the report"),
        (["demo", "--report", "x.png"], 2, "name another file"),
        (
            ["create", str(ROOT / "configs/demo.yaml"), "--rpc", "localhost:8545"],
            2,
            "--rpc is not an RPC URL",
        ),
        (["join", "nonsense"], 2, "nonsense"),
        (["join", "0x5FbDB2315678afecb367f032d93F642f64180aa3@http://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (["create", "/nowhere.yaml", "--rpc", "http://127.0.0.1:9"], 2, "/nowhere.yaml"),
        (["identity", "show"], 1, "swarm.pem"),
        (["dance"], 2, "dance"),
    ],
)
def test_bad_input_is_one_clear_line_with_the_right_exit_code(tmp_path, arguments, code, words):
    process = swarm(*arguments, home=tmp_path)
    assert process.returncode == code, process.stderr
    assert words in process.stderr.strip().splitlines()[-1]
    assert "Traceback" not in process.stderr


def test_wrong_task_is_noticed_before_anything_is_started_or_paid_for(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        (ROOT / "configs" / "demo.yaml").read_text().replace("name: arithmetic", "name: arithmetics")
    )
    for arguments in (
        ["demo", "--manifest", str(path)],
        ["create", str(path), "--rpc", "http://127.0.0.1:9"],
    ):
        process = swarm(*arguments, home=tmp_path / "home")
        assert process.returncode == 2
        assert "task 'arithmetics' is not installed" in process.stderr
        assert not (tmp_path / "home").exists()


def test_home_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments in (
        ["demo"],
        ["create", str(ROOT / "configs" / "demo.yaml"), "--rpc", "http://127.0.0.1:9"],
    ):
        process = swarm(*arguments, home=tmp_path / "file")
        assert process.returncode == 1
        assert "choose another --home" in process.stderr
        assert "Traceback" not in process.stderr

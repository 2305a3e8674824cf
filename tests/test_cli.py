import subprocess
import sys

import pytest


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

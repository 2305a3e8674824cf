"""`run_swarm.sh` with stand-ins for Python and df: what it does, and what it says when it cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = [
    "bash",
    "cat",
    "cksum",
    "df",
    "awk",
    "dirname",
    "rm",
    "mkdir",
    "grep",
    "tail",
    "chmod",
    "sort",
    "tee",
]
# Plays Python: makes a .venv whose python and swarm log their arguments, and pip fails if told to.
PYTHON = """#!/bin/bash
echo "$@" >>"$CALLS"
case "$*" in
  "--version") echo "Python 3.8.1" ;;
  "-c "*) exit ${OLD:-0} ;;
  "-m venv "*) mkdir -p "$3/bin"; cat "$0" >"$3/bin/python"; cat "$0" >"$3/bin/swarm"; chmod +x "$3"/bin/* ;;
  "-m pip "*) [ -z "${PIP_SAYS:-}" ] || { echo "$PIP_SAYS"; exit 1; } ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with the script and what it reads, and a PATH of only the tools that it may use."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("run_swarm.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    (tools / "python3").write_text(PYTHON)
    (tools / "python3").chmod(0o755)
    return folder


def run(clone: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {"PATH": str(clone.parent / "tools"), "CALLS": str(clone.parent / "calls"), **variables}
    return subprocess.run(
        ["bash", str(clone / "run_swarm.sh"), *arguments],
        env=environment,
        cwd=clone.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(clone: Path) -> list[str]:
    path = clone.parent / "calls"
    text = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return text


def assert_one_line(process: subprocess.CompletedProcess, *words: str) -> None:
    assert process.returncode == 1
    complaint = process.stderr.strip().splitlines()[-1]
    assert complaint.startswith("run_swarm.sh: ")
    for word in words:
        assert word in complaint
    assert "Traceback" not in process.stderr


def test_first_start_sets_up_and_hands_over_and_the_second_goes_straight_there(clone):
    assert run(clone, "leaderboard", "--json").returncode == 0
    first = calls(clone)
    assert any("-m venv" in call for call in first)
    assert any("-m pip" in call and "--constraint constraints.txt" in call for call in first)
    assert first[-1] == "leaderboard --json"
    assert run(clone).returncode == 0
    assert calls(clone) == ["demo"]


def test_paths_are_relative_to_where_the_user_stands(clone):
    swarm = clone.parent / "tools" / "python3"
    swarm.write_text(swarm.read_text() + 'pwd >>"$CALLS"\n')
    assert run(clone, "demo", "--report", "r.json").returncode == 0
    assert calls(clone)[-2:] == ["demo --report r.json", str(clone.parent)]


def test_changed_dependencies_are_installed(clone):
    run(clone)
    calls(clone)
    with (clone / "constraints.txt").open("a") as file:
        file.write("# newer\n")
    run(clone)
    assert any("-m pip" in call for call in calls(clone))


def test_half_made_environment_is_made_anew(clone):
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").write_text("half")
    assert run(clone).returncode == 0
    assert calls(clone)[-1] == "demo"


def test_no_python_says_what_to_install(clone):
    (clone.parent / "tools" / "python3").unlink()
    assert_one_line(run(clone), "no Python found", "3.11")


def test_old_python_says_its_version_and_what_to_install(clone):
    assert_one_line(run(clone, OLD="1"), "Python 3.8.1", "3.11 or newer")


def test_no_space_says_how_much_is_needed(clone):
    df = clone.parent / "tools" / "df"
    df.unlink()
    df.write_text("#!/bin/bash\necho header; echo /dev/x 100 90 12 90% /\n")
    df.chmod(0o755)
    assert_one_line(run(clone), "only 12 MB free", "make room")
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("pip_says", "words"),
    [
        ("ERROR: [Errno 28] No space left on device", ["disk is full"]),
        ("ERROR: Failed to resolve 'pypi.org'", ["registry cannot be reached", "network"]),
        ("ERROR: torch has no wheel for you", ["torch has no wheel for you", "setup.log"]),
    ],
)
def test_failing_install_says_why_and_the_next_start_tries_again(clone, pip_says, words):
    assert_one_line(run(clone, PIP_SAYS=pip_says), *words)
    calls(clone)
    assert run(clone).returncode == 0
    assert calls(clone)[-1] == "demo"


def test_unreachable_registry_is_noticed_with_the_real_pip(clone):
    process = run(
        clone,
        SWARM_PYTHON=sys.executable,
        PATH=os.environ["PATH"],
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="1",
    )
    assert_one_line(process, "registry cannot be reached")

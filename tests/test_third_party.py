"""A task of somebody else's: made by `swarm task new`, built, installed, and trained in a demo."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from swarm.cli import main


def run(*command: str | Path, **options) -> str:
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, **options)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """The package's folder, and a Python that has its wheel installed beside all that this one has."""
    parent = tmp_path_factory.mktemp("made")
    assert main(["task", "new", "count_letters", "--folder", str(parent)]) == 0
    package = parent / "swarm-task-count-letters"
    run(sys.executable, "-m", "venv", "--without-pip", parent / "venv")
    python = parent / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # An `import` line, so that what is installed in place here is found there too.
    here = sysconfig.get_path("purelib")
    (site / "beside.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    wheels = parent / "wheels"
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, package)
    [wheel] = wheels.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", wheel)
    return package, python


def test_its_own_tests_pass(made):
    package, python = made
    assert "4 passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", package, cwd=package)


def test_it_is_pinned_checked_and_trained_in_a_demo(made, tmp_path):
    package, python = made
    manifest = tmp_path / "swarm.yaml"
    text = (package / "count_letters.yaml").read_text().replace("round_seconds: 30", "round_seconds: 12")
    manifest.write_text(text)
    swarm = [python, "-m", "swarm"]
    refused = subprocess.run(
        [*swarm, "task", "check", manifest, "--questions", "10"], capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "does not pin" in refused.stdout
    manifest.write_text(text + run(*swarm, "task", "pin", manifest))
    assert "digest: " in manifest.read_text()
    assert "FAILED" not in run(*swarm, "task", "check", manifest, "--questions", "100")

    report = tmp_path / "report.json"
    arguments = ["--peers", "2", "--rounds", "1", "--manifest", manifest, "--report", report]
    run(*swarm, "demo", *arguments, "--no-board", "--home", tmp_path / "home")
    rounds = [peer for one in json.loads(report.read_text())["rounds"] for peer in one["peers"].values()]
    assert len(rounds) == 2
    assert all(peer["tx"] and peer["groups"] and not peer["dropped"] for peer in rounds)
    assert all(peer["reward"].keys() == {"answer", "critique", "revise"} for peer in rounds)

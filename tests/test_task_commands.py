"""`swarm task …` as a user types it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import psutil
import pytest
import yaml

from swarm.cli import main
from swarm.manifest import load
from swarm.manifest_schema import schema_text
from swarm.tasks.packages import unpinned

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def swarm(capsys):
    """Runs a command; its exit code, what it printed, and the last line of what it complained of."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["task", *arguments])
        said = capsys.readouterr()
        return code, said.out, (said.err.strip().splitlines() or [""])[-1]

    return run


def test_list_names_every_task_with_the_schema_of_its_parameters(swarm):
    code, out, _ = swarm("list", "--json")
    tasks = {task["name"]: task for task in json.loads(out)}
    assert code == 0
    assert set(tasks) >= {"arithmetic", "code", "math_word", "multiple_choice", "reasoning_gym", "rubric"}
    for config in CONFIGS:
        for choice in yaml.safe_load(config.read_text())["tasks"]:
            jsonschema.validate(choice.get("parameters", {}), tasks[choice["name"]]["parameters"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"digit": 2}, tasks["arithmetic"]["parameters"])
    assert "arithmetic" in swarm("list")[1]


def test_preview_shows_question_prompts_and_scored_answers(swarm):
    code, out, _ = swarm("preview", "arithmetic", "--seed", "3", "--parameters", '{"digits": 3}')
    assert code == 0
    for title in ("question of", "propose prompt", "answer prompt", "critique prompt", "revise prompt"):
        assert f"── {title}" in out
    assert "right answer, scores 1.0" in out and "wrong answer, scores 0.0" in out
    assert swarm("preview", "arithmetic", "--seed", "3", "--parameters", '{"digits": 3}')[1] == out
    assert swarm("preview", "arithmetic", "--seed", "4", "--parameters", '{"digits": 3}')[1] != out


def test_preview_of_a_manifest_has_its_stages(swarm):
    code, out, _ = swarm("preview", str(ROOT / "configs" / "math.yaml"), "--json")
    shown = json.loads(out)
    assert code == 0
    assert list(shown["prompts"]) == ["answer", "critique", "revise"]
    assert (shown["right"]["score"], shown["wrong"]["score"]) == (1.0, 0.0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_every_config_passes_the_check(swarm, interpreter, config):
    code, out, _ = swarm("check", str(config), "--json")
    report = json.loads(out)
    assert code == 0 and report["passed"], report
    states = {finding["check"]: finding["state"] for finding in report["findings"]}
    assert states.keys() == {"load", "draw", "score", "pace", "lengths", "stages"}
    # A hub's models cannot be had here; the shipped one was measured all the same.
    assert any(finding["detail"].startswith("tiny: ") for finding in report["findings"])


def changed(tmp_path: Path, name: str, *changes: tuple[str, str]) -> str:
    text = (ROOT / "configs" / name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ([("digits: 2", "digits: 20")], "line 8: tasks[0].parameters.digits: Expected `int` <= 9"),
        (
            [("digits: 2", "digit: 2")],
            "line 8: tasks[0].parameters.digit: unknown key 'digit'; did you mean 'digits'?",
        ),
        ([("arithmetic", "arithmetics")], "line 7: tasks[0].name: task 'arithmetics' is not installed"),
        (
            [("models:", "packages: [{distribution: msgspec, version: '0.0.1'}]\nmodels:")],
            "this swarm needs msgspec 0.0.1",
        ),
        ([("models:", "packages: [{distribution: no-such, version: '1'}]\nmodels:")], "not installed"),
        ([("max_tokens: 20", "max_tokens: 4000")], "critique 127 + 4000"),
        ([("name: demo", "name: [")], "not YAML"),
    ],
)
def test_check_names_file_line_and_what_is_allowed(swarm, tmp_path, changes, complaint):
    code, out, _ = swarm("check", changed(tmp_path, "demo.yaml", *changes), "--questions", "20")
    assert code == 1
    failed = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and complaint in failed[0]


def test_pin_prints_what_a_manifest_can_hold(swarm, tmp_path):
    path = changed(tmp_path, "code.yaml")
    assert swarm("pin", path)[1] in (ROOT / "configs" / "code.yaml").read_text()
    code, out, said = swarm("pin", str(ROOT / "configs" / "demo.yaml"))
    assert (code, out) == (0, "") and "nothing to pin" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["preview", "arithmetics"], "neither an installed task"),
        (["preview", "arithmetic", "--parameters", "[1]"], "not a JSON object"),
        (["preview", "arithmetic", "--parameters", '{"digits": 0}'], "digits"),
        (["preview", "/nowhere.yaml"], "cannot read manifest /nowhere.yaml"),
        (["preview", str(CONFIGS[0]), "--parameters", "{}"], "a manifest has them inside"),
        (["pin", "/nowhere.yaml"], "cannot read manifest /nowhere.yaml"),
        (["new", "Bad Name"], "no name for a task"),
        (["new", "arithmetic"], "installed already"),
    ],
)
def test_wrong_usage_is_one_line(swarm, arguments, complaint):
    code, _, said = swarm(*arguments)
    assert code == 2
    assert complaint in said


def test_new_never_overwrites(swarm, tmp_path):
    assert swarm("new", "dice", "--folder", str(tmp_path))[0] == 0
    code, _, said = swarm("new", "dice", "--folder", str(tmp_path))
    assert code == 2 and "exists already" in said


def test_schema_is_the_file_for_editors(swarm):
    assert swarm("schema")[1] == schema_text() == (ROOT / "configs" / "manifest.schema.json").read_text()


def test_interrupted_check_leaves_no_process_behind(tmp_path):
    """Ctrl-C while the tasks' processes are there."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "swarm", "task", "check", str(ROOT / "configs" / "math.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
        # Whoever runs the tests may ignore it, as shells do for what they start in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert "load" in process.stdout.readline()
    assert "draw" in process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_pins_are_written_in_the_place_of_the_old_ones_and_nothing_else_changes(swarm, tmp_path):
    text = (ROOT / "configs" / "math.yaml").read_text()
    path = Path(changed(tmp_path, "math.yaml", ('"0.9.0"', '"0.8.0"'), ("mpmath, version", "numpy, version")))
    assert swarm("pin", "--write", str(path))[0] == 0
    assert path.read_text() == text
    start, end = text.index("packages:"), text.index("models:")
    path.write_text(text[:start] + text[end:])
    assert unpinned(load(path))[0] == "antlr4-python3-runtime"
    assert swarm("pin", "--write", str(path))[0] == 0
    assert path.read_text() == text[:start] + text[end:] + text[start:end].rstrip() + "\n"


def test_list_of_one_task_says_what_its_parameters_mean(swarm):
    code, out, _ = swarm("list", "reasoning_gym")
    assert code == 0
    assert "choice.levels" in out and "\nchain_sum: levels 0 to" in out
    assert swarm("list", "reasoning")[0] == 2


def test_relative_data_begins_where_the_command_does(swarm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"frage": "1+1?", "answer": "2"}\n' * 3)
    parameters = {"data": "rows.jsonl", "question_column": "frage"}
    code, _, said = swarm("preview", "math_word", "--parameters", json.dumps(parameters))
    assert code == 2
    digest = said.split("digest: ")[1][:64]
    shown = swarm("preview", "math_word", "--parameters", json.dumps(parameters | {"digest": digest}))[1]
    assert "1+1?" in shown


def test_fault_found_while_loading_has_its_line(swarm, tmp_path):
    path = changed(tmp_path, "reasoning.yaml", ("name: gcd", "name: gdc"))
    code, out, _ = swarm("check", path)
    assert code == 1
    lines = Path(path).read_text().splitlines()
    parameters = next(n for n, line in enumerate(lines, 1) if line.strip() == "parameters:")
    assert f"line {parameters}: tasks[1].parameters: reasoning_gym: no dataset is called 'gdc'" in out


def test_output_that_nobody_reads_is_no_traceback():
    command = f"{sys.executable} -m swarm task list --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr

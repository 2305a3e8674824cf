"""Which code a manifest pins, and what a peer with other code is told."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from swarm.errors import UsageError
from swarm.manifest import Manifest, Package, parse
from swarm.tasks import provider, task_class, task_names
from swarm.tasks.packages import check_packages, code_digest, installed, pins

TASK = """
from swarm.tasks import Question, Task

class Dice(Task, frozen=True):
    def draw(self, seed):
        return Question("?", "1")

    def score(self, question, completion):
        return 1.0
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A distribution `swarm-dice` with the task `dice`, installed for this test alone."""
    (tmp_path / "swarm_dice_for_test").mkdir()
    (tmp_path / "swarm_dice_for_test" / "__init__.py").write_text(TASK)
    info = tmp_path / "swarm_dice-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: swarm-dice\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[swarm.tasks]\ndice = swarm_dice_for_test:Dice\nbroken = swarm_dice_for_test:Nothing\n"
        "other = pathlib:Path\n"
    )
    (info / "top_level.txt").write_text("swarm_dice_for_test\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "swarm_dice_for_test", raising=False)  # of the test before
    return tmp_path


def rules(*packages: Package, task: str = "dice") -> Manifest:
    manifest = parse(
        f"""
        name: dice
        tasks: [{{name: {task}}}]
        models: [tiny]
        round_seconds: 60
        group_size: 4
        stages: [{{name: answer, ends_at: 0.5, max_groups: 4, max_tokens: 32}}]
        learn: {{ends_at: 0.9, external_groups: 2, learning_rate: 1.0e-4}}
        """.encode(),
        "test",
    )
    return msgspec.structs.replace(manifest, packages=packages)


def test_task_of_a_package_is_found_by_its_name(site):
    assert {"dice", "arithmetic"} <= set(task_names())
    assert provider("dice") == "swarm-dice"
    assert provider("arithmetic") is None
    assert task_class("dice").__name__ == "Dice"
    with pytest.raises(UsageError, match="'broken' of swarm-dice cannot be imported"):
        task_class("broken")
    with pytest.raises(UsageError, match="no subclass"):
        task_class("other")


def test_what_pin_says_passes(site):
    [package] = pins(rules())
    assert (package.distribution, package.version) == ("swarm-dice", "1.2")
    check_packages(rules(package))


def test_unpinned_code_of_others_is_refused(site):
    for packages in ((), (Package(distribution="swarm-dice", version="1.2"),)):
        with pytest.raises(UsageError, match="does not pin"):
            check_packages(rules(*packages))


def test_peer_with_other_code_is_told_what_to_do(site: Path):
    [package] = pins(rules())
    with pytest.raises(
        UsageError, match=r"needs swarm-dice 9, and 1.2 is installed: .*pip install swarm-dice==9"
    ):
        check_packages(rules(msgspec.structs.replace(package, version="9")))
    (site / "swarm_dice_for_test" / "__init__.py").write_text(TASK.replace("1.0", "0.5"))
    with pytest.raises(UsageError, match="its code is not this swarm"):
        check_packages(rules(package))
    with pytest.raises(UsageError, match=r"which is not installed: .*pip install no-such==1"):
        check_packages(rules(Package(distribution="no-such", version="1")))


def test_digest_depends_on_names_and_contents_and_not_on_caches(site: Path):
    folder = site / "swarm_dice_for_test"
    before = code_digest("swarm-dice")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    assert code_digest("swarm-dice") == before
    (folder / "data.json").write_text("{}")
    with_data = code_digest("swarm-dice")
    assert with_data != before
    (folder / "data.json").rename(folder / "date.json")
    assert code_digest("swarm-dice") not in (before, with_data)


def test_libraries_of_our_own_tasks_are_pinned_by_version(site):
    found = pins(rules(task="code"))
    assert [(package.distribution, package.digest) for package in found] == [("wasmtime", None)]
    assert installed("wasmtime", with_digest=False) == found[0]

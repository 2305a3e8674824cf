import os

import pytest

from identity import load_or_create_identity

# Played against the clock, with processes of their own: one of them at a time.
ROUNDS = {
    "test_node",
    "test_demo",
    "test_board_of_a_demo",
    "test_third_party",
    "test_cheats",
    "test_exchange_hostile",
    "test_exchange_churn",
}


BESIDE = 5  # how nice everything else is


def pytest_collection_modifyitems(items):
    """For pytest-xdist: all that plays rounds goes to one worker, begun first; else a file at a time."""
    for item in items:
        group = "rounds" if item.path.stem in ROUNDS else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.stem not in ROUNDS)


def pytest_runtest_setup(item):
    """What is played against the clock comes before what is not, which runs beside it."""
    if item.path.stem not in ROUNDS and os.nice(0) < BESIDE:
        os.nice(BESIDE)


@pytest.fixture(scope="session", autouse=True)
def machine_dir(tmp_path_factory):
    """Locks and accounts' queues of the tests, apart from those of the user's own peers."""
    folder = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWARM_MACHINE_DIR", str(folder))
        yield folder


@pytest.fixture
def home(tmp_path):
    """Of a peer that has joined no swarm yet."""
    home = tmp_path / "home"
    _, journal = load_or_create_identity(home)
    journal.close()
    return home


@pytest.fixture(scope="session")
def interpreter(machine_dir, request):
    """Where the compiled interpreter is kept for all runs of the tests: compiling takes several seconds."""
    folder = machine_dir / "interpreter"
    if not folder.exists():
        folder.symlink_to(request.config.cache.mkdir("swarm-interpreter"))
    return folder

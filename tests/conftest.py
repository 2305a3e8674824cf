import pytest


@pytest.fixture(scope="session", autouse=True)
def machine_dir(tmp_path_factory):
    """Locks and accounts' queues of the tests, apart from those of the user's own peers."""
    folder = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWARM_MACHINE_DIR", str(folder))
        yield folder

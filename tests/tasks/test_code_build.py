import hashlib
import lzma
import os
from itertools import zip_longest

import pytest
import wasmtime

from swarm.tasks.code import build, component
from swarm.tasks.code.component import ARTIFACT, load_component

LEFT_OVER_BYTES = 1000  # of stack memory, which differ from one build to the next


@pytest.mark.skipif(build.missing() is not None, reason=f"a build needs {build.missing()}")
def test_the_artifact_is_what_its_source_gives():
    (code, memory), (built_code, built_memory) = map(
        taken_apart, (lzma.decompress(ARTIFACT.read_bytes()), build.build())
    )
    assert built_code == code
    differing = sum(a != b for a, b in zip_longest(memory, built_memory, fillvalue=0))
    assert differing < LEFT_OVER_BYTES


def taken_apart(component):
    """All but the memory with which it begins, and that memory.

    Memory is written without its longer runs of zeros, so what is left over in it decides how long that is.
    """
    rest, memory = bytearray(), bytearray()
    _take(component, rest, memory)
    return bytes(rest), bytes(memory)


def _take(binary, rest, memory):
    """One module or component (of the WebAssembly binary format): sections of a number and a size."""
    rest += binary[:8]
    is_component, at = binary[4] != 1, 8
    while at < len(binary):
        kind = binary[at]
        size, at = _number(binary, at + 1)
        content, at = binary[at : at + size], at + size
        rest.append(kind)
        if is_component and kind in (1, 4):  # a module or component in it
            _take(content, rest, memory)
        elif not is_component and kind == 11:
            _fill(content, memory)
        else:
            rest += content


def _fill(data, memory):
    """A data section: each segment says where it goes."""
    count, at = _number(data, 0)
    for _ in range(count):
        assert data[at : at + 2] == b"\x00\x41"  # in the first memory, at a constant
        place, at = _number(data, at + 2)
        assert data[at] == 0x0B
        size, at = _number(data, at + 1)
        memory.extend(bytes(max(0, place + size - len(memory))))
        memory[place : place + size] = data[at : at + size]
        at += size


def _number(binary, at):
    """LEB128, and where it ends; places are signed, but far below the sign."""
    number = shift = 0
    while True:
        byte = binary[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


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

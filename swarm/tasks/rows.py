"""A task's data: rows of a shipped sample, a local file or folder, or a hub's dataset, with their digest.

Peers must draw from the same rows, so a manifest pins them: a hub's data by its commit, local data by
`digest`, which is over the names and contents of the files that were read. Data comes from strangers: files
are of known kinds and of bounded size before anything is parsed, nothing in them is run (no pickle, no
loading script), and what they unpack to is bounded too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from swarm.errors import UsageError
from swarm.tasks.data_files import SAMPLE, contents
from swarm.tasks.limits import MAX_BYTES, MAX_ROWS, Budget, brief
from swarm.tasks.parquet import parquet_rows

Row = TypeVar("Row", bound=msgspec.Struct)
# Parameters that tasks with rows have.
Split = Annotated[str | None, Meta(description="The word in files' names that picks some of them.")]
Revision = Annotated[str | None, Meta(description="The commit of a hub's dataset, 40 hexadecimal digits.")]
Digest = Annotated[
    Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None,
    Meta(description="SHA-256 of the data, which local data must have."),
]

MAX_LIST_BYTES = 32 * 2**20  # of a file that is one list in JSON
MAX_DEPTH = 64  # of lists and objects in one another, in JSON
MAX_ROW_BYTES = 2**20  # of one row in JSON


def load_rows(
    source: str,
    row: type[Row],
    *,
    split: str | None = None,
    revision: str | None = None,
    digest: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
) -> tuple[list[Row], str]:
    """The rows in the order of files' names and lines, and the files' digest (SHA-256, hexadecimal).

    Called by tasks in `prepare`. `source` is `sample:NAME`, a local file or folder, or a hub's OWNER/NAME or
    OWNER/NAME/PATH (a file or folder in it) at the commit `revision`. Of several files `split` picks those
    whose name has it as a word (`train-00000-of-00001.parquet`). `columns` says which column holds a field,
    where their names differ; other columns are left out. `UsageError` for all that is not as it should be.
    """
    named = list(contents(source, split, revision, digest is not None, max_bytes))
    found = _digest(named)
    if digest is not None and digest != found:
        raise UsageError(f"the data of {source} has the digest {found}, not {digest}: it is other data")
    if digest is None and not source.startswith(SAMPLE) and revision is None:
        raise UsageError(f"{source} can change: write `digest: {found}` beside it into the manifest")
    names = {field.encode_name: field.encode_name for field in msgspec.structs.fields(row)} | dict(
        columns or {}
    )
    rows: list[Row] = []
    absent = set((columns or {}).values())
    budget = Budget(max_bytes)
    while named:
        name, content = named.pop(0)
        for place, values in _values(name, content, names, max_rows - len(rows), budget):
            absent -= set(values if isinstance(values, dict) else ())
            rows.append(_row(values, row, names, f"{name}, {place}"))
            if len(rows) > max_rows:
                raise UsageError(f"{source} has more than {max_rows:,} rows; split it")
    if not rows:
        raise UsageError(f"{source} has no rows")
    if absent:
        raise UsageError(f"no row of {source} has a column {', '.join(sorted(absent))}")
    return rows, found


def _values(
    name: str, content: bytes, names: Mapping[str, str], max_rows: int, budget: Budget
) -> Iterator[tuple[str, object]]:
    """What stands in each line of a file, and where; one more than `max_rows` at most."""
    if name.endswith(".parquet"):
        rows = parquet_rows(name, content, sorted(set(names.values())), max_rows, budget)
        yield from ((f"row {number}", values) for number, values in enumerate(rows, 1))
    elif name.endswith(".json") and (start := re.compile(rb"\s*\[").match(content)):
        if len(content) > MAX_LIST_BYTES:
            raise UsageError(
                f"{name} is a list in JSON of over {MAX_LIST_BYTES // 2**20} MiB; write it as JSONL"
            )
        for number, row in enumerate(_elements(name, content, start.end()), 1):
            yield f"row {number}", _decoded(row, name, f"row {number}")
    else:
        start_byte, number = 0, 0
        while start_byte < len(content):
            end = content.find(b"\n", start_byte)
            end = len(content) if end < 0 else end
            number += 1
            if end - start_byte > MAX_ROW_BYTES:
                raise UsageError(f"{name}, line {number} has over {MAX_ROW_BYTES // 2**10:,} KiB")
            line = content[start_byte:end].strip()
            start_byte = end + 1
            if line:
                yield f"line {number}", _decoded(line, name, f"line {number}")


def _decoded(text: bytes, name: str, place: str) -> object:
    # Not left to the decoder: how deep it may go some libraries set higher than the stack can bear.
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise UsageError(f"{name}, {place} is not JSON with less than {MAX_DEPTH} levels")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"{name}, {place} is not JSON: {brief(error)}") from error


# Strings, and what opens, closes and parts values; without backtracking.
_JSON_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.S)


def _depth(text: bytes) -> int:
    """How many lists and objects are open at once, at the most."""
    depth = deepest = 0
    for mark in _JSON_MARK.finditer(text):
        depth += (mark[0] in b"[{") - (mark[0] in b"]}")
        deepest = max(deepest, depth)
    return deepest


def _elements(name: str, content: bytes, start: int) -> Iterator[bytes]:
    """The elements of a JSON list that begins before `start`, cut at its commas, not yet decoded."""
    depth = 1
    for mark in _JSON_MARK.finditer(content, start):
        sign = mark[0]
        if sign in (b"[", b"{"):
            depth += 1
        elif sign in (b"]", b"}"):
            depth -= 1
        if mark.end() - start > MAX_ROW_BYTES:
            raise UsageError(f"{name} has a row of over {MAX_ROW_BYTES // 2**10:,} KiB")
        if depth == 0 or (depth == 1 and sign == b","):
            element = content[start : mark.start()].strip()
            if element or depth or content[start - 1 : start] == b",":
                yield element
            start = mark.end()
        if depth == 0:
            if sign == b"}" or content[start:].strip():
                break
            return
    raise UsageError(f"{name} is not a list in JSON")


def _row(values: object, row: type[Row], names: Mapping[str, str], place: str) -> Row:
    """The values as a row; columns that are not there or null keep a field's default."""
    if not isinstance(values, dict):
        raise UsageError(f"{place}: not an object with columns")
    renamed: dict[str, Any] = {
        field: value for field, column in names.items() if (value := values.get(column)) is not None
    }
    try:
        return msgspec.convert(renamed, row)
    except msgspec.ValidationError as error:
        said = str(error)
        for field, column in names.items():
            said = said.replace(f"`{field}`", f"`{column}`").replace(f"`$.{field}`", f"column `{column}`")
        raise UsageError(f"{place}: {said}") from error


def _digest(named: Sequence[tuple[str, bytes]]) -> str:
    """Names and contents are hashed one by one, so that no other cut into files has the same digest."""
    digest = hashlib.sha256()
    for name, content in named:
        digest.update(hashlib.sha256(os.fsencode(name)).digest() + hashlib.sha256(content).digest())
    return digest.hexdigest()

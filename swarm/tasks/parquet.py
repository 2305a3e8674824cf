"""Rows of a parquet file that a stranger may have written.

A thousand bytes of parquet can unpack to gigabytes: a long text once in a dictionary, and its number in every
row. So texts stay numbers in a dictionary until it is known how much they make, only the wanted columns are
read, and few rows at a time become Python's objects. What the library itself unpacks before that is bounded
by the memory of the process that prepares (`swarm.sandbox.memory`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swarm.errors import UsageError
from swarm.tasks.limits import Budget, brief, check_text

_BATCH_ROWS = 2_048  # that are read at once, texts as numbers of a dictionary
_SLICE_ROWS = 256  # of these that become Python's objects at once
_VALUE_BYTES = 64  # what a value takes as an object, beside its text
_LIMITS = {"thrift_string_size_limit": 2**24, "thrift_container_size_limit": 100_000}


def parquet_rows(
    name: str, content: bytes, columns: list[str], max_rows: int, budget: Budget
) -> Iterator[dict[str, Any]]:
    """The rows, with those of the columns that there are; `UsageError` for what is not to be read."""
    import pyarrow as pa  # a second to import, and only here
    import pyarrow.parquet as pq

    try:
        data = pa.BufferReader(content)
        footer = pq.ParquetFile(data, pre_buffer=False, **_LIMITS)
        if footer.metadata.num_rows > max_rows:
            raise UsageError(f"{name} has {footer.metadata.num_rows:,} rows, which is too many; split it")
        present = [column for column in columns if column in footer.schema_arrow.names]
        texts = [c for c in present if pa.types.is_string(footer.schema_arrow.field(c).type)]
        file = pq.ParquetFile(
            data, metadata=footer.metadata, read_dictionary=texts, pre_buffer=False, **_LIMITS
        )
        for batch in file.iter_batches(_BATCH_ROWS, columns=present, use_threads=False):
            budget.spend(name, sum(_text_bytes(name, column) for column in batch.columns))
            for start in range(0, batch.num_rows, _SLICE_ROWS):
                yield from batch.slice(start, _SLICE_ROWS).to_pylist()
    except (pa.ArrowException, OSError, ValueError, IndexError, OverflowError) as error:
        raise UsageError(f"{name} is not a readable parquet file: {brief(error)}") from error


def _text_bytes(name: str, array: Any) -> int:
    """Bytes of the array's texts and values as they would be as objects; `UsageError` for a text too long."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_struct(kind):
        return sum(_text_bytes(name, field) for field in array.flatten())
    if pa.types.is_list(kind):
        return _VALUE_BYTES * len(array) + _text_bytes(name, array.flatten())
    size = _VALUE_BYTES * len(array)
    if pa.types.is_dictionary(kind):
        used = array.indices.drop_null().value_counts()  # so that nothing is repeated
        lengths = pc.binary_length(array.dictionary.take(used.field("values")))
        total = pc.sum(pc.multiply(pc.cast(lengths, pa.int64()), used.field("counts"))).as_py()
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        lengths = pc.binary_length(array)
        total = pc.sum(lengths).as_py()
    elif pa.types.is_primitive(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return size
    else:
        raise UsageError(f"{name} has values of the kind {kind}, which is not read")
    check_text(name, pc.max(lengths).as_py() or 0)
    return size + (total or 0)

import contextlib
import sqlite3

import msgspec
import pytest

from swarm.records import Records, RoundRecord, Status


def a_record(number: int, **change) -> RoundRecord:
    record = RoundRecord(
        round=number,
        rewards={"answer": 0.5},
        groups=3,
        external_groups=1,
        reward_micros=1_500_000,
        commitment="aa",
        state_before="bb",
        state_after="cc",
    )
    return msgspec.structs.replace(record, **change)


def test_rounds_come_back_in_order_and_the_receipt_replaces_the_draft(tmp_path):
    path = tmp_path / "swarm" / "state.sqlite"
    with contextlib.closing(Records(path)) as records:
        records.save(a_record(2))
        records.save(a_record(1, tx="0x1"))
        records.save(a_record(3))
        records.save(a_record(2, tx="0x2"))
    with contextlib.closing(Records(path)) as records:
        assert [record.round for record in records.rounds()] == [1, 2, 3]
        assert records.rounds()[1] == a_record(2, tx="0x2")
        assert [record.round for record in records.unreported(since=0)] == [3]
        assert records.unreported(since=4) == []


def test_round_that_was_begun_is_remembered(tmp_path):
    path = tmp_path / "state.sqlite"
    with contextlib.closing(Records(path)) as records:
        assert records.last_begun() == -1
        records.begin(4)
        records.begin(4)
    with contextlib.closing(Records(path)) as records:
        assert records.last_begun() == 4


def test_reader_that_comes_before_the_writers_tables_is_told_so(tmp_path):
    path = tmp_path / "state.sqlite"
    sqlite3.connect(path).close()
    with contextlib.closing(Records(path, read_only=True)) as reader:
        assert not reader.exist
        Records(path).close()
        assert reader.exist


def test_another_process_reads_while_the_node_writes_and_cannot_write(tmp_path):
    path = tmp_path / "state.sqlite"
    with (
        contextlib.closing(Records(path)) as records,
        contextlib.closing(Records(path, read_only=True)) as reader,
    ):
        assert reader.status() is None
        status = Status(peer_id="Qm", name="a b c", state="answer", round=4)
        records.set_status(status)
        assert reader.status() == status
        with pytest.raises(sqlite3.OperationalError):
            reader.set_status(status)

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


def test_rounds_come_back_in_order_and_make_their_reports(tmp_path):
    path = tmp_path / "swarm" / "state.sqlite"
    with contextlib.closing(Records(path)) as records:
        for number in (2, 1, 3):
            records.save(a_record(number))
    with contextlib.closing(Records(path)) as records:
        assert [record.round for record in records.rounds()] == [1, 2, 3]
        report = records.rounds()[1].report
    assert (report.round, report.groups, report.reward_micros) == (2, 3, 1_500_000)
    assert (report.commitment, report.state_before, report.state_after) == (b"\xaa", b"\xbb", b"\xcc")


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

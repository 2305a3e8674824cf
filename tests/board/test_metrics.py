"""A node's metrics, made from files as a node writes them and read as Prometheus reads them."""

from __future__ import annotations

import json
import logging
import re
import socket
import sqlite3
import sys
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from swarm.audit_log import AUDITS_FILE, Audited, AuditLog
from swarm.board import footprint, metrics
from swarm.board.footprint import gpus_here
from swarm.board.metrics import MAX_REQUESTS, NODE_STATES, NodeCollector, Watched, serve_metrics
from swarm.board.vitals import MAX_REASONS, OTHER_REASONS, VitalsReader
from swarm.exchange.health import Health
from swarm.findings import Finding, Findings
from swarm.ledger.deliveries import Deliveries
from swarm.records import Gpu, OwnStanding, Records, RoundRecord
from swarm.verde.verdicts import AuditClass, Check, Outcome

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
OTHERS = {"up", "process_cpu_seconds_total", "process_start_time_seconds"}  # not of this project
STANDING = OwnStanding(
    round=6,
    score_micros=530_000,
    passes=6.5,
    fails=1.0,
    verified_micros=3_000_000,
    ranked_rounds=2,
    audits_passed=7,
    audits_failed=1,
    is_eligible=True,
    is_on_probation=False,
)
HEALTH = Health(peers=5, restarts=2, reach=None, heard=40, fetched_bytes=5000, served_bytes=7000)


def a_record(number: int, **change) -> RoundRecord:
    return RoundRecord(
        **{
            "round": number,
            "rewards": {"answer": 0.25 * number, "revise": 0.5},
            "groups": 4,
            "external_groups": 3,
            "reward_micros": 1_500_000,
            "commitment": "aa" * 32,
            "state_before": "bb" * 32,
            "state_after": "cc" * 32,
            "tokens": 600,
            "seconds": {"sample": 2.0, "learn": 1.5, "wait": 4.0},
            "stages": {"answer": "on_time", "revise": "late", "learn": "on_time"},
            "batch_groups": 12,
            "dropped": {"too late": 2},
            "at": time.time() - 30,
            **change,
        }
    )


def an_audit(number: int, outcome: Outcome | None, at: float = 1.0) -> Audited:
    peer = bytes([number]) * 32
    finding = Finding(check=Check.AVAILABILITY, outcome=outcome or Outcome.PASSED, words="")
    findings = Findings(peer=peer, round=number, audit_class=AuditClass.EXACT, findings=(finding,))
    return Audited(
        peer=peer,
        round=number,
        drawn_in=number + 1,
        at=at,
        findings=None if outcome is None else findings,
        seconds=2.0,
        fetched_bytes=100,
    )


@pytest.fixture
def folder(tmp_path):
    """Of a swarm with two rounds, one of which waits to be reported, and some audits."""
    folder = tmp_path / "swarm"
    with closing(Records(folder / "state.sqlite")) as records:
        for number in (1, 2):
            records.save(a_record(number))
    with closing(Deliveries(folder / "outbox.sqlite")) as outbox:
        outbox.put(*[a_record(number).report for number in (0, 1, 2)])
        outbox.failed(0, "no")
        outbox.mined(1, "0xaa", late_rounds=1, block=7)
    with closing(AuditLog(folder / AUDITS_FILE)) as audits:
        for number, outcome in enumerate((Outcome.PASSED, Outcome.PASSED, Outcome.FAILED, None)):
            audits.save(an_audit(number, outcome))
    return folder


@pytest.fixture
def watched(folder):
    return Watched(
        peer="Qm",
        name='a "b" c',
        swarm="ab" * 32,
        contract="0xcc",
        version="1.2",
        folder=folder,
        round_seconds=60,
        state=lambda: "learn",
        current_round=lambda: 7,
        is_ledger_away=lambda: False,
        health=lambda: HEALTH,
        standing=lambda: STANDING,
    )


def scrape(watched: Watched) -> dict[tuple[str, ...], float]:
    """Each sample's value by its name and its labels' values, as somebody reads it."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(watched))
    return parsed(generate_latest(registry))


def parsed(exposition: bytes) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(exposition.decode())
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def read(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return parsed(answer.read())


def test_values_are_those_that_the_node_wrote(watched):
    found = scrape(watched)
    expected = {
        ("swarm_node_info", "0xcc", 'a "b" c', "Qm", "ab" * 32, "1.2"): 1,
        ("swarm_node_state", "learn"): 1,
        ("swarm_node_state", "answer"): 0,
        ("swarm_round_duration_seconds",): 60,
        ("swarm_current_round",): 7,
        ("swarm_last_round",): 2,
        ("swarm_rounds_played_total",): 2,
        ("swarm_claimed_reward_micros_total",): 3_000_000,
        ("swarm_sampled_tokens_total",): 1200,
        ("swarm_tokens_per_second",): 300,
        ("swarm_groups_made_total",): 8,
        ("swarm_external_groups_total",): 6,
        ("swarm_external_share",): 0.25,
        ("swarm_stages_total", "late", "revise"): 2,
        ("swarm_stages_total", "on_time", "learn"): 2,
        ("swarm_last_reward", "answer"): 0.5,
        ("swarm_last_phase_seconds", "wait"): 4,
        ("swarm_drops_total", "too late"): 4,
        ("swarm_reports", "queued"): 1,
        ("swarm_reports", "mined"): 1,
        ("swarm_reports", "failed"): 1,
        ("swarm_late_reports",): 1,
        ("swarm_audits_total", "passed"): 2,
        ("swarm_audits_total", "undecided"): 1,
        ("swarm_audit_seconds_total", "passed"): 4,
        ("swarm_audit_fetched_bytes_total", "failed"): 100,
        ("swarm_score",): 0.53,
        ("swarm_reputation_audits", "passed"): 6.5,
        ("swarm_settled_audits", "failed"): 1,
        ("swarm_verified_reward_micros",): 3_000_000,
        ("swarm_ranked_rounds",): 2,
        ("swarm_eligible",): 1,
        ("swarm_on_probation",): 0,
        ("swarm_dht_peers",): 5,
        ("swarm_libp2p_restarts_total",): 2,
        ("swarm_announcements_heard_total",): 40,
        ("swarm_fetched_bytes_total",): 5000,
        ("swarm_served_bytes_total",): 7000,
        ("swarm_ledger_away",): 0,
        ("swarm_ledger_behind_rounds",): 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert 30 <= found["swarm_oldest_open_report_seconds",] < 60
    assert found["swarm_memory_bytes", "node"] > 10e6
    assert 0 < found["swarm_disk_free_bytes",] < found["swarm_disk_size_bytes",]
    assert not [key for key in found if key[0] == "swarm_metrics_errors_total"]


def test_node_that_has_just_begun_has_metrics(watched, tmp_path):
    fresh = Watched(
        **{**vars(watched), "folder": tmp_path / "none", "health": lambda: None, "standing": lambda: None}
    )
    found = scrape(fresh)
    assert found["swarm_rounds_played_total",] == 0
    assert found["swarm_oldest_open_report_seconds",] == 0
    names = {name for name, *_ in found}
    assert names.isdisjoint(
        {"swarm_last_round", "swarm_score", "swarm_dht_peers", "swarm_metrics_errors_total"}
    )


@pytest.mark.parametrize("content", [None, b"", b"no database" * 1000])
def test_totals_stay_when_files_are_gone_or_damaged(folder, content):
    reader = VitalsReader(folder)
    before = reader.read()
    assert before.rounds == 2
    for path in folder.iterdir():
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    after = reader.read()
    assert (after.rounds, after.audits, after.last) == (2, before.audits, before.last)
    assert bool(after.unreadable) == bool(content)


@pytest.mark.parametrize("value", [b"{", b'{"round": "x"}', None, "text", 7])
def test_damaged_row_is_counted_and_the_rest_is_told(folder, watched, value):
    with closing(sqlite3.connect(folder / "state.sqlite")) as db, db:
        db.execute("CREATE TABLE other AS SELECT * FROM rounds")
        db.execute("DROP TABLE rounds")
        db.execute("ALTER TABLE other RENAME TO rounds")
        db.execute("UPDATE rounds SET record = ? WHERE round = 2", (value,))
    found = scrape(watched)
    assert found["swarm_metrics_errors_total", "state.sqlite"] >= 1
    assert found["swarm_audits_total", "passed"] == 2


def test_part_that_fails_is_left_out_and_counted(watched):
    def fail() -> None:
        raise RuntimeError("the thread ended")

    found = scrape(Watched(**{**vars(watched), "standing": fail}))
    assert found["swarm_metrics_errors_total", "standing"] == 1
    assert ("swarm_score",) not in found
    assert found["swarm_dht_peers",] == 5


def test_only_what_is_new_is_added_and_an_audit_done_again_counts_again(folder):
    reader = VitalsReader(folder)
    assert (reader.read().rounds, reader.read().rounds) == (2, 2)
    with closing(Records(folder / "state.sqlite")) as records:
        records.save(a_record(3))
    with closing(AuditLog(folder / AUDITS_FILE)) as audits:
        audits.save(an_audit(2, Outcome.PASSED, at=2.0))
    vitals = reader.read()
    assert (vitals.rounds, vitals.tokens, vitals.trend) == (3, 1800, [0.25, 0.5, 0.75])
    assert {outcome: one.done for outcome, one in vitals.audits.items()} == {
        "passed": 3,
        "failed": 1,
        "undecided": 1,
    }


def test_reasons_for_drops_are_bounded(folder):
    with closing(Records(folder / "state.sqlite")) as records:
        records.save(a_record(3, dropped={f"reason {n}": 1 for n in range(10 * MAX_REASONS)}))
    dropped = VitalsReader(folder).read().dropped
    assert len(dropped) == MAX_REASONS + 1
    assert dropped["too late"] == 4
    assert sum(dropped.values()) == 4 + 10 * MAX_REASONS
    assert dropped[OTHER_REASONS] > 1


def test_records_of_an_older_version_are_read(folder):
    with closing(sqlite3.connect(folder / "state.sqlite")) as db, db:
        for number, record in db.execute("SELECT round, record FROM rounds").fetchall():
            old = json.loads(record)
            for field in ("stages", "batch_groups", "at"):
                del old[field]
            db.execute("UPDATE rounds SET record = ? WHERE round = ?", (json.dumps(old).encode(), number))
    vitals = VitalsReader(folder).read()
    assert (vitals.rounds, vitals.stages, vitals.last.external_share) == (2, {}, None)
    assert (vitals.outbox.oldest_open_round, vitals.outbox.oldest_open_seconds) == (2, None)


def test_many_who_ask_at_once_get_one_answer(watched):
    asked = []
    collector = NodeCollector(Watched(**{**vars(watched), "state": lambda: asked.append(1) or "learn"}))
    assert collector.collect() is collector.collect()
    assert len(asked) == 1


def test_port_that_is_taken_is_one_line_that_names_the_option(watched, caplog):
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert serve_metrics(("127.0.0.1", port), watched) is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"127.0.0.1:{port}" in line and "--metrics" in line
    server = serve_metrics(("127.0.0.1", port), watched)  # free again
    assert f"metrics url=http://127.0.0.1:{port}/metrics" in caplog.text
    found = read(port)
    assert found["swarm_rounds_played_total",] == 2
    assert {(name,) for name in OTHERS - {"up"}} <= found.keys()
    server.close()
    with pytest.raises(OSError, match="refused"):
        read(port)


def test_who_is_slow_is_hung_up_on_and_many_who_are_cost_a_few_threads(watched, monkeypatch, capfd):
    monkeypatch.setattr(metrics._Impatient, "timeout", 1.0)
    server = serve_metrics(("127.0.0.1", 0), watched)
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3 * MAX_REQUESTS)]
    for one in slow:
        one.send(b"GET /met")
    assert all(one.recv(1) == b"" for one in slow[MAX_REQUESTS:])  # at once
    assert sum("process_request" in thread.name for thread in threading.enumerate()) <= MAX_REQUESTS
    assert all(one.recv(1) == b"" for one in slow)
    assert read(server.port)["swarm_rounds_played_total",] == 2
    server.close()
    for one in slow:
        one.close()
    assert capfd.readouterr().err == ""


def test_address_that_is_not_of_this_machine_costs_the_metrics_and_not_the_node(watched, caplog):
    assert serve_metrics(("203.0.113.1", 9464), watched) is None
    assert "--metrics" in caplog.text


# What people install: rules and dashboard


def shown_names(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads; raises if it is not one."""
    expression = re.sub(r"\$__rate_interval", "5m", expression).replace("$instance", ".*")
    found: set[str] = set()
    pending = [promql_parser.parse(expression)]
    while pending:
        node = pending.pop()
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.add(node.vector_selector.name)
        for part in ("expr", "lhs", "rhs", "args", "param"):
            value = getattr(node, part, None)
            pending += value if isinstance(value, list) else [value] if value is not None else []
    return found


@pytest.fixture
def exposed(watched, monkeypatch):
    """The names of all metrics that a node can have."""
    gpu = Gpu(index=0, allocated_bytes=1, reserved_bytes=2, total_bytes=3, utilization=0.5)
    monkeypatch.setattr("swarm.board.metrics.gpus_here", lambda: (gpu,))
    damaged = Watched(**{**vars(watched), "is_ledger_away": lambda: 1 / 0})
    return {name for name, *_ in [*scrape(watched), *scrape(damaged)]}


def test_every_rule_is_promql_on_metrics_that_there_are_and_says_what_to_do(exposed):
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) > 10
    for rule in group["rules"]:
        names = shown_names(rule["expr"])
        assert names and names <= exposed | OTHERS, rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_dashboard_shows_every_metric_and_no_others(exposed):
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    shown: set[str] = set()
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            shown |= shown_names(target["expr"])
    assert shown <= exposed | OTHERS
    assert {name for name in exposed if name.startswith("swarm_")} <= shown
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert [one["type"] for one in dashboard["templating"]["list"]] == ["datasource", "query"]
    corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(corners)) == len(corners)


def test_table_in_the_docs_names_every_metric(exposed):
    described = set(re.findall(r"^\| `(swarm_\w+)", (MONITORING / "README.md").read_text(), re.MULTILINE))
    assert described == {name for name in exposed if name.startswith("swarm_")}


def test_scraping_as_the_docs_say_works(watched):
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert all((MONITORING / file).exists() for file in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "swarm"  # the rule for a node that is down asks for it
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:9464"]


def test_states_are_bounded():
    assert len(set(NODE_STATES)) == len(NODE_STATES) == 10


def test_numbers_of_a_gpu_are_those_of_torch_and_nvml(monkeypatch):
    # Words of theirs, because the tests have no GPU: this shows what is asked, not that they answer so.
    nvml = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {b"GPU-12-34": "second"}[uuid],
        nvmlDeviceGetUtilizationRates=lambda device: SimpleNamespace(gpu={"second": 25}[device]),
    )
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        memory_allocated=lambda index: 10 * index,
        memory_reserved=lambda index: 20 * index,
        get_device_properties=lambda index: SimpleNamespace(total_memory=100, uuid="12-34"),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(footprint, "_nvml", footprint._nvml.__wrapped__)
    only = Gpu(index=1, allocated_bytes=10, reserved_bytes=20, total_bytes=100, utilization=0.25)
    assert gpus_here() == (only,)  # the other one is not used by this process
    cuda.is_initialized = lambda: False
    assert gpus_here() == ()

"""A node's Prometheus metrics: `docs/monitoring/README.md` says what each one means.

They are made when somebody asks, from the node's files (`swarm.board.vitals`) and from what it has in memory.
Asking costs milliseconds, at most once a second, however many ask. What cannot be told is left out and
counted; nothing of this reaches the node's rounds.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from wsgiref.simple_server import WSGIRequestHandler

import psutil
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from swarm.board.footprint import gpus_here
from swarm.board.vitals import Vitals, VitalsReader
from swarm.exchange.health import Health
from swarm.manifest import MICROS, STAGE_ORDER
from swarm.records import OwnStanding

log = logging.getLogger("swarm.metrics")

# What a node can be doing: see `swarm.records.Status`.
NODE_STATES = ("starting", "listening", "waiting", *STAGE_ORDER, "learn", "report", "done")
FRESH_SECONDS = 1.0  # so long an answer serves all who ask
REQUEST_SECONDS = 10.0  # who is silent for so long is hung up on
MAX_REQUESTS = 16  # at once; further ones are hung up on

Families = Iterator[Metric]
Label = TypeVar("Label", bound=str)


@dataclass(frozen=True)
class Watched:
    """What metrics ask a node for; called from any thread, and quick."""

    peer: str
    name: str
    swarm: str  # its id, hex
    contract: str
    version: str
    folder: Path  # of the swarm
    round_seconds: int
    state: Callable[[], str]
    current_round: Callable[[], int]
    is_ledger_away: Callable[[], bool]
    health: Callable[[], Health | None]
    standing: Callable[[], OwnStanding | None]


class NodeCollector(Collector):
    """Makes the metric families of a node."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._reader = VitalsReader(watched.folder)
        self._lock = threading.Lock()
        self._made: list[Metric] = []
        self._made_at: float | None = None
        self._errors: Counter[str] = Counter()

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape, in a thread of its own."""
        with self._lock:
            now = time.monotonic()
            if self._made_at is None or now - self._made_at >= FRESH_SECONDS:
                self._made, self._made_at = self._make(), now
            return self._made

    def _make(self) -> list[Metric]:
        watched, vitals = self._watched, self._reader.read(os.getpid())
        parts: dict[str, Callable[[], Families]] = {
            "node": partial(_node, watched),
            "rounds": partial(_rounds, vitals),
            "last round": partial(_last_round, vitals),
            "reports": partial(_reports, vitals),
            "audits": partial(_audits, vitals),
            "machine": partial(_machine, vitals),
            "ledger": partial(_ledger, watched),
            "exchange": lambda: _exchange(watched.health()),
            "standing": lambda: _standing(watched.standing()),
            "gpu": _gpus,
        }
        made: list[Metric] = []
        for name, make in parts.items():
            try:
                made += list(make())
            except Exception:
                self._errors[name] += 1
                log.debug("left out part=%r", name, exc_info=True)
        errors = self._errors + Counter(vitals.unreadable)
        made.append(_counter("metrics_errors", "Parts and files that could not be told", "part", errors))
        return made


class MetricsServer:
    """Serves a node's metrics at `http://HOST:PORT/metrics` until it is closed."""

    def __init__(self, host: str, port: int, watched: Watched) -> None:
        """`OSError` if it cannot listen there."""
        registry = CollectorRegistry()
        registry.register(NodeCollector(watched))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        _check_free(host, port)
        self._server, self._thread = start_http_server(port, host, registry)
        self._server.RequestHandlerClass = _Impatient
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop; a scrape that is being answered is not waited for."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(place: tuple[str, int], watched: Watched) -> MetricsServer | None:
    """Serve them, or say in one line why not: a node goes on without."""
    host, port = place
    shown = f"[{host}]" if ":" in host else host
    try:
        server = MetricsServer(host, port, watched)
    except (OSError, UnicodeError) as error:
        log.warning(
            "no metrics at %s:%d error=%r: join with --metrics HOST:PORT to have them elsewhere, or off",
            shown,
            port,
            getattr(error, "strerror", None) or str(error),
        )
        return None
    log.info("metrics url=http://%s:%d/metrics", shown, server.port)
    return server


class _Impatient(WSGIRequestHandler):
    """However many ask, and however slowly, they hold a few threads and no more."""

    timeout = REQUEST_SECONDS  # between two bytes
    _free = threading.BoundedSemaphore(MAX_REQUESTS)

    def handle(self) -> None:
        """Called by the server in a thread for each connection."""
        if not self._free.acquire(blocking=False):
            return
        try:
            with suppress(OSError):  # it was slow, or is gone
                super().handle()
        finally:
            self._free.release()

    def log_message(self, format: str, *args: object) -> None:
        """Nobody wants a line for each scrape."""


def _check_free(host: str, port: int) -> None:
    """`OSError` if somebody listens there: from Python 3.12 on `http.server` would share the port."""
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:1]:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(address)
            probe.listen(1)


# ---- families ----


def _gauge(name: str, what: str, label: str, values: Mapping[Label, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"swarm_{name}", what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, what: str, label: str, values: Mapping[Label, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"swarm_{name}", what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _one(name: str, what: str, value: float | None) -> Families:
    """A gauge without labels; nothing if it is not known."""
    if value is not None:
        yield GaugeMetricFamily(f"swarm_{name}", what, value=value)


def _sum(name: str, what: str, value: float) -> Families:
    yield CounterMetricFamily(f"swarm_{name}", what, value=value)


def _node(watched: Watched) -> Families:
    about = {
        "peer": watched.peer,
        "name": watched.name,
        "swarm": watched.swarm,
        "contract": watched.contract,
        "version": watched.version,
    }
    yield InfoMetricFamily("swarm_node", "Who this is", value=about)
    state = watched.state()
    yield _gauge(
        "node_state", "What the node does now: 1", "state", {one: float(one == state) for one in NODE_STATES}
    )
    yield from _one("round_duration_seconds", "Length of a round", watched.round_seconds)
    yield from _one("current_round", "The round by the ledger's clock", watched.current_round())


def _rounds(vitals: Vitals) -> Families:
    yield from _sum("rounds_played", "Rounds played to their end", vitals.rounds)
    yield from _sum("claimed_reward_micros", "Reward claimed, in micro-units", vitals.reward_micros)
    yield from _sum("sampled_tokens", "Tokens sampled", vitals.tokens)
    yield from _sum("groups_made", "Groups sampled", vitals.groups)
    yield from _sum("external_groups", "Other peers' groups learned from", vitals.external_groups)
    stages = CounterMetricFamily(
        "swarm_stages", "Stages by whether what was made was announced in time", labels=["stage", "outcome"]
    )
    for stage, counted in vitals.stages.items():
        for outcome, count in counted.items():
            stages.add_metric([stage, outcome], count)
    yield stages
    yield _counter("drops", "What others sent and was not used, by reason", "reason", vitals.dropped)


def _last_round(vitals: Vitals) -> Families:
    last = vitals.last
    if last is None:
        return
    yield from _one("last_round", "The round that was played last", last.round)
    yield _gauge("last_reward", "Mean reward of the last round's completions", "stage", last.rewards)
    yield _gauge("last_phase_seconds", "Where the last round's time went", "phase", last.seconds)
    yield from _one("tokens_per_second", "In the last round, while sampling", last.tokens_per_second)
    yield from _one("external_share", "Others' groups in the last batch, 0 to 1", last.external_share)


def _reports(vitals: Vitals) -> Families:
    outbox = vitals.outbox
    yield _gauge("reports", "Reports by how far they are", "state", outbox.reports)
    yield from _one("late_reports", "Reports in a block after their round", outbox.late)
    waiting = 0.0 if outbox.oldest_open_round is None else outbox.oldest_open_seconds
    yield from _one("oldest_open_report_seconds", "Since it was handed over; 0: none is open", waiting)


def _audits(vitals: Vitals) -> Families:
    audits = vitals.audits
    yield _counter("audits", "Audits of others", "outcome", {k: one.done for k, one in audits.items()})
    seconds = {k: one.seconds for k, one in audits.items()}
    yield _counter("audit_seconds", "Time that audits of others took", "outcome", seconds)
    fetched = {k: one.fetched_bytes for k, one in audits.items()}
    yield _counter("audit_fetched_bytes", "What audits of others fetched", "outcome", fetched)


def _machine(vitals: Vitals) -> Families:
    yield _gauge("memory_bytes", "Resident memory of the node's processes", "process", vitals.memory)
    machine = psutil.virtual_memory()
    yield from _one("machine_memory_bytes", "Memory of this machine", machine.total)
    yield from _one("machine_memory_available_bytes", "Of it, to be had", machine.available)
    if vitals.disk is not None:
        yield from _one("disk_free_bytes", "Free where the home is", vitals.disk.free_bytes)
        yield from _one("disk_size_bytes", "Size of the disk where the home is", vitals.disk.size_bytes)


def _ledger(watched: Watched) -> Families:
    yield from _one("ledger_away", "1 if the ledger did not answer when asked last", watched.is_ledger_away())
    standing = watched.standing()
    if standing is not None:
        behind = max(0, watched.current_round() - standing.round)
        yield from _one("ledger_behind_rounds", "Rounds of the ledger that are not read yet", behind)


def _exchange(health: Health | None) -> Families:
    if health is None:
        return
    yield from _one("dht_peers", "Peers in the DHT's routing table", health.peers)
    yield from _sum("libp2p_restarts", "How often libp2p had to be started again", health.restarts)
    yield from _sum("announcements_heard", "Others' announcements, each time they were read", health.heard)
    yield from _sum("fetched_bytes", "Of others' blobs and states", health.fetched_bytes)
    yield from _sum("served_bytes", "Of blobs and states, to others", health.served_bytes)


def _standing(standing: OwnStanding | None) -> Families:
    if standing is None:
        return
    yield from _one("score", "Reputation, 0 to 1", standing.score_micros / MICROS)
    counted = {"passed": standing.passes, "failed": standing.fails}
    yield _gauge(
        "reputation_audits", "Settled audits of this peer, older ones counting less", "outcome", counted
    )
    settled = {"passed": standing.audits_passed, "failed": standing.audits_failed}
    yield _gauge("settled_audits", "Settled audits of this peer", "outcome", settled)
    yield from _one("verified_reward_micros", "Reward that counts, in micro-units", standing.verified_micros)
    yield from _one("ranked_rounds", "Rounds that count", standing.ranked_rounds)
    yield from _one("eligible", "1 if others learn from this peer", standing.is_eligible)
    yield from _one("on_probation", "1 after a settled fault", standing.is_on_probation)


def _gpus() -> Families:
    gpus = gpus_here()
    memory = GaugeMetricFamily(
        "swarm_gpu_memory_bytes", "Of a GPU, by this process; total: its size", labels=["gpu", "kind"]
    )
    for gpu in gpus:
        memory.add_metric([str(gpu.index), "allocated"], gpu.allocated_bytes)
        memory.add_metric([str(gpu.index), "reserved"], gpu.reserved_bytes)
        memory.add_metric([str(gpu.index), "total"], gpu.total_bytes)
    used = {str(gpu.index): gpu.utilization for gpu in gpus if gpu.utilization is not None}
    if gpus:
        yield memory
    if used:
        yield _gauge("gpu_utilization_ratio", "Of the time, by all processes, 0 to 1", "gpu", used)

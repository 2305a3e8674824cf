"""`swarm status` on a terminal: the vital numbers of a peer, then its tables; live while a node runs."""

from __future__ import annotations

import time
from bisect import bisect_left
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swarm.board.live import sparkline
from swarm.board.status import (
    PeerStatus,
    StatusReader,
    SwarmStatus,
    audits_table,
    exchange_lines,
    gossip_table,
    status_table,
)
from swarm.board.vitals import Vitals
from swarm.console import plain
from swarm.manifest import MICROS
from swarm.records import Status
from swarm.settings import Settings

REFRESH_SECONDS = 1.0
LEAST_ROWS = 3  # of a table; where there is no room for them, the last table is left out
SHORT_TX = 12  # characters of a transaction where it must not take a second line


def show_status(settings: Settings, rounds: int, console: Console, *, once: bool) -> None:
    """Print it; on a terminal, while a node runs, go on showing it until Ctrl-C."""
    reader = StatusReader(settings)
    status = reader.read()
    if once or not console.is_terminal or not status.running:
        print_status(status, rounds, console)
        return
    try:
        # Not on the alternate screen: what was seen last stays when it ends.
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(screen(reader.read(last=rounds), rounds, console), refresh=True)
                time.sleep(REFRESH_SECONDS)
    except KeyboardInterrupt:
        return


def print_status(status: PeerStatus, rounds: int, console: Console) -> None:
    """All swarms, as long as it may be."""
    console.print(_title(status), soft_wrap=True)
    for swarm in status.swarms:
        console.print(vitals_table(swarm, status.running, time.time()))
        for table in _tables(swarm, rounds):
            console.print(table)
        for line in exchange_lines(swarm, rounds):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def screen(status: PeerStatus, rounds: int, console: Console) -> RenderableType:
    """The swarm that was joined last, as it fits: as many tables and rounds as there is room for."""
    if not status.swarms:
        return _title(status)
    swarm = status.swarms[-1]
    vitals = vitals_table(swarm, status.running, time.time())

    def with_rows(count: int, rows: int) -> Group:
        return Group(_title(status), vitals, *_tables(swarm, rows, SHORT_TX)[:count])

    def is_too_high(count: int, rows: int) -> bool:
        return len(console.render_lines(with_rows(count, rows))) >= console.height

    least, most = min(rounds, LEAST_ROWS), min(rounds, console.height)
    for count in range(len(_tables(swarm, rounds)), 0, -1):
        # The first number of rows that is too many; rendering takes milliseconds, so not one after the other.
        over = bisect_left(range(least, most + 1), True, key=partial(is_too_high, count))
        if over > 0:
            return with_rows(count, least + over - 1)
    return Group(_title(status), vitals)


def vitals_table(swarm: SwarmStatus, running: bool, now: float) -> Table:
    """The vital numbers, a line for each kind."""
    vitals, doing = swarm.vitals, swarm.doing
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    lines = {
        "now": _now(doing, running, now),
        "reward": _reward(vitals),
        "round": _round(vitals),
        "reports": _reports(vitals),
        "peers": _peers(doing),
        "audits": ", ".join(f"{one.done} {outcome}" for outcome, one in vitals.audits.items()),
        "score": _score(doing),
        "machine": _machine(vitals, doing if running else None),
    }
    for name, words in lines.items():
        if words:
            table.add_row(name, Text(plain(words)))
    return table


def bytes_text(count: float) -> str:
    """In a unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _title(status: PeerStatus) -> Text:
    return Text(f"{status.name}  {status.peer}  {'running' if status.running else 'not running'}")


def _tables(swarm: SwarmStatus, rounds: int, tx_chars: int | None = None) -> list[Table]:
    tables = [status_table(swarm, rounds, tx_chars)]
    if swarm.gossip:
        tables.append(gossip_table(swarm, rounds))
    if swarm.audits:
        tables.append(audits_table(swarm, rounds))
    return tables


def _now(doing: Status | None, running: bool, now: float) -> str:
    if doing is None:
        return ""
    words = doing.state if running else f"was last at: {doing.state}"
    if doing.round is not None:
        words += f", round {doing.round}"
    if running and doing.ends_at is not None:
        left = doing.ends_at - now
        words += f", {left:.0f} s left" if left >= 0 else f", over its time by {-left:.0f} s"
    return words + (", the ledger does not answer" if running and doing.is_ledger_away else "")


def _reward(vitals: Vitals) -> str:
    if vitals.last is None:
        return ""
    last = "  ".join(f"{stage} {mean:.2f}" for stage, mean in vitals.last.rewards.items())
    full = max([1.0, *vitals.trend])  # a swarm may pay more than 1
    trend = sparkline([max(0.0, value) / full for value in vitals.trend])
    return f"{trend}  {last}  claimed in all {vitals.reward_micros / MICROS:,.3f}"


def _round(vitals: Vitals) -> str:
    last = vitals.last
    if last is None:
        return ""
    parts = [f"{vitals.rounds} played"]
    if last.tokens_per_second is not None:
        parts.append(f"{last.tokens_per_second:,.0f} tokens/s")
    parts.append(f"{last.groups} groups")
    if last.external_share is not None:
        parts.append(f"{last.external_share:.0%} of the batch from others")
    parts += [f"{kind} {seconds:.1f} s" for kind, seconds in last.seconds.items()]
    parts += [f"{stage} {outcome}" for stage, outcome in last.stages.items() if outcome != "on_time"]
    return ", ".join(parts)


def _reports(vitals: Vitals) -> str:
    outbox = vitals.outbox
    words = ", ".join(f"{count} {state}" for state, count in outbox.reports.items() if count)
    if outbox.late:
        words += f", {outbox.late} late"
    if outbox.oldest_open_seconds is not None:
        words += f", the oldest open one waits for {outbox.oldest_open_seconds:,.0f} s"
    return words


def _peers(doing: Status | None) -> str:
    health = doing.health if doing is not None else None
    if health is None:
        return ""
    words = (
        f"{health.peers} in the DHT, {health.heard} announcements heard, "
        f"{bytes_text(health.fetched_bytes)} fetched, {bytes_text(health.served_bytes)} served"
    )
    return words + (f", libp2p restarted {health.restarts} times" if health.restarts else "")


def _score(doing: Status | None) -> str:
    own = doing.standing if doing is not None else None
    if own is None:
        return ""
    words = (
        f"{own.score_micros / MICROS:.2f}, audited {own.audits_passed} passed {own.audits_failed} failed, "
        f"{own.ranked_rounds} rounds ranked, reward that counts {own.verified_micros / MICROS:,.3f}"
    )
    if own.is_on_probation:
        words += ", on probation"
    return words if own.is_eligible else f"{words}, not eligible"


def _machine(vitals: Vitals, doing: Status | None) -> str:
    parts = []
    if vitals.memory:
        each = ", ".join(f"{kind} {bytes_text(count)}" for kind, count in vitals.memory.items())
        parts.append(f"memory {bytes_text(sum(vitals.memory.values()))} ({each})")
    for gpu in doing.gpus if doing is not None else ():
        used = "" if gpu.utilization is None else f" at {gpu.utilization:.0%}"
        parts.append(
            f"GPU {gpu.index} {bytes_text(gpu.reserved_bytes)} of {bytes_text(gpu.total_bytes)}{used}"
        )
    if vitals.disk is not None:
        parts.append(f"disk {bytes_text(vitals.disk.free_bytes)} free")
    return ", ".join(parts)

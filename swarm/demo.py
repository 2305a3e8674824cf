"""`swarm demo`: a whole swarm on this machine, made of the same parts as any other.

It starts a devnet, creates the swarm on it, starts peers as separate `swarm join` processes and a board as
`swarm board`, shows what the peers' databases say, and in the end reads the leaderboard from the ledger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from eth_account import Account
from rich.console import Console
from rich.live import Live

from identity import Identity, load_or_create_identity, load_or_create_wallet, peer_name
from swarm.audit_log import AUDITS_FILE, AuditLog
from swarm.board import report
from swarm.board.leaderboard import leaderboard_table
from swarm.board.live import PeerView, live_table, round_line
from swarm.board.plot import plot_rewards
from swarm.console import say
from swarm.errors import SwarmError, UsageError
from swarm.guard import Guard
from swarm.ledger.client import LedgerClient
from swarm.ledger.creation import deploy
from swarm.ledger.deliveries import Deliveries
from swarm.ledger.devnet import Devnet
from swarm.manifest import EMBEDDED_MODEL, Manifest
from swarm.records import Records
from swarm.settings import Settings
from swarm.task_check import check_loads
from swarm.verde.standings import read_history

DEMO_MANIFEST = Path(__file__).parent.parent / "configs" / "demo.yaml"
# From the start of the peers to the first round: what four peers take to load on two cores, and more.
LOADING_SECONDS = 10
LOADING_SECONDS_PER_PEER = 6
REFRESH_SECONDS = 0.5
STOP_SECONDS = 3.0  # a peer that has not stopped by then is killed
FUNDS_ETHER = 10
BOARD_PLACE = ("127.0.0.1", 8734)
MACHINE_FOLDER = "machine"  # the demo's keys and chain are its own, so their locks and queues are too


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    peers: int
    rounds: int
    seed: int
    report: Path | None
    manifest: Path
    home: Path
    model: str | None = None  # one of the manifest's; None: tiny where it is allowed, which needs no network
    board: bool = True


@dataclass
class Started:
    """A `swarm` process in a home of its own."""

    settings: Settings
    process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self.process is not None and self.process.poll() is None


@dataclass
class DemoPeer(Started):
    """One peer, and what its database says."""

    identity: Identity = field(kw_only=True)
    view: PeerView = field(default_factory=PeerView)


def run_demo(options: Options, console: Console) -> int:
    """Run a demo to its end; returns the exit code. Leaving it in any way stops all it started."""
    began = time.monotonic()
    # Before anything is started: a task's parameters may be wrong.
    manifest = msgspec.structs.replace(check_loads(options.manifest), seed=options.seed)
    folder = _make_folder(options)
    report_path = options.report or folder / "report.json"
    _check_writable(report_path)
    with ExitStack() as stack:
        guard = stack.enter_context(Guard())
        console.print(
            f"starting a ledger and {options.peers} peers; logs are in {folder}",
            style="dim",
            markup=False,
            soft_wrap=True,
        )
        devnet = stack.enter_context(Devnet(log_path=folder / "anvil.log"))
        guard.watch(devnet.pid)
        peers = [_make_peer(folder / f"peer{i}", devnet) for i in range(options.peers)]
        loading = LOADING_SECONDS + LOADING_SECONDS_PER_PEER * (options.peers + options.board)
        ledger = deploy(
            devnet.rpc_url,
            Account.from_key(devnet.funded_key),
            manifest,
            int(time.time()) + loading,
            folder / MACHINE_FOLDER,
        )
        board = Started(Settings(home=folder / "board"))
        started: list[Started] = [*peers, board]
        stack.callback(_stop, started)
        for peer in peers:
            _start_peer(peer, ledger, manifest, options, folder / MACHINE_FOLDER)
            guard.watch(peer.process.pid)  # type: ignore[union-attr]
        if options.board:
            _start(board, ["board", ledger.join_line, "--listen", _board_place()], folder / MACHINE_FOLDER)
            guard.watch(board.process.pid)  # type: ignore[union-attr]
        _watch(peers, board, ledger, manifest, options, console)
        expected = list[Started](peers) if board.running else started  # to have ended well by now
        _stop(peers)
        if not any(peer.view.records for peer in peers):
            raise SwarmError(f"no peer finished a round; one of them says: {_last_words(peers[0])}")
        result = report.build(
            [(peer.identity, peer.view.records) for peer in peers],
            [(peer.identity, peer.view.audits) for peer in peers],
            ledger,
            seed=options.seed,
            seconds=time.monotonic() - began,
        )
        _wait_for_next_round(ledger)
        reputation, _ = read_history(ledger, say)

    report_path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    plot_path = report_path.with_suffix(".png")
    plot_rewards(result, manifest.rewards, plot_path)
    _discard_bulk(peers)
    console.print(leaderboard_table(reputation.standings(), title=f"Leaderboard, read from {ledger.address}"))
    console.print(
        f"plot    {plot_path}\nreport  {report_path}", soft_wrap=True, highlight=False, markup=False
    )
    for one in expected:
        code = one.process.returncode if one.process else None
        if code:
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            name = one.view.name if isinstance(one, DemoPeer) else "the board"
            line = f"lost    {name} ({how}): see {_log_path(one)}"
            console.print(line, style="yellow", soft_wrap=True, markup=False)
    return 0


def _log_path(one: Started) -> Path:
    return one.settings.home / ("node.log" if isinstance(one, DemoPeer) else "board.log")


def _last_words(peer: DemoPeer) -> str:
    lines = _log_path(peer).read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"nothing; see {_log_path(peer)}")


def _make_folder(options: Options) -> Path:
    parent = options.home / "demo"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        prefix = time.strftime(f"%Y%m%d-%H%M%S-seed{options.seed}-")
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise SwarmError(f"cannot make {parent}: {error.strerror}; choose another --home") from error


def _check_writable(path: Path) -> None:
    """Fail before the work, not after it."""
    if path.suffix == ".png":
        raise UsageError(f"the report {path} is JSON, and its plot takes the ending .png: name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise SwarmError(f"cannot write the report {path}: {error.strerror}") from error


def _make_peer(home: Path, devnet: Devnet) -> DemoPeer:
    settings = Settings(home=home)
    identity, journal = load_or_create_identity(home)
    journal.close()
    wallet = load_or_create_wallet(settings.wallet_path)
    devnet.fund(wallet.address, FUNDS_ETHER)
    return DemoPeer(settings, identity=identity, view=PeerView(peer_name(identity.peer)))


def _start_peer(
    peer: DemoPeer, ledger: LedgerClient, manifest: Manifest, options: Options, machine: Path
) -> None:
    threads = max(1, (os.cpu_count() or 1) // options.peers)
    command = ["join", ledger.join_line, "--rounds", str(options.rounds), "--threads", str(threads)]
    command += ["--memory-share", str(1 / options.peers), "--metrics", "127.0.0.1:0"]
    model = options.model or (EMBEDDED_MODEL if EMBEDDED_MODEL in manifest.models else None)
    command += ["--model", model] if model else []
    _start(peer, command, machine)


def _start(one: Started, command: list[str], machine: Path) -> None:
    one.settings.home.mkdir(parents=True, exist_ok=True)
    with _log_path(one).open("wb") as log:
        # A session of its own: its p2p daemon can be ended with it, and Ctrl-C reaches only the demo.
        one.process = subprocess.Popen(
            [sys.executable, "-m", "swarm", *command, "--home", str(one.settings.home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "SWARM_MACHINE_DIR": str(machine)},
        )


def _board_place() -> str:
    """Where `swarm board` is by default; any free port, if that one is taken."""
    try:
        with socket.create_server(BOARD_PLACE):
            return f"{BOARD_PLACE[0]}:{BOARD_PLACE[1]}"
    except OSError:
        return f"{BOARD_PLACE[0]}:0"


def _board_line(board: Started) -> str | None:
    """What the board said when it began to serve; None if it has not."""
    with contextlib.suppress(OSError):
        for line in _log_path(board).read_text(errors="replace").splitlines():
            if line.startswith("board at "):
                return line
    return None


def _watch(
    peers: list[DemoPeer],
    board: Started,
    ledger: LedgerClient,
    manifest: Manifest,
    options: Options,
    console: Console,
) -> None:
    """Show the swarm until every peer has played its rounds or is gone."""
    # Each peer plays its rounds and exits; one that hangs is given two rounds more.
    longest = manifest.round_seconds * (options.rounds + 2)
    printed, board_said = 0, not options.board
    with _display(console) as display:
        while any(peer.running for peer in peers) and ledger.now() < ledger.genesis + longest:
            if not board_said:
                line = _board_line(board)
                if line is None and not board.running:
                    line = f"the board has ended: see {_log_path(board)}"
                if line is not None:
                    console.print(line, soft_wrap=True, highlight=False, markup=False)
                    board_said = True
            for peer in peers:
                _read(peer, ledger)
            views = [peer.view for peer in peers]
            if display:
                display.update(live_table(views, ledger, manifest, console.width), refresh=True)
            else:
                done = _finished_rounds(peers)
                for number in done[printed:]:
                    console.print(round_line(number, views), soft_wrap=True, highlight=False)
                printed = len(done)
            time.sleep(REFRESH_SECONDS)
    for peer in peers:
        _read(peer, ledger)


def _wait_for_next_round(ledger: LedgerClient) -> None:
    """A round counts for the leaderboard when the next one has begun."""
    number = int((ledger.now() - ledger.genesis) // ledger.round_seconds)
    give_up = time.monotonic() + ledger.round_seconds
    while ledger.first_block(number + 1) is None and time.monotonic() < give_up:
        time.sleep(REFRESH_SECONDS)


@contextlib.contextmanager
def _display(console: Console) -> Iterator[Live | None]:
    """A live table on a terminal; into a file or pipe, one line a round."""
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, auto_refresh=False) as live:
        yield live


def _finished_rounds(peers: list[DemoPeer]) -> list[int]:
    """Rounds that every running peer has reported."""
    reported = [peer.view.on_ledger for peer in peers if peer.running]
    return sorted(set.intersection(*reported)) if reported else []


def _read(peer: DemoPeer, ledger: LedgerClient) -> None:
    peer.view.running = peer.running
    folder = peer.settings.swarm_dir(ledger.swarm_id, ledger.address, ledger.genesis)
    if not (folder / "state.sqlite").exists() or not (folder / "outbox.sqlite").exists():
        return
    with contextlib.closing(Records(folder / "state.sqlite", read_only=True)) as records:
        if records.exist:
            peer.view.status = records.status()
            peer.view.records = records.rounds()
    with contextlib.closing(Deliveries(folder / "outbox.sqlite", read_only=True)) as deliveries:
        if deliveries.exist:
            peer.view.deliveries = {delivery.round: delivery for delivery in deliveries.all()}
    if (folder / AUDITS_FILE).exists():
        with contextlib.closing(AuditLog(folder / AUDITS_FILE, read_only=True)) as audits:
            peer.view.audits = audits.audits()


def _stop(processes: Sequence[Started]) -> None:
    """Ask every process to stop, then kill what is left of its session (its p2p daemon too)."""
    for one in processes:
        if one.running:
            one.process.terminate()  # type: ignore[union-attr]
    deadline = time.monotonic() + STOP_SECONDS
    for one in processes:
        if one.process is None:
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()


def _discard_bulk(peers: list[DemoPeer]) -> None:
    """Drop checkpoints and blobs; records, keys and logs stay for a look."""
    for peer in peers:
        for kind in ("checkpoints", "blobs"):
            for folder in peer.settings.home.glob(f"swarms/*/{kind}"):
                for file in sorted(folder.rglob("*"), reverse=True):
                    file.rmdir() if file.is_dir() else file.unlink()
                folder.rmdir()

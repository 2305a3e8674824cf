"""The commands. Each parses its arguments and calls one function; heavy imports wait until needed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from identity import IdentityError
from swarm import identity_commands, task_commands
from swarm.console import complain, log_to_stderr, say
from swarm.errors import LedgerError, SwarmError, UsageError
from swarm.options import (
    count,
    ether,
    host_and_port,
    model_options,
    network_options,
    place_or_off,
    seed,
    share,
    trackers,
)
from swarm.settings import Settings, swarm_home

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parsed = _parser().parse_args(arguments)
    # Being told to end is the same as Ctrl-C: everything that was started is stopped on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = _interrupt_again
    try:
        return parsed.run(parsed)
    except UsageError as error:
        complain(error)
        return EXIT_USAGE
    except (SwarmError, IdentityError) as error:
        complain(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        say("swarm: stopped")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # who read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops an interrupt that arrives in a finalizer; called for it, this sends another soon."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        sys.__unraisablehook__(unraisable)


def _demo(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from swarm.demo import DEMO_MANIFEST, Options, run_demo

    options = Options(
        peers=arguments.peers,
        rounds=arguments.rounds,
        seed=arguments.seed,
        report=arguments.report,
        manifest=arguments.manifest or DEMO_MANIFEST,
        home=arguments.home,
        model=arguments.model,
        board=arguments.board,
    )
    return run_demo(options, Console())


def _create(arguments: argparse.Namespace) -> int:
    import time

    from identity import load_or_create_wallet
    from swarm.ledger.client import connect
    from swarm.ledger.creation import deploy, deploy_view
    from swarm.ledger.join import check_url
    from swarm.ledger.rpc import Rpc
    from swarm.manifest import succeed
    from swarm.settings import machine_dir
    from swarm.task_check import check_loads

    check_url(arguments.rpc, "--rpc", "an RPC URL")
    if arguments.relay:
        check_url(arguments.relay, "--relay", "a relay's URL")
    manifest = check_loads(arguments.manifest)  # before it is paid for: a task's parameters may be wrong
    if arguments.successor_of:
        before, chain = connect(arguments.successor_of), Rpc(arguments.rpc)
        same_chain = before.rpc.served_chain() == chain.served_chain()
        if not same_chain:
            say("the predecessor is on another chain, so scores begin anew")
        manifest = succeed(manifest, before.swarm_id, before.address if same_chain else None)
    wallet = load_or_create_wallet(Settings(home=arguments.home).wallet_path)
    genesis = int(time.time()) + arguments.delay
    ledger = deploy(arguments.rpc, wallet, manifest, genesis, machine_dir(), say)
    try:
        view = deploy_view(ledger, wallet, machine_dir(), say)
    except LedgerError as error:  # the swarm is there, and works without it
        complain(error)
        view = None
    line = ledger.join_line + (f"#{arguments.relay}" if arguments.relay else "")
    if arguments.json:
        created = {"join": line, "address": ledger.address, "view": view, "swarm": manifest.swarm_id.hex()}
        print(json.dumps(created | {"chain_id": ledger.chain_id, "genesis": genesis}, indent=2))
        return 0
    if view:
        say(f"readers of RL Swarm's contract use {view}")
    say(f"{manifest.name} begins in {arguments.delay} s; others join with this line:")
    print(line)
    return 0


def _join(arguments: argparse.Namespace) -> int:
    log_to_stderr()
    from swarm.exchange.reach import reach_of
    from swarm.ledger.join import check_url, parse_join_line

    # So that a typo is noticed before imports that take seconds.
    line = parse_join_line(arguments.swarm)
    if arguments.relay:
        check_url(arguments.relay, "--relay", "a relay's URL")
    settings = replace(
        _network_settings(arguments),
        model=arguments.model,
        device=arguments.device,
        lora=arguments.lora,
        four_bit=arguments.four_bit or None,
        memory_share=arguments.memory_share,
        trusted_code=tuple(arguments.trust_code),
        processes=arguments.processes,
        trackers=trackers(arguments.tracker),
        push_repo=arguments.push,
        push_rounds=arguments.push_every,
        push_private=not arguments.push_public,
        threads=arguments.threads,
        max_blob_mib=arguments.blobs,
        audit_share=arguments.audit_share,
        audit_mib_per_day=arguments.audit_mib,
        metrics=arguments.metrics,
        manifest_path=arguments.manifest,
    )
    reach_of(settings, line.rpc_url)
    from swarm.node import Node

    with Node(settings, arguments.swarm) as node:
        node.run(arguments.rounds)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from swarm.doctor import as_json, examine, show
    from swarm.ledger.join import check_url

    if arguments.relay:
        check_url(arguments.relay, "--relay", "a relay's URL")
    settings = _network_settings(arguments)
    if arguments.json:
        checks = list(examine(settings, arguments.swarm))
        print(as_json(checks))
    else:
        checks = show(settings, arguments.swarm)
    return EXIT_FAILED if any(check.state == "failed" for check in checks) else 0


def _network_settings(arguments: argparse.Namespace) -> Settings:
    """The settings that `network_options` asks for."""
    return Settings(
        home=arguments.home,
        listen=tuple(arguments.listen) or None,
        public_addresses=tuple(arguments.public_address),
        trusted_relays=tuple(arguments.relay_peer),
        nat=arguments.nat,
        initial_peers=tuple(arguments.peer),
        relay_url=arguments.relay,
        invite=arguments.invite,
    )


def _leaderboard(arguments: argparse.Namespace) -> int:
    from swarm.board.leaderboard import leaderboard_rows, leaderboard_table
    from swarm.ledger.client import connect
    from swarm.verde.standings import read_history

    ledger = connect(arguments.swarm)
    reputation, _ = read_history(ledger, say)
    standings = reputation.standings()
    if arguments.json:
        print(json.dumps(leaderboard_rows(standings), indent=2))
        return 0
    from rich.console import Console

    Console().print(leaderboard_table(standings, title=f"Leaderboard, read from {ledger.address}"))
    return 0


def _board(arguments: argparse.Namespace) -> int:
    log_to_stderr()
    from swarm.board.server import Options, run_board
    from swarm.ledger.client import connect, parse_join_line
    from swarm.link import last_join_line

    if arguments.join_line:
        parse_join_line(arguments.join_line)
    settings = Settings(home=arguments.home)
    ledger = connect(arguments.swarm or last_join_line(settings, "swarm board CONTRACT@RPC"))
    host, port = arguments.listen
    options = Options(
        home=arguments.home,
        host=host,
        port=port,
        per_minute=arguments.per_minute,
        pins=tuple(arguments.pin),
        public_line=arguments.join_line,
    )
    run_board(options, ledger, partial(print, flush=True))  # a script waits for the line
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    from swarm.audit_by_hand import as_json, audit_by_hand, finding_line, summary_lines
    from swarm.ledger.client import connect
    from swarm.link import last_join_line
    from swarm.verde.verdicts import Outcome

    settings = Settings(
        home=arguments.home, trusted_code=tuple(arguments.trust_code), device=arguments.device
    )
    ledger = connect(arguments.swarm or last_join_line(settings, "--swarm CONTRACT@RPC"))
    done = audit_by_hand(
        settings,
        ledger,
        arguments.peer,
        arguments.round,
        say=say,
        tell=lambda finding: None if arguments.json else print(finding_line(finding), flush=True),
    )
    print(as_json(done) if arguments.json else "\n".join(summary_lines(done)))
    return EXIT_FAILED if done.findings.outcome in (Outcome.FAILED, Outcome.WITHHELD) else 0


def _status(arguments: argparse.Namespace) -> int:
    settings = Settings(home=arguments.home)
    if arguments.json:
        from swarm.board.status import as_json, peer_status

        print(as_json(peer_status(settings)))
        return 0
    from rich.console import Console

    from swarm.board.screen import show_status

    show_status(settings, arguments.rounds, Console(), once=arguments.once)
    return 0


def _relay(arguments: argparse.Namespace) -> int:
    log_to_stderr()
    from identity import load_or_create_wallet
    from swarm.ledger.join import parse_join_line
    from swarm.ledger.relay import RelayOptions
    from swarm.ledger.relay_rules import Quotas
    from swarm.ledger.relay_server import run_relay

    parse_join_line(arguments.swarm)
    host, port = arguments.listen
    quotas = Quotas(
        ether_per_day=arguments.ether_per_day,
        waiting_per_client=arguments.waiting_per_client,
        registrations_per_day=arguments.registrations,
        registrations_per_client=arguments.registrations_per_client,
        min_balance_ether=arguments.min_balance,
    )
    wallet = load_or_create_wallet(Settings(home=arguments.home).wallet_path)
    run_relay(
        RelayOptions(
            swarm=arguments.swarm,
            account=wallet,
            home=arguments.home,
            host=host,
            port=port,
            invites=arguments.invites,
            quotas=quotas,
        ),
        partial(print, flush=True),  # a script waits for the line
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="swarm", description="Train language models together by reinforcement learning, trusting nobody."
    )
    parser.add_argument("--version", action="version", version=f"swarm-rl {version('swarm-rl')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument("--home", type=Path, default=swarm_home(), help="where keys and data are (%(default)s)")
    network = network_options()

    demo = commands.add_parser(
        "demo", parents=[home], help="a whole swarm on this machine, offline", description=_demo_description()
    )
    demo.add_argument("--peers", type=count, default=4, metavar="N", help="how many peers (%(default)s)")
    demo.add_argument(
        "--rounds", type=count, default=12, metavar="R", help="rounds that each peer plays (%(default)s)"
    )
    demo.add_argument(
        "--seed", type=seed, default=1, metavar="S", help="which questions are drawn (%(default)s)"
    )
    demo.add_argument(
        "--report", type=Path, metavar="FILE.json", help="where the report goes; the plot goes beside it"
    )
    demo.add_argument(
        "--manifest", type=Path, metavar="FILE", help="another swarm's rules (configs/demo.yaml)"
    )
    demo.add_argument(
        "--model", metavar="NAME", help="which of the manifest's models (tiny, if it is one of them)"
    )
    demo.add_argument(
        "--no-board", dest="board", action="store_false", help="without the page, whose address is printed"
    )
    demo.set_defaults(run=_demo)

    create = commands.add_parser(
        "create", parents=[home], help="put a swarm on a chain; prints its join line"
    )
    create.add_argument(
        "manifest", type=Path, metavar="MANIFEST", help="the YAML file with the swarm's rules"
    )
    create.add_argument("--rpc", required=True, metavar="URL", help="the chain's RPC endpoint")
    create.add_argument(
        "--delay", type=seed, default=30, metavar="SECONDS", help="until the first round (%(default)s)"
    )
    create.add_argument(
        "--successor-of", metavar="SWARM", help="the join line of the swarm that this one continues"
    )
    create.add_argument("--relay", metavar="URL", help="a relay to name in the join line")
    create.add_argument("--json", action="store_true", help="for scripts")
    create.set_defaults(run=_create)

    join = commands.add_parser(
        "join",
        parents=[home, network, model_options()],
        help="take part in a swarm until Ctrl-C; survives restarts",
    )
    join.add_argument(
        "swarm", metavar="SWARM", help="the line that `swarm create` printed: CONTRACT@RPC[#RELAY]"
    )
    join.add_argument("--rounds", type=count, metavar="R", help="stop after so many rounds")
    join.add_argument(
        "--blobs",
        type=count,
        default=Settings.max_blob_mib,
        metavar="MIB",
        help="of disk for what is exchanged with others (%(default)s)",
    )
    join.add_argument(
        "--audit-share",
        type=share,
        default=Settings.audit_share,
        metavar="FRACTION",
        help="of the time, at low priority, for auditing others; 0: never (%(default)s)",
    )
    join.add_argument(
        "--audit-mib",
        type=count,
        default=Settings.audit_mib_per_day,
        metavar="MIB",
        help="a day that auditing others may fetch (%(default)s)",
    )
    join.add_argument(
        "--metrics",
        type=place_or_off,
        default=Settings.metrics,
        metavar="HOST:PORT|off",
        help="where Prometheus may read this node's metrics (127.0.0.1:9464)",
    )
    join.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="the swarm's manifest, if the server has no old logs",
    )
    join.set_defaults(run=_join)

    relay = commands.add_parser(
        "relay", parents=[home], help="pay for peers without funds: they sign, this wallet sends"
    )
    relay.add_argument("swarm", metavar="SWARM", help="the swarm's join line")
    relay.add_argument(
        "--listen", type=host_and_port, default="127.0.0.1:8733", metavar="HOST:PORT", help="(%(default)s)"
    )
    relay.add_argument(
        "--invites",
        type=Path,
        metavar="FILE",
        help="serve only who has a code: one a line, then its uses (1)",
    )
    relay.add_argument(
        "--registrations", type=count, default=1000, metavar="N", help="a day, of all (%(default)s)"
    )
    relay.add_argument(
        "--registrations-per-client",
        type=count,
        default=10,
        metavar="N",
        help="a day, of one address; behind a reverse proxy that is the proxy's (%(default)s)",
    )
    relay.add_argument(
        "--waiting-per-client",
        type=count,
        default=4,
        metavar="N",
        help="requests at the same time from one address, or from a reverse proxy (%(default)s)",
    )
    relay.add_argument(
        "--ether-per-day",
        type=ether,
        default=0.1,
        metavar="ETHER",
        help="of gas at most, for all requests together (%(default)s)",
    )
    relay.add_argument(
        "--min-balance",
        type=ether,
        default=0.01,
        metavar="ETHER",
        help="accept nothing more when the wallet has less (%(default)s)",
    )
    relay.set_defaults(run=_relay)

    doctor = commands.add_parser(
        "doctor",
        parents=[home, network],
        help="check this machine, the ledger and the way to other peers; changes nothing",
    )
    doctor.add_argument(
        "swarm", metavar="SWARM", nargs="?", help="the swarm's join line; without it, less is checked"
    )
    doctor.add_argument("--json", action="store_true", help="for scripts")
    doctor.set_defaults(run=_doctor)

    leaderboard = commands.add_parser("leaderboard", help="who contributed what, read from the ledger")
    leaderboard.add_argument("swarm", metavar="SWARM", help="the swarm's join line")
    leaderboard.add_argument("--json", action="store_true", help="for scripts")
    leaderboard.set_defaults(run=_leaderboard)

    board = commands.add_parser(
        "board",
        parents=[home],
        help="a live page about a swarm, and its API, until Ctrl-C; writes nothing to it",
    )
    board.add_argument(
        "swarm", metavar="SWARM", nargs="?", help="the swarm's join line (of the swarm joined last)"
    )
    board.add_argument(
        "--listen", type=host_and_port, default="127.0.0.1:8734", metavar="HOST:PORT", help="(%(default)s)"
    )
    board.add_argument(
        "--pin", action="append", default=[], metavar="PEER", help="the id of a peer of yours to show on top"
    )
    board.add_argument(
        "--join-line", metavar="LINE", help="what newcomers are shown, if the RPC URL is not for them"
    )
    board.add_argument(
        "--per-minute",
        type=seed,
        default=1200,
        metavar="N",
        help="requests of one address (of a reverse proxy, if there is one); 0: any number (%(default)s)",
    )
    board.set_defaults(run=_board)

    audit = commands.add_parser(
        "audit",
        parents=[home],
        help="check any peer's report by hand, and say what was checked and found; writes nothing",
    )
    audit.add_argument("peer", metavar="PEER", help="its id, or its name in quotes")
    audit.add_argument("--round", type=seed, required=True, metavar="R", help="which of its last reports")
    audit.add_argument("--swarm", metavar="SWARM", help="the join line (of the swarm joined last)")
    audit.add_argument("--device", default="auto", metavar="DEVICE", help="where to compute (%(default)s)")
    audit.add_argument(
        "--trust-code",
        action="append",
        default=[],
        metavar="OWNER/NAME@COMMIT",
        help="let this model run the code that it brings",
    )
    audit.add_argument("--json", action="store_true", help="for scripts")
    audit.set_defaults(run=_audit)

    status = commands.add_parser(
        "status", parents=[home], help="what this peer does and hears, and how far each of its reports is"
    )
    status.add_argument("--rounds", type=count, default=20, metavar="N", help="show the last N (%(default)s)")
    status.add_argument(
        "--once", action="store_true", help="print it, instead of showing it live while a node runs"
    )
    status.add_argument("--json", action="store_true", help="for scripts; all rounds")
    status.set_defaults(run=_status)

    identity_commands.add_parser(commands, home)
    task_commands.add_parser(commands)
    return parser


def _demo_description() -> str:
    return (
        "Starts a devnet, creates a swarm on it, lets peers train in processes of their own, shows them in a "
        "live table, and ends with a plot, the leaderboard read from the ledger, and a report."
    )

"""`swarm identity …`: looking after the key, the wallet and the journal of one home."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from swarm.console import say
from swarm.errors import SwarmError, UsageError
from swarm.settings import Settings, hold_home, machine_dir

BACKUP_PASSWORD_VARIABLE = "SWARM_BACKUP_PASSWORD"


def add_parser(commands: argparse._SubParsersAction, home: argparse.ArgumentParser) -> None:
    """Add `identity` and its actions."""
    identity = commands.add_parser("identity", help="this machine's peer identity")
    actions = identity.add_subparsers(required=True, metavar="ACTION")

    show = actions.add_parser("show", parents=[home], help="the peer id, its name and its files")
    show.add_argument("--json", action="store_true", help="for scripts")
    show.set_defaults(run=_show)

    password = argparse.ArgumentParser(add_help=False)
    password.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help=f"the backup's password ({BACKUP_PASSWORD_VARIABLE}, or a prompt)",
    )
    backup = actions.add_parser(
        "backup", parents=[home, password], help="one encrypted file of swarm.pem, the wallet and the journal"
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="where to; never overwritten")
    backup.set_defaults(run=_backup)

    restore = actions.add_parser("restore", parents=[home, password], help="bring a backup back")
    restore.add_argument("file", type=Path, metavar="FILE", help="what `backup` wrote")
    restore.set_defaults(run=_restore)

    register = actions.add_parser(
        "register", parents=[home], help="bind the peer to this wallet's account; also moves it there"
    )
    register.add_argument("swarm", metavar="SWARM", help="the swarm's join line")
    register.add_argument("--yes", action="store_true", help="do not ask")
    register.add_argument("--relay", metavar="URL", help="a relay that pays for it")
    register.add_argument("--invite", metavar="CODE", help="the relay's invite, if it asks for one")
    register.set_defaults(run=_register)

    rotate = actions.add_parser(
        "rotate", parents=[home], help="hand the peer's score and history to a new key, for good"
    )
    rotate.add_argument("swarms", metavar="SWARM", nargs="+", help="every swarm in which it is to go on")
    rotate.add_argument("--yes", action="store_true", help="do not ask")
    rotate.add_argument("--relay", metavar="URL", help="a relay that pays for it")
    rotate.add_argument("--invite", metavar="CODE", help="the relay's invite, if it asks for one")
    rotate.set_defaults(run=_rotate)

    wallet = actions.add_parser("import-wallet", parents=[home], help="use an account that you have")
    wallet.add_argument(
        "file", type=Path, metavar="FILE", help="a keystore v3, or a private key in hex; only you may read it"
    )
    wallet.set_defaults(run=_import_wallet)

    export = actions.add_parser(
        "export-journal", parents=[home], help="what was signed, to go with a swarm.pem to another machine"
    )
    export.add_argument("file", type=Path, metavar="FILE", help="where to; never overwritten")
    export.set_defaults(run=_export_journal)
    import_ = actions.add_parser("import-journal", parents=[home], help="take in an exported journal")
    import_.add_argument("file", type=Path, metavar="FILE", help="what `export-journal` wrote")
    import_.set_defaults(run=_import_journal)


def _show(arguments: argparse.Namespace) -> int:
    from identity import Identity, peer_name

    path = _key_path(arguments)
    identity = Identity.load(path)
    shown = {"peer": identity.peer_id, "name": peer_name(identity.peer), "file": str(identity.path)}
    print(
        json.dumps(shown) if arguments.json else "\n".join(f"{key:6}{value}" for key, value in shown.items())
    )
    return 0


def _backup(arguments: argparse.Namespace) -> int:
    from identity import collect_backup, write_backup

    _key_path(arguments)
    contents = collect_backup(arguments.home)
    write_backup(arguments.file, contents, _backup_password(arguments, new=True))
    say(f"{arguments.file} holds {contents.peer_id}; keep its password elsewhere")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from identity import hold_peer, peer_digest, read_backup, restore_backup

    contents = read_backup(arguments.file, _backup_password(arguments, new=False))
    # No node may start in this home meanwhile, nor one of this peer in another.
    with hold_home(arguments.home), hold_peer(machine_dir(), peer_digest(contents.peer_id)):
        for path in restore_backup(contents, arguments.home):
            print(path)
    say(f"{contents.peer_id} is back; it listens in its first round, lest a copy of it runs elsewhere")
    return 0


def _register(arguments: argparse.Namespace) -> int:
    from identity import load_or_create_identity, load_or_create_wallet
    from swarm.link import carrier_for

    identity, journal = load_or_create_identity(arguments.home)
    with contextlib.closing(journal):
        settings = Settings(home=arguments.home, relay_url=arguments.relay, invite=arguments.invite)
        wallet = load_or_create_wallet(settings.wallet_path)
        carrier = carrier_for(settings, arguments.swarm, wallet)
        say(f"{identity.peer_id} will be bound to {wallet.address}, and to no other account")
        if not arguments.yes and not _confirmed():
            return 1
        fresh = carrier.register(identity, say, move=True)
    print(f"{identity.peer_id} {'is now' if fresh else 'was already'} bound to {wallet.address}")
    return 0


def _rotate(arguments: argparse.Namespace) -> int:
    from identity import Identity, adopt_successor, hold_peer, load_or_create_wallet, prepare_successor
    from swarm.board.status import peer_status
    from swarm.ledger.join import parse_join_line
    from swarm.link import carrier_for

    settings = Settings(home=arguments.home, relay_url=arguments.relay, invite=arguments.invite)
    named = {parse_join_line(line).address for line in arguments.swarms}
    with ExitStack() as stack:
        stack.enter_context(hold_home(arguments.home))  # no node may run meanwhile
        current = Identity.load(_key_path(arguments))
        stack.enter_context(hold_peer(machine_dir(), current.peer))
        wallet = load_or_create_wallet(settings.wallet_path)
        carriers = [carrier_for(settings, line, wallet) for line in arguments.swarms]
        say(
            f"{current.peer_id} will be retired for good; a new key takes over its score and history in "
            f"{', '.join(sorted(named))}."
        )
        for swarm in peer_status(settings).swarms:
            if swarm.address not in named:
                say(f"In {swarm.name} ({swarm.address}) you will begin as a new peer.")
        if not arguments.yes and not _confirmed():
            return 1
        successor = prepare_successor(arguments.home)
        for carrier in carriers:
            carrier.rotate(current, successor, say)
        adopted, journal = adopt_successor(arguments.home)
        journal.close()
    print(f"{current.peer_id} is now {adopted.peer_id}; make a new backup")
    return 0


def _import_wallet(arguments: argparse.Namespace) -> int:
    from identity import import_wallet

    print(import_wallet(arguments.file, arguments.home).address)
    return 0


def _export_journal(arguments: argparse.Namespace) -> int:
    from identity import open_identity, write_private_file

    _key_path(arguments)
    identity, journal = open_identity(arguments.home)
    with contextlib.closing(journal):
        write_private_file(arguments.file, journal.export())
    say(f"{arguments.file} holds what {identity.peer_id} signed")
    return 0


def _import_journal(arguments: argparse.Namespace) -> int:
    from identity import hold_peer, open_identity, read_journal_file

    _key_path(arguments)
    data = read_journal_file(arguments.file)
    with ExitStack() as stack:
        stack.enter_context(hold_home(arguments.home))
        identity, journal = open_identity(arguments.home)
        stack.callback(journal.close)
        stack.enter_context(hold_peer(machine_dir(), identity.peer))
        new = journal.import_(data)
    say(f"{new} new entries; the node listens for a round before it speaks again")
    return 0


def _key_path(arguments: argparse.Namespace) -> Path:
    path = Settings(home=arguments.home).identity_path
    if not path.exists():
        raise SwarmError(f"there is no {path} yet: `swarm join` makes one")
    return path


def _backup_password(arguments: argparse.Namespace, *, new: bool) -> str:
    """From the file, the environment, or a prompt, which asks twice for a new one."""
    from identity import read_private_file

    if arguments.password_file is not None:
        try:
            password = read_private_file(arguments.password_file).decode().strip("\r\n")
        except UnicodeDecodeError:
            raise UsageError(f"{arguments.password_file} is not text") from None
    elif BACKUP_PASSWORD_VARIABLE in os.environ:
        password = os.environ[BACKUP_PASSWORD_VARIABLE]
    elif sys.stdin.isatty():
        password = getpass.getpass("password of the backup: ")
        if new and getpass.getpass("once more: ") != password:
            raise UsageError("the two passwords differ: nothing was written")
    else:
        raise UsageError(f"no password: give --password-file, or set {BACKUP_PASSWORD_VARIABLE}")
    return password


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("say --yes, or use a terminal")
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")

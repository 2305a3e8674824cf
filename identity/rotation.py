"""Moving a peer to a new key: `swarm.next.pem` is prepared, the ledger accepts it, then it is adopted."""

from __future__ import annotations

import os
from pathlib import Path

from identity.errors import IdentityError
from identity.files import sync_folder
from identity.home import JOURNAL_FILE, KEY_FILE, RETIRED_FOLDER, SUCCESSOR_FILE, open_identity
from identity.journal import Journal
from identity.key import Identity


def prepare_successor(home: Path) -> Identity:
    """The key that is to follow, from `swarm.next.pem`; made if there is none. Changes nothing else."""
    current = Identity.load(home / KEY_FILE)
    successor = Identity.load_or_create(home / SUCCESSOR_FILE)
    if successor.peer == current.peer:
        raise IdentityError(f"{successor.path} holds the same key as {current.path}: move it away")
    return successor


def adopt_successor(home: Path) -> tuple[Identity, Journal]:
    """Make the prepared key the peer's, once the ledger has accepted it; no node may run in `home`.

    1. `swarm.pem` gets a second name, `retired/<old peer id>.pem`.
    2. `journal.sqlite` moves to `retired/<old peer id>.sqlite`.
    3. The new key's journal is made as `journal.sqlite`; the node listens for a round before it speaks.
    4. `swarm.next.pem` becomes `swarm.pem`, in one step of the file system.

    Killed anywhere, it can be run again, and what it did is not done twice. Until step 4 the home opens as
    the old peer's, from step 2 on with a journal that is missing; what that one then records joins the
    retired one. After step 4 another run returns the adopted key.
    """
    current = Identity.load(home / KEY_FILE)
    if not (home / SUCCESSOR_FILE).exists():
        if any((home / RETIRED_FOLDER).glob("*.pem")):
            return open_identity(home)
        raise IdentityError(f"{home} has no {SUCCESSOR_FILE}: prepare a successor and register it first")
    successor = prepare_successor(home)
    retired = home / RETIRED_FOLDER
    try:
        retired.mkdir(mode=0o700, exist_ok=True)
        _retire_key(current, retired / f"{current.peer_id}.pem")
        _retire_journal(current, successor, home, retired / f"{current.peer_id}.sqlite")
        journal = _new_journal(home, successor)
        successor.path.replace(current.path)
        sync_folder(home)
    except OSError as error:
        raise IdentityError(f"cannot rotate the key in {home}: {error}; run the same again") from error
    return Identity.load(current.path), journal


def _retire_key(current: Identity, path: Path) -> None:
    if not path.exists():
        os.link(current.path, path)
        sync_folder(path.parent)
    elif Identity.load(path).peer != current.peer:
        raise IdentityError(f"{path} holds another key: move it away")


def _retire_journal(current: Identity, successor: Identity, home: Path, path: Path) -> None:
    live = home / JOURNAL_FILE
    if not live.exists() or _is_journal_of(live, successor.peer):
        return
    journal = Journal.open(live, current.peer, take_empty=True)
    entries = journal.export()
    journal.close()  # what its log held is in the file now, so the file can move alone
    if live.with_name(f"{live.name}-wal").exists():
        raise IdentityError(f"{live} is in use by another process: stop it, then run the same again")
    if path.exists():
        earlier = Journal.open(path, current.peer)
        earlier.import_(entries)
        earlier.close()
        live.unlink()
    else:
        live.rename(path)
    sync_folder(path.parent)
    sync_folder(home)


def _new_journal(home: Path, successor: Identity) -> Journal:
    """Marked missing, not fresh: a backup may have taken `swarm.next.pem` to another machine."""
    return Journal.open(home / JOURNAL_FILE, successor.peer)


def _is_journal_of(path: Path, peer: bytes) -> bool:
    try:
        Journal.open(path, peer).close()
    except IdentityError:
        return False
    return True

"""A peer's folder: its key and its journal, which are born and opened together."""

from __future__ import annotations

from pathlib import Path

from identity.errors import IdentityError
from identity.journal import Journal
from identity.key import Identity

KEY_FILE = "swarm.pem"
JOURNAL_FILE = "journal.sqlite"
WALLET_FILE = "wallet.json"
PASSWORD_FILE = "wallet.password"
SUCCESSOR_FILE = "swarm.next.pem"
RETIRED_FOLDER = "retired"


def create_identity(home: Path) -> tuple[Identity, Journal]:
    """Make a key and its journal; `IdentityError` if `home` has a key, or a journal that records anything.

    The journal is first, bound to the new peer; then the key is linked into place. Killed in between,
    there is a journal that records nothing, of a peer that never was: the next attempt takes it over, and
    a key of other origin that turns up finds it to be another's, which is as good as missing.
    """
    identity = Identity.generate(home / KEY_FILE)
    if identity.path.exists():
        raise IdentityError(f"{identity.path} exists and is never overwritten: move it away first")
    journal = Journal.create(home / JOURNAL_FILE, identity.peer, take_empty=True)
    try:
        identity.save()
    except BaseException:
        journal.close()
        raise
    return identity, journal


def open_identity(home: Path) -> tuple[Identity, Journal]:
    """The key in `home` and its journal. A key without one (from RL Swarm, say) gets a journal that says so.

    `IdentityError` if the key is missing, open to others or no key, or the journal records what another
    peer signed, is damaged or open to others.
    """
    identity = Identity.load(home / KEY_FILE)
    return identity, Journal.open(home / JOURNAL_FILE, identity.peer, take_empty=True)


def load_or_create_identity(home: Path) -> tuple[Identity, Journal]:
    """The key in `home` and its journal, both made if there is no key."""
    return open_identity(home) if (home / KEY_FILE).exists() else create_identity(home)

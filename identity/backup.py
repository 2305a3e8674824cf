"""One encrypted file that holds all that a peer is: key, wallet, and what it has signed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from identity.errors import IdentityError
from identity.files import read_file, read_private_file, write_private_file
from identity.home import JOURNAL_FILE, KEY_FILE, PASSWORD_FILE, SUCCESSOR_FILE, WALLET_FILE, open_identity
from identity.interchange import decode_document
from identity.journal import Journal
from identity.key import MAX_FILE_BYTES, Identity
from identity.keystore import MAX_BYTES as MAX_KEYSTORE_BYTES
from identity.keystore import open_keystore, parse_keystore
from identity.sealed import seal, unseal
from identity.wallet import PASSWORD_BYTES, parse_password

MAX_BYTES = 32 << 20
MIN_PASSWORD_CHARACTERS = 8  # as staking-deposit-cli


class BackupContents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of a home, as bytes. `wallet` is the keystore as it is, still under its own password."""

    peer_id: str
    key: bytes
    journal: bytes  # an exported document
    wallet: bytes | None = None
    wallet_password: bytes | None = None
    successor: bytes | None = None  # `swarm.next.pem`: the ledger may have accepted it already


def collect_backup(home: Path) -> BackupContents:
    """Read what is to be kept from `home`; `IdentityError` if any of it is open to others or not usable."""
    identity, journal = open_identity(home)
    try:
        document = journal.export()
    finally:
        journal.close()
    contents = BackupContents(
        peer_id=identity.peer_id,
        key=read_private_file(identity.path, MAX_FILE_BYTES),
        journal=document,
        wallet=_read_if_there(home / WALLET_FILE, MAX_KEYSTORE_BYTES),
        wallet_password=_read_if_there(home / PASSWORD_FILE, PASSWORD_BYTES),
        successor=_read_if_there(home / SUCCESSOR_FILE, MAX_FILE_BYTES),
    )
    check_contents(contents, str(home))
    return contents


def write_backup(path: Path, contents: BackupContents, password: str) -> None:
    """Write a new file (0600); `IdentityError` if it exists or the password has under 8 characters."""
    if len(password) < MIN_PASSWORD_CHARACTERS:
        raise IdentityError(f"a backup's password needs {MIN_PASSWORD_CHARACTERS} characters or more")
    sealed = seal(msgspec.msgpack.encode(contents), contents.peer_id, password)
    if len(sealed) > MAX_BYTES:
        raise IdentityError(f"the backup would have {len(sealed):,} bytes; {MAX_BYTES:,} is the most")
    write_private_file(path, sealed, advice="write it elsewhere")


def read_backup(path: Path, password: str) -> BackupContents:
    """Open a backup; `IdentityError` if it is none, damaged, hostile, or the password is wrong."""
    data = read_file(path, MAX_BYTES)
    header, plain = unseal(data, password, str(path))
    try:
        contents = msgspec.msgpack.decode(plain, type=BackupContents)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IdentityError(f"{path} holds something else than a backup: {error}") from error
    if contents.peer_id != header.peer:
        raise IdentityError(f"{path} names peer {header.peer} outside and {contents.peer_id} inside")
    return contents


def check_contents(contents: BackupContents, origin: str) -> None:
    """`IdentityError` unless every part is sound and of the same peer, and the password opens the wallet."""
    identity = Identity.parse(contents.key, Path(f"{KEY_FILE} of {origin}"))
    if identity.peer_id != contents.peer_id:
        raise IdentityError(f"{KEY_FILE} of {origin} is of peer {identity.peer_id}, not {contents.peer_id}")
    decode_document(contents.journal, identity.peer)
    if contents.successor is not None:
        Identity.parse(contents.successor, Path(f"{SUCCESSOR_FILE} of {origin}"))
    if contents.wallet is None:
        return
    name = f"{WALLET_FILE} of {origin}"
    keystore = parse_keystore(contents.wallet, name)
    if contents.wallet_password is not None:
        open_keystore(
            keystore, parse_password(contents.wallet_password, f"{PASSWORD_FILE} of {origin}"), name
        )


def restore_backup(contents: BackupContents, home: Path) -> list[Path]:
    """Put a backup's files into `home`; returns them, `swarm.pem` last.

    Everything is checked before anything is written, and nothing is overwritten: `IdentityError` names the
    files in the way. The journal says "imported", so the node listens a round in every swarm before it
    speaks. `swarm.pem` comes last: killed before it, `home` has no key, and no new one is made beside a
    journal with entries. An error takes back what was written.
    """
    check_contents(contents, "the backup")
    names = (JOURNAL_FILE, PASSWORD_FILE, WALLET_FILE, SUCCESSOR_FILE, KEY_FILE)
    in_the_way = [str(home / name) for name in names if (home / name).exists()]
    if in_the_way:
        raise IdentityError(f"{', '.join(in_the_way)} would be overwritten: move them away first")
    identity = Identity.parse(contents.key, home / KEY_FILE)
    files = {
        PASSWORD_FILE: contents.wallet_password,
        WALLET_FILE: contents.wallet,
        SUCCESSOR_FILE: contents.successor,
        KEY_FILE: contents.key,
    }
    written: list[Path] = []
    try:
        written.append(home / JOURNAL_FILE)
        _restore_journal(home / JOURNAL_FILE, identity.peer, contents.journal)
        for name, data in files.items():
            if data is not None:
                write_private_file(home / name, data)
                written.append(home / name)
    except IdentityError:
        for path in reversed(written):
            path.unlink(missing_ok=True)
        raise
    return written


def _restore_journal(path: Path, peer: bytes, document: bytes) -> None:
    journal = Journal.open(path, peer)  # marked missing until the import is in
    try:
        journal.import_(document)
    finally:
        journal.close()


def _read_if_there(path: Path, max_bytes: int) -> bytes | None:
    return read_private_file(path, max_bytes) if path.exists() else None

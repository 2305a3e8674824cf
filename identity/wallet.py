"""`wallet.json`: the Ethereum account that pays for a peer's transactions, as keystore v3.

Its password comes from `SWARM_WALLET_PASSWORD`, else from the file `wallet.password` beside it (readable by
its owner only), else it is asked for if there is a terminal.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from identity.errors import IdentityError, WrongPassword
from identity.files import read_private_file, write_private_file
from identity.home import PASSWORD_FILE, WALLET_FILE
from identity.keystore import MAX_BYTES, Keystore, account_of, open_keystore, parse_keystore

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

PASSWORD_VARIABLE = "SWARM_WALLET_PASSWORD"
PASSWORD_BYTES = 1_024
ATTEMPTS = 3


def load_or_create_wallet(path: Path) -> LocalAccount:
    """Open the keystore at `path`, making one first if there is none.

    Making one asks nothing: without `SWARM_WALLET_PASSWORD` and `wallet.password`, that file is made with
    a random password. `IdentityError` when no password opens the keystore, it is none, or a file is open
    to others.
    """
    if not path.exists():
        return _create(path)
    keystore = parse_keystore(read_private_file(path, MAX_BYTES), str(path))
    return _open(keystore, path.with_name(PASSWORD_FILE), str(path))


def import_wallet(source: Path, home: Path) -> LocalAccount:
    """Make `home`'s wallet of `source`, a file (0600) that holds a private key in hex, or a keystore v3.

    A keystore is kept as it is, once a password has opened it. A bare key is encrypted with
    `SWARM_WALLET_PASSWORD`, else `wallet.password`, which is made if there is none. `IdentityError` if
    `home` has a wallet already, or `source` is neither or open to others. `source` stays: its owner
    should delete it.
    """
    path = home / WALLET_FILE
    if path.exists():
        raise IdentityError(f"{path} exists and is never overwritten: move it away first")
    data = read_private_file(source, MAX_BYTES)
    if data.lstrip().startswith(b"{"):
        account = _open(parse_keystore(data, str(source)), home / PASSWORD_FILE, str(source))
        write_private_file(path, data)
        return account
    return _create(path, _bare_account(data, source))


def _create(path: Path, account: LocalAccount | None = None) -> LocalAccount:
    from eth_account import Account

    if account is None:
        account = Account.create()
    password = _stored_password(path.with_name(PASSWORD_FILE))
    if password is None:
        password = secrets.token_urlsafe(24)
        write_private_file(path.with_name(PASSWORD_FILE), password.encode())
    write_private_file(path, json.dumps(Account.encrypt(account.key, password)).encode())
    return account


def _bare_account(data: bytes, source: Path) -> LocalAccount:
    found = re.fullmatch(rb"\s*(?:0x)?([0-9a-fA-F]{64})\s*", data)
    if not found:
        raise IdentityError(f"{source} holds neither a private key (64 hex digits) nor a keystore v3")
    return account_of(bytes.fromhex(found[1].decode()), str(source))


def _open(keystore: Keystore, password_file: Path, name: str) -> LocalAccount:
    """Open with the password that is stored, else with one that is asked for, up to `ATTEMPTS` times."""
    password = _stored_password(password_file)
    wrong = ""
    if password is not None:
        try:
            return open_keystore(keystore, password, name)
        except WrongPassword as error:
            origin = PASSWORD_VARIABLE if os.environ.get(PASSWORD_VARIABLE) else str(password_file)
            wrong = f"{error} (it is from {origin})"
    for _ in range(ATTEMPTS if sys.stdin is not None and sys.stdin.isatty() else 0):
        try:
            asked = getpass.getpass(f"Password of {name}: ")
        except EOFError:
            break
        try:
            return open_keystore(keystore, asked, name)
        except WrongPassword as error:
            wrong = str(error)
            print(f"{wrong}.", file=sys.stderr)
    if wrong:
        raise WrongPassword(f"{wrong}: set {PASSWORD_VARIABLE}, or put the right one into {password_file}")
    raise IdentityError(
        f"{name} needs its password: set {PASSWORD_VARIABLE}, put it into {password_file} (chmod 600), "
        "or start from a terminal to be asked"
    )


def _stored_password(path: Path) -> str | None:
    """The password from the environment or the file; None if there is neither."""
    if os.environ.get(PASSWORD_VARIABLE):  # set to nothing, as compose files do, is not set
        return os.environ[PASSWORD_VARIABLE]
    if not path.exists():
        return None
    return parse_password(read_private_file(path, PASSWORD_BYTES), str(path))


def parse_password(data: bytes, name: str) -> str:
    """The password in a `wallet.password`'s bytes; `IdentityError` if there is none."""
    try:
        password = data.decode().rstrip("\r\n")  # editors and `echo` end the line; no password does
    except UnicodeDecodeError:
        password = ""
    if not password:
        raise IdentityError(f"{name} holds no password in UTF-8: write it anew")
    return password

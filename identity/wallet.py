"""`wallet.json`: the Ethereum account that pays for a peer's transactions, as keystore v3."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount

from identity.errors import IdentityError
from identity.key import read_private_file, write_private_file

PASSWORD_VARIABLE = "SWARM_WALLET_PASSWORD"


def load_or_create_wallet(path: Path) -> LocalAccount:
    """Open the keystore at `path`, making one first if there is none.

    The password comes from `SWARM_WALLET_PASSWORD`, else from the file `wallet.password` beside the
    keystore (0600), which is made with a random password when the wallet is. Raises `IdentityError`
    when the password is wrong or a file is open to others.
    """
    password = _password(path.with_name("wallet.password"), may_create=not path.exists())
    if not path.exists():
        write_private_file(path, json.dumps(Account.encrypt(Account.create().key, password)).encode())
    try:
        return Account.from_key(Account.decrypt(json.loads(read_private_file(path)), password))
    except (ValueError, KeyError, TypeError) as error:
        raise IdentityError(
            f"cannot open {path}: {error}; set {PASSWORD_VARIABLE} to its password"
        ) from error


def _password(path: Path, *, may_create: bool) -> str:
    if PASSWORD_VARIABLE in os.environ:
        return os.environ[PASSWORD_VARIABLE]
    if may_create and not path.exists():
        write_private_file(path, secrets.token_urlsafe(24).encode())
    return read_private_file(path).decode()

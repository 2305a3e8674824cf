"""A real terminal: the wallet's password is asked for there."""

import json
import os
import pty
import subprocess
import sys

import pytest

from identity.wallet import PASSWORD_VARIABLE

PRIVATE_KEY = "0x" + "11" * 32
OPENER = """
import sys
from pathlib import Path
from identity import IdentityError, load_or_create_wallet
try:
    print(load_or_create_wallet(Path(sys.argv[1])).address)
except IdentityError as error:
    print("error:", error)
"""


@pytest.fixture
def wallet(tmp_path):
    from eth_account import Account

    path = tmp_path / "wallet.json"
    path.write_text(json.dumps(Account.encrypt(PRIVATE_KEY, "right", kdf="scrypt", iterations=2)))
    path.chmod(0o600)
    return path


def answer(wallet, *passwords, environment=None):
    """Open the wallet at a terminal of its own, typing each password when it is asked for."""
    ours, theirs = pty.openpty()
    base = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
    process = subprocess.Popen(
        [sys.executable, "-c", OPENER, str(wallet)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that no other terminal is found and getpass uses this one
        env=base | (environment or {}),
    )
    os.close(theirs)
    shown = b""
    for password in passwords:
        while not shown.endswith(b": "):
            byte = process.stderr.read(1)
            assert byte, shown
            shown += byte
        os.write(ours, password.encode() + b"\n")
        shown += b"<typed>"
    out, rest = process.communicate()
    os.close(ours)
    return out.decode().strip(), (shown + rest).decode()


def test_password_is_asked_for_and_not_shown(wallet):
    out, shown = answer(wallet, "right")
    assert out.startswith("0x")
    assert f"Password of {wallet}" in shown and "right" not in shown


def test_wrong_password_is_asked_for_again(wallet):
    out, shown = answer(wallet, "wrong", "wrong again", "right")
    assert out.startswith("0x")
    assert shown.count("does not open") == 2


def test_third_wrong_password_is_the_error(wallet):
    out, shown = answer(wallet, "a", "b", "c")
    assert out.startswith("error: the password does not open")
    assert shown.count("Password of") == 3


def test_wrong_password_in_the_environment_is_asked_for_at_a_terminal(wallet):
    out, _ = answer(wallet, "right", environment={PASSWORD_VARIABLE: "wrong"})
    assert out.startswith("0x")

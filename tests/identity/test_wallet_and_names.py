import json

import pytest

from identity import IdentityError, load_or_create_wallet, peer_name
from identity.wallet import PASSWORD_VARIABLE


def test_wallet_is_a_keystore_v3_that_opens_again(tmp_path):
    path = tmp_path / "wallet.json"
    address = load_or_create_wallet(path).address
    assert json.loads(path.read_bytes())["version"] == 3
    assert load_or_create_wallet(path).address == address
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_wrong_password_is_one_clear_error_and_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "wallet.json"
    monkeypatch.setenv(PASSWORD_VARIABLE, "right")
    load_or_create_wallet(path)
    before = path.read_bytes()
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    with pytest.raises(IdentityError, match=PASSWORD_VARIABLE):
        load_or_create_wallet(path)
    assert path.read_bytes() == before


def test_wallet_whose_password_file_is_gone_says_so(tmp_path):
    path = tmp_path / "wallet.json"
    load_or_create_wallet(path)
    (tmp_path / "wallet.password").unlink()
    with pytest.raises(IdentityError, match=r"wallet\.password"):
        load_or_create_wallet(path)


def test_names_are_three_words_and_stable():
    assert peer_name(bytes(32)) == peer_name(bytes(32))
    names = {peer_name(i.to_bytes(32, "big")) for i in range(1000)}
    assert all(len(name.split()) == 3 for name in names)
    assert len(names) > 990

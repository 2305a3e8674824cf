import json

import pytest

from identity import IdentityError, WrongPassword, import_wallet, load_or_create_wallet
from identity.wallet import PASSWORD_VARIABLE

KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"


@pytest.fixture(autouse=True)
def no_password_set(monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


def private(path, content):
    path.write_text(content)
    path.chmod(0o600)
    return path


def keystore(password="right"):
    """A keystore that opens fast."""
    from eth_account import Account

    return json.dumps(Account.encrypt(KEY, password, kdf="scrypt", iterations=2))


def test_unattended_wallet_is_a_keystore_v3_under_a_random_password_that_opens_again(tmp_path):
    path = tmp_path / "wallet.json"
    address = load_or_create_wallet(path).address
    assert json.loads(path.read_bytes())["version"] == 3
    assert load_or_create_wallet(path).address == address
    assert len((tmp_path / "wallet.password").read_text()) >= 32
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_environment_comes_before_the_file(tmp_path, monkeypatch):
    path = private(tmp_path / "wallet.json", keystore("from the environment"))
    private(tmp_path / "wallet.password", "from the file")
    monkeypatch.setenv(PASSWORD_VARIABLE, "from the environment")
    assert load_or_create_wallet(path).address == ADDRESS


def test_variable_that_is_set_to_nothing_is_not_set(tmp_path, monkeypatch):
    path = private(tmp_path / "wallet.json", keystore())
    private(tmp_path / "wallet.password", "right")
    monkeypatch.setenv(PASSWORD_VARIABLE, "")
    assert load_or_create_wallet(path).address == ADDRESS


def test_line_end_in_the_password_file_is_not_part_of_the_password(tmp_path):
    path = private(tmp_path / "wallet.json", keystore())
    private(tmp_path / "wallet.password", "right\n")
    assert load_or_create_wallet(path).address == ADDRESS


def test_wrong_password_is_one_clear_error_and_changes_nothing(tmp_path, monkeypatch):
    path = private(tmp_path / "wallet.json", keystore())
    before = path.read_bytes()
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    with pytest.raises(WrongPassword, match=f"it is from {PASSWORD_VARIABLE}"):
        load_or_create_wallet(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_wallet_without_any_password_names_the_three_ways(tmp_path):
    path = private(tmp_path / "wallet.json", keystore())
    with pytest.raises(IdentityError, match=rf"{PASSWORD_VARIABLE}.*wallet\.password.*terminal"):
        load_or_create_wallet(path)


@pytest.mark.parametrize("name", ["wallet.json", "wallet.password"])
def test_file_open_to_others_is_refused(tmp_path, name):
    path = private(tmp_path / "wallet.json", keystore())
    private(tmp_path / "wallet.password", "right")
    (tmp_path / name).chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_or_create_wallet(path)


@pytest.mark.parametrize("content", ["", "\n", "\udcff"])
def test_password_file_without_a_password_is_refused(tmp_path, content):
    path = private(tmp_path / "wallet.json", keystore())
    (tmp_path / "wallet.password").write_text(content, errors="surrogateescape")
    (tmp_path / "wallet.password").chmod(0o600)
    with pytest.raises(IdentityError, match="holds no password"):
        load_or_create_wallet(path)


@pytest.mark.parametrize("content", [KEY, f"0x{KEY}\n", f"  0x{KEY.upper()}\r\n"])
def test_bare_key_is_imported_encrypted(tmp_path, content):
    source = private(tmp_path / "key.txt", content)
    home = tmp_path / "home"
    assert import_wallet(source, home).address == ADDRESS
    assert KEY not in (home / "wallet.json").read_text().lower()
    assert load_or_create_wallet(home / "wallet.json").address == ADDRESS
    assert {file.stat().st_mode & 0o777 for file in home.iterdir()} == {0o600}


def test_bare_key_is_encrypted_with_the_environments_password(tmp_path, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "chosen")
    source = private(tmp_path / "key.txt", KEY)
    import_wallet(source, tmp_path / "home")
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["wallet.json"]
    assert load_or_create_wallet(tmp_path / "home" / "wallet.json").address == ADDRESS


def test_keystore_is_imported_as_it_is_once_its_password_opened_it(tmp_path, monkeypatch):
    source = private(tmp_path / "geth.json", keystore())
    with pytest.raises(IdentityError, match="needs its password"):
        import_wallet(source, tmp_path / "home")
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    with pytest.raises(WrongPassword):
        import_wallet(source, tmp_path / "home")
    assert not (tmp_path / "home").exists()
    monkeypatch.setenv(PASSWORD_VARIABLE, "right")
    assert import_wallet(source, tmp_path / "home").address == ADDRESS
    assert (tmp_path / "home" / "wallet.json").read_bytes() == source.read_bytes()


def test_existing_wallet_is_never_overwritten_by_an_import(tmp_path):
    source = private(tmp_path / "key.txt", KEY)
    existing = private(tmp_path / "wallet.json", keystore())
    before = existing.read_bytes()
    with pytest.raises(IdentityError, match="never overwritten"):
        import_wallet(source, tmp_path)
    assert existing.read_bytes() == before
    assert not (tmp_path / "wallet.password").exists()


def test_source_open_to_others_is_refused(tmp_path):
    source = private(tmp_path / "key.txt", KEY)
    source.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        import_wallet(source, tmp_path / "home")


@pytest.mark.parametrize(
    "content", ["", "hello", KEY[1:], KEY + "0", "0x0x" + KEY, "0" * 64, "f" * 64, "{}", "{" * 60_000]
)
def test_source_that_is_neither_key_nor_keystore_is_refused_without_showing_it(tmp_path, content):
    source = private(tmp_path / "key.txt", content)
    with pytest.raises(IdentityError) as caught:
        import_wallet(source, tmp_path / "home")
    assert KEY[1:] not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "home").exists()

import copy
import json

import pytest

from identity import IdentityError, WrongPassword
from identity.keystore import MAX_BYTES, open_keystore, parse_keystore

# The two test vectors of the Web3 Secret Storage definition, as geth's tests have them.
PASSWORD = "testpassword"
PRIVATE_KEY = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"
ADDRESS = "0x008AeEda4D805471dF9b2A5B0f38A0C3bCBA786b"
PBKDF2 = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}
SCRYPT = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
        "kdf": "scrypt",
        "kdfparams": {
            "dklen": 32,
            "n": 262144,
            "p": 8,
            "r": 1,
            "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
        },
        "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}


def account(keystore, password=PASSWORD):
    return open_keystore(
        parse_keystore(json.dumps(keystore).encode(), "wallet.json"), password, "wallet.json"
    )


def changed(keystore, **changes):
    """A copy with fields replaced wherever they stand; None removes."""
    keystore = copy.deepcopy(keystore)
    for name, value in changes.items():
        crypto = keystore["crypto"]
        places = (keystore, crypto, crypto["kdfparams"], crypto["cipherparams"])
        place = next((place for place in places if name in place), keystore)
        if value is None:
            del place[name]
        else:
            place[name] = value
    return keystore


@pytest.mark.parametrize("keystore", [PBKDF2, SCRYPT], ids=["pbkdf2", "scrypt"])
def test_published_keystores_open(keystore):
    found = account(keystore)
    assert found.address == ADDRESS
    assert found.key.hex() == PRIVATE_KEY


@pytest.mark.parametrize("address", ["", ADDRESS, ADDRESS[2:].lower(), "0X" + ADDRESS[2:].upper()])
def test_address_may_be_written_in_any_way(address):
    assert account(changed(PBKDF2, address=address)).address == ADDRESS


def test_names_may_be_in_any_case():
    keystore = changed(PBKDF2)
    keystore["Crypto"] = {name.upper(): value for name, value in keystore.pop("crypto").items()}
    assert account(keystore).address == ADDRESS


def test_wrong_password_is_told_from_a_bad_file():
    with pytest.raises(WrongPassword, match=r"wallet\.json"):
        account(PBKDF2, "wrong")


def test_key_of_another_address_is_refused():
    with pytest.raises(IdentityError, match="holds the key of"):
        account(changed(PBKDF2, address="00" * 20))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1},
        {"version": None},
        {"crypto": []},
        {"cipher": "aes-256-cbc"},
        {"kdf": "argon2"},
        {"mac": None},
        {"mac": 5},
        {"ciphertext": "00" * 33},
        {"iv": "zz" * 16},
        {"salt": "0"},
        {"dklen": 1 << 40},
        {"dklen": 16},
        {"address": "0x12"},
        {"address": 7},
    ],
)
def test_keystore_with_a_wrong_field_is_refused(changes):
    for keystore in (PBKDF2, SCRYPT):
        with pytest.raises(IdentityError, match="not an Ethereum keystore") as caught:
            account(changed(keystore, **changes))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keystore", "changes"),
    [
        (PBKDF2, {"c": 1 << 40}),
        (PBKDF2, {"c": 10**400}),
        (PBKDF2, {"c": 0}),
        (SCRYPT, {"n": 1 << 30}),
        (SCRYPT, {"n": 1 << 18, "r": 1 << 20}),
        (SCRYPT, {"n": 1 << 18, "r": 8, "p": 1 << 30}),
        (SCRYPT, {"n": 2, "r": 1 << 20, "p": 8}),
        (SCRYPT, {"n": 3}),
        (SCRYPT, {"n": 1}),
        (SCRYPT, {"p": -1}),
        (SCRYPT, {"r": 1.5}),
    ],
)
def test_keystore_that_asks_for_endless_work_is_refused_before_any(keystore, changes):
    text = json.dumps(changed(keystore, **changes))
    with pytest.raises(IdentityError, match="not an Ethereum keystore"):
        parse_keystore(text.encode(), "wallet.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"crypto":' * 6_000, b" " * (MAX_BYTES + 1)])
def test_bytes_that_are_no_keystore_are_refused(data):
    with pytest.raises(IdentityError, match="keystore"):
        parse_keystore(data, "wallet.json")

"""Ethereum keystores, version 3: read with limits, so that a hostile one costs neither memory nor minutes.

Wallets differ in the case of the names ("Crypto", "crypto") and in the address, which may lack its 0x, be
in any case or be absent; geth and others derive the key with scrypt or PBKDF2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from identity.errors import IdentityError, WrongPassword

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

MAX_BYTES = 65_536
# geth's strongest has n = 2^18, r = 8 (256 MiB); Parity's PBKDF2 runs up to 10,240 times, eth-account's
# 1,000,000. A little above that, and about five seconds.
MAX_SCRYPT_MEMORY = 1 << 29  # 128 · r · (n + p), bytes
MAX_SCRYPT_WORK = 1 << 24  # n · r · p
MAX_PBKDF2_ROUNDS = 10_000_000
SECP256K1_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141

Hex = Annotated[str, msgspec.Meta(pattern=r"\A(0x)?([0-9a-fA-F]{2})*\Z")]
Hex16 = Annotated[str, msgspec.Meta(pattern=r"\A(0x)?[0-9a-fA-F]{32}\Z")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A(0x)?[0-9a-fA-F]{64}\Z")]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Fields = dict[str, msgspec.Raw]


class _Cipher(msgspec.Struct):
    iv: Hex16


class _Crypto(msgspec.Struct):
    cipher: Literal["aes-128-ctr"]
    ciphertext: Hex32
    mac: Hex32
    kdf: Literal["scrypt", "pbkdf2"]


class _Scrypt(msgspec.Struct):
    n: Positive
    r: Positive
    p: Positive
    dklen: Literal[32]
    salt: Hex


class _Pbkdf2(msgspec.Struct):
    c: Positive
    prf: Literal["hmac-sha256"]
    dklen: Literal[32]
    salt: Hex


class Keystore(msgspec.Struct, frozen=True):
    """A keystore whose every field was checked."""

    fields: dict[str, object]  # what eth-account reads
    address: str | None  # 40 hex digits, lower case


def parse_keystore(data: bytes, name: str) -> Keystore:
    """Check a keystore's bytes; `name` is what the `IdentityError` calls it."""
    if len(data) > MAX_BYTES:
        raise IdentityError(f"{name} is larger than {MAX_BYTES:,} bytes: it is no keystore")
    try:
        return _parse(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IdentityError(f"{name} is not an Ethereum keystore, version 3: {error}") from error


def open_keystore(keystore: Keystore, password: str, name: str) -> LocalAccount:
    """The account inside. `WrongPassword` if the password is; `IdentityError` if the address does not fit."""
    from eth_account import Account  # half a second

    try:
        key = Account.decrypt(keystore.fields, password)
    except ValueError:  # of all errors only this is left: the rest was checked
        raise WrongPassword(f"the password does not open {name}") from None
    account = account_of(key, name)
    if keystore.address is not None and account.address[2:].lower() != keystore.address:
        raise IdentityError(
            f"{name} says that it is 0x{keystore.address} but holds the key of {account.address}: "
            "restore it from a backup"
        )
    return account


def account_of(key: bytes, name: str) -> LocalAccount:
    """The account of a 32-byte private key; `IdentityError` if it is none."""
    from eth_account import Account

    if len(key) != 32 or not 0 < int.from_bytes(key, "big") < SECP256K1_ORDER:
        raise IdentityError(f"{name} holds no private key of Ethereum (32 bytes below the curve's order)")
    return Account.from_key(key)


def _parse(data: bytes) -> Keystore:
    top = _lower(msgspec.json.decode(data, type=Fields))
    if msgspec.json.decode(_field(top, "version"), type=int) != 3:
        raise msgspec.ValidationError("its version is not 3")
    parts = _lower(msgspec.json.decode(_field(top, "crypto"), type=Fields))
    simple = {key: msgspec.json.decode(raw) for key, raw in parts.items() if key in _Crypto.__struct_fields__}
    crypto = msgspec.convert(simple, _Crypto)
    kdf = _key_derivation(crypto.kdf, _field(parts, "kdfparams"))
    cipher = msgspec.json.decode(_field(parts, "cipherparams"), type=_Cipher)
    fields = msgspec.to_builtins(crypto) | {
        "kdfparams": msgspec.to_builtins(kdf),
        "cipherparams": msgspec.to_builtins(cipher),
    }
    return Keystore({"version": 3, "crypto": fields}, _address(top))


def _key_derivation(name: str, parameters: msgspec.Raw) -> _Scrypt | _Pbkdf2:
    """The parameters, within the limits."""
    if name == "pbkdf2":
        pbkdf2 = msgspec.json.decode(parameters, type=_Pbkdf2)
        if pbkdf2.c <= MAX_PBKDF2_ROUNDS:
            return pbkdf2
    else:
        scrypt = msgspec.json.decode(parameters, type=_Scrypt)
        power_of_two = scrypt.n > 1 and scrypt.n & (scrypt.n - 1) == 0
        memory = 128 * scrypt.r * (scrypt.n + scrypt.p)
        work = scrypt.n * scrypt.r * scrypt.p
        if power_of_two and memory <= MAX_SCRYPT_MEMORY and work <= MAX_SCRYPT_WORK:
            return scrypt
    raise msgspec.ValidationError("its key derivation asks for more work than any wallet's")


def _address(top: Fields) -> str | None:
    text = msgspec.json.decode(top.get("address", msgspec.Raw(b"null")), type=str | None)
    if not text:
        return None
    address = text.lower().removeprefix("0x")
    if len(address) != 40 or not set(address) <= set("0123456789abcdef"):
        raise msgspec.ValidationError("its address is not one")
    return address


def _lower(fields: Fields) -> Fields:
    return {key.lower(): raw for key, raw in fields.items()}


def _field(fields: Fields, name: str) -> msgspec.Raw:
    if name not in fields:
        raise msgspec.ValidationError(f"it has no {name!r}")
    return fields[name]

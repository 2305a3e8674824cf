"""A sealed file: scrypt makes a key of a password, AES-256-GCM encrypts under it and covers the header too.

"swarm-backup/1\n" ‖ header's length (4 bytes, big-endian) ‖ header (JSON) ‖ ciphertext
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from identity.errors import IdentityError

MAGIC = b"swarm-backup/"
VERSION = 1
MAX_HEADER_BYTES = 4_096
# OWASP's first choice for scrypt: 128 MiB and a third of a second per guess.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 17, 8, 1
MAX_SCRYPT_MEMORY = 1 << 28  # 128 · n · r, bytes: what a file may make us spend
MAX_SCRYPT_R, MAX_SCRYPT_P = 32, 4

Hex16 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hex12 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{24}\Z")]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 32)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in the clear, and is covered by the seal."""

    peer: Annotated[str, msgspec.Meta(max_length=64)]
    n: Positive
    r: Positive
    p: Positive
    salt: Hex16
    nonce: Hex12


def seal(plain: bytes, peer: str, password: str) -> bytes:
    """Encrypt; salt and nonce are drawn here."""
    header = Header(peer, SCRYPT_N, SCRYPT_R, SCRYPT_P, os.urandom(16).hex(), os.urandom(12).hex())
    head = msgspec.json.encode(header)
    front = _magic(VERSION) + len(head).to_bytes(4, "big") + head
    return front + _cipher(header, password).encrypt(bytes.fromhex(header.nonce), plain, front)


def unseal(data: bytes, password: str, name: str) -> tuple[Header, bytes]:
    """Decrypt what `seal` made; `name` is what the `IdentityError` calls it."""
    header, start = _parse(data, name)
    try:
        cipher = _cipher(header, password)
    except ValueError as error:  # parameters that scrypt has no use for, say an n that is no power of two
        raise IdentityError(f"{name} is damaged: {error}; use another copy") from error
    try:
        return header, cipher.decrypt(bytes.fromhex(header.nonce), data[start:], data[:start])
    except InvalidTag:
        raise IdentityError(
            f"cannot open {name}: the password is wrong, or the file is damaged; "
            "try the password again, else another copy of the file"
        ) from None


def _parse(data: bytes, name: str) -> tuple[Header, int]:
    """The header and where the ciphertext starts."""
    magic = _magic(VERSION)
    if not data.startswith(magic):
        if data.startswith(MAGIC):
            raise IdentityError(f"{name} is a backup of another version: open it with a newer swarm-rl")
        raise IdentityError(f"{name} is not a swarm-rl backup")
    size = int.from_bytes(data[len(magic) : len(magic) + 4], "big")
    start = len(magic) + 4 + size
    if size > MAX_HEADER_BYTES or len(data) < start + 16:  # the seal itself has 16 bytes
        raise IdentityError(f"{name} is damaged: it was cut short; use another copy")
    try:
        header = msgspec.json.decode(data[len(magic) + 4 : start], type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IdentityError(
            f"{name} is damaged: its header is unreadable ({error}); use another copy"
        ) from error
    if 128 * header.n * header.r > MAX_SCRYPT_MEMORY or header.r > MAX_SCRYPT_R or header.p > MAX_SCRYPT_P:
        raise IdentityError(f"{name} is damaged or hostile: it asks for more work than any backup of ours")
    return header, start


def _cipher(header: Header, password: str) -> AESGCM:
    # The same password typed on another system may come as other bytes (EIP-2335 does the same).
    secret = unicodedata.normalize("NFKD", password).encode()
    memory = 2 * MAX_SCRYPT_MEMORY  # OpenSSL's own limit is below what we use
    salt = bytes.fromhex(header.salt)
    return AESGCM(
        hashlib.scrypt(secret, salt=salt, n=header.n, r=header.r, p=header.p, maxmem=memory, dklen=32)
    )


def _magic(version: int) -> bytes:
    return MAGIC + str(version).encode() + b"\n"

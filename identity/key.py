"""`swarm.pem`: the RSA-2048 key that a peer is.

The file holds hivemind's libp2p `PrivateKey` protobuf (so one made by hivemind or RL Swarm works
unchanged) and is readable by its owner only. The libp2p peer id is the base58 multihash of the
public key's protobuf; on the ledger and in digests it is the 32 bytes inside that multihash.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from identity.errors import IdentityError
from identity.files import read_private_file, write_private_file

KEY_BITS = 2048
EXPONENT = 65537
SIGNATURE_BYTES = KEY_BITS // 8
MODULUS_BYTES = KEY_BITS // 8
# A libp2p peer id is a multihash: 0x12 = SHA-256, 0x20 = 32 bytes, then the digest.
MULTIHASH_PREFIX = bytes([0x12, 0x20])

# An RSA-2048 public key with exponent 65537 has one DER form: these bytes around its modulus.
# In front: libp2p's protobuf header (key type RSA, 294 bytes follow) and the DER headers; the
# contract computes the peer id from the same constants.
_PROTOBUF_PREFIX = bytes.fromhex("080012a602")
_DER_PREFIX = bytes.fromhex("30820122300d06092a864886f70d01010105000382010f003082010a0282010100")
_DER_SUFFIX = bytes.fromhex("0203010001")
PUBLIC_KEY_PREFIX = _PROTOBUF_PREFIX + _DER_PREFIX
PUBLIC_KEY_SUFFIX = _DER_SUFFIX

# The start of a `swarm.pem`: field 1, the key's type, is 0 for RSA; field 2 is its DER (about 1,200 bytes).
_PRIVATE_PREFIX = bytes.fromhex("080012")
MAX_FILE_BYTES = 16_384


def peer_id_text(peer: bytes) -> str:
    """The base58 peer id (`Qm…`) of a 32-byte peer digest."""
    return base58.b58encode(MULTIHASH_PREFIX + peer).decode()


def peer_digest(peer_id: str) -> bytes:
    """The 32 bytes inside a base58 peer id; `IdentityError` if it is not the id of an RSA peer."""
    try:
        multihash = base58.b58decode(peer_id) if len(peer_id) <= 64 else b""  # its time grows as the square
    except ValueError:
        multihash = b""
    if len(multihash) != 34 or not multihash.startswith(MULTIHASH_PREFIX):
        raise IdentityError(
            f"{peer_id[:64]!r} is not a peer id of an RSA key: expected base58 starting with Qm"
        )
    return multihash[2:]


@dataclass(frozen=True)
class PublicKey:
    """The public half of a `swarm.pem`, as its 256-byte big-endian modulus (the exponent is fixed)."""

    modulus: bytes

    def __post_init__(self) -> None:
        if len(self.modulus) != MODULUS_BYTES or not self.modulus[0] & 0x80 or not self.modulus[-1] & 1:
            raise IdentityError("not an RSA-2048 modulus: expected 256 bytes, odd, highest bit set")

    @property
    def peer(self) -> bytes:
        """The peer's 32-byte digest."""
        return hashlib.sha256(PUBLIC_KEY_PREFIX + self.modulus + PUBLIC_KEY_SUFFIX).digest()

    @property
    def peer_id(self) -> str:
        """The peer's libp2p id in base58."""
        return peer_id_text(self.peer)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` (PKCS#1 v1.5, SHA-256) over `message` is this key's."""
        key = rsa.RSAPublicNumbers(EXPONENT, int.from_bytes(self.modulus, "big")).public_key()
        try:
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True


class Identity:
    """A peer's `swarm.pem`, able to sign. `path` is kept because libp2p's daemon reads the file itself."""

    def __init__(self, key: rsa.RSAPrivateKey, path: Path) -> None:
        numbers = key.public_key().public_numbers()
        if key.key_size != KEY_BITS or numbers.e != EXPONENT:
            raise IdentityError(
                f"{path} holds an RSA-{key.key_size} key with exponent {numbers.e}; "
                "only RSA-2048 with exponent 65537 works"
            )
        self._key = key
        self.path = path
        self.public_key = PublicKey(numbers.n.to_bytes(MODULUS_BYTES, "big"))
        self.peer = self.public_key.peer
        self.peer_id = self.public_key.peer_id

    @classmethod
    def generate(cls, path: Path) -> Identity:
        """A new key in memory only, for `path`; `save` writes it."""
        return cls(rsa.generate_private_key(public_exponent=EXPONENT, key_size=KEY_BITS), path)

    def save(self) -> None:
        """Write the key to its path (mode 0600). Never overwrites: `IdentityError` if the file exists."""
        der = self._key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        write_private_file(self.path, _PRIVATE_PREFIX + _varint(len(der)) + der)

    @classmethod
    def create(cls, path: Path) -> Identity:
        """Make a new key at `path` (mode 0600). Never overwrites: `IdentityError` if the file exists.

        A node's own key is made by `create_identity`, together with its journal.
        """
        identity = cls.generate(path)
        identity.save()
        return identity

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key; `IdentityError` if it is missing, open to others, or not an RSA libp2p key."""
        return cls.parse(read_private_file(path, MAX_FILE_BYTES), path)

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Identity:
        """The key that a file's bytes hold; `path` is where it is, or will be."""
        try:
            key = serialization.load_der_private_key(_private_der(data), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise IdentityError(f"{path} is not a swarm.pem (a libp2p RSA private key): {error}") from error
        if not isinstance(key, rsa.RSAPrivateKey):
            raise IdentityError(f"{path} holds a key that is not RSA; RL Swarm and hivemind make RSA keys")
        return cls(key, path)

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the key at `path`, making one first if there is none."""
        return cls.load(path) if path.exists() else cls.create(path)

    def sign(self, message: bytes) -> bytes:
        """256 bytes: PKCS#1 v1.5 over SHA-256, the form that the ledger's modexp check reads."""
        return self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())


def _private_der(data: bytes) -> bytes:
    """The key's DER inside libp2p's `PrivateKey` protobuf; `ValueError` if that is not what `data` is.

    Protobuf has one canonical form for these two fields, and every libp2p writes it. Read by hand,
    since importing hivemind's own reader takes two seconds.
    """
    der = data[len(_PRIVATE_PREFIX) + len(_varint(len(data))) :]
    if data != _PRIVATE_PREFIX + _varint(len(der)) + der:
        raise ValueError("not a protobuf of type RSA")
    return der


def _varint(number: int) -> bytes:
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])

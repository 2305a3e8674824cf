"""The RSA check accepts one signature per message, and nothing that only resembles it."""

import hashlib

import pytest
from contract_cast import Account, chain, create_swarm, key, registration_message
from hypothesis import given, settings
from hypothesis import strategies as st

SHA256_WITH_NULL = bytes.fromhex("3031300d060960864801650304020105000420")
SHA256_WITHOUT_NULL = bytes.fromhex("302f300b0609608648016503040201 0420")
SHA512_WITH_NULL = bytes.fromhex("3051300d060960864801650304020305000440")
SIZE = 256


@pytest.fixture(scope="module")
def swarm():
    return create_swarm()


@pytest.fixture(scope="module")
def account():
    return chain().account()


def refusal(swarm, account, proof, modulus=None):
    return swarm.refusal(account, "register", modulus or key(0).public_key.modulus, proof)[0]


def encoded(algorithm, digest, *, start=b"\0\1", fill=b"\xff", end=b"\0"):
    info = algorithm + digest
    return start + fill * (SIZE - len(start) - len(end) - len(info)) + end + info


def raw_signature(identity, encoding):
    """The key's private operation on any 256 bytes."""
    numbers = identity._key.private_numbers()
    value = pow(int.from_bytes(encoding, "big"), numbers.d, numbers.public_numbers.n)
    return value.to_bytes(SIZE, "big")


def test_only_the_standard_encoding_is_a_proof(swarm, account):
    message = registration_message(swarm.chain.id, swarm.address, account.address, 0)
    digest = hashlib.sha256(message).digest()
    right = encoded(SHA256_WITH_NULL, digest)
    short = b"\0\1" + b"\xff" * 8 + b"\0" + SHA256_WITH_NULL + digest
    for wrong in (
        encoded(SHA256_WITHOUT_NULL, digest),
        encoded(SHA256_WITH_NULL, digest, start=b"\0\2"),
        encoded(SHA256_WITH_NULL, digest, start=b"\0\0"),
        encoded(SHA256_WITH_NULL, digest, fill=b"\0"),
        encoded(SHA256_WITH_NULL, digest, end=b"\1"),
        encoded(SHA512_WITH_NULL, hashlib.sha512(message).digest()),
        short + bytes(SIZE - len(short)),  # Bleichenbacher's forgery of 2006
        right[:9] + b"\xfe" + right[10:],
        digest.rjust(SIZE, b"\0"),
    ):
        assert refusal(swarm, account, raw_signature(key(0), wrong)) == "BadProof"
    assert raw_signature(key(0), right) == key(0).sign(message)
    function = swarm.contract.functions.register(key(0).public_key.modulus, raw_signature(key(0), right))
    function.call({"from": account.address})


def test_a_signature_is_below_its_modulus(swarm):
    """Signature plus modulus gives the same power, so without this every proof would have a twin."""
    identity = min(map(key, range(6)), key=lambda some: some.public_key.modulus)
    modulus = identity.public_key.modulus
    twin = 1 << 2048
    while twin >= 1 << 2048:  # a few tries: the twin must fit in the 256 bytes too
        sender = Account.create()
        proof = swarm.proof(identity, sender, 0)
        twin = int.from_bytes(proof, "big") + int.from_bytes(modulus, "big")
    assert refusal(swarm, sender, twin.to_bytes(SIZE, "big"), modulus) == "BadProof"
    assert refusal(swarm, sender, modulus, modulus) == "BadProof"
    swarm.contract.functions.register(modulus, proof).call({"from": sender.address})


def test_trivial_powers_prove_nothing(swarm, account):
    modulus = int.from_bytes(key(0).public_key.modulus, "big")
    for value in (0, 1, modulus - 1):
        assert refusal(swarm, account, value.to_bytes(SIZE, "big")) == "BadProof"


@settings(max_examples=60, deadline=None)
@given(bit=st.integers(0, 8 * SIZE - 1))
def test_a_proof_with_any_bit_flipped_is_refused(bit):
    swarm, account = _shared()
    assert refusal(swarm, account, flipped(swarm.proof(key(0), account, 0), bit)) == "BadProof"


@settings(max_examples=30, deadline=None)
@given(bit=st.integers(0, 8 * SIZE - 1))
def test_a_modulus_with_any_bit_flipped_is_another_peer(bit):
    swarm, account = _shared()
    modulus = flipped(key(0).public_key.modulus, bit)
    expected = "BadModulus" if bit in (0, 8 * SIZE - 1) else "BadProof"
    assert refusal(swarm, account, swarm.proof(key(0), account, 0), modulus) == expected


@settings(max_examples=30, deadline=None)
@given(proof=st.binary(max_size=600))
def test_bytes_that_are_no_proof_are_refused(proof):
    swarm, account = _shared()
    assert refusal(swarm, account, proof) == "BadProof"


@settings(max_examples=30, deadline=None)
@given(modulus=st.binary(max_size=600))
def test_bytes_that_are_no_modulus_are_refused(modulus):
    swarm, account = _shared()
    size_is_right = len(modulus) == SIZE and modulus[0] & 0x80 and modulus[-1] & 1
    assert refusal(swarm, account, bytes(SIZE), modulus or b"\0") == (
        "BadProof" if size_is_right else "BadModulus"
    )


@settings(max_examples=40, deadline=None)
@given(bit=st.integers(0, 8 * 65 - 1))
def test_a_consent_with_any_bit_flipped_is_refused(bit):
    swarm, account = _shared()
    proof, consent = swarm.proof(key(0), account, 0), flipped(swarm.consent(key(0), account, 0), bit)
    modulus = key(0).public_key.modulus
    call = ("registerFor", account.address, modulus, proof, consent)
    swarm.refused("BadConsent", (key(0).peer, account.address), account, *call)


@settings(max_examples=30, deadline=None)
@given(consent=st.binary(max_size=200))
def test_bytes_that_are_no_consent_are_refused(consent):
    swarm, account = _shared()
    modulus = key(0).public_key.modulus
    call = ("registerFor", account.address, modulus, swarm.proof(key(0), account, 0), consent)
    swarm.refused("BadConsent", (key(0).peer, account.address), account, *call)


@settings(max_examples=30, deadline=None)
@given(bit=st.integers(0, 8 * SIZE - 1), by_new=st.booleans())
def test_a_rotation_with_any_bit_flipped_is_refused(bit, by_new):
    swarm, account = _shared()
    signatures = list(swarm.rotation(key(9), key(8)))
    signatures[2 + by_new] = flipped(signatures[2 + by_new], bit)
    swarm.refused("BadRotation", (key(9).peer, key(8).peer), account, "rotate", *signatures)


def flipped(data, bit):
    """The bit counts from the lowest of the last byte."""
    return (int.from_bytes(data, "big") ^ (1 << bit)).to_bytes(len(data), "big")


_cast = []


def _shared():
    """One swarm for all examples: none of them changes it. Key 9 is registered there, key 0 is not."""
    if not _cast:
        swarm, account = create_swarm(), chain().account()
        swarm.register(key(9), account)
        _cast.append((swarm, account))
    return _cast[0]

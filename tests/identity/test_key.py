import base64

import pytest
from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from identity import Identity, IdentityError, PublicKey, peer_digest, peer_id_text


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    return Identity.create(tmp_path_factory.mktemp("home") / "swarm.pem")


def test_peer_id_is_libp2ps(identity):
    assert str(PeerID.from_identity(identity.path.read_bytes())) == identity.peer_id
    assert peer_digest(identity.peer_id) == identity.peer
    assert peer_id_text(identity.peer) == identity.peer_id


def test_key_made_by_hivemind_loads(tmp_path):
    path = tmp_path / "swarm.pem"
    P2P.generate_identity(str(path))
    assert Identity.load(path).peer_id == str(PeerID.from_identity(path.read_bytes()))


def test_key_is_readable_by_its_owner_only_and_survives_a_reload(identity):
    assert identity.path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(identity.path).peer == identity.peer


def test_existing_key_is_never_overwritten(identity):
    before = identity.path.read_bytes()
    with pytest.raises(IdentityError, match="never overwritten"):
        Identity.create(identity.path)
    assert identity.path.read_bytes() == before
    assert list(identity.path.parent.iterdir()) == [identity.path]


def test_key_open_to_others_is_refused(tmp_path):
    identity = Identity.create(tmp_path / "swarm.pem")
    identity.path.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        Identity.load(identity.path)


@pytest.mark.parametrize("content", [b"", b"garbage", base64.b64encode(bytes(300))])
def test_file_that_is_no_key_is_one_clear_error(tmp_path, content):
    path = tmp_path / "swarm.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=r"is not a swarm.pem"):
        Identity.load(path)


def test_signature_holds_for_its_message_and_key_only(identity, tmp_path):
    signature = identity.sign(b"message")
    assert len(signature) == 256
    assert identity.public_key.verify(b"message", signature)
    assert not identity.public_key.verify(b"other", signature)
    assert not identity.public_key.verify(b"message", bytes(256))
    other = Identity.create(tmp_path / "other.pem")
    assert not other.public_key.verify(b"message", signature)


@pytest.mark.parametrize("modulus", [b"", bytes(256), b"\xff" * 255 + b"\xfe", b"\xff" * 257])
def test_modulus_that_is_not_rsa_2048_is_refused(modulus):
    with pytest.raises(IdentityError):
        PublicKey(modulus)


@pytest.mark.parametrize(
    "text", ["", "Qm", "0OIl", "12D3KooWBkvAdfmFwqkWbxRVmXyLxMqGdkhL4kp6E8JcTEMHqY5C", "x" * 999]
)
def test_text_that_is_no_rsa_peer_id_is_refused(text):
    with pytest.raises(IdentityError, match="not a peer id"):
        peer_digest(text)
